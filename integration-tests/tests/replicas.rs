//! Several routers in front of the same workers, on a real NATS and etcd.

use std::time::Instant;

use serde_json::{Value, json};
use signalbox_integration_tests::{
    Cluster, Fleet, eventually,
    fleet::{follows, same_index},
    workload::Workload,
};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn a_prompt_served_through_one_router_is_recognised_by_the_other() -> anyhow::Result<()> {
    let fleet = Fleet::start();
    let _workers = [
        fleet.worker("w0", &["--speedup=10"]).await?,
        fleet.worker("w1", &["--speedup=10"]).await?,
        fleet.worker("w2", &["--speedup=10"]).await?,
    ];
    let (a, b) = (fleet.router_of(3, &[]).await?, fleet.router_of(3, &[]).await?);
    let mut workload = Workload::new(1);
    let mut waits = Vec::new();
    for _ in 0..5 {
        let body = json!({"model": a.model, "messages": workload.chat(600), "max_tokens": 4});
        let first = a.api.post(CHAT, &body).await?;
        let answered = Instant::now();
        let worker = first.header("x-signalbox-worker").to_owned();
        // Only read from the admin API: requests would add blocks by decisions of the other router itself.
        let blocks = |router: &Cluster, id: &str| {
            let (admin, id) = (router.admin.clone(), id.to_owned());
            async move { anyhow::Ok(admin.get("/admin/v1/index").await?.json()?["workers"][&id].clone()) }
        };
        let known = blocks(&a, &worker).await?;
        eventually("the other router has the blocks too", || async {
            let (here, there) = (blocks(&a, &worker).await?, blocks(&b, &worker).await?);
            Ok(
                (here == there && here["blocks"].as_u64() >= known["blocks"].as_u64() && here["blocks"] != 0)
                    .then_some(()),
            )
        })
        .await?;
        waits.push(answered.elapsed());
        let again = b.api.post(CHAT, &body).await?;
        assert_eq!(again.header("x-signalbox-worker"), worker);
        assert_ne!(again.header("x-signalbox-overlap-blocks"), "0");
    }
    println!(
        "recognised by the other router {waits:?} after the answer's end, including two reads of each index"
    );
    Ok(())
}

#[tokio::test]
async fn a_router_avoids_a_worker_that_another_router_keeps_busy_only_with_replica_synced()
-> anyhow::Result<()> {
    let fleet = Fleet::start();
    let _workers = [
        fleet.worker("w0", &["--speedup=1"]).await?,
        fleet.worker("w1", &["--speedup=1"]).await?,
    ];
    let synced = ["--policy=replica-synced"];
    let (a, b) = (
        fleet.router_of(2, &synced).await?,
        fleet.router_of(2, &synced).await?,
    );
    let mut workload = Workload::new(2);
    let long =
        json!({"model": a.model, "messages": workload.chat(1_500), "max_tokens": 2_000, "stream": true});
    let held = a.api.stream(CHAT, &long).await?;
    let busy = held.header("x-signalbox-worker").to_owned();
    let others = |worker: Value| worker["other_routers"]["requests"].as_u64();
    eventually("the other router counts the request", || async {
        let workers = b.workers().await?;
        let counts = workers
            .into_iter()
            .find(|worker| worker["card"]["id"] == *busy)
            .and_then(others);
        Ok((counts == Some(1)).then_some(()))
    })
    .await?;
    let mut short = || json!({"model": b.model, "messages": workload.chat(100), "max_tokens": 1});
    for _ in 0..6 {
        let reply = b.api.post(CHAT, &short()).await?;
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_ne!(
            reply.header("x-signalbox-worker"),
            busy,
            "replica-synced avoids the busy worker"
        );
    }
    // No worker holds any of these prompts, so without the other router's load the workers are equal.
    b.activate("kv-aware").await?;
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..40 {
        let reply = b.api.post(CHAT, &short()).await?;
        seen.insert(reply.header("x-signalbox-worker").to_owned());
        if seen.contains(&busy) {
            break;
        }
    }
    assert!(seen.contains(&busy), "kv-aware counts its own load only");
    drop(held);
    eventually("the other router no longer counts the request", || async {
        let workers = b.workers().await?;
        Ok(workers
            .into_iter()
            .all(|worker| others(worker) == Some(0))
            .then_some(()))
    })
    .await
}

#[tokio::test]
async fn a_router_that_joins_gets_the_load_and_the_load_of_a_killed_router_is_dropped() -> anyhow::Result<()>
{
    let fleet = Fleet::start();
    let _worker = fleet.worker("w0", &["--speedup=1"]).await?;
    let mut a = fleet.router_of(1, &[]).await?;
    let mut workload = Workload::new(3);
    let long = json!({"model": a.model, "messages": workload.chat(500), "max_tokens": 2_000, "stream": true});
    let held = a.api.stream(CHAT, &long).await?;
    let joiner = fleet.router_of(1, &[]).await?;
    let counted = |expected: u64| {
        let joiner = &joiner;
        eventually(
            "the joiner counts the expected requests of the other router",
            move || async move {
                let workers = joiner.workers().await?;
                Ok((workers[0]["other_routers"]["requests"] == expected).then_some(()))
            },
        )
    };
    counted(1).await?;
    a.process.kill()?;
    a.process.ended().await?;
    drop(held);
    counted(0).await
}

#[tokio::test]
async fn a_worker_that_drains_finishes_its_answer_and_leaves() -> anyhow::Result<()> {
    let fleet = Fleet::start();
    let mut leaving = fleet.worker("w0", &["--speedup=5"]).await?;
    let router = fleet.router_of(1, &[]).await?;
    let mut workload = Workload::new(4);
    let body =
        json!({"model": router.model, "messages": workload.chat(50), "max_tokens": 200, "stream": true});
    let mut stream = router.api.stream(CHAT, &body).await?;
    stream.next().await?;
    leaving.process.interrupt()?;
    let whole = stream.rest().await?;
    assert!(whole.is_whole(), "{:?}", whole.events.last());
    assert!(leaving.process.ended().await?.status.success());
    eventually("the worker has left", || async {
        Ok(router.workers().await?.is_empty().then_some(()))
    })
    .await?;
    let _next = fleet.worker("w0", &["--speedup=5"]).await?;
    follows(&router, 1).await?;
    assert_eq!(
        router
            .api
            .post(
                CHAT,
                &json!({"model": router.model, "messages": workload.chat(5), "max_tokens": 1})
            )
            .await?
            .status,
        200
    );
    Ok(())
}

#[tokio::test]
async fn the_index_of_a_router_that_starts_late_equals_the_others() -> anyhow::Result<()> {
    let fleet = Fleet::start();
    let _workers = [
        fleet.worker("w0", &["--speedup=0"]).await?,
        fleet.worker("w1", &["--speedup=0"]).await?,
    ];
    let first = fleet.router_of(2, &["--policy=round-robin"]).await?;
    let mut workload = Workload::new(5);
    for _ in 0..40 {
        let body = json!({"model": first.model, "messages": workload.chat(300), "max_tokens": 8});
        assert_eq!(first.api.post(CHAT, &body).await?.status, 200);
    }
    let began = Instant::now();
    let late = fleet.router_of(2, &[]).await?;
    let held = same_index(&[&first, &late]).await?;
    assert!(held.values().all(|(_, blocks, _)| *blocks > 300), "{held:?}");
    println!(
        "the index of a router that starts late is exact {:?} after its start",
        began.elapsed()
    );
    Ok(())
}
