//! Policies that place requests by hashes, and the simple ones beside them: what they need of a router, and whether routers
//! agree without a word to each other.

use anyhow::ensure;
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::Method;
use serde_json::{Value, json};
use signalbox_integration_tests::{Cluster, Worker, workload::Workload};

const CHAT: &str = "/v1/chat/completions";
/// Requests in flight at once: enough to keep both routers busy, fewer than the workers take.
const AT_ONCE: usize = 16;

async fn workers(count: usize) -> anyhow::Result<Vec<Worker>> {
    let ids = (0..count).map(|number| format!("w{number}"));
    stream::iter(ids)
        .map(|id| async move { Worker::sim(&id, &["--speedup=0"]).await })
        .buffered(count)
        .try_collect()
        .await
}

/// The worker that answers a request with these headers.
async fn worker_of(router: &Cluster, body: &Value, headers: &[(&str, &str)]) -> anyhow::Result<String> {
    let headers = [&[("content-type", "application/json")], headers].concat();
    let reply = router
        .api
        .send(Method::POST, CHAT, &headers, body.to_string().into_bytes())
        .await?;
    ensure!(reply.status == 200, "{} {}", reply.status, reply.text());
    Ok(reply.header("x-signalbox-worker").to_owned())
}

/// The worker of each of 1,000 sessions at this router.
async fn workers_of_sessions(router: &Cluster) -> anyhow::Result<Vec<String>> {
    let message = json!([{"role": "user", "content": "Hello"}]);
    let body = json!({"model": router.model, "messages": message, "max_tokens": 1});
    let body = &body;
    stream::iter(0..1_000)
        .map(|session| async move {
            let session = format!("session-{session}");
            worker_of(router, body, &[("x-session-id", &session)]).await
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await
}

#[tokio::test]
async fn two_routers_send_each_of_1000_sessions_to_the_same_worker() -> anyhow::Result<()> {
    let workers = workers(5).await?;
    let forwards: Vec<&Worker> = workers.iter().collect();
    // The other router knows the workers in another order, and has another number for each.
    let backwards: Vec<&Worker> = workers.iter().rev().collect();
    let policy = ["--policy=session-affinity"];
    let (a, b) = (
        Cluster::serve(&forwards, &policy).await?,
        Cluster::serve(&backwards, &policy).await?,
    );
    let (at_a, at_b) = tokio::try_join!(workers_of_sessions(&a), workers_of_sessions(&b))?;
    let agreeing = at_a.iter().zip(&at_b).filter(|(a, b)| a == b).count();
    assert_eq!(agreeing, 1_000);
    for number in 0..5 {
        let worker = format!("w{number}");
        let sessions = at_a.iter().filter(|at| **at == worker).count();
        assert!(
            (120..280).contains(&sessions),
            "{worker} has {sessions} of 1,000 sessions"
        );
    }
    Ok(())
}

#[tokio::test]
async fn prompts_that_begin_alike_go_to_one_worker_at_both_routers() -> anyhow::Result<()> {
    let workers = workers(4).await?;
    let workers: Vec<&Worker> = workers.iter().collect();
    let (a, b) = (
        Cluster::serve(&workers, &["--policy=prefix-hash"]).await?,
        Cluster::serve(&workers, &["--policy=prefix-hash"]).await?,
    );
    let mut workload = Workload::new(3);
    let mut used = Vec::new();
    for _ in 0..12 {
        let system = workload.chat(400);
        let mut chosen = Vec::new();
        for (router, question) in [(&a, "Why is the sky blue?"), (&b, "Who wrote Hamlet?")] {
            let mut messages = system.as_array().cloned().unwrap_or_default();
            messages.push(json!({"role": "user", "content": question}));
            let body = json!({"model": router.model, "messages": messages, "max_tokens": 1});
            chosen.push(worker_of(router, &body, &[]).await?);
        }
        assert_eq!(chosen[0], chosen[1]);
        used.append(&mut chosen);
    }
    used.sort_unstable();
    used.dedup();
    assert!(used.len() > 1, "12 beginnings are at {used:?} alone");
    Ok(())
}

#[tokio::test]
async fn every_simple_policy_decides_live_traffic() -> anyhow::Result<()> {
    let cluster = Cluster::sim(&["--workers=3", "--speedup=0"]).await?;
    let body = json!({"model": cluster.model, "messages": Workload::new(1).chat(50), "max_tokens": 1});
    for policy in [
        "least-loaded",
        "power-of-two",
        "random",
        "session-affinity",
        "prefix-hash",
    ] {
        assert_eq!(cluster.activate(policy).await?, format!("{policy}@1.0.0"));
        for _ in 0..8 {
            let reply = cluster.api.post(CHAT, &body).await?;
            assert_eq!(reply.status, 200, "{}", reply.text());
            assert_eq!(reply.header("x-signalbox-policy"), format!("{policy}@1.0.0"));
        }
    }
    Ok(())
}
