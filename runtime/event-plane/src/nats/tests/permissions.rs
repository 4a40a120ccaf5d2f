//! What a server must permit, and what the plane reports where it does not.

use signalbox_nats::NatsConfig;

use super::*;

/// The least for a worker and for a router beside the first comer, as `README.md` lists it.
const WORKER: &str = r#"publish: ["$JS.API.STREAM.INFO.SIGNALBOX_KV_EVENTS", "signalbox.own.kv_events.*"], subscribe: "_INBOX.>""#;
const ROUTER: &str = r#"publish: ["$JS.API.STREAM.INFO.SIGNALBOX_KV_EVENTS", "$JS.API.CONSUMER.CREATE.SIGNALBOX_KV_EVENTS",
    "$JS.API.CONSUMER.CREATE.SIGNALBOX_KV_EVENTS.>", "$JS.API.CONSUMER.INFO.SIGNALBOX_KV_EVENTS.*",
    "$JS.API.CONSUMER.MSG.NEXT.SIGNALBOX_KV_EVENTS.*"], subscribe: "_INBOX.>""#;

/// A server with a user for each of these permissions, and one with all of them, which has created the stream.
async fn server(users: &[(&str, String)]) -> NatsServer {
    let users: Vec<_> = users
        .iter()
        .map(|(name, permissions)| {
            format!("{{ user: {name}, password: p, permissions: {{ {permissions} }} }}")
        })
        .collect();
    let mut server = NatsServer::prepare().configured(&format!(
        "authorization {{ users: [{{ user: root, password: p }}, {}] }}",
        users.join(", ")
    ));
    server.start();
    let first = plane_of(&server, "root").await;
    becomes(&first, |state, _| *state == PlaneState::Up).await;
    server
}

async fn plane_of(server: &NatsServer, user: &str) -> Arc<NatsPlane> {
    let config = NatsConfig {
        url: format!("nats://{user}:p@{}", server.address()),
        ..NatsConfig::default()
    };
    let connection = NatsConnection::start(&config, user).await.unwrap();
    let config = NatsPlaneConfig {
        namespace: "own".into(),
        ..NatsPlaneConfig::default()
    };
    NatsPlane::start(connection, config)
}

#[tokio::test]
async fn the_documented_permissions_are_enough() {
    let server = server(&[("worker", WORKER.into()), ("router", ROUTER.into())]).await;
    let (at_worker, at_router) = (
        plane_of(&server, "worker").await,
        plane_of(&server, "router").await,
    );
    at_router.ready().await;
    let mut subscription = at_router.subscribe(&worker("a"), None);
    publish(&at_worker, "a", 0..10);
    expect(&mut subscription, 0..10).await;
    becomes(&at_router, |state, _| *state == PlaneState::Up).await;
    becomes(&at_worker, |state, _| *state == PlaneState::Up).await;
}

#[tokio::test]
async fn a_worker_that_may_not_publish_reports_it() {
    let permissions = WORKER.replace("own.kv_events", "other.kv_events");
    let server = server(&[("worker", permissions)]).await;
    let at_worker = plane_of(&server, "worker").await;
    publish(&at_worker, "a", 0..1);
    let denied = |_: &PlaneState, detail: &str| detail.contains("publish to signalbox.own.kv_events.a");
    becomes(&at_worker, denied).await;
}

#[tokio::test]
async fn a_router_reports_each_permission_that_it_lacks() {
    for (lacking, reason) in [
        ("STREAM.INFO", "publish to $JS.API.STREAM.INFO."),
        ("CONSUMER.CREATE", "publish to $JS.API.CONSUMER.CREATE."),
        ("CONSUMER.INFO", "publish to $JS.API.CONSUMER.INFO."),
        ("CONSUMER.MSG.NEXT", "publish to $JS.API.CONSUMER.MSG.NEXT."),
        ("_INBOX", "subscribe to _INBOX.>"),
    ] {
        let server = server(&[("router", ROUTER.replace(lacking, "NOTHING"))]).await;
        let at_router = plane_of(&server, "router").await;
        let _subscription = at_router.subscribe(&worker("a"), None);
        let detail = becomes(&at_router, |_, detail| detail.contains(reason)).await;
        assert!(detail.contains("does not permit"), "{detail}");
        assert_ne!(
            at_router.status().borrow().state,
            PlaneState::Up,
            "without {lacking}"
        );
    }
}
