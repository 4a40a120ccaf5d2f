//! OpenAI's and Anthropic's own client libraries work with Signalbox.

use std::{path::PathBuf, process::Stdio};

use anyhow::ensure;
use signalbox_integration_tests::{Cluster, NextDoor, fake_engine::EngineOptions, workspace_root};

/// The interpreter that has the packages `openai` and `anthropic`.
fn python() -> anyhow::Result<PathBuf> {
    let chosen = std::env::var_os("SIGNALBOX_PYTHON").map(PathBuf::from);
    let path = chosen.unwrap_or_else(|| workspace_root().join(".local/venv/bin/python"));
    ensure!(
        path.is_file(),
        "{} does not exist: `make test` makes it, or `python3 -m venv .local/venv && .local/venv/bin/pip install openai anthropic`; \
         or name another interpreter in SIGNALBOX_PYTHON",
        path.display()
    );
    Ok(path)
}

/// Runs a script of checks against a router; it prints one line if all of them pass.
async fn run(script: &str, cluster: &Cluster) -> anyhow::Result<()> {
    let script = format!("{}/tests/{script}", env!("CARGO_MANIFEST_DIR"));
    let output = tokio::process::Command::new(python()?)
        .args([script.as_str(), cluster.api.base(), &cluster.model])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{}\n{errors}\n{}",
        output.status,
        cluster.process.output()
    );
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        "all checks passed"
    );
    cluster.idle().await
}

#[tokio::test]
async fn the_official_client_chats_streams_and_raises() -> anyhow::Result<()> {
    let cluster = Cluster::sim(&["--workers=2", "--speedup=10"]).await?;
    run("openai_client.py", &cluster).await
}

#[tokio::test]
async fn the_official_clients_use_every_route_of_engines_next_door() -> anyhow::Result<()> {
    let door = NextDoor::start(&[EngineOptions::default(), EngineOptions::default()]).await?;
    run("next_door_clients.py", &door.cluster).await
}
