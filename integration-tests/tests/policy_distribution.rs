//! A policy activated at one router decides at all routers, also at those that were not connected.

use std::time::Instant;

use anyhow::Context;
use reqwest::Method;
use serde_json::{Value, json};
use signalbox_integration_tests::{Cluster, Fleet, Reply, eventually, workspace_root};
use tempfile::TempDir;

async fn upload(router: &Cluster, name: &str) -> anyhow::Result<Value> {
    let component = std::fs::read(workspace_root().join("policies/built/round-robin.wasm"))?;
    let path = format!("/admin/v1/policies?name={name}");
    let reply = router.admin.send(Method::POST, &path, &[], component).await?;
    assert!(
        matches!(reply.status, 200 | 201),
        "{} {}",
        reply.status,
        reply.text()
    );
    reply.json()
}

async fn activate(router: &Cluster, body: Value) -> anyhow::Result<Reply> {
    router.admin.put(&policy_of(router), &body).await
}

fn policy_of(router: &Cluster) -> String {
    format!("/admin/v1/models/{}/policy", router.model)
}

/// The active policy of this router: label and revision.
async fn active(router: &Cluster) -> anyhow::Result<(String, u64)> {
    let answer = router.admin.get(&policy_of(router)).await?.json()?;
    let label = answer["active"]["policy"]
        .as_str()
        .with_context(|| answer.to_string())?
        .to_owned();
    Ok((label, answer["revision"].as_u64().unwrap_or_default()))
}

async fn decides(router: &Cluster, name: &str) -> anyhow::Result<()> {
    eventually(&format!("{name} decides"), || async {
        Ok(active(router).await?.0.starts_with(name).then_some(()))
    })
    .await
    .with_context(|| router.process.output())
}

async fn decided_by(router: &Cluster) -> anyhow::Result<String> {
    let body =
        json!({"model": router.model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1});
    let reply = router.api.post("/v1/chat/completions", &body).await?;
    assert_eq!(reply.status, 200, "{}", reply.text());
    Ok(reply.header("x-signalbox-policy").to_owned())
}

#[tokio::test]
async fn an_uploaded_policy_decides_at_the_other_router_and_after_its_restart() -> anyhow::Result<()> {
    let mut fleet = Fleet::start();
    let _worker = fleet.worker("w0", &["--speedup=0"]).await?;
    let (a, b) = (fleet.router_of(1, &[]).await?, fleet.router_of(1, &[]).await?);
    upload(&a, "mine").await?;
    let activated = Instant::now();
    assert_eq!(activate(&a, json!({"policy": "mine"})).await?.status, 200);
    decides(&b, "mine@").await?;
    println!(
        "decides at the other router {:?} after it was activated",
        activated.elapsed()
    );
    assert!(decided_by(&b).await?.starts_with("mine@"));

    drop(b);
    let restarted = fleet.router_of(1, &[]).await?;
    decides(&restarted, "mine@").await?;

    // Without NATS changes are refused, and the active policies continue to decide.
    fleet.nats.kill();
    let refused = activate(&a, json!({"policy": "round-robin"})).await?;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(decided_by(&a).await?.starts_with("mine@") && decided_by(&restarted).await?.starts_with("mine@"));
    let disconnected = fleet.router(&[]).await;
    fleet.nats.start();
    let disconnected = disconnected?;
    let again = eventually("the store takes changes again", || async {
        let reply = activate(&a, json!({"policy": "round-robin"})).await?;
        Ok((reply.status == 200).then_some(reply))
    })
    .await?;
    let revision = again.json()?["revision"].as_u64();
    decides(&restarted, "round-robin@").await?;
    eventually("the router that started without NATS has it too", || async {
        let models = disconnected.api.get("/v1/models").await?.json()?;
        if models["data"][0]["id"].is_null() {
            return Ok(None);
        }
        let answer = disconnected.admin.get(&policy_of(&a)).await?.json()?;
        Ok((answer["revision"].as_u64() == revision).then_some(()))
    })
    .await
    .with_context(|| disconnected.process.output())
}

#[tokio::test]
async fn of_two_changes_at_the_same_time_one_is_refused() -> anyhow::Result<()> {
    let fleet = Fleet::start();
    let _worker = fleet.worker("w0", &["--speedup=0"]).await?;
    let (a, b) = (fleet.router_of(1, &[]).await?, fleet.router_of(1, &[]).await?);
    assert_eq!(activate(&a, json!({"policy": "round-robin"})).await?.status, 200);
    decides(&b, "round-robin@").await?;
    for round in 0..5 {
        let (_, revision) = active(&a).await?;
        eventually("both see the same revision", || async {
            Ok((active(&b).await?.1 == revision).then_some(()))
        })
        .await?;
        let policies = if round % 2 == 0 {
            ["kv-aware", "replica-synced"]
        } else {
            ["round-robin", "kv-aware"]
        };
        let (first, second) = tokio::join!(
            activate(&a, json!({"policy": policies[0], "revision": revision})),
            activate(&b, json!({"policy": policies[1], "revision": revision})),
        );
        let (first, second) = (first?, second?);
        let mut statuses = [first.status, second.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 409], "{} {}", first.text(), second.text());
        let loser = if first.status == 409 { &first } else { &second };
        let winner = if first.status == 200 {
            policies[0]
        } else {
            policies[1]
        };
        assert!(loser.text().contains(winner), "{}", loser.text());
        decides(&a, winner).await?;
        decides(&b, winner).await?;
    }
    Ok(())
}

#[tokio::test]
async fn policies_in_a_folder_survive_a_restart() -> anyhow::Result<()> {
    let folder = TempDir::new()?;
    let option = format!("--policy-dir={}", folder.path().display());
    let arguments = ["--workers=1", "--speedup=0", option.as_str()];
    let first = Cluster::sim(&arguments).await?;
    upload(&first, "mine").await?;
    assert_eq!(activate(&first, json!({"policy": "mine"})).await?.status, 200);
    drop(first);
    let second = Cluster::sim(&arguments).await?;
    decides(&second, "mine@").await?;
    assert!(decided_by(&second).await?.starts_with("mine@"));
    let listed = second.admin.get("/admin/v1/policies").await?.json()?;
    assert!(
        listed["policies"]
            .as_array()
            .is_some_and(|all| all.iter().any(|policy| policy["name"] == "mine")),
        "{listed}"
    );
    Ok(())
}
