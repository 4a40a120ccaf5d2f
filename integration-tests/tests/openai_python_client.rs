//! OpenAI's own client library works with Signalbox.

use std::{path::PathBuf, process::Stdio};

use anyhow::ensure;
use signalbox_integration_tests::{Cluster, workspace_root};

/// The interpreter that has the package `openai`.
fn python() -> anyhow::Result<PathBuf> {
    let chosen = std::env::var_os("SIGNALBOX_PYTHON").map(PathBuf::from);
    let path = chosen.unwrap_or_else(|| workspace_root().join(".local/venv/bin/python"));
    ensure!(
        path.is_file(),
        "{} does not exist: `make test` makes it, or `python3 -m venv .local/venv && .local/venv/bin/pip install openai`; \
         or name another interpreter in SIGNALBOX_PYTHON",
        path.display()
    );
    Ok(path)
}

#[tokio::test]
async fn the_official_client_chats_streams_and_raises() -> anyhow::Result<()> {
    let cluster = Cluster::sim(&["--workers=2", "--speedup=10"]).await?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openai_client.py");
    let output = tokio::process::Command::new(python()?)
        .args([script, cluster.api.base(), &cluster.model])
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
