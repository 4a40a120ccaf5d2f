//! A NATS that permits each process what `runtime/docs/nats.md` lists, and nothing else.

use anyhow::ensure;
use reqwest::Method;
use serde_json::json;
use signalbox_integration_tests::{Cluster, Worker, eventually, workload::Workload, workspace_root};
use signalbox_test_servers::{EtcdServer, NatsOperator, NatsServer};
use tempfile::TempDir;

const CHAT: &str = "/v1/chat/completions";

/// The permissions of each role: publish, subscribe.
struct Role {
    publish: Vec<String>,
    subscribe: Vec<String>,
}

impl Role {
    fn worker() -> Self {
        Self {
            publish: strings(&[
                "$JS.API.STREAM.INFO.SIGNALBOX_KV_EVENTS",
                "signalbox.default.kv_events.*",
                "_INBOX.>",
            ]),
            subscribe: strings(&["_INBOX.>", "signalbox.default.requests.*"]),
        }
    }

    fn router() -> Self {
        let mut publish = strings(&[
            "$JS.API.CONSUMER.INFO.SIGNALBOX_KV_EVENTS.*",
            "$JS.API.DIRECT.GET.KV_signalbox-policies.>",
            "$JS.API.DIRECT.GET.OBJ_signalbox-policies.>",
            "$JS.API.STREAM.PURGE.OBJ_signalbox-policies",
            "$KV.signalbox-policies.default.>",
            "$O.signalbox-policies.>",
            "signalbox.default.sync.*",
            "signalbox.default.requests.*",
            "_INBOX.>",
        ]);
        for stream in [
            "SIGNALBOX_KV_EVENTS",
            "KV_signalbox-policies",
            "OBJ_signalbox-policies",
        ] {
            publish.extend([
                format!("$JS.API.STREAM.INFO.{stream}"),
                format!("$JS.API.CONSUMER.CREATE.{stream}"),
                format!("$JS.API.CONSUMER.CREATE.{stream}.>"),
                format!("$JS.API.CONSUMER.DELETE.{stream}.*"),
                format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.*"),
            ]);
        }
        Self {
            publish,
            subscribe: strings(&["_INBOX.>", "signalbox.default.sync.*"]),
        }
    }

    /// A router that creates what is missing.
    fn first_comer() -> Self {
        let mut role = Self::router();
        for stream in [
            "SIGNALBOX_KV_EVENTS",
            "KV_signalbox-policies",
            "OBJ_signalbox-policies",
        ] {
            role.publish
                .extend(["CREATE", "UPDATE"].map(|verb| format!("$JS.API.STREAM.{verb}.{stream}")));
        }
        role
    }

    fn json(&self) -> String {
        json!({"pub": {"allow": self.publish}, "sub": {"allow": self.subscribe}}).to_string()
    }
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

async fn upload(router: &Cluster, name: &str) -> anyhow::Result<()> {
    let component = std::fs::read(workspace_root().join("policies/built/round-robin.wasm"))?;
    let path = format!("/admin/v1/policies?name={name}");
    let reply = router.admin.send(Method::POST, &path, &[], component).await?;
    ensure!(
        matches!(reply.status, 200 | 201),
        "{} {}",
        reply.status,
        reply.text()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_permissions_are_enough_for_a_cluster() -> anyhow::Result<()> {
    let operator = NatsOperator::new();
    let mut server = NatsServer::prepare().configured(&operator.configuration());
    server.start();
    let folder = TempDir::new()?;
    let options = |name: &str, role: Role| -> anyhow::Result<[String; 2]> {
        let file = folder.path().join(name);
        std::fs::write(&file, operator.credentials(name, &role.json()))?;
        Ok([
            format!("--events={}", server.url()),
            format!("--nats-creds={}", file.display()),
        ])
    };
    let [events, first] = options("first", Role::first_comer())?;
    let [_, router] = options("router", Role::router())?;
    let [_, worker] = options("worker", Role::worker())?;

    // A worker over NATS is found in etcd only.
    let etcd = EtcdServer::started();
    let discovery = format!("--discovery={}", etcd.url());
    let creator = Cluster::serve_with(&[&discovery, &events, &first]).await?;
    upload(&creator, "mine").await?;
    let far = [
        "--speedup=0",
        "--request-plane=nats",
        &discovery,
        &events,
        &worker,
    ];
    let worker = Worker::sim("far", &far).await?;
    let router = Cluster::serve_with(&[&discovery, &events, &router]).await?;
    eventually("the router is ready", || async {
        Ok((router.api.get("/ready").await?.status == 200).then_some(()))
    })
    .await?;
    let router = router.named().await?;
    // Uploaded by the other router, and found in the store.
    let label = router.activate("mine").await?;
    ensure!(label.starts_with("mine@"), "{label}");
    upload(&router, "another").await?;
    router.activate("kv-aware").await?;

    let mut workload = Workload::new(1);
    let body = json!({"model": router.model, "messages": workload.chat(300), "max_tokens": 2});
    eventually("the worker's events arrive", || async {
        let reply = router.api.post(CHAT, &body).await?;
        ensure!(reply.status == 200, "{}", reply.text());
        Ok((reply.header("x-signalbox-overlap-blocks") != "0").then_some(()))
    })
    .await?;
    let planes = router.api.get("/health").await?.json()?["planes"].clone();
    ensure!(planes["events"]["state"] == "up", "{planes}");
    for process in [&creator.process, &router.process, &worker.process] {
        let output = process.output();
        ensure!(!output.to_lowercase().contains("violation"), "{output}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_credentials_are_one_line_and_named_in_health() -> anyhow::Result<()> {
    let mut server = NatsServer::prepare().configured("authorization { user: me, password: right }");
    server.start();
    let events = format!("--events=nats://me:wrong@{}", server.address());
    let router = Cluster::serve_with(&["--discovery=static://127.0.0.1:1", &events]).await?;
    let planes = eventually("the refusal shows", || async {
        let planes = router.api.get("/ready").await?.json()?["planes"].clone();
        let detail = planes["events"]["detail"].as_str().unwrap_or_default();
        Ok(detail.contains("refuses the user").then_some(planes.clone()))
    })
    .await?;
    ensure!(planes["events"]["state"] == "connecting", "{planes}");
    // Three more attempts, at the least.
    tokio::time::sleep(std::time::Duration::from_secs(12)).await;
    let output = router.process.output();
    let lines = output
        .lines()
        .filter(|line| line.contains("refuses the user") || line.contains("violation"));
    ensure!(lines.count() == 1, "{output}");
    ensure!(!output.contains("wrong"), "{output}");
    Ok(())
}
