//! A cluster of three servers: copies of the stream, changes of its leader, the loss of its quorum.

use signalbox_nats::{NatsConfig, async_nats::jetstream::stream::Info};
use signalbox_test_servers::NatsCluster;

use super::{support::PATIENCE, *};

/// A change of leaders costs less than this, the election aside: well under the two time-outs of five seconds that it took.
const CHANGE: Duration = Duration::from_secs(4);

async fn connect_all(cluster: &NatsCluster) -> NatsConnection {
    let config = NatsConfig {
        url: cluster.url(),
        ..NatsConfig::default()
    };
    NatsConnection::start(&config, "test").await.unwrap()
}

async fn plane_with(cluster: &NatsCluster, replicas: Replicas) -> Arc<NatsPlane> {
    let config = NatsPlaneConfig {
        namespace: "own".into(),
        replicas,
        ..NatsPlaneConfig::default()
    };
    let plane = NatsPlane::start(connect_all(cluster).await, config);
    becomes(&plane, |state, _| *state == PlaneState::Up).await;
    plane
}

/// Polls until the stream is as wanted: the servers announce no changes.
async fn stream_becomes(raw: &Raw, wanted: impl Fn(&Info) -> bool) -> Info {
    let found = async {
        loop {
            if let Ok(stream) = raw.jetstream.get_stream(STREAM).await
                && wanted(stream.cached_info())
            {
                return stream.cached_info().clone();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.expect("in time")
}

fn leader(info: &Info) -> Option<String> {
    info.cluster
        .as_ref()?
        .leader
        .clone()
        .filter(|name| !name.is_empty())
}

fn has_three_current_copies(info: &Info) -> bool {
    let followers = info.cluster.iter().flat_map(|cluster| &cluster.replicas);
    leader(info).is_some() && followers.filter(|follower| follower.current).count() == 2
}

#[tokio::test]
async fn routers_raise_the_number_of_copies_and_nobody_lowers_it() {
    let cluster = NatsCluster::started();
    let raw = Raw {
        jetstream: jetstream_of(&cluster).await,
    };
    let copies = |wanted: usize| move |info: &Info| info.config.num_replicas == wanted;
    // A worker of the first namespace comes first, without the setting.
    let _first = plane_with(&cluster, Replicas::at_creation(None)).await;
    stream_becomes(&raw, copies(1)).await;
    let _worker = plane_with(&cluster, Replicas::at_creation(Some(3))).await;
    stream_becomes(&raw, copies(1)).await;
    let _router = plane_with(&cluster, Replicas::raised_to(Some(3))).await;
    stream_becomes(&raw, copies(3)).await;
    for later in [None, Some(1)] {
        let _other = plane_with(&cluster, Replicas::raised_to(later)).await;
        stream_becomes(&raw, copies(3)).await;
    }
}

async fn jetstream_of(cluster: &NatsCluster) -> signalbox_nats::async_nats::jetstream::Context {
    signalbox_nats::async_nats::jetstream::new(connect_all(cluster).await.client().clone())
}

#[tokio::test]
async fn events_outlast_a_change_of_leaders_and_the_loss_of_the_leaders_server() {
    let mut cluster = NatsCluster::started();
    let replicas = Replicas::raised_to(Some(3));
    let (at_worker, at_router) = (
        plane_with(&cluster, replicas.clone()).await,
        plane_with(&cluster, replicas).await,
    );
    at_router.ready().await;
    let raw = Raw {
        jetstream: jetstream_of(&cluster).await,
    };
    let mut subscription = at_router.subscribe(&worker("a"), Some((EPOCH, 0)));
    publish(&at_worker, "a", 0..10);
    read_to(&mut subscription, 9).await;

    let before = leader(&stream_becomes(&raw, has_three_current_copies).await).unwrap();
    let step_down = format!("$JS.API.STREAM.LEADER.STEPDOWN.{STREAM}");
    let operator = connect_all(&cluster).await;
    operator.client().request(step_down, "".into()).await.unwrap();
    let began = Instant::now();
    publish(&at_worker, "a", 10..20);
    stream_becomes(&raw, |info| leader(info).is_some_and(|leader| leader != before)).await;
    let elected = began.elapsed();
    read_to(&mut subscription, 19).await;
    println!(
        "a new leader after {elected:?}, its events after {:?}",
        began.elapsed()
    );
    assert!(began.elapsed() < elected + CHANGE, "{:?}", began.elapsed());

    let leading = leader(&stream_becomes(&raw, has_three_current_copies).await).unwrap();
    cluster.named(&leading).kill();
    publish(&at_worker, "a", 20..30);
    read_to(&mut subscription, 29).await;

    // One server of three has no quorum.
    let other = cluster
        .servers
        .iter()
        .position(|server| server.url() != cluster_url(&cluster, &leading))
        .unwrap();
    cluster.servers[other].kill();
    publish(&at_worker, "a", 30..40);
    becomes(&at_worker, |state, _| *state == PlaneState::Down).await;
    becomes(&at_router, |state, _| *state == PlaneState::Down).await;
    // One comes back with its data, the other without.
    cluster.servers[other].start();
    cluster.named(&leading).wipe();
    cluster.named(&leading).start();
    read_to(&mut subscription, 39).await;
    becomes(&at_router, |state, _| *state == PlaneState::Up).await;
    becomes(&at_worker, |state, _| *state == PlaneState::Up).await;
}

fn cluster_url(cluster: &NatsCluster, name: &str) -> String {
    let number: usize = name.trim_start_matches('n').parse().unwrap();
    cluster.servers[number].url()
}

/// Reads until this batch. Batches may come again.
async fn read_to(subscription: &mut Subscription, last: u64) {
    while next(subscription).await != Delivery::Batch(batch(last)) {}
}
