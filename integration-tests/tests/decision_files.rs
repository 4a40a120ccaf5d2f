//! Decisions that leave a router: to a file, to NATS, and on into tests of policies and replays.

use std::{collections::BTreeSet, path::Path, time::Duration};

use anyhow::{Context, ensure};
use futures_util::StreamExt;
use serde_json::{Value, json};
use signalbox_integration_tests::{
    Cluster, Fleet, eventually,
    process::{Process, ProcessEnd},
};
use tempfile::TempDir;

/// Sends chats of one session each, one after the other, whose prompts share beginnings. Returns the ids of the requests.
async fn chat(cluster: &Cluster, chats: usize, turns: usize) -> anyhow::Result<BTreeSet<String>> {
    let mut requests = BTreeSet::new();
    for number in 0..chats {
        for turn in 1..=turns {
            let words = "Why is the sky blue, and the sea? ".repeat(10 * turn);
            let body = json!({
                "model": cluster.model,
                "messages": [{"role": "user", "content": format!("{}: {words}", number % 4)}],
                "session_id": format!("chat-{number}"),
                "max_tokens": 3,
            });
            let reply = cluster.api.post("/v1/chat/completions", &body).await?;
            ensure!(reply.status == 200, "{} {}", reply.status, reply.text());
            requests.insert(reply.header("x-request-id").to_owned());
        }
    }
    Ok(requests)
}

/// Waits until a decision log has `count` lines, and returns them.
async fn lines(path: &Path, count: usize) -> anyhow::Result<Vec<Value>> {
    eventually(&format!("{count} decisions are written"), || async {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let whole = text.matches('\n').count();
        if whole < count {
            return Ok(None);
        }
        let lines: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        Ok(Some(lines))
    })
    .await
}

async fn run(arguments: &[&str]) -> anyhow::Result<ProcessEnd> {
    Process::start(arguments)?.ended().await
}

#[tokio::test]
async fn recorded_decisions_are_made_again_to_the_pick_and_replayed() -> anyhow::Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("decisions.jsonl");
    let file = path.display().to_string();
    let log = format!("--decision-log={file}");
    let mut cluster = Cluster::sim(&["--workers=3", "--speedup=0", "--http-threads=2", &log]).await?;
    let requests = chat(&cluster, 20, 3).await?;
    let written = lines(&path, requests.len()).await?;
    let recorded: BTreeSet<_> = written
        .iter()
        .filter_map(|line| line["request"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(recorded, requests);
    for line in &written {
        assert_eq!(line["signalbox_decision"], 1, "{line}");
        let costs = line["costs"].as_array().context("costs")?;
        let chosen = line["chosen"].as_u64().context("chosen")? as usize;
        let cost = |row: usize| costs[row].as_f64().unwrap_or(f64::INFINITY);
        assert!((0..costs.len()).all(|row| cost(chosen) <= cost(row)), "{line}");
        let blocks = line["blocks"].as_str().context("blocks")?;
        assert_eq!(
            blocks.len() as u64 / 16,
            line["features"]["prompt_blocks"].as_u64().unwrap_or(0)
        );
        assert_eq!(line["outcome"]["output_tokens"], 3, "{line}");
        assert!(line["outcome"]["ttft_ms"].is_number(), "{line}");
    }

    // The same component and settings: the same picks.
    let same = run(&["policy", "test", "kv-aware", "--decisions", &file]).await?;
    assert!(same.status.success(), "{}{}", same.stdout, same.stderr);
    let total = requests.len();
    let expected = format!("{total} decisions compared: {total} the same, 0 at another worker");
    assert!(same.stdout.contains(&expected), "{}", same.stdout);
    let own = format!("this component had made {total} of them with these settings; 0 of these differ");
    assert!(same.stdout.contains(&own), "{}", same.stdout);
    // Another policy: where it differs.
    let other = run(&["policy", "test", "round-robin", "--decisions", &file, "--show=2"]).await?;
    assert_eq!(other.status.code(), Some(1), "{}{}", other.stdout, other.stderr);
    assert!(other.stdout.contains(" then, "), "{}", other.stdout);
    let none = run(&["policy", "test", "kv-aware", "--decisions", "/nowhere"]).await?;
    assert!(
        !none.status.success() && none.stderr.contains("/nowhere"),
        "{}",
        none.stderr
    );

    let replayed = run(&["replay", &file, "--json"]).await?;
    ensure!(replayed.status.success(), "{}", replayed.stderr);
    let report: Value = serde_json::from_str(&replayed.stdout)?;
    assert_eq!(report["workers"], 3, "those that were recorded");
    assert_eq!(report["runs"][0]["completed"], total);
    assert_eq!(report["recorded"]["completed"], total);
    let reuse = report["runs"][0]["prefix_reuse"].as_f64().unwrap_or_default();
    assert!(reuse > 0.5, "turns share their beginnings: {report}");

    // A router that ends has written everything.
    chat(&cluster, 1, 1).await?;
    cluster.process.interrupt()?;
    cluster.process.ended().await?;
    assert_eq!(std::fs::read_to_string(&path)?.lines().count(), total + 1);
    Ok(())
}

#[tokio::test]
async fn a_sample_has_whole_sessions_and_a_log_keeps_within_its_space() -> anyhow::Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("decisions.jsonl");
    let log = format!("--decision-log={}", path.display());
    let cluster = Cluster::sim(&["--workers=2", "--speedup=0", "--decision-sample=0.5", &log]).await?;
    chat(&cluster, 24, 2).await?;
    cluster.idle().await?;
    let metrics = cluster.metrics().await?;
    assert_eq!(metrics.sum("signalbox_decisions_dropped_total", &[]), 0.0);
    // At least one session of 24 is in a sample of a half, and one is not.
    let written = lines(&path, 2).await?;
    let mut turns = std::collections::BTreeMap::<String, usize>::new();
    for line in &written {
        assert_eq!(line["sample"], 0.5);
        *turns
            .entry(line["features"]["keys"]["session"].to_string())
            .or_default() += 1;
    }
    assert!((1..24).contains(&turns.len()), "{turns:?}");
    let again = Cluster::serve_with(&["--discovery=static://127.0.0.1:1", &log]).await;
    let refusal = format!("{:#}", again.err().context("two routers write one file")?);
    assert!(refusal.contains("another process writes this file"), "{refusal}");
    Ok(())
}

#[tokio::test]
async fn each_router_of_a_cluster_publishes_its_own_decisions() -> anyhow::Result<()> {
    let fleet = Fleet::start();
    let _worker = fleet.worker("gpu-1", &["--speedup=0"]).await?;
    let client = async_nats::connect(fleet.nats.url()).await?;
    let mut published = client.subscribe("signalbox.default.decisions.*").await?;
    client.flush().await?;
    let mut routers = Vec::new();
    for name in ["a", "b"] {
        let id = format!("--router-id={name}");
        routers.push(fleet.router_of(1, &[&id, "--decision-publish"]).await?);
    }
    for (router, name) in routers.iter().zip(["a-", "b-"]) {
        let requests = chat(router, 1, 1).await?;
        let message = tokio::time::timeout(Duration::from_secs(30), published.next())
            .await?
            .context("the subscription ended")?;
        let record: Value = serde_json::from_slice(&message.payload)?;
        let router = record["router"].as_str().context("router")?;
        assert!(router.starts_with(name), "{record}");
        assert_eq!(
            message.subject.as_str(),
            format!("signalbox.default.decisions.{router}")
        );
        assert!(
            requests.contains(record["request"].as_str().unwrap_or_default()),
            "{record}"
        );
    }
    Ok(())
}
