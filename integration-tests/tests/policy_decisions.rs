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

#[tokio::test]
async fn the_policys_own_reason_is_in_the_answer_when_it_is_asked_for() -> anyhow::Result<()> {
    let cluster = Cluster::sim(&["--workers=2", "--speedup=0"]).await?;
    let (request, worker) = ask(&cluster, 1).await?;
    let asked = decisions(&cluster, &format!("request={request}&explain=true")).await?;
    let [explained] = asked.as_slice() else {
        anyhow::bail!("one decision: {asked:?}")
    };
    let words = explained["policy_explanation"].as_str().unwrap_or_default();
    assert!(!words.is_empty(), "{explained}");
    let unasked = decisions(&cluster, &format!("request={request}")).await?;
    assert!(unasked[0].get("policy_explanation").is_none(), "{unasked:?}");
    assert!(
        unasked[0]["explanation"]
            .as_str()
            .unwrap_or_default()
            .contains(&worker)
    );

    cluster.activate("round-robin").await?;
    let (request, _) = ask(&cluster, 1).await?;
    let silent = decisions(&cluster, &format!("request={request}&explain=true")).await?;
    let reason = silent[0]["not_explained"].as_str().unwrap_or_default();
    assert!(reason.contains("does not explain its decisions"), "{silent:?}");
    // The record of the first policy is explained by it, though another one decides now.
    let earlier = decisions(&cluster, "policy=kv-aware&explain=true").await?;
    assert_eq!(earlier[0]["policy_explanation"], explained["policy_explanation"]);
    Ok(())
}

#[tokio::test]
async fn an_answer_says_why_its_worker_has_the_request_to_those_with_the_admin_token() -> anyhow::Result<()> {
    let cluster = Cluster::sim(&["--workers=2", "--speedup=0", "--admin-token=secret"]).await?;
    let asks = |stream: bool, headers: &'static [(&'static str, &'static str)]| {
        let body = json!({
            "model": cluster.model, "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 1, "stream": stream,
        });
        let headers = [&[("content-type", "application/json")], headers].concat();
        let (api, body) = (&cluster.api, serde_json::to_vec(&body));
        async move {
            let path = "/v1/chat/completions";
            let reply = api.send(Method::POST, path, &headers, body?).await?;
            ensure!(reply.status == 200, "{} {}", reply.status, reply.text());
            Ok(reply)
        }
    };
    for stream in [false, true] {
        let explained = asks(
            stream,
            &[
                ("x-signalbox-explain", "1"),
                ("x-signalbox-admin-token", "secret"),
            ],
        )
        .await?;
        let begin = format!(
            "kv-aware@1.0.0 chose {}, one of 2 candidates",
            explained.header("x-signalbox-worker")
        );
        let words = explained.header("x-signalbox-explanation");
        assert!(words.starts_with(&begin), "{words}");
    }
    for headers in [
        &[("x-signalbox-explain", "1")][..],
        &[("x-signalbox-explain", "1"), ("x-signalbox-admin-token", "guess")],
        &[("x-signalbox-explain", "1"), ("authorization", "Bearer secret")],
        &[("x-signalbox-admin-token", "secret")],
    ] {
        let untold = asks(false, headers).await?;
        assert_eq!(untold.header("x-signalbox-explanation"), "", "{headers:?}");
    }
    Ok(())
}

/// What the client sets reaches policies as it stands, and so do the names that the operator allows.
#[tokio::test]
async fn a_policy_sees_the_limit_and_the_tenant_that_the_client_names() -> anyhow::Result<()> {
    let features = async |cluster: &Cluster, more: Value, headers: &[(&str, &str)]| {
        let mut body = json!({"model": cluster.model, "messages": [{"role": "user", "content": "Why?"}]});
        body.as_object_mut()
            .expect("an object")
            .extend(more.as_object().expect("an object").clone());
        let headers = [&[("content-type", "application/json")], headers].concat();
        let path = "/v1/chat/completions";
        let reply = cluster
            .api
            .send(Method::POST, path, &headers, serde_json::to_vec(&body)?)
            .await?;
        ensure!(reply.status == 200, "{} {}", reply.status, reply.text());
        let latest = decisions(cluster, "limit=1").await?.pop();
        Ok(latest
            .map(|latest| latest["features"].clone())
            .unwrap_or_default())
    };
    let cluster = Cluster::sim(&["--workers=1", "--speedup=0", "--kv-tokens=4096"]).await?;
    let models = cluster.api.get("/v1/models").await?.json()?;
    let context = models["data"][0]["max_model_len"].as_u64().unwrap_or_default();
    assert!(context > 0, "{models}");
    // With the prompt it does not fit into the context: the answer is shorter, and the policy sees what the client set.
    let limited = features(
        &cluster,
        json!({"max_tokens": context, "stop": ["e"]}),
        &[("x-tenant-id", "t")],
    )
    .await?;
    assert_eq!(limited["max_output_tokens"], context);
    assert!(
        limited["expected_output_tokens"].as_u64() < Some(context),
        "{limited}"
    );
    assert_ne!(limited["keys"]["tenant"], 0);
    let open = features(&cluster, json!({"stop": ["e"]}), &[("x-team", "t")]).await?;
    assert_eq!(
        (&open["max_output_tokens"], &open["keys"]["tenant"]),
        (&Value::Null, &json!(0))
    );

    let named = Cluster::sim(&["--workers=1", "--speedup=0", "--tenant-header=X-Team"]).await?;
    let tenant = |features: &Value| features["keys"]["tenant"].clone();
    let by_team = features(&named, json!({"max_tokens": 1}), &[("x-team", "t")]).await?;
    assert_eq!(
        tenant(&by_team),
        tenant(&limited),
        "equal names have equal keys, at every router"
    );
    let by_default = features(&named, json!({"max_tokens": 1}), &[("x-tenant-id", "t")]).await?;
    assert_eq!(tenant(&by_default), 0);
    let none = Cluster::sim(&["--workers=1", "--speedup=0", "--tenant-header="]).await?;
    let unnamed = features(&none, json!({"max_tokens": 1}), &[("x-tenant-id", "t")]).await?;
    assert_eq!(tenant(&unnamed), 0);
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
