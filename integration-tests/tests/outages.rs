//! NATS and etcd are down and come back: serving continues, and all state is right again afterwards.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use serde_json::json;
use signalbox_integration_tests::{
    Api, Cluster, Fleet, Worker, eventually,
    fleet::{follows, same_index},
    workload::Workload,
};
use tokio::task::JoinSet;

const CHAT: &str = "/v1/chat/completions";

/// How long a server is down: longer than the lease of three seconds. `SIGNALBOX_OUTAGE_S` changes it.
#[expect(
    clippy::disallowed_methods,
    reason = "a setting of the test, not of the program"
)]
fn outage() -> Duration {
    let seconds = std::env::var("SIGNALBOX_OUTAGE_S")
        .ok()
        .and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(6))
}

/// Clients that send requests until `stop` is set.
struct Load {
    stop: Arc<AtomicBool>,
    clients: JoinSet<anyhow::Result<()>>,
    answered: Arc<AtomicUsize>,
}

impl Load {
    fn start(routers: &[&Cluster]) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut clients = JoinSet::new();
        for (number, router) in routers.iter().enumerate() {
            for client in 0..2 {
                let (api, model) = (router.api.clone(), router.model.clone());
                let (stop, answered) = (stop.clone(), answered.clone());
                let seed = 10 * number as u64 + client;
                clients.spawn(send_requests(api, model, seed, stop, answered));
            }
        }
        Self {
            stop,
            clients,
            answered,
        }
    }

    async fn end(mut self) -> anyhow::Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(client) = self.clients.join_next().await {
            client??;
        }
        Ok(self.answered.load(Ordering::Relaxed))
    }
}

