//! The lifecycle of policies, by `runtime policy` and the admin API, at one router and at two with one store.

use std::path::Path;

use anyhow::{Context, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use signalbox_integration_tests::{Cluster, Fleet, eventually, process::Process, workspace_root};
use tempfile::TempDir;

/// Runs `runtime policy` against a router, as bob, and returns what it prints.
async fn policy(router: &Cluster, arguments: &[&str]) -> anyhow::Result<String> {
    let admin = format!("--admin={}", router.admin.base());
    let mut process = Process::start(&[&["policy"], arguments, &[&admin, "--user=bob"]].concat())?;
    let end = process.ended().await?;
    Ok(end.stdout + &end.stderr)
}

async fn json_of(router: &Cluster, arguments: &[&str]) -> anyhow::Result<Value> {
    let output = policy(router, &[arguments, &["--json"]].concat()).await?;
    serde_json::from_str(&output).with_context(|| output.clone())
}

fn component(name: &str) -> String {
    let path = workspace_root().join("policies/built").join(name);
    path.display().to_string()
}

#[tokio::test]
async fn a_policy_is_pushed_activated_rolled_back_downloaded_and_deleted() -> anyhow::Result<()> {
    let folder = TempDir::new()?;
    let audit = folder.path().join("audit.jsonl");
    let option = format!("--audit-log={}", audit.display());
    let router = Cluster::sim(&["--workers=1", "--speedup=0", &option]).await?;
    let model = router.model.as_str();

    let pushed = policy(&router, &["push", &component("round-robin.wasm"), "--name=mine"]).await?;
    ensure!(pushed.contains("mine@1.0.0"), "{pushed}");
    let activated = policy(&router, &["activate", model, "mine@1"]).await?;
    ensure!(activated.contains("mine@1.0.0 decides for"), "{activated}");
    let shown = json_of(&router, &["show", "--model", model]).await?;
    assert_eq!(shown["active"]["policy"], "mine@1.0.0");
    let refused = policy(&router, &["delete", "mine"]).await?;
    ensure!(refused.contains(&format!("decides for {model}")), "{refused}");

    let second = json_of(
        &router,
        &["activate", model, "kv-linear", "--settings={\"min_overlap\":0.2}"],
    )
    .await?;
    let stale = policy(&router, &["activate", model, "kv-aware", "--revision=1"]).await?;
    ensure!(
        second["revision"] != 1 && stale.contains("has changed"),
        "{stale}"
    );
    let back = json_of(&router, &["rollback", model, "--to-revision=0"]).await?;
    let default = back["active"]["policy"].as_str().unwrap_or_default();
    ensure!(default.starts_with("kv-aware@"), "{back}");
    let history = json_of(&router, &["history", model]).await?;
    let shown: Vec<_> = history["history"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| {
            (
                item["action"].as_str().unwrap(),
                item["by"].as_str().unwrap(),
                item["policy"].as_str().unwrap().split('@').next().unwrap(),
            )
        })
        .collect();
    let bob = "bob at 127.0.0.1";
    let expected = [
        ("rollback", bob, "kv-aware"),
        ("activate", bob, "kv-linear"),
        ("activate", bob, "mine"),
        ("default", "", "kv-aware"),
    ];
    assert_eq!(shown, expected);
    assert_eq!(history["history"][1]["settings"], json!({"min_overlap": 0.2}));

    let copy = folder.path().join("copy.wasm");
    policy(
        &router,
        &["download", "mine", "--output", &copy.display().to_string()],
    )
    .await?;
    assert_eq!(
        std::fs::read(&copy)?,
        std::fs::read(component("round-robin.wasm"))?
    );
    let digest = json_of(&router, &["show", "mine"]).await?["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let by_digest = format!("mine@sha256:{}", &digest[..12]);
    let deleted = policy(&router, &["delete", &by_digest]).await?;
    ensure!(deleted.contains("deleted mine@1.0.0"), "{deleted}");
    let listed = policy(&router, &["list"]).await?;
    ensure!(
        listed.contains("kv-aware@") && !listed.contains("mine@"),
        "{listed}"
    );

    let lines = eventually("the audit log has all changes", || async {
        let text = std::fs::read_to_string(&audit)?;
        let lines: Vec<Value> = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        Ok((lines.len() == 5).then_some(lines))
    })
    .await?;
    let actions: Vec<_> = lines
        .iter()
        .map(|line| line["action"].as_str().unwrap())
        .collect();
    assert_eq!(actions, ["upload", "activate", "activate", "rollback", "delete"]);
    assert!(
        lines.iter().all(|line| line["by"] == bob && line["here"] == true),
        "{lines:?}"
    );
    assert_eq!(lines[0]["digest"], *digest);
    Ok(())
}

#[tokio::test]
async fn two_routers_show_one_history_and_a_deleted_version_leaves_both() -> anyhow::Result<()> {
    let fleet = Fleet::start();
    let _worker = fleet.worker("w0", &["--speedup=0"]).await?;
    let (a, b) = (fleet.router_of(1, &[]).await?, fleet.router_of(1, &[]).await?);
    let model = a.model.as_str();
    // Prepared before any worker serves it.
    let prepared = policy(&a, &["activate", "org/later", "round-robin"]).await?;
    ensure!(prepared.contains("no worker serves org/later yet"), "{prepared}");
    policy(&a, &["push", &component("round-robin.wasm"), "--name=mine"]).await?;
    let first = json_of(&a, &["activate", model, "mine"]).await?["revision"].clone();
    let second = json_of(&a, &["activate", model, "kv-linear"]).await?["revision"].clone();
    eventually("the other router has the second change", || async {
        let shown = json_of(&b, &["show", "--model", model]).await?;
        Ok((shown["revision"] == second).then_some(()))
    })
    .await?;
    let to = format!("--to-revision={first}");
    let back = json_of(&b, &["rollback", model, &to, &format!("--revision={second}")]).await?;
    assert_eq!(back["active"]["policy"], "mine@1.0.0");
    eventually("both have one history", || async {
        let histories = (
            json_of(&a, &["history", model]).await?,
            json_of(&b, &["history", model]).await?,
        );
        let is_whole = histories.0["history"]
            .as_array()
            .is_some_and(|history| history.len() == 4);
        Ok((is_whole && histories.0 == histories.1).then_some(()))
    })
    .await?;
    assert_eq!(
        json_of(&b, &["show", "--model", "org/later"]).await?["served"],
        false
    );

    // A quarantine at one router is an event at both.
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests/trap.wasm");
    policy(&a, &["push", &guest.display().to_string()]).await?;
    policy(&a, &["activate", model, "trap"]).await?;
    for _ in 0..5 {
        let body =
            json!({"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1});
        assert_eq!(a.api.post("/v1/chat/completions", &body).await?.status, 200);
    }
    for router in [&a, &b] {
        let event = eventually("the quarantine is shown", || async {
            // The other router may not have the upload yet.
            let reply = router.admin.get("/admin/v1/policies/trap").await?;
            let event = reply.json()?["last_quarantine"].clone();
            Ok(event.is_object().then_some(event))
        })
        .await?;
        assert!(event["reason"].as_str().unwrap().contains("trapped"), "{event}");
        assert_eq!(event["models"], json!([model]));
    }
    policy(&a, &["activate", model, "kv-aware"]).await?;
    policy(&a, &["delete", "mine"]).await?;
    eventually("the version left the other router too", || async {
        let gone = b
            .admin
            .send(Method::GET, "/admin/v1/policies/mine", &[], "")
            .await?;
        Ok((gone.status == 404).then_some(()))
    })
    .await
}
