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
        eventually("the other router no longer counts the request", || async {
            let counted = |worker: &Value| worker["other_routers"]["requests"] != 0;
            Ok((!b.workers().await?.iter().any(counted)).then_some(()))
        })
        .await?;
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
async fn a_router_avoids_a_worker_that_another_router_keeps_busy() -> anyhow::Result<()> {
    let fleet = Fleet::start();
    let _workers = [
        fleet.worker("w0", &["--speedup=1"]).await?,
        fleet.worker("w1", &["--speedup=1"]).await?,
    ];
    let (a, b) = (fleet.router_of(2, &[]).await?, fleet.router_of(2, &[]).await?);
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
    // `kv-aware` may weigh several new prompts at the idle worker against the one long answer at the other.
    for (policy, requests) in [("kv-aware", 1), ("kv-linear", 6), ("replica-synced", 6)] {
        b.activate(policy).await?;
        for _ in 0..requests {
            let reply = b.api.post(CHAT, &short()).await?;
            assert_eq!(reply.status, 200, "{}", reply.text());
            assert_ne!(
                reply.header("x-signalbox-worker"),
                busy,
                "{policy} avoids the busy worker"
            );
        }
    }
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

/// Eight routers send a burst each to sixteen workers at once, of which eight have a prompt in their caches. Without a draw
/// all routers prefer the eight that are emptier by a hair.
#[tokio::test(flavor = "multi_thread")]
async fn routers_do_not_send_their_bursts_to_the_same_workers() -> anyhow::Result<()> {
    const ROUTERS: usize = 8;
    const WORKERS: usize = 16;
    const BURST: usize = 64;
    let fleet = Fleet::start();
    let _workers = fleet.worker("w", &["--sim-workers=16", "--speedup=1"]).await?;
    let mut routers = Vec::new();
    for _ in 0..ROUTERS {
        routers.push(fleet.router(&["--http-threads=1"]).await?);
    }
    for router in &mut routers {
        follows(router, WORKERS).await?;
    }
    let mut named = Vec::new();
    for router in routers {
        named.push(router.named().await?);
    }
    eventually("each router counts the seven others", || async {
        for router in &named {
            if router.metrics().await?.sum("signalbox_replicas", &[]) < (ROUTERS - 1) as f64 {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
    .await?;
    let prompt = |number: usize| {
        let mut workload = Workload::new(100 + number as u64);
        json!({"model": named[0].model, "messages": workload.chat(200), "max_tokens": 64})
    };
    for number in 0..WORKERS / 2 {
        let reply = named[0].api.post(CHAT, &prompt(BURST + number)).await?;
        anyhow::ensure!(reply.status == 200, "{}", reply.text());
    }
    // Near ties are drawn, so two of these prompts may be at one worker.
    let held = same_index(&named.iter().collect::<Vec<_>>()).await?;
    let holders = held.values().filter(|(_, blocks, _)| *blocks > 0).count();
    assert!((1..=WORKERS / 2).contains(&holders), "{holders}");
    let mut requests = tokio::task::JoinSet::new();
    for number in 0..BURST {
        let router = &named[number % ROUTERS];
        let (body, api) = (prompt(number), router.api.clone());
        requests.spawn(async move {
            let reply = api.post(CHAT, &body).await?;
            anyhow::ensure!(reply.status == 200, "{}", reply.text());
            anyhow::Ok(reply.header("x-signalbox-worker").to_owned())
        });
    }
    let mut counts = std::collections::BTreeMap::<String, usize>::new();
    while let Some(worker) = requests.join_next().await {
        *counts.entry(worker??).or_default() += 1;
    }
    println!("{counts:?}");
    assert!(
        counts.len() >= WORKERS * 3 / 4,
        "{} of {WORKERS} workers have requests: {counts:?}",
        counts.len()
    );
    assert!(
        counts.values().all(|&count| count <= 2 * BURST / WORKERS + 2),
        "{counts:?}"
    );
    Ok(())
}
