//! The policy is exchanged while requests are flowing, and no request notices.

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

/// A policy's time in charge, from outside: it cannot have begun before `asked`, nor have decided anything that was
/// sent after its successor was `confirmed`.
struct Reign {
    label: String,
    asked: Instant,
    confirmed: Instant,
}

/// One answered request.
struct Seen {
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
    let (answered, mut answers) = watch::channel(0_usize);
    let answered = Arc::new(answered);
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let (api, model) = (cluster.api.clone(), cluster.model.clone());
        let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
        clients.spawn(async move {
            let mut workload = Workload::new(client);
            let mut seen = Vec::new();
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
                seen.push(Seen {
                    label,
                    sent: streamed.sent,
                    head_at: streamed.head_at,
                });
                answered.send_modify(|count| *count += 1);
            }
            Ok(seen)
        });
    }

    // The first one reigns since before the first request.
    let began = Instant::now();
    let mut reigns = vec![Reign {
        label: cluster.activate("kv-aware").await?,
        asked: began,
        confirmed: began,
    }];
    for swap in 0..SWAPS {
        // Each is in charge until somebody was answered: a swap between two requests would prove nothing.
        let before = *answers.borrow_and_update();
        answers
            .wait_for(|count| *count > before)
            .await
            .context("all clients ended")?;
        let policy = ["round-robin", "mine", "kv-aware"][swap % 3];
        let asked = Instant::now();
        let label = cluster.activate(policy).await?;
        reigns.push(Reign {
            label,
            asked,
            confirmed: Instant::now(),
        });
    }
    stop.store(true, Relaxed);
    let mut seen: Vec<Seen> = Vec::new();
    while let Some(client) = clients.join_next().await {
        seen.extend(client??);
    }

    for answer in &seen {
        let in_charge = reigns.iter().enumerate().any(|(place, reign)| {
            let over = reigns.get(place + 1).map(|successor| successor.confirmed);
            reign.label == answer.label
                && reign.asked <= answer.head_at
                && over.is_none_or(|over| answer.sent <= over)
        });
        assert!(in_charge, "{} decided while it was not in charge", answer.label);
    }
    let mut by_label: BTreeMap<&str, usize> = BTreeMap::new();
    for answer in &seen {
        *by_label.entry(&answer.label).or_default() += 1;
    }
    println!(
        "{} swaps, {} answers, none failed: {by_label:?}",
        SWAPS,
        seen.len()
    );
    let activated: BTreeSet<&str> = reigns.iter().map(|reign| reign.label.as_str()).collect();
    assert_eq!(activated.len(), 3, "{activated:?}");
    assert_eq!(
        by_label.keys().copied().collect::<BTreeSet<_>>(),
        activated,
        "each of them decided, and nobody else"
    );

    cluster.idle().await?;
    let metrics = cluster.metrics().await?;
    for (label, count) in by_label {
        let decisions = metrics.sum("signalbox_policy_decisions_total", &[("policy", label)]);
        assert_eq!(
            decisions, count as f64,
            "the counter of {label} says the same as the headers"
        );
    }
    assert_eq!(metrics.sum("signalbox_policy_faults_total", &[]), 0.0);
    Ok(())
}

#[tokio::test]
async fn a_swap_takes_effect_with_the_next_request_and_can_be_taken_back() -> anyhow::Result<()> {
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
