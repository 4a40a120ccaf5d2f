//! The client libraries that most programs use work with Signalbox: OpenAI's, Anthropic's, langchain-openai and litellm.
//! `integration-tests/clients` runs many more.

use std::{path::PathBuf, process::Stdio};

use anyhow::ensure;
use signalbox_integration_tests::{Cluster, NextDoor, fake_engine::EngineOptions, workspace_root};

/// The interpreter that has the packages `openai`, `anthropic`, `langchain-openai` and `litellm`.
fn python() -> anyhow::Result<PathBuf> {
    let chosen = std::env::var_os("SIGNALBOX_PYTHON").map(PathBuf::from);
    let path = chosen.unwrap_or_else(|| workspace_root().join(".local/venv/bin/python"));
    ensure!(
        path.is_file(),
        "{} does not exist: `make test` makes it, or `python3 -m venv .local/venv && .local/venv/bin/pip install openai anthropic langchain-openai litellm`; \
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

/// Runs the checks of a client program that `integration-tests/clients` has.
async fn run_program(program: &str, cluster: &Cluster) -> anyhow::Result<()> {
    let script = format!("{}/clients/programs/{program}", env!("CARGO_MANIFEST_DIR"));
    let output = tokio::process::Command::new(python()?)
        .arg(script)
        .env("SIGNALBOX_BASE", cluster.api.base())
        .env("SIGNALBOX_MODEL", &cluster.model)
        .env("SIGNALBOX_ABLE", "text,json,tools,min_tokens")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    let (lines, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success() && lines.contains("\"ok\": true"),
        "{}\n{lines}\n{errors}\n{}",
        output.status,
        cluster.process.output()
    );
    cluster.idle().await
}

#[tokio::test]
async fn langchain_and_litellm_work() -> anyhow::Result<()> {
    let cluster = Cluster::sim(&["--workers=2", "--speedup=10"]).await?;
    run_program("langchain.py", &cluster).await?;
    run_program("litellm_library.py", &cluster).await
}

#[tokio::test]
async fn the_official_client_has_several_prompts_and_their_scores() -> anyhow::Result<()> {
    let cluster = Cluster::sim(&["--workers=2", "--speedup=10"]).await?;
    run_program("openai_python.py", &cluster).await
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
