//! A thousand workers register and leave; one process simulates several workers.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use etcd_client::{Client, PutOptions};
use serde_json::json;
use signalbox_integration_tests::{Cluster, Fleet, Worker, eventually, fleet::follows};
use tokio::task::JoinSet;

const WORKERS: usize = 1_000;
const LEASE_S: i64 = 3;

/// Writers that work in parallel, as real workers do.
const WRITERS: usize = 16;

/// Key and value of a worker in etcd; `runtime/discovery/README.md` describes both.
fn card(number: usize) -> (String, String) {
    let id = format!("w{number:04}");
    let card = json!({
        "id": id, "epoch": 1_700_000_000_000_u64, "model": "m", "address": "127.0.0.1:1", "engine": "sim",
        "block_size": 16, "context_length": 4096, "artifacts_digest": "0", "role": "aggregated",
        "capacity": {"kv_blocks": 1000, "max_sequences": 8, "max_waiting": 8}, "kv_events": true,
    });
    (format!("/signalbox/default/workers/m/{id}"), card.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_workers_appear_and_leave_with_their_lease() -> anyhow::Result<()> {
    let fleet = Fleet::start();
    let router = fleet.router(&[]).await?;
    let known = || async {
        let health = router.api.get("/health").await?.json()?;
        anyhow::Ok(health["instances"].as_array().map_or(0, Vec::len))
    };
    eventually("the router watches", || async {
        let ready = router.api.get("/ready").await?.json()?;
        Ok((ready["planes"]["discovery"]["state"] == "up").then_some(()))
    })
    .await?;
    let mut etcd = Client::connect([fleet.etcd.address()], None).await?;
    let before = router.process.resident_bytes()?;
    let mut peaks = Vec::new();
    for round in 0..3 {
        let lease = etcd.lease_grant(LEASE_S, None).await?.id();
        // Renewed until all workers are known, however long a loaded machine takes to write them.
        let (mut keeper, mut renewed) = etcd.lease_keep_alive(lease).await?;
        let renewal = tokio::spawn(async move {
            loop {
                keeper.keep_alive().await?;
                renewed.message().await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            #[expect(unreachable_code, reason = "names the type of the errors above")]
            anyhow::Ok(())
        });
        let began = Instant::now();
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            let mut etcd = etcd.clone();
            writers.spawn(async move {
                for number in (writer..WORKERS).step_by(WRITERS) {
                    let (key, card) = card(number);
                    let options = PutOptions::new().with_lease(lease);
                    etcd.put(key, card, Some(options)).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(writer) = writers.join_next().await {
            writer??;
        }
        let written = began.elapsed();
        eventually("all are known", || async {
            Ok((known().await? == WORKERS).then_some(()))
        })
        .await?;
        let appeared = began.elapsed();
        peaks.push(router.process.resident_bytes()?);
        // From now on the lease is not renewed, as if all workers had been killed.
        renewal.abort();
        eventually("all are gone", || async {
            Ok((known().await? == 0).then_some(()))
        })
        .await?;
        let gone = began.elapsed();
        println!(
            "round {round}: {WORKERS} written in {written:?}, known after {appeared:?}, gone after {gone:?} with a lease of {LEASE_S} s"
        );
    }
    // The allocator keeps some memory after the first round; a leak would grow with each round.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let after = router.process.resident_bytes()?;
    let mib = |bytes: u64| bytes / 1024 / 1024;
    println!(
        "resident MiB: {} before, {:?} with {WORKERS} workers, {} after",
        mib(before),
        peaks.iter().map(|bytes| mib(*bytes)).collect::<Vec<_>>(),
        mib(after)
    );
    assert!(
        peaks[2] < peaks[0] + (32 << 20),
        "memory grows with every round: {peaks:?}"
    );
    Ok(())
}

/// The benches simulate a thousand this way. Each worker answers under its own name.
#[tokio::test]
async fn one_process_simulates_several_workers() -> anyhow::Result<()> {
    const SIMULATED: usize = 3;
    let workers = Worker::sim("w", &["--sim-workers=3", "--model-name=m"]).await?;
    let discovery = format!("--discovery=static://{}", workers.address);
    let router = Cluster::serve_with(&[&discovery, "--policy=round-robin"]).await?;
    follows(&router, SIMULATED).await?;
    let mut answered = BTreeSet::new();
    for _ in 0..SIMULATED {
        let body = json!({"model": "m", "prompt": "on", "max_tokens": 1});
        let answer = router.api.post("/v1/completions", &body).await?;
        answered.insert(answer.header("x-signalbox-worker").to_owned());
    }
    let names = ["w-0", "w-1", "w-2"].map(str::to_owned);
    assert_eq!(answered, BTreeSet::from(names));
    Ok(())
}
