//! Another process publishes KV events under a worker's name: its blocks are credited for some seconds at most.

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use signalbox_integration_tests::{Cluster, Fleet, eventually, workload::Workload};

const CHAT: &str = "/v1/chat/completions";
const SUBJECT: &str = "signalbox.default.kv_events.w0";

/// A batch of version 1 that stores 50 blocks on the device: `runtime/event-plane/README.md` has the layout.
fn batch(epoch: u64, sequence: u64) -> Vec<u8> {
    let blocks = 50_u32;
    let mut bytes = vec![1, 0];
    bytes.extend(epoch.to_le_bytes());
    bytes.extend(sequence.to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend([1, 0]);
    bytes.extend(blocks.to_le_bytes());
    for block in 0..u64::from(blocks) {
        bytes.extend((sequence << 32 | block | 1 << 62).to_le_bytes());
    }
    bytes
}

async fn credited(router: &Cluster) -> anyhow::Result<u64> {
    let worker: Value = router.index().await?["workers"]["w0"].clone();
    worker["blocks"].as_u64().context("no worker w0")
}

#[tokio::test]
async fn blocks_that_a_worker_never_stored_do_not_stay() -> anyhow::Result<()> {
    let fleet = Fleet::start();
    let _worker = fleet.worker("w0", &["--speedup=20"]).await?;
    let router = fleet.router_of(1, &[]).await?;
    let mut workload = Workload::new(4);
    let mut ask = |length| json!({"model": router.model, "messages": workload.chat(length), "max_tokens": 4});
    let (first, second) = (ask(600), ask(600));
    let reply = router.api.post(CHAT, &first).await?;
    ensure!(reply.status == 200, "{}", reply.text());
    let used = |worker: &Value| worker["index_blocks"].as_u64();
    let held = eventually("the prompt is credited", || async {
        Ok(router
            .workers()
            .await?
            .first()
            .and_then(used)
            .filter(|held| *held > 20))
    })
    .await?;
    let epoch = router.workers().await?[0]["card"]["epoch"]
        .as_u64()
        .context("no epoch")?;

    let nats = async_nats::connect(fleet.nats.url()).await?;
    for sequence in 0..200 {
        nats.publish(SUBJECT, batch(epoch, sequence).into()).await?;
    }
    nats.flush().await?;
    eventually("forged blocks are credited", || async {
        Ok((credited(&router).await? > held + 1_000).then_some(()))
    })
    .await?;
    eventually("only the worker's own blocks are credited", || async {
        Ok((credited(&router).await? == held).then_some(()))
    })
    .await
    .with_context(|| router.process.output())?;
    let resyncs = router.metrics().await?;
    let found =
        ["ahead", "mismatch"].map(|reason| resyncs.sum("signalbox_kv_resyncs_total", &[("reason", reason)]));
    ensure!(found.iter().sum::<f64>() >= 1.0, "{found:?}");

    // The worker's next batches have the numbers of forged ones. Its blocks are credited nevertheless.
    let reply = router.api.post(CHAT, &second).await?;
    ensure!(reply.status == 200, "{}", reply.text());
    eventually("the next prompt is credited too", || async {
        let credited = credited(&router).await?;
        Ok((credited > held && credited < 3 * held).then_some(()))
    })
    .await
    .with_context(|| router.process.output())?;
    Ok(())
}
