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

/// Runs a script of `integration-tests` and returns what it prints, which has to be a success.
async fn output_of(
    script: &str,
    arguments: &[&str],
    environment: &[(&str, &str)],
    cluster: &Cluster,
) -> anyhow::Result<String> {
    let output = tokio::process::Command::new(python()?)
        .arg(format!("{}/{script}", env!("CARGO_MANIFEST_DIR")))
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{}\n{printed}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
        cluster.process.output()
    );
    Ok(printed)
}

/// Runs a script of checks against a router; it prints one line if all of them pass.
async fn run(script: &str, cluster: &Cluster) -> anyhow::Result<()> {
    let arguments = [cluster.api.base(), &cluster.model];
    let printed = output_of(&format!("tests/{script}"), &arguments, &[], cluster).await?;
    assert_eq!(printed.trim(), "all checks passed");
    cluster.idle().await
}

/// Runs the checks of a client program that `integration-tests/clients` has.
async fn run_program(program: &str, cluster: &Cluster) -> anyhow::Result<()> {
    let environment = [
        ("SIGNALBOX_BASE", cluster.api.base()),
        ("SIGNALBOX_MODEL", &cluster.model),
        ("SIGNALBOX_ABLE", "text,json,tools,min_tokens"),
        ("PYTHONDONTWRITEBYTECODE", "1"),
    ];
    let printed = output_of(&format!("clients/programs/{program}"), &[], &environment, cluster).await?;
    assert!(printed.contains("\"ok\": true"), "{printed}");
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
