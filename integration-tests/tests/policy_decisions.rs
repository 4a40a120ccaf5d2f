//! Why a request went where it went, and which outcomes policies that learn receive.

use std::path::Path;

use anyhow::ensure;
use reqwest::Method;
use serde_json::{Value, json};
use signalbox_integration_tests::{Cluster, eventually};

const DECISIONS: &str = "/admin/v1/decisions";

async fn ask(cluster: &Cluster, tokens: u32) -> anyhow::Result<(String, String)> {
    let messages = json!([{"role": "user", "content": "Why is the sky blue?"}]);
    let body =
        json!({"model": cluster.model, "messages": messages, "max_tokens": tokens, "ignore_eos": true});
    let reply = cluster.api.post("/v1/chat/completions", &body).await?;
    ensure!(reply.status == 200, "{} {}", reply.status, reply.text());
    let header = |name| reply.header(name).to_owned();
    Ok((header("x-request-id"), header("x-signalbox-worker")))
}

async fn decisions(cluster: &Cluster, query: &str) -> anyhow::Result<Vec<Value>> {
    let reply = cluster.admin.get(&format!("{DECISIONS}?{query}")).await?;
    ensure!(reply.status == 200, "{} {}", reply.status, reply.text());
    let decisions = reply.json()?["decisions"].as_array().cloned();
    Ok(decisions.unwrap_or_default())
}

#[tokio::test]
async fn a_decision_is_shown_with_its_reason_its_columns_and_its_outcome() -> anyhow::Result<()> {
    let cluster = Cluster::sim(&["--workers=3", "--speedup=0"]).await?;
    let (request, worker) = ask(&cluster, 5).await?;
    ask(&cluster, 1).await?;
    let query = format!("request={request}");
    let ended = || async {
        let decision = decisions(&cluster, &query).await?.pop();
        Ok(decision.filter(|decision| !decision["outcome"].is_null()))
    };
    let decision: Value = eventually("the request's outcome is recorded", ended).await?;
    assert_eq!(
        (&decision["worker"], &decision["model"]),
        (&json!(worker), &json!(cluster.model))
    );
    let explanation = decision["explanation"].as_str().unwrap_or_default();
    assert!(
        explanation.starts_with(&format!(
            "kv-aware@1.0.0 chose {worker}, one of 3 candidates, at a cost of"
        )),
        "{explanation}"
    );
    let candidates = decision["candidates"].as_array().cloned().unwrap_or_default();
    assert_eq!(candidates.len(), 3);
    assert_eq!(candidates[0]["worker"], json!(worker));
    // The costs lead to the choice.
    let costs: Vec<f64> = candidates.iter().filter_map(|row| row["cost"].as_f64()).collect();
    assert!(
        costs.len() == 3 && costs.iter().all(|cost| *cost >= costs[0]),
        "{costs:?}"
    );
    assert!(candidates[0]["kv_blocks_total"].as_u64() > Some(0), "{decision}");
    assert!(decision["features"]["prompt_tokens"].as_u64() > Some(0));
    let outcome = &decision["outcome"];
    assert_eq!(
        (&outcome["completed"], &outcome["output_tokens"]),
        (&json!(true), &json!(5))
    );
    assert!(
        outcome["ttft_ms"].is_number() && outcome["cached_tokens"].is_number(),
        "{outcome}"
    );

    assert_eq!(decisions(&cluster, "policy=kv-aware").await?.len(), 2);
    assert_eq!(decisions(&cluster, "policy=round-robin").await?.len(), 0);
    assert_eq!(decisions(&cluster, "limit=1").await?.len(), 1);
    assert!(!decisions(&cluster, &format!("worker={worker}")).await?.is_empty());
    let refused = cluster.admin.get(&format!("{DECISIONS}?workr=x")).await?;
    assert_eq!(refused.status, 400, "{}", refused.text());
    Ok(())
}

/// The guest `learner` costs a worker by the mean time to the first token of the outcomes that it received.
#[tokio::test]
async fn a_policy_that_learns_is_told_what_became_of_requests() -> anyhow::Result<()> {
    let cluster = Cluster::sim(&["--workers=2", "--speedup=1", "--http-threads=1"]).await?;
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests/learner.wasm");
    let path = "/admin/v1/policies?name=learner";
    let reply = cluster
        .admin
        .send(Method::POST, path, &[], std::fs::read(guest)?)
        .await?;
    ensure!(reply.status == 201, "{} {}", reply.status, reply.text());
    cluster.activate("learner").await?;
    // Workers cost nothing until their first outcome; shares of caches and overlaps are below 2. A time to a first token
    // is at least 16 ms.
    let learned = || async {
        ask(&cluster, 1).await?;
        let latest = decisions(&cluster, "policy=learner&limit=1").await?.pop();
        let cost = latest.and_then(|latest| latest["candidates"][1]["cost"].as_f64());
        Ok(cost.filter(|cost| *cost > 10.0))
    };
    eventually("both workers cost what the outcomes say", learned).await?;
    Ok(())
}
