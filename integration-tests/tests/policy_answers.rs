//! What a policy can answer beside a worker, and which names of a client it can tell apart.

use std::path::Path;

use anyhow::ensure;
use reqwest::Method;
use serde_json::{Value, json};
use signalbox_integration_tests::{Cluster, Reply};

async fn cluster(arguments: &[&str]) -> anyhow::Result<Cluster> {
    let arguments = [&["--workers=2", "--speedup=0", "--policy=round-robin"], arguments].concat();
    let cluster = Cluster::sim(&arguments).await?;
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests/answers.wasm");
    let path = "/admin/v1/policies?name=answers";
    let reply = cluster
        .admin
        .send(Method::POST, path, &[], std::fs::read(guest)?)
        .await?;
    ensure!(reply.status == 201, "{} {}", reply.status, reply.text());
    Ok(cluster)
}

async fn answering(cluster: &Cluster, answer: &str) -> anyhow::Result<()> {
    let path = format!("/admin/v1/models/{}/policy", cluster.model);
    let choice = json!({"policy": "answers", "settings": {"answer": answer}});
    let reply = cluster.admin.put(&path, &choice).await?;
    ensure!(reply.status == 200, "{} {}", reply.status, reply.text());
    Ok(())
}

fn body(cluster: &Cluster) -> Value {
    json!({"model": cluster.model, "messages": [{"role": "user", "content": "Who?"}], "max_tokens": 1})
}

async fn ask(cluster: &Cluster, headers: &[(&str, &str)]) -> anyhow::Result<Reply> {
    let headers = [&[("content-type", "application/json")], headers].concat();
    let body = serde_json::to_vec(&body(cluster))?;
    cluster
        .api
        .send(Method::POST, "/v1/chat/completions", &headers, body)
        .await
}

#[tokio::test]
async fn a_rejection_reaches_the_client_and_an_abstention_leaves_the_decision_to_the_fallback()
-> anyhow::Result<()> {
    let cluster = cluster(&[]).await?;
    answering(&cluster, "reject").await?;
    let rejected = ask(&cluster, &[]).await?;
    assert_eq!(rejected.status, 429, "{}", rejected.text());
    assert_eq!(rejected.header("retry-after"), "7");
    let message = rejected.error()?["message"].to_string();
    assert!(message.contains("this team has had its share"), "{message}");

    answering(&cluster, "abstain").await?;
    let answered = ask(&cluster, &[]).await?;
    assert_eq!(answered.status, 200, "{}", answered.text());
    assert!(answered.header("x-signalbox-policy").starts_with("fallback@"));
    let metrics = cluster.metrics().await?;
    let faults = metrics.sum("signalbox_policy_faults_total", &[]);
    assert_eq!(faults, 0.0, "neither answer is a fault");
    Ok(())
}

#[tokio::test]
async fn an_answer_that_this_host_cannot_follow_is_a_fault_that_says_so() -> anyhow::Result<()> {
    for (answer, reason) in [
        ("pair", "does not split a request"),
        ("wait", "does not hold requests back"),
        (
            "forgotten-column",
            "reads `queue-depth`, which its `describe` does not name",
        ),
    ] {
        let cluster = cluster(&[]).await?;
        answering(&cluster, answer).await?;
        let answered = ask(&cluster, &[]).await?;
        assert_eq!(answered.status, 200, "{answer}: {}", answered.text());
        assert!(answered.header("x-signalbox-policy").starts_with("fallback@"));
        let output = cluster.process.output();
        assert!(output.contains(reason), "{answer}: {output}");
    }
    Ok(())
}

#[tokio::test]
async fn a_policy_sees_the_headers_that_the_operator_shows_it() -> anyhow::Result<()> {
    let shown = cluster(&["--policy-header=X-Team"]).await?;
    answering(&shown, "excludes-team").await?;
    let of_team = ask(&shown, &[("x-team", "blue")]).await?;
    assert_eq!(of_team.status, 503, "{}", of_team.text());
    assert!(of_team.text().contains("not for this team"));
    let of_none = ask(&shown, &[]).await?;
    assert_eq!(of_none.status, 200, "{}", of_none.text());

    let hidden = cluster(&[]).await?;
    answering(&hidden, "excludes-team").await?;
    let of_team = ask(&hidden, &[("x-team", "blue")]).await?;
    assert_eq!(of_team.status, 200, "{}", of_team.text());
    Ok(())
}
