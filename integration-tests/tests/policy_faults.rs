//! A faulty policy fails no request: the fallback decides, and after some faults the previous policy.

use std::{path::Path, time::Duration};

use anyhow::ensure;
use reqwest::Method;
use serde_json::json;
use signalbox_integration_tests::{Cluster, workload::Workload};

/// Requests sent under each policy: more than the faults that lead to quarantine.
const REQUESTS: usize = 30;

/// The result of a run of requests.
#[derive(Debug, Default)]
struct Run {
    by_fallback: usize,
    worst: Duration,
    last_label: String,
}

async fn upload(cluster: &Cluster, guest: &str) -> anyhow::Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("guests")
        .join(format!("{guest}.wasm"));
    let path = format!("/admin/v1/policies?name={guest}");
    let reply = cluster
        .admin
        .send(Method::POST, &path, &[], std::fs::read(file)?)
        .await?;
    // The guest has no fault during the checks of the upload.
    ensure!(reply.status == 201, "{guest}: {} {}", reply.status, reply.text());
    Ok(())
}

/// Sends requests one after another; each must be answered.
async fn run(cluster: &Cluster, workload: &mut Workload) -> anyhow::Result<Run> {
    let mut run = Run::default();
    for _ in 0..REQUESTS {
        let body = json!({"model": cluster.model, "messages": workload.chat(20), "max_tokens": 1});
        let reply = cluster.api.post("/v1/chat/completions", &body).await?;
        ensure!(reply.status == 200, "{} {}", reply.status, reply.text());
        run.last_label = reply.header("x-signalbox-policy").to_owned();
        run.by_fallback += usize::from(run.last_label.starts_with("fallback@"));
        run.worst = run.worst.max(reply.took);
    }
    Ok(run)
}

/// Activates the guest and checks that its faults of these kinds are noticed, counted and ended by quarantine.
#[expect(clippy::print_stdout, reason = "a figure for the person who runs the test")]
async fn survives(guest: &str, kinds: &[&str]) -> anyhow::Result<()> {
    let cluster = Cluster::sim(&["--workers=2", "--speedup=0", "--policy=round-robin"]).await?;
    let mut workload = Workload::new(1);
    let before = run(&cluster, &mut workload).await?;
    assert!(
        before.last_label.starts_with("round-robin@") && before.by_fallback == 0,
        "{before:?}"
    );

    upload(&cluster, guest).await?;
    let label = cluster.activate(guest).await?;
    let during = run(&cluster, &mut workload).await?;
    println!(
        "{guest}: worst request {:?}, before {:?}; {} by the fallback",
        during.worst, before.worst, during.by_fallback
    );
    assert!(during.by_fallback > 0, "{during:?}");
    assert!(
        during.by_fallback < REQUESTS,
        "the guest is never replaced: {during:?}"
    );
    assert_eq!(
        during.last_label, before.last_label,
        "the previous policy is active again"
    );

    let metrics = cluster.metrics().await?;
    let of_kind = |kind: &&str| {
        metrics.sum(
            "signalbox_policy_faults_total",
            &[("policy", &label), ("kind", kind)],
        )
    };
    let faults: f64 = kinds.iter().map(of_kind).sum();
    assert_eq!(
        faults, during.by_fallback as f64,
        "each fault is counted, as {kinds:?}"
    );
    assert_eq!(
        metrics.sum("signalbox_policy_faults_total", &[]),
        faults,
        "and as no other kind"
    );
    assert_eq!(metrics.sum("signalbox_policy_quarantines_total", &[]), 1.0);

    let listed = cluster.admin.get("/admin/v1/policies").await?.json()?;
    let record = listed["policies"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|policy| policy["name"] == guest);
    assert!(
        record.is_some_and(|record| record["state"].to_string().contains("quarantine")),
        "{listed}"
    );
    let path = format!("/admin/v1/models/{}/policy", cluster.model);
    assert_eq!(
        cluster.admin.get(&path).await?.json()?["active"]["policy"],
        before.last_label
    );
    let refused = cluster.admin.put(&path, &json!({"policy": guest})).await?;
    assert!(
        (400..500).contains(&refused.status),
        "a policy in quarantine cannot be activated: {}",
        refused.text()
    );
    Ok(())
}

