//! The policy is swapped while requests are flowing, and no request fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
};

use anyhow::{Context, ensure};
use reqwest::Method;
use serde_json::json;
use signalbox_integration_tests::{Cluster, workload::Workload, workspace_root};
use tokio::{sync::watch, task::JoinSet};

const CLIENTS: u64 = 32;
const SWAPS: usize = 200;

/// The time in which a policy was active, seen from outside. It began at `requested` or later, and the policy decided
/// no request that was sent after its successor was `confirmed`.
struct ActiveTime {
    label: String,
    requested: Instant,
    confirmed: Instant,
}

/// An answered request.
struct AnsweredRequest {
    label: String,
    sent: Instant,
    head_at: Instant,
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_swaps_under_load_cost_no_request() -> anyhow::Result<()> {
    let cluster = Cluster::sim(&["--workers=2", "--speedup=20", "--policy=kv-aware"]).await?;
    let uploaded = std::fs::read(workspace_root().join("policies/built/round-robin.wasm"))?;
    let reply = cluster
        .admin
        .send(Method::POST, "/admin/v1/policies?name=mine", &[], uploaded)
        .await?;
    ensure!(reply.status == 201, "{} {}", reply.status, reply.text());

    let stop = Arc::new(AtomicBool::new(false));
    let (answered, mut answer_count) = watch::channel(0_usize);
    let answered = Arc::new(answered);
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let (api, model) = (cluster.api.clone(), cluster.model.clone());
        let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
        clients.spawn(async move {
            let mut workload = Workload::new(client);
            let mut answered_requests = Vec::new();
            while !stop.load(Relaxed) {
                let body =
                    json!({"model": model, "messages": workload.chat(40), "max_tokens": 16, "stream": true});
                let streamed = api.stream("/v1/chat/completions", &body).await?.rest().await?;
                ensure!(
                    streamed.status == 200 && streamed.is_whole(),
                    "{} {:?}",
                    streamed.status,
                    streamed.events.last()
                );
                ensure!(streamed.finish_reason(0)?.is_some());
                let label = streamed.header("x-signalbox-policy").to_owned();
                answered_requests.push(AnsweredRequest {
                    label,
                    sent: streamed.sent,
                    head_at: streamed.head_at,
                });
                answered.send_modify(|count| *count += 1);
            }
            Ok(answered_requests)
        });
    }

    // The first policy is active since before the first request.
    let began = Instant::now();
    let mut active_times = vec![ActiveTime {
        label: cluster.activate("kv-aware").await?,
        requested: began,
        confirmed: began,
    }];
    for swap in 0..SWAPS {
        // At least one request is answered between two swaps: swaps without requests would prove nothing.
        let before = *answer_count.borrow_and_update();
        answer_count
            .wait_for(|count| *count > before)
            .await
            .context("all clients ended")?;
        let policy = ["round-robin", "mine", "kv-aware"][swap % 3];
        let requested = Instant::now();
        let label = cluster.activate(policy).await?;
        active_times.push(ActiveTime {
            label,
            requested,
            confirmed: Instant::now(),
        });
    }
    stop.store(true, Relaxed);
    let mut answers: Vec<AnsweredRequest> = Vec::new();
    while let Some(client) = clients.join_next().await {
        answers.extend(client??);
    }

    for answer in &answers {
        let was_active = active_times.iter().enumerate().any(|(place, time)| {
            let end = active_times.get(place + 1).map(|successor| successor.confirmed);
            time.label == answer.label
                && time.requested <= answer.head_at
                && end.is_none_or(|end| answer.sent <= end)
        });
        assert!(was_active, "{} decided while it was not active", answer.label);
    }
    let mut by_label: BTreeMap<&str, usize> = BTreeMap::new();
    for answer in &answers {
        *by_label.entry(&answer.label).or_default() += 1;
    }
    println!(
        "{} swaps, {} answers, none failed: {by_label:?}",
        SWAPS,
        answers.len()
    );
    let activated: BTreeSet<&str> = active_times.iter().map(|time| time.label.as_str()).collect();
    assert_eq!(activated.len(), 3, "{activated:?}");
    assert_eq!(
        by_label.keys().copied().collect::<BTreeSet<_>>(),
        activated,
        "each activated policy decided, and no other"
    );

    cluster.idle().await?;
    let metrics = cluster.metrics().await?;
    for (label, count) in by_label {
        let decisions = metrics.sum("signalbox_policy_decisions_total", &[("policy", label)]);
        assert_eq!(
            decisions, count as f64,
            "the counter of {label} equals the count of headers"
        );
    }
    assert_eq!(metrics.sum("signalbox_policy_faults_total", &[]), 0.0);
    Ok(())
}

#[tokio::test]
async fn a_swap_takes_effect_with_the_next_request_and_can_be_rolled_back() -> anyhow::Result<()> {
    let cluster = Cluster::sim(&["--workers=2", "--speedup=0"]).await?;
    let path = format!("/admin/v1/models/{}/policy", cluster.model);
    let decider = || async {
        let body = json!({"model": cluster.model, "messages": [{"role": "user", "content": "Who?"}], "max_tokens": 1});
        let reply = cluster.api.post("/v1/chat/completions", &body).await?;
        anyhow::Ok(reply.header("x-signalbox-policy").to_owned())
    };
    let first = decider().await?;
    assert!(first.starts_with("kv-aware@"), "{first}");
    // What `curl -X PUT -d '{"policy":"round-robin"}'` sends.
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let reply = cluster
        .admin
        .send(Method::PUT, &path, &form, r#"{"policy":"round-robin"}"#)
        .await?;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let second = reply.json()?["active"]["policy"].as_str().unwrap().to_owned();
    assert!(second.starts_with("round-robin@"), "{second}");
    assert_eq!(decider().await?, second);
    assert_eq!(
        cluster.admin.get(&path).await?.json()?["active"]["policy"],
        second
    );
    let reply = cluster
        .admin
        .send(Method::POST, &format!("{path}/rollback"), &[], "")
        .await?;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(decider().await?, first);
    Ok(())
}