async fn send_requests(
    api: Api,
    model: String,
    seed: u64,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
) -> anyhow::Result<()> {
    let mut workload = Workload::new(seed);
    while !stop.load(Ordering::Relaxed) {
        let body = json!({"model": model, "messages": workload.chat(80), "max_tokens": 8});
        let reply = api.post(CHAT, &body).await?;
        ensure!(reply.status == 200, "{} {}", reply.status, reply.text());
        answered.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Waits until `/health` reports this state of a plane.
async fn plane_is(router: &Cluster, plane: &str, state: &str) -> anyhow::Result<()> {
    eventually(&format!("the {plane} plane is {state}"), || async {
        let health = router.api.get("/health").await?;
        ensure!(health.status == 200, "{}", health.text());
        Ok((health.json()?["planes"][plane]["state"] == state).then_some(()))
    })
    .await
    .with_context(|| router.process.output())
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_is_killed_under_load_and_comes_back() -> anyhow::Result<()> {
    let mut fleet = Fleet::start();
    let workers = [
        fleet.worker("w0", &["--speedup=20"]).await?,
        fleet.worker("w1", &["--speedup=20"]).await?,
    ];
    let (a, b) = (fleet.router_of(2, &[]).await?, fleet.router_of(2, &[]).await?);
    let load = Load::start(&[&a, &b]);
    fleet.nats.kill();
    plane_is(&a, "events", "down").await?;
    let up = a
        .metrics()
        .await?
        .sum("signalbox_plane_up", &[("plane", "events")]);
    assert_eq!(up, 0.0);
    tokio::time::sleep(outage()).await;
    fleet.nats.start();
    plane_is(&a, "events", "up").await?;
    plane_is(&b, "events", "up").await?;
    let answered = load.end().await?;
    let fresh = fleet.router_of(2, &[]).await?;
    let restored = Instant::now();
    let held = same_index(&[&a, &b, &fresh]).await?;
    let resyncs = a.metrics().await?.sum("signalbox_kv_resyncs_total", &[]);
    println!(
        "{answered} requests answered, none failed; all indexes equal {:?} later: {held:?}; {resyncs} snapshots taken",
        restored.elapsed()
    );
    assert!(
        held.len() == 2 && held.values().all(|(_, blocks, _)| *blocks > 0),
        "{held:?}\n{}\n{}\n{}",
        a.process.output(),
        workers[0].process.output(),
        workers[1].process.output()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_is_killed_for_longer_than_the_lease() -> anyhow::Result<()> {
    let mut fleet = Fleet::start();
    let _workers = [
        fleet.worker("w0", &["--speedup=20"]).await?,
        fleet.worker("w1", &["--speedup=20"]).await?,
    ];
    let mut doomed = fleet.worker("doomed", &["--speedup=20"]).await?;
    let (a, b) = (fleet.router_of(3, &[]).await?, fleet.router_of(3, &[]).await?);
    fleet.etcd.kill();
    doomed.process.kill()?;
    doomed.process.ended().await?;
    plane_is(&a, "discovery", "down").await?;
    let load = Load::start(&[&a, &b]);
    tokio::time::sleep(outage()).await;
    for router in [&a, &b] {
        let workers = router.workers().await?;
        let known: Vec<_> = workers
            .iter()
            .filter_map(|worker| worker["card"]["id"].as_str())
            .collect();
        assert!(known.contains(&"w0") && known.contains(&"w1"), "{known:?}");
    }
    fleet.etcd.start();
    plane_is(&a, "discovery", "up").await?;
    for router in [&a, &b] {
        follows(router, 2).await?;
    }
    let answered = load.end().await?;
    println!("{answered} requests answered, none failed");
    let newcomer = fleet.worker("newcomer", &[]).await?;
    follows(&a, 3).await?;
    drop(newcomer);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_loses_all_its_data_and_all_workers_register_again() -> anyhow::Result<()> {
    let mut fleet = Fleet::start();
    let _workers = [
        fleet.worker("w0", &["--speedup=20"]).await?,
        fleet.worker("w1", &["--speedup=20"]).await?,
    ];
    let router = fleet.router_of(2, &[]).await?;
    let load = Load::start(&[&router]);
    fleet.etcd.wipe();
    fleet.etcd.start();
    plane_is(&router, "discovery", "up").await?;
    eventually("both are listed again", || async {
        let workers = router.workers().await?;
        ensure!(
            workers.len() == 2,
            "no worker that answers is dropped: {workers:?}"
        );
        Ok(workers
            .iter()
            .all(|worker| worker["listed"] == true)
            .then_some(()))
    })
    .await?;
    load.end().await?;
    Ok(())
}

#[tokio::test]
async fn a_purged_stream_and_a_paused_router_leave_no_phantom_block() -> anyhow::Result<()> {
    let fleet = Fleet::start();
    // A small cache, so that the blocks in the paused router's index are evicted meanwhile.
    let _worker = fleet.worker("w0", &["--speedup=0", "--kv-tokens=4096"]).await?;
    let (paused, other) = (fleet.router_of(1, &[]).await?, fleet.router_of(1, &[]).await?);
    let mut workload = Workload::new(7);
    let mut bodies = |count: usize| -> Vec<_> {
        (0..count)
            .map(|_| json!({"model": other.model, "messages": workload.chat(200), "max_tokens": 4}))
            .collect()
    };
    for body in bodies(5) {
        assert_eq!(other.api.post(CHAT, &body).await?.status, 200);
    }
    same_index(&[&paused, &other]).await?;
    paused.process.suspend()?;
    for body in bodies(40) {
        assert_eq!(other.api.post(CHAT, &body).await?.status, 200);
    }
    let context = async_nats::jetstream::new(async_nats::connect(fleet.nats.url()).await?);
    let stream = context.get_stream("SIGNALBOX_KV_EVENTS").await?;
    let purged = stream.purge().await?.purged;
    assert!(purged > 0);
    tokio::time::sleep(outage()).await;
    let resumed = Instant::now();
    paused.process.resume()?;
    let fresh = fleet.router_of(1, &[]).await?;
    let held = same_index(&[&paused, &other, &fresh]).await?;
    println!(
        "{purged} messages purged; indexes equal {:?} after the router was resumed: {held:?}",
        resumed.elapsed()
    );
    Ok(())
}

#[tokio::test]
async fn a_worker_suspended_past_its_lease_corrupts_nothing_when_it_is_resumed() -> anyhow::Result<()> {
    let fleet = Fleet::start();
    let zombie = fleet.worker("w0", &["--speedup=0"]).await?;
    let router = fleet.router_of(1, &[]).await?;
    let mut workload = Workload::new(8);
    let mut body = || json!({"model": router.model, "messages": workload.chat(300), "max_tokens": 4});
    for _ in 0..5 {
        assert_eq!(router.api.post(CHAT, &body()).await?.status, 200);
    }
    zombie.process.suspend()?;
    eventually("the worker is dropped", || async {
        Ok(router.workers().await?.is_empty().then_some(()))
    })
    .await?;
    assert_eq!(
        router.index().await?["memberships"],
        0,
        "its blocks leave the index too"
    );
    let replacement = fleet.worker("w0", &["--speedup=0"]).await?;
    follows(&router, 1).await?;
    zombie.process.resume()?;
    for _ in 0..5 {
        assert_eq!(router.api.post(CHAT, &body()).await?.status, 200);
    }
    // The resumed worker tries to register again and is refused; its events carry an old epoch.
    eventually("the earlier incarnation logs that it is refused", || async {
        Ok(zombie.process.output().contains("later").then_some(()))
    })
    .await?;
    let fresh = fleet.router_of(1, &[]).await?;
    let held = same_index(&[&router, &fresh]).await?;
    let workers = router.workers().await?;
    assert_eq!((workers.len(), held.len()), (1, 1));
    assert_eq!(workers[0]["card"]["address"], replacement.address.as_str());
    Ok(())
}

/// No step of a request waits for NATS or etcd.
#[tokio::test(flavor = "multi_thread")]
async fn with_nats_and_etcd_suspended_requests_take_as_long_as_before() -> anyhow::Result<()> {
    let fleet = Fleet::start();
    let _workers = [
        fleet.worker("w0", &["--speedup=0"]).await?,
        fleet.worker("w1", &["--speedup=0"]).await?,
    ];
    let router = fleet.router_of(2, &["--policy=replica-synced"]).await?;
    let mut workload = Workload::new(9);
    let mut measure = async |count: usize| -> anyhow::Result<Vec<Duration>> {
        let mut times = Vec::new();
        for _ in 0..count {
            let body = json!({"model": router.model, "messages": workload.chat(50), "max_tokens": 8});
            let reply = router.api.post(CHAT, &body).await?;
            ensure!(reply.status == 200, "{}", reply.text());
            times.push(reply.took);
        }
        times.sort();
        Ok(times)
    };
    measure(100).await?;
    let before = measure(300).await?;
    fleet.nats.suspend();
    fleet.etcd.suspend();
    let during = measure(300).await?;
    fleet.nats.resume();
    fleet.etcd.resume();
    let shown = |times: &[Duration]| {
        (
            times[times.len() / 2],
            times[times.len() * 99 / 100],
            times[times.len() - 1],
        )
    };
    println!(
        "median, p99, longest: before {:?}, with both suspended {:?}",
        shown(&before),
        shown(&during)
    );
    // A request that waited for either server would take seconds, until a timeout, or for ever.
    assert!(
        during.iter().all(|took| *took < Duration::from_secs(1)),
        "{:?}",
        shown(&during)
    );
    Ok(())
}

#[tokio::test]
async fn a_router_starts_without_nats_and_etcd_and_serves_static_workers() -> anyhow::Result<()> {
    let mut fleet = Fleet::start();
    let known = Worker::sim(
        "known",
        &["--speedup=0", &format!("--events={}", fleet.nats.url())],
    )
    .await?;
    fleet.nats.kill();
    fleet.etcd.kill();
    let discovery = format!("--discovery=static://{}", known.address);
    let router = fleet.router(&[&discovery]).await?;
    eventually("the router serves the worker known by address", || async {
        let ready = router.api.get("/ready").await?;
        Ok((ready.status == 200).then_some(ready))
    })
    .await?;
    let ready = router.api.get("/ready").await?.json()?;
    assert_eq!(ready["planes"]["events"]["state"], "connecting", "{ready}");
    assert_eq!(ready["planes"]["discovery"]["state"], "connecting", "{ready}");
    let models = router.api.get("/v1/models").await?.json()?;
    let body = json!({"model": models["data"][0]["id"], "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2});
    assert_eq!(router.api.post(CHAT, &body).await?.status, 200);
    fleet.nats.start();
    fleet.etcd.start();
    plane_is(&router, "events", "up").await?;
    plane_is(&router, "discovery", "up").await?;
    let _late = fleet.worker("late", &["--speedup=0"]).await?;
    follows(&router, 2).await
}

/// A worker restarts at its address while etcd is away: its old blocks are gone at once, and it serves (K-1, S-1).
#[tokio::test]
async fn a_worker_that_restarts_while_etcd_is_away_starts_with_an_empty_cache() -> anyhow::Result<()> {
    let mut fleet = Fleet::start();
    let mut worker = fleet.worker("w0", &["--speedup=20"]).await?;
    let router = fleet.router_of(1, &[]).await?;
    let mut workload = Workload::new(9);
    let body = json!({"model": router.model, "messages": workload.chat(1_000), "max_tokens": 8});
    let ask = || async {
        let reply = router.api.post(CHAT, &body).await?;
        anyhow::Ok((
            reply.status,
            reply.header("x-signalbox-overlap-blocks").to_owned(),
        ))
    };
    eventually("the prompt is credited", || async {
        let (status, overlap) = ask().await?;
        ensure!(status == 200);
        Ok((overlap != "0").then_some(()))
    })
    .await?;
    let epoch = router.workers().await?[0]["card"]["epoch"].clone();
    fleet.etcd.kill();
    plane_is(&router, "discovery", "down").await?;
    worker.process.kill()?;
    worker.process.ended().await?;
    let options = fleet.options();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let _restarted = Worker::sim_at(
        &worker.address,
        "w0",
        &[options.as_slice(), &["--speedup=20"]].concat(),
    )
    .await?;
    eventually("the new incarnation is followed", || async {
        let workers = router.workers().await?;
        let followed = workers.len() == 1
            && workers[0]["card"]["epoch"] != epoch
            && workers[0]["state"] == "ready"
            && workers[0]["kv_events"] == "following";
        Ok(followed.then_some(()))
    })
    .await
    .with_context(|| router.process.output())?;
    assert_eq!(router.workers().await?[0]["index_blocks"], 0, "K-1");
    assert_eq!(ask().await?, (200, "0".to_owned()));
    eventually("the prompt is credited again", || async {
        let (status, overlap) = ask().await?;
        ensure!(status == 200);
        Ok((overlap != "0").then_some(()))
    })
    .await?;
    fleet.etcd.start();
    plane_is(&router, "discovery", "up").await?;
    eventually("discovery lists the new incarnation", || async {
        let workers = router.workers().await?;
        ensure!(workers.len() == 1, "it never leaves: {workers:?}");
        let key_is_new = workers[0]["listed"] == true && workers[0]["card"]["epoch"] != epoch;
        Ok(key_is_new.then_some(()))
    })
    .await?;
    let (status, overlap) = ask().await?;
    assert!(
        status == 200 && overlap != "0",
        "nothing was dropped: {status} {overlap}\n{:?}\n{}",
        router.workers().await?,
        router.process.output()
    );
    Ok(())
}
