//! The listener of a worker process: metrics, and whether it runs and takes requests.

use serde_json::json;
use signalbox_integration_tests::{Api, Cluster, Metrics, Worker, eventually, process::Process};

/// The listener of this worker.
async fn listener(process: &Process, id: &str) -> anyhow::Result<Api> {
    let url = process.line(&format!("worker {id} metrics ")).await?;
    Api::new(url.trim_end_matches("/metrics"))
}

#[tokio::test]
async fn a_worker_exports_what_its_engine_does() -> anyhow::Result<()> {
    let worker = Worker::sim("w", &["--speedup=0", "--metrics=localhost:0"]).await?;
    let status = listener(&worker.process, "w").await?;
    assert_eq!(status.get("/live").await?.status, 200);
    let ready = status.get("/ready").await?;
    assert_eq!((ready.status, &ready.json()?["status"]), (200, &json!("ready")));
    let router = Cluster::serve(&[&worker], &[]).await?;
    let body = json!({"model": router.model, "prompt": "a prompt of some tokens, more than a block", "max_tokens": 8});
    assert_eq!(router.api.post("/v1/completions", &body).await?.status, 200);
    let metrics = eventually("the worker has counted its steps", || async {
        let metrics = Metrics::parse(&status.get("/metrics").await?.text())?;
        let steps = metrics.sum("signalbox_worker_step_seconds_count", &[]);
        Ok((steps >= 8.0 && metrics.sum("signalbox_worker_running", &[]) == 0.0).then_some(metrics))
    })
    .await?;
    assert!(metrics.has("signalbox_worker_step_seconds_bucket"), "a histogram");
    assert!(metrics.sum("signalbox_worker_kv_blocks_used", &[]) >= 1.0);
    for path in ["/", "/admin/v1/policies", "/v1/models"] {
        assert_eq!(status.get(path).await?.status, 404, "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn a_worker_whose_engine_is_not_there_is_live_and_not_ready() -> anyhow::Result<()> {
    let process = Process::start(&[
        "worker",
        "--upstream=http://127.0.0.1:1",
        "--listen=127.0.0.1:0",
        "--id=w",
        "--metrics=127.0.0.1:0",
    ])?;
    let status = listener(&process, "w").await?;
    assert_eq!(status.get("/live").await?.status, 200);
    let ready = status.get("/ready").await?;
    assert_eq!(
        (ready.status, &ready.json()?["status"]),
        (503, &json!("not_ready"))
    );
    assert_eq!(status.get("/metrics").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn an_address_in_use_is_an_error_that_names_it() -> anyhow::Result<()> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = format!("--metrics={}", taken.local_addr()?);
    let mut process = Process::start(&["worker", "--engine=sim", "--listen=127.0.0.1:0", &address])?;
    process.ended().await?;
    let output = process.output();
    assert!(output.contains(&taken.local_addr()?.to_string()), "{output}");
    Ok(())
}
