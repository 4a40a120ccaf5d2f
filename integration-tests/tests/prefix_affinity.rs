//! A prompt goes to the worker that holds its KV blocks; other work goes to an idle worker.

use std::collections::BTreeSet;

use serde_json::json;
use signalbox_integration_tests::{Cluster, Worker, eventually, workload::Workload};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn a_long_prompt_returns_to_the_worker_that_holds_it() -> anyhow::Result<()> {
    let cluster = Cluster::sim(&["--workers=2", "--speedup=10"]).await?;
    let mut workload = Workload::new(1);
    // Eight conversations: by chance all of them return to their workers once in 2^8 runs.
    for _ in 0..8 {
        let body = json!({"model": cluster.model, "messages": workload.chat(600), "max_tokens": 4});
        let first = cluster.api.post(CHAT, &body).await?;
        assert_eq!(first.status, 200, "{}", first.text());
        let worker = first.header("x-signalbox-worker").to_owned();
        // The worker's KV events reach the router a moment after the answer.
        let again = eventually("the router has the prompt in its index", || async {
            let again = cluster.api.post(CHAT, &body).await?;
            Ok((again.header("x-signalbox-overlap-blocks") != "0").then_some(again))
        })
        .await?;
        assert_eq!(again.header("x-signalbox-worker"), worker);
        let usage = again.json()?["usage"].clone();
        let (prompt, cached) = (
            usage["prompt_tokens"].as_f64().unwrap(),
            usage["prompt_tokens_details"]["cached_tokens"].as_f64().unwrap(),
        );
        assert!(prompt >= 600.0 && cached >= 0.9 * prompt, "{usage}");
        let overlap: f64 = again.header("x-signalbox-overlap-blocks").parse()?;
        assert!(
            overlap * 16.0 >= 0.9 * prompt,
            "{overlap} blocks of {prompt} tokens"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_different_long_prompt_goes_to_the_other_worker() -> anyhow::Result<()> {
    let cluster = Cluster::sim(&["--workers=2", "--speedup=10"]).await?;
    let mut workload = Workload::new(2);
    let mut body = json!({"model": cluster.model, "messages": workload.chat(600), "max_tokens": 4});
    let first = cluster.api.post(CHAT, &body).await?;
    let again = eventually("the router has the prompt in its index", || async {
        let again = cluster.api.post(CHAT, &body).await?;
        Ok((again.header("x-signalbox-overlap-blocks") != "0").then_some(again))
    })
    .await?;
    assert_eq!(
        again.header("x-signalbox-worker"),
        first.header("x-signalbox-worker")
    );
    cluster.idle().await?;
    // Both workers are idle; one has an empty cache.
    body["messages"] = workload.chat(600);
    let other = cluster.api.post(CHAT, &body).await?;
    assert_ne!(
        other.header("x-signalbox-worker"),
        first.header("x-signalbox-worker")
    );
    Ok(())
}

#[tokio::test]
async fn a_different_prompt_avoids_the_busy_worker() -> anyhow::Result<()> {
    let cluster = Cluster::sim(&["--workers=2", "--speedup=1"]).await?;
    let mut workload = Workload::new(3);
    for _ in 0..4 {
        let mut body = json!({
            "model": cluster.model, "messages": workload.chat(600), "max_tokens": 5000, "ignore_eos": true,
            "stream": true,
        });
        let mut busy = cluster.api.stream(CHAT, &body).await?;
        busy.next().await?.unwrap();
        body["messages"] = workload.chat(600);
        let other = cluster.api.stream(CHAT, &body).await?;
        assert_ne!(
            other.header("x-signalbox-worker"),
            busy.header("x-signalbox-worker")
        );
        drop((busy, other));
        cluster.idle().await?;
    }
    Ok(())
}

#[tokio::test]
async fn round_robin_takes_turns_independently_of_caches() -> anyhow::Result<()> {
    let cluster = Cluster::sim(&["--workers=3", "--speedup=0", "--policy=round-robin"]).await?;
    let body = json!({"model": cluster.model, "messages": Workload::new(4).chat(100), "max_tokens": 2});
    let mut turns = Vec::new();
    for _ in 0..9 {
        let reply = cluster.api.post(CHAT, &body).await?;
        assert!(reply.header("x-signalbox-policy").starts_with("round-robin@"));
        turns.push(reply.header("x-signalbox-worker").to_owned());
    }
    assert_eq!(turns[..3].iter().collect::<BTreeSet<_>>().len(), 3, "{turns:?}");
    assert_eq!((&turns[..3], &turns[..3]), (&turns[3..6], &turns[6..]));
    Ok(())
}

#[tokio::test]
async fn a_router_gets_the_blocks_that_workers_held_before_it_started() -> anyhow::Result<()> {
    let one = Worker::sim("one", &["--speedup=0"]).await?;
    let two = Worker::sim("two", &["--speedup=0"]).await?;
    let earlier = Cluster::serve(&[&one, &two], &[]).await?;
    let body = json!({"model": earlier.model, "messages": Workload::new(5).chat(600), "max_tokens": 2});
    let first = earlier.api.post(CHAT, &body).await?;
    assert_eq!(first.status, 200, "{}", first.text());
    let worker = first.header("x-signalbox-worker").to_owned();
    drop(earlier);
    let later = Cluster::serve(&[&one, &two], &[]).await?;
    eventually("the worker's blocks are in the new router's index", || async {
        let index = later.index().await?;
        Ok((index["workers"][&worker]["blocks"].as_u64() > Some(30)).then_some(()))
    })
    .await?;
    let again = later.api.post(CHAT, &body).await?;
    assert_eq!(again.header("x-signalbox-worker"), worker);
    assert_ne!(again.header("x-signalbox-overlap-blocks"), "0");
    Ok(())
}
