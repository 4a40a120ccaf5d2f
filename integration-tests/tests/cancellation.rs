//! A client that disconnects cancels its work.

use std::time::Duration;

use serde_json::{Value, json};
use signalbox_integration_tests::{Cluster, workload::Workload};
use tokio::time::timeout;

const CHAT: &str = "/v1/chat/completions";

/// One sequence at a time: while an abandoned request runs, no other request is answered.
async fn cluster() -> anyhow::Result<Cluster> {
    Cluster::sim(&["--workers=1", "--max-sequences=1", "--speedup=1"]).await
}

/// A request that takes three minutes to the end.
fn endless(cluster: &Cluster, stream: bool) -> Value {
    json!({
        "model": cluster.model, "messages": Workload::new(1).chat(10), "max_tokens": 30_000, "ignore_eos": true,
        "stream": stream,
    })
}

/// Checks that the engine is free: a request that needs its only sequence is answered.
#[expect(clippy::print_stdout, reason = "a figure for the person who runs the test")]
async fn engine_is_free(cluster: &Cluster) -> anyhow::Result<()> {
    let body = json!({"model": cluster.model, "messages": Workload::new(2).chat(10), "max_tokens": 2});
    let reply = cluster.api.post(CHAT, &body).await?;
    assert_eq!(reply.status, 200, "{}", reply.text());
    println!("the next request was answered in {:?}", reply.took);
    cluster.idle().await
}

#[tokio::test]
async fn a_dropped_stream_frees_its_worker() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let mut stream = cluster.api.stream(CHAT, &endless(&cluster, true)).await?;
    for _ in 0..3 {
        stream.next().await?.unwrap();
    }
    assert_eq!(cluster.workers().await?[0]["requests"], 1);
    drop(stream);
    engine_is_free(&cluster).await?;
    let metrics = cluster.metrics().await?;
    assert_eq!(metrics.sum("signalbox_requests_total", &[("status", "499")]), 1.0);
    Ok(())
}

#[tokio::test]
async fn a_dropped_request_for_a_whole_answer_frees_its_worker() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let body = endless(&cluster, false);
    let waiting = cluster.api.post(CHAT, &body);
    assert!(
        timeout(Duration::from_millis(300), waiting).await.is_err(),
        "the answer takes minutes"
    );
    engine_is_free(&cluster).await
}

#[tokio::test]
async fn a_dropped_request_that_waits_for_a_sequence_is_cancelled() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let mut running = cluster.api.stream(CHAT, &endless(&cluster, true)).await?;
    running.next().await?.unwrap();
    let body = endless(&cluster, true);
    // No sequence is free, so not even the head of the answer arrives.
    assert!(
        timeout(Duration::from_millis(300), cluster.api.stream(CHAT, &body))
            .await
            .is_err()
    );
    drop(running);
    engine_is_free(&cluster).await
}

#[tokio::test(flavor = "multi_thread")]
async fn many_dropped_streams_leave_no_load() -> anyhow::Result<()> {
    let cluster = Cluster::sim(&["--workers=2", "--speedup=5"]).await?;
    let clients = (0..100_u64).map(|client| {
        let cluster = &cluster;
        async move {
            let body = json!({
                "model": cluster.model, "messages": Workload::new(client).chat(30), "max_tokens": 10_000,
                "ignore_eos": true, "stream": true,
            });
            let mut stream = cluster.api.stream(CHAT, &body).await?;
            for _ in 0..client % 7 {
                stream.next().await?;
            }
            anyhow::Ok(())
        }
    });
    for outcome in futures_util::future::join_all(clients).await {
        outcome?;
    }
    cluster.idle().await
}
