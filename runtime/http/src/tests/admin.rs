//! The admin API, over its own listener.

use serde_json::json;

use super::*;
use crate::HttpError;

#[actix_rt::test]
async fn a_policy_is_activated_and_rolled_back_and_the_next_answer_names_it() {
    let mut rig = Rig::serving("org/swapped").await;
    let path = "/admin/v1/models/org/swapped/policy";
    let active = rig.admin(get(path).as_bytes()).await.json();
    assert!(
        active["active"]["policy"]
            .as_str()
            .unwrap()
            .starts_with("round-robin@"),
        "{active}"
    );
    let swapped = rig
        .admin(request("PUT", path, r#"{"policy":"kv-aware"}"#).as_bytes())
        .await
        .json();
    assert!(
        swapped["active"]["policy"]
            .as_str()
            .unwrap()
            .starts_with("kv-aware@"),
        "{swapped}"
    );
    assert!(
        swapped["before"]["policy"]
            .as_str()
            .unwrap()
            .starts_with("round-robin@"),
        "{swapped}"
    );
    let address = rig.http.public_address();
    let client = actix_rt::spawn(async move { exchange(address, chat("org/swapped", "").as_bytes()).await });
    let (_, _, responder) = rig.call().await;
    responder.queue(1, b"{}").unwrap();
    responder.end(StreamSummary::default());
    let reply = client.await.unwrap();
    assert_eq!(
        reply.header("x-signalbox-policy"),
        swapped["active"]["policy"].as_str()
    );
    let back = rig
        .admin(post(&format!("{path}/rollback"), "").as_bytes())
        .await
        .json();
    assert_eq!(back["active"]["policy"], active["active"]["policy"]);
    rig.admin(request("PUT", path, r#"{"policy":"none"}"#).as_bytes())
        .await
        .check_error(404, None);
    rig.admin(request("PUT", path, r#"{"polcy":"none"}"#).as_bytes())
        .await
        .check_error(400, None);
}

#[actix_rt::test]
async fn a_model_that_no_worker_serves_yet_can_be_prepared() {
    let rig = Rig::serving("served").await;
    let path = "/admin/v1/models/org/later/policy";
    rig.admin(get(path).as_bytes())
        .await
        .check_error(404, Some("model"));
    let prepared = rig
        .admin(request("PUT", path, r#"{"policy":"kv-aware"}"#).as_bytes())
        .await
        .json();
    assert_eq!(
        (&prepared["model"], &prepared["served"]),
        (&"org/later".into(), &false.into())
    );
    let shown = rig.admin(get(path).as_bytes()).await.json();
    assert_eq!(shown["active"]["policy"], prepared["active"]["policy"]);
    let back = rig
        .admin(post(&format!("{path}/rollback"), "").as_bytes())
        .await
        .json();
    assert!(
        back["active"]["policy"]
            .as_str()
            .unwrap()
            .starts_with("round-robin@")
    );
}

#[actix_rt::test]
async fn the_history_names_the_callers_and_a_condition_that_does_not_hold_changes_nothing() {
    let rig = Rig::serving("audited").await;
    let path = "/admin/v1/models/audited/policy";
    let with = |line: &str, request: String| request.replacen("\r\n", &format!("\r\n{line}\r\n"), 1);
    let put = |policy: &str| request("PUT", path, &json!({"policy": policy}).to_string());
    let first = rig
        .admin(with("X-Signalbox-User: alice", put("kv-aware")).as_bytes())
        .await;
    let revision = first.json()["revision"].as_u64().unwrap();
    assert_eq!(first.header("etag"), Some(&*format!("\"{revision}\"")));
    let stale = with(&format!("If-Match: \"{}\"", revision + 1), put("replica-synced"));
    rig.admin(stale.as_bytes()).await.check_error(412, None);
    let current = with(&format!("If-Match: \"{revision}\""), put("replica-synced"));
    let second = rig.admin(current.as_bytes()).await.json();
    let stale = with("If-Match: \"1\"", post(&format!("{path}/rollback"), ""));
    rig.admin(stale.as_bytes()).await.check_error(412, None);
    let body = json!({"to_revision": 0}).to_string();
    let back = rig
        .admin(post(&format!("{path}/rollback"), &body).as_bytes())
        .await
        .json();
    assert!(
        back["active"]["policy"]
            .as_str()
            .unwrap()
            .starts_with("round-robin@")
    );
    let history = rig.admin(get(&format!("{path}/history")).as_bytes()).await.json();
    let shown: Vec<_> = history["history"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| {
            (
                item["revision"].as_u64().unwrap(),
                item["action"].as_str().unwrap(),
                item["by"].as_str().unwrap(),
            )
        })
        .collect();
    let expected = [
        (back["revision"].as_u64().unwrap(), "rollback", "127.0.0.1"),
        (second["revision"].as_u64().unwrap(), "activate", "127.0.0.1"),
        (revision, "activate", "alice at 127.0.0.1"),
        (0, "default", ""),
    ];
    assert_eq!(shown, expected);
    let audit = rig.admin(get("/admin/v1/audit").as_bytes()).await.json();
    assert_eq!(audit["records"][2]["by"], "alice at 127.0.0.1");
    for (method, query) in [
        ("PUT", "?setings=%7B%7D"),
        ("GET", "?x"),
        ("POST", "/rollback?to=1"),
    ] {
        let refused = request(method, &format!("{path}{query}"), r#"{"policy":"kv-linear"}"#);
        let message = rig.admin(refused.as_bytes()).await.check_error(400, None);
        assert!(message.contains("no query"), "{message}");
    }
    let listed = rig.admin(get("/admin/v1/policies?name=x").as_bytes()).await;
    listed.check_error(400, None);
}

#[actix_rt::test]
async fn a_version_is_shown_downloaded_and_deleted() {
    let rig = Rig::start(None, |_| ()).await;
    let (_, component) = signalbox_router::policies::builtin_policies()[0];
    let replicator = rig.router.policy_replicator();
    let upload = replicator.upload("mine".into(), component.into(), String::new(), "alice".into());
    let (record, _) = upload.await.unwrap();
    let by_digest = format!("/admin/v1/policies/mine@sha256:{}", &record.digest[..10]);
    for path in [
        "/admin/v1/policies/mine",
        "/admin/v1/policies/mine@1",
        by_digest.as_str(),
    ] {
        let shown = rig.admin(get(path).as_bytes()).await.json();
        assert_eq!(
            (&shown["digest"], &shown["last_quarantine"]),
            (&json!(record.digest), &Value::Null)
        );
    }
    let downloaded = rig
        .admin(get("/admin/v1/policies/mine/component").as_bytes())
        .await;
    assert_eq!(downloaded.header("content-type"), Some("application/wasm"));
    assert_eq!(downloaded.body, component);
    let builtin = rig
        .admin(get("/admin/v1/policies/kv-aware/component").as_bytes())
        .await;
    assert_eq!(builtin.status, 200);
    let delete = |path: &str| request("DELETE", path, "");
    rig.admin(delete("/admin/v1/policies/kv-aware").as_bytes())
        .await
        .check_error(409, None);
    rig.admin(delete("/admin/v1/policies/nobody").as_bytes())
        .await
        .check_error(404, None);
    let deleted = rig.admin(delete(&by_digest).as_bytes()).await.json();
    assert_eq!(deleted["deleted"]["name"], "mine");
    rig.admin(get("/admin/v1/policies/mine").as_bytes())
        .await
        .check_error(404, None);
}

#[actix_rt::test]
async fn an_activation_has_a_revision_and_a_stale_one_is_refused() {
    let rig = Rig::serving("revised").await;
    let path = "/admin/v1/models/revised/policy";
    let untouched = rig.admin(get(path).as_bytes()).await.json();
    assert_eq!(
        (&untouched["revision"], &untouched["active"]["settings"]),
        (&0.into(), &json!({}))
    );
    let put = async |body: Value| {
        rig.admin(request("PUT", path, &body.to_string()).as_bytes())
            .await
    };
    let first = put(json!({"policy": "kv-aware", "revision": 0})).await.json();
    let revision = first["revision"].as_u64().unwrap();
    assert!(revision > 0, "{first}");
    for body in ["active", "before"] {
        assert_eq!(first[body]["settings"], json!({}), "{first}");
    }
    assert_eq!(rig.admin(get(path).as_bytes()).await.json()["revision"], revision);
    for stale in [0, revision + 1] {
        let message = put(json!({"policy": "replica-synced", "revision": stale}))
            .await
            .check_error(409, None);
        assert!(
            message.contains("kv-aware@") && message.contains(&format!("revision {revision}")),
            "{message}"
        );
    }
    let settings = json!({"pressure_ms": 2});
    let body = json!({"policy": "kv-aware", "settings": settings, "revision": revision});
    let second = put(body).await.json();
    assert_eq!(second["active"]["settings"], settings);
    let back = rig
        .admin(post(&format!("{path}/rollback"), "").as_bytes())
        .await
        .json();
    assert_eq!(back["active"]["settings"], json!({}));
    assert!(back["revision"].as_u64() > second["revision"].as_u64(), "{back}");
}

#[actix_rt::test]
async fn an_upload_is_stored_once_and_an_invalid_one_is_refused_with_the_reason() {
    let rig = Rig::start(None, |_| ()).await;
    let (_, component) = signalbox_router::policies::builtin_policies()[0];
    let upload = |name: &str, component: &[u8]| {
        let mut request = request("POST", &format!("/admin/v1/policies?name={name}"), "").into_bytes();
        let length = format!("Content-Length: {}", component.len());
        request = String::from_utf8(request)
            .unwrap()
            .replace("Content-Length: 0", &length)
            .into_bytes();
        request.extend_from_slice(component);
        request
    };
    let stored = rig.admin(&upload("mine", component)).await;
    assert_eq!((stored.status, &stored.json()["name"]), (201, &"mine".into()));
    assert_eq!(stored.json()["digest"].as_str().unwrap().len(), 64);
    assert_eq!(rig.admin(&upload("mine", component)).await.status, 200);
    let list = rig.admin(get("/admin/v1/policies").as_bytes()).await.json();
    assert!(
        list["policies"]
            .as_array()
            .unwrap()
            .iter()
            .any(|policy| policy["name"] == "mine")
    );
    let message = rig
        .admin(&upload("broken", b"not a component"))
        .await
        .check_error(422, None);
    assert!(message.len() > 20, "{message}");
    rig.admin(&upload("Bad%20Name", component))
        .await
        .check_error(422, None);
    let limit = rig.router.policies().limits().max_component_bytes;
    let message = rig
        .admin(&upload("large", &vec![0; limit + 1]))
        .await
        .check_error(413, None);
    assert!(
        message.contains("component") && message.contains(&limit.to_string()),
        "{message}"
    );
    rig.admin(post("/admin/v1/policies", "x").as_bytes())
        .await
        .check_error(400, Some("name"));
    rig.admin(&upload("mine&activate=true", component))
        .await
        .check_error(400, None);
    rig.admin(&upload("round-robin", &learner()))
        .await
        .check_error(409, None);
}

/// A policy that takes any settings.
fn learner() -> Vec<u8> {
    let guests = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../integration-tests/guests");
    std::fs::read(guests.join("learner.wasm")).unwrap()
}

#[actix_rt::test]
async fn settings_that_no_query_holds_travel_in_a_document() {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let rig = Rig::start(None, |_| ()).await;
    let long = |bytes: usize| json!({"forget": false, "note": "x".repeat(bytes)});
    let document = |settings: &Value| {
        json!({"name": "mine", "settings": settings, "component": BASE64_STANDARD.encode(learner())})
            .to_string()
    };
    let send = async |body: String| {
        let request = post("/admin/v1/policies", &body);
        let request = request.replace(
            "Content-Length:",
            "Content-Type: application/json\r\nContent-Length:",
        );
        rig.admin(request.as_bytes()).await
    };
    let settings = json!({"forget": true});
    let stored = send(document(&settings)).await;
    assert_eq!((stored.status, &stored.json()["settings"]), (201, &settings));
    let refusal = send(document(&long(60_000))).await.check_error(422, None);
    assert!(
        refusal.contains("no setting \"note\""),
        "the policy reads them: {refusal}"
    );
    let refusal = send(document(&long(70_000))).await.check_error(422, None);
    assert!(refusal.contains("at most 65536"), "{refusal}");
    let limit = rig.router.policies().limits().max_component_bytes;
    let large = json!({"name": "mine", "component": "A".repeat(2 * limit)}).to_string();
    send(large).await.check_error(413, None);
    send("{".into()).await.check_error(400, None);
}

#[actix_rt::test]
async fn workers_and_index_are_shown() {
    let rig = Rig::serving("shown").await;
    let workers = rig.admin(get("/admin/v1/workers").as_bytes()).await.json();
    assert_eq!(
        (
            &workers["workers"][0]["card"]["id"],
            &workers["workers"][0]["state"]
        ),
        (&"worker-0".into(), &"ready".into())
    );
    assert!(rig.admin(get("/admin/v1/index").as_bytes()).await.json()["blocks"].is_number());
    rig.admin(get("/admin/v1/none").as_bytes())
        .await
        .check_error(404, None);
    rig.admin(post("/metrics", "").as_bytes())
        .await
        .check_error(405, None);
}

#[actix_rt::test]
async fn a_token_guards_every_admin_path() {
    let rig = Rig::start(None, |config| config.admin_token = Some("secret".into())).await;
    for path in ["/metrics", "/admin/v1/policies", "/admin/v1/none"] {
        let reply = rig.admin(get(path).as_bytes()).await;
        reply.check_error(401, None);
        assert_eq!(reply.header("www-authenticate"), Some("bearer"));
    }
    let with = get("/metrics").replace("Host:", "Authorization: Bearer secret\r\nHost:");
    assert_eq!(rig.admin(with.as_bytes()).await.status, 200);
}

#[actix_rt::test]
async fn a_port_in_use_and_an_exposed_admin_api_are_refused_at_once() {
    let rig = Rig::start(None, |_| ()).await;
    let bind = |public, admin| {
        let config = HttpConfig {
            public,
            admin,
            ..HttpConfig::default()
        };
        HttpServer::bind(config, rig.router.clone(), recorder()).unwrap_err()
    };
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    let taken = bind(rig.http.public_address(), free);
    assert!(matches!(taken, HttpError::Bind { address, .. } if address == rig.http.public_address()));
    assert!(
        taken.to_string().contains(&rig.http.public_address().to_string()),
        "{taken}"
    );
    let exposed = bind(free, SocketAddr::from(([0, 0, 0, 0], 0)));
    assert!(matches!(exposed, HttpError::AdminExposed { .. }), "{exposed}");
}