#[tokio::test]
async fn a_policy_with_an_endless_loop_is_replaced() -> anyhow::Result<()> {
    survives("loop-in-decide", &["deadline"]).await
}

#[tokio::test]
async fn a_policy_that_traps_is_replaced() -> anyhow::Result<()> {
    survives("trap", &["trap"]).await
}

#[tokio::test]
async fn a_policy_that_takes_too_much_memory_is_replaced() -> anyhow::Result<()> {
    // Either fault may come first: touching that much memory takes about as long as a decision may take.
    survives("memory-hog", &["memory", "deadline"]).await
}

#[tokio::test]
async fn a_policy_with_endless_recursion_is_replaced() -> anyhow::Result<()> {
    survives("deep-recursion", &["stack", "deadline"]).await
}

#[tokio::test]
async fn a_policy_that_picks_no_candidate_row_is_replaced() -> anyhow::Result<()> {
    survives("pick-out-of-range", &["answer"]).await
}

#[tokio::test]
async fn a_policy_whose_costs_are_no_numbers_is_replaced() -> anyhow::Result<()> {
    survives("nan-costs", &["answer"]).await
}

#[tokio::test]
async fn a_policy_with_costs_for_more_rows_than_there_are_is_replaced() -> anyhow::Result<()> {
    survives("wrong-count", &["answer"]).await
}

#[tokio::test]
async fn a_policy_that_excludes_all_workers_fails_no_request() -> anyhow::Result<()> {
    let cluster = Cluster::sim(&["--workers=2", "--speedup=0"]).await?;
    upload(&cluster, "excludes-all").await?;
    cluster.activate("excludes-all").await?;
    // This test does not check whether it counts as a fault, only that the requests are answered.
    run(&cluster, &mut Workload::new(2)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_under_load_delays_other_requests_no_longer_than_its_budget() -> anyhow::Result<()> {
    let cluster = Cluster::sim(&["--workers=2", "--speedup=20"]).await?;
    upload(&cluster, "loop-in-decide").await?;
    let load = |seed: u64| {
        let (api, model) = (cluster.api.clone(), cluster.model.clone());
        async move {
            let mut workload = Workload::new(seed);
            let mut worst = Duration::ZERO;
            for _ in 0..20 {
                let body =
                    json!({"model": model, "messages": workload.chat(20), "max_tokens": 4, "stream": true});
                let streamed = api.stream("/v1/chat/completions", &body).await?.rest().await?;
                ensure!(
                    streamed.status == 200 && streamed.is_whole(),
                    "{:?}",
                    streamed.events.last()
                );
                worst = worst.max(streamed.ttft()?);
            }
            anyhow::Ok(worst)
        }
    };
    let worst = |all: Vec<anyhow::Result<Duration>>| {
        all.into_iter()
            .try_fold(Duration::ZERO, |worst, one| anyhow::Ok(worst.max(one?)))
    };
    let calm = worst(futures_util::future::join_all((0..8).map(load)).await)?;
    cluster.activate("loop-in-decide").await?;
    let looping = worst(futures_util::future::join_all((8..16).map(load)).await)?;
    let metrics = cluster.metrics().await?;
    let decisions = metrics.sum("signalbox_decision_seconds_count", &[]);
    let within = metrics.sum("signalbox_decision_seconds_bucket", &[("le", "0.05")]);
    println!(
        "worst time to first token: {calm:?} calm, {looping:?} with a loop; decisions over 50 ms: {}",
        decisions - within
    );
    assert!(metrics.sum("signalbox_policy_faults_total", &[("kind", "deadline")]) > 0.0);
    Ok(())
}
