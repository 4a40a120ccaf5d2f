//! A worker is killed. Requests without a first token are answered by another worker, and another worker continues the
//! answers under way: every client reads one whole answer.

use serde_json::json;
use signalbox_integration_tests::{
    Cluster, Worker, disturbed::DisturbedChats, eventually, workload::Workload,
};

const CHAT: &str = "/v1/chat/completions";
const STREAMS: usize = 50;
const TOKENS: u64 = 100;

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_under_fifty_streams_breaks_none() -> anyhow::Result<()> {
    // Twelve sequences at a time on each worker: half of the fifty wait for their first token when it is killed.
    let mut cluster = Cluster::sim(&["--workers=2", "--max-sequences=12", "--speedup=1"]).await?;
    let mut workload = Workload::new(1);
    let bodies = (0..STREAMS).map(|number| {
        json!({"model": cluster.model, "messages": workload.chat(50), "max_tokens": TOKENS, "seed": number})
    });
    let mut chats = DisturbedChats::start(&cluster.api, bodies, "worker-0");
    chats.begun(8).await?;
    cluster.worker_process("worker-0")?.kill()?;

    let answers = chats.whole().await?;
    let metrics = cluster.metrics().await?;
    let continued = metrics.sum("signalbox_requests_continued_total", &[]);
    let moved = metrics.sum("signalbox_requests_moved_total", &[]);
    println!("{continued} continued, {moved} moved before their first token");
    assert!(continued >= 1.0);
    assert_eq!(answers.len(), STREAMS);
    for answer in answers {
        assert_eq!(answer.finish_reason(0)?.as_deref(), Some("length"));
    }
    cluster.process.ensure_running()?;
    cluster.idle().await?;

    eventually("the worker is started again and takes requests", || async {
        let workers = cluster.workers().await?;
        Ok(workers
            .iter()
            .any(|worker| worker["card"]["id"] == "worker-0" && worker["state"] == "ready")
            .then_some(()))
    })
    .await?;
    cluster.activate("round-robin").await?;
    for _ in 0..4 {
        let body = json!({"model": cluster.model, "messages": workload.chat(5), "max_tokens": 1});
        assert_eq!(cluster.api.post(CHAT, &body).await?.status, 200);
    }
    Ok(())
}

#[tokio::test]
async fn the_blocks_of_a_killed_worker_leave_the_index() -> anyhow::Result<()> {
    let cluster = Cluster::sim(&["--workers=2", "--speedup=0"]).await?;
    let body = json!({"model": cluster.model, "messages": Workload::new(2).chat(600), "max_tokens": 1});
    let first = cluster.api.post(CHAT, &body).await?;
    let worker = first.header("x-signalbox-worker").to_owned();
    let epoch = eventually("the worker's blocks are in the index", || async {
        let held = cluster.index().await?["workers"][&worker].clone();
        Ok((held["blocks"].as_u64() > Some(30)).then(|| held["epoch"].clone()))
    })
    .await?;
    cluster.worker_process(&worker)?.kill()?;
    eventually("the killed worker's blocks are gone", || async {
        let index = cluster.index().await?;
        let held = &index["workers"][&worker];
        // No request was sent since: the next incarnation of the worker starts without blocks.
        let gone = held.is_null() || held["epoch"] != epoch;
        assert!(!gone || held.is_null() || held["blocks"] == 0, "{index}");
        Ok((gone && index["memberships"] == 0).then_some(()))
    })
    .await?;
    let again = cluster.api.post(CHAT, &body).await?;
    assert_eq!(again.status, 200, "{}", again.text());
    assert_eq!(again.header("x-signalbox-overlap-blocks"), "0");
    assert_eq!(
        again.json()?["usage"]["prompt_tokens_details"]["cached_tokens"],
        0
    );
    Ok(())
}

#[tokio::test]
async fn without_workers_requests_are_refused_until_a_worker_returns() -> anyhow::Result<()> {
    let worker = Worker::sim("only", &["--speedup=0"]).await?;
    let address = worker.address.clone();
    let cluster = Cluster::serve(&[&worker], &[]).await?;
    let body = json!({"model": cluster.model, "messages": Workload::new(3).chat(5), "max_tokens": 1});
    assert_eq!(cluster.api.post(CHAT, &body).await?.status, 200);
    drop(worker);
    let refused = eventually("requests are refused", || async {
        let reply = cluster.api.post(CHAT, &body).await?;
        Ok((reply.status != 200).then_some(reply))
    })
    .await?;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(!refused.header("retry-after").is_empty());
    refused.error()?;
    eventually("health and readiness report it", || async {
        Ok((cluster.api.get("/health").await?.status == 503
            && cluster.api.get("/ready").await?.status == 503)
            .then_some(()))
    })
    .await?;
    assert_eq!(cluster.api.get("/live").await?.status, 200);
    let _restarted = Worker::sim_at(&address, "only", &["--speedup=0"]).await?;
    eventually("requests are served again", || async {
        Ok((cluster.api.post(CHAT, &body).await?.status == 200).then_some(()))
    })
    .await
}
