//! SIGHUP: settings that can change do, others stay, and no process ends.

use reqwest::Method;
use serde_json::json;
use signalbox_integration_tests::{Cluster, Worker, eventually, process::Process};
use tempfile::TempDir;

/// The status of the admin API with this token.
async fn status_with(cluster: &Cluster, token: &str) -> anyhow::Result<u16> {
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str())];
    let reply = cluster
        .admin
        .send(Method::GET, "/admin/v1/policies", &headers, "")
        .await?;
    Ok(reply.status)
}

/// Waits until the process has written this.
async fn writes(process: &Process, text: &str) -> anyhow::Result<()> {
    eventually(&format!("the process writes {text:?}"), || async {
        Ok(process.output().contains(text).then_some(()))
    })
    .await
}

#[tokio::test]
async fn a_router_takes_over_its_token_and_log_filter_and_keeps_the_rest() -> anyhow::Result<()> {
    let worker = Worker::sim("w", &["--speedup=0"]).await?;
    let folder = TempDir::new()?;
    let path = folder.path().join("settings.toml");
    let settings = |token: &str, more: &str| {
        let text = format!(
            "{more}\n[serve]\ndiscovery = 'static://{}'\nadmin_token = '{token}'\n",
            worker.address
        );
        std::fs::write(&path, text)
    };
    settings("old", "log = 'warn'")?;
    let router = Cluster::serve_with(&["--config", &path.display().to_string()]).await?;
    assert_eq!(status_with(&router, "old").await?, 200);

    settings(
        "new",
        "log = 'signalbox_router=debug,runtime=info'\nnamespace = 'other'",
    )?;
    router.process.hangup()?;
    router
        .process
        .line("settings     read again; changed: admin_token, log")
        .await?;
    assert_eq!(status_with(&router, "old").await?, 401);
    assert_eq!(status_with(&router, "new").await?, 200);
    writes(&router.process, "restart it to change them").await?;
    assert!(
        router.process.output().contains("namespace"),
        "{}",
        router.process.output()
    );

    // Wrong settings, an invalid filter, no token, no file: all stays.
    for (token, more, reason) in [
        ("newer", "namspace = 'x'", "did you mean namespace?"),
        ("newer", "log = 'a=b=c'", "log cannot change"),
        ("", "", "admin_token cannot change"),
    ] {
        settings(token, more)?;
        router.process.hangup()?;
        writes(&router.process, reason).await?;
    }
    std::fs::remove_file(&path)?;
    router.process.hangup()?;
    writes(&router.process, "cannot read the settings").await?;
    assert_eq!(status_with(&router, "old").await?, 401);
    let router = router.named().await?;
    let body = json!({"model": router.model, "prompt": "x", "max_tokens": 2});
    assert_eq!(router.api.post("/v1/completions", &body).await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn workers_and_children_outlive_a_hangup() -> anyhow::Result<()> {
    let worker = Worker::sim("w", &["--speedup=0"]).await?;
    worker.process.hangup()?;
    worker
        .process
        .line("settings     read again; changed: nothing")
        .await?;
    let cluster = Cluster::sim(&["--workers=1", "--speedup=0"]).await?;
    cluster.process.hangup()?;
    writes(&cluster.process, "SIGHUP changes nothing").await?;
    let child = cluster.worker_process("worker-0")?;
    child.hangup()?;
    let body = json!({"model": cluster.model, "prompt": "x", "max_tokens": 2});
    assert_eq!(cluster.api.post("/v1/completions", &body).await?.status, 200);
    assert!(child.is_alive());
    let router = Cluster::serve(&[&worker], &[]).await?;
    assert_eq!(router.workers().await?.len(), 1);
    Ok(())
}
