//! Two workers with one id, and a card in etcd that no worker answers for: requests go on, and routers and workers report it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use etcd_client::Client;
use serde_json::{Value, json};
use signalbox_integration_tests::{Api, Cluster, Fleet, eventually, process::Process};

const OPTIONS: [&str; 2] = ["--model-name=m", "--speedup=0"];
const KEY: &str = "/signalbox/default/workers/m/w";

/// What a worker logs when another incarnation holds its key.
const REFUSED: &str = "another worker is registered under this worker's id";

/// Sends one request after the other until the caller stops it. Returns how many were answered.
async fn load(api: Api, stop: Arc<AtomicBool>) -> anyhow::Result<usize> {
    let mut answered = 0;
    while !stop.load(Relaxed) {
        let reply = api
            .post(
                "/v1/completions",
                &json!({"model": "m", "prompt": "on", "max_tokens": 1}),
            )
            .await?;
        anyhow::ensure!(reply.status == 200, "{}: {}", reply.status, reply.text());
        answered += 1;
    }
    Ok(answered)
}

async fn logs(process: &Process, text: &str) -> anyhow::Result<()> {
    eventually(&format!("it logs {text:?}"), || async {
        Ok(process.output().contains(text).then_some(()))
    })
    .await
}

/// The epoch in etcd's key of the worker.
async fn listed_epoch(etcd: &mut Client) -> anyhow::Result<u64> {
    let found = etcd.get(KEY, None).await?;
    let Some(found) = found.kvs().first() else {
        return Ok(0);
    };
    let card: Value = serde_json::from_slice(found.value())?;
    Ok(card["epoch"].as_u64().unwrap_or_default())
}

async fn conflicts(router: &Cluster) -> anyhow::Result<Value> {
    Ok(router.api.get("/health").await?.json()?["id_conflicts"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_with_one_id_are_reported_and_fail_no_request() -> anyhow::Result<()> {
    let fleet = Fleet::start();
    let earlier = fleet.worker("w", &OPTIONS).await?;
    let router = fleet.router_of(1, &[]).await?;
    assert_eq!(conflicts(&router).await?, json!([]));
    let stop = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn(load(router.api.clone(), stop.clone()));
    let later = fleet.worker("w", &OPTIONS).await?;
    let expected = json!([{"instance_id": "w", "displaced": {"tcp": earlier.address}}]);
    eventually("the router shows both", || async {
        Ok((conflicts(&router).await? == expected).then_some(()))
    })
    .await?;
    let metrics = router.metrics().await?;
    assert_eq!(metrics.sum("signalbox_worker_id_conflicts", &[]), 1.0);
    logs(&router.process, "two workers have this id").await?;
    logs(&earlier.process, REFUSED).await?;
    let workers = router.workers().await?;
    assert_eq!(workers[0]["card"]["address"], *later.address);
    stop.store(true, Relaxed);
    println!("{} requests answered", load.await??);

    earlier.process.interrupt()?;
    eventually("the conflict is over", || async {
        Ok((conflicts(&router).await? == json!([])).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_that_no_worker_answers_for_takes_no_worker_out_of_service() -> anyhow::Result<()> {
    let fleet = Fleet::start();
    let worker = fleet.worker("w", &OPTIONS).await?;
    let router = fleet.router_of(1, &[]).await?;
    let mut etcd = Client::connect([fleet.etcd.address()], None).await?;
    let epoch = listed_epoch(&mut etcd).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn(load(router.api.clone(), stop.clone()));
    let mut card = router.workers().await?[0]["card"].clone();
    card["epoch"] = json!(epoch + 1_000_000);
    card["address"] = json!("127.0.0.1:1");
    etcd.put(KEY, card.to_string(), None).await?;
    logs(
        &router.process,
        "which does not answer; requests go on to the earlier one",
    )
    .await?;
    logs(&worker.process, REFUSED).await?;
    let workers = router.workers().await?;
    assert_eq!(workers[0]["card"]["address"], *worker.address);
    assert_eq!(workers[0]["state"], "ready");
    etcd.delete(KEY, None).await?;
    eventually("the worker's own card is back", || {
        let mut etcd = etcd.clone();
        async move { Ok((listed_epoch(&mut etcd).await? == epoch).then_some(())) }
    })
    .await?;
    eventually("the router lists the worker", || async {
        Ok((router.workers().await?[0]["listed"] == true).then_some(()))
    })
    .await?;
    stop.store(true, Relaxed);
    println!("{} requests answered", load.await??);
    Ok(())
}
