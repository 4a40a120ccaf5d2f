//! The command line: an error is one clear line with the right exit code, and no process is left running.

use std::{
    fs,
    net::TcpListener,
    time::{Duration, Instant},
};

use anyhow::ensure;
use serde_json::json;
use signalbox_integration_tests::{Cluster, Worker, eventually, process::Process, workload::Workload};
use tempfile::TempDir;

const FREE: [&str; 2] = ["--http=127.0.0.1:0", "--admin=127.0.0.1:0"];

/// The promised bound for an idle process.
const STOPS_WITHIN: Duration = Duration::from_secs(1);

/// Runs a command that must fail with exit code 1 and one line of error, which is returned.
#[expect(clippy::print_stdout, reason = "a figure for the person who runs the test")]
async fn error_of(arguments: &[&str]) -> anyhow::Result<String> {
    let mut process = Process::start(arguments)?;
    let ended = process.ended().await?;
    let command = arguments.join(" ");
    ensure!(
        ended.status.code() == Some(1),
        "`runtime {command}`: {}\n{}",
        ended.status,
        process.output()
    );
    ensure!(
        process.children().is_empty(),
        "`runtime {command}` leaves processes: {:?}",
        process.children()
    );
    let line = ended.stderr.trim_end();
    ensure!(
        line.starts_with("error: ") && line.lines().count() == 1,
        "the error of `runtime {command}` is not one line:\n{line}"
    );
    println!("runtime {command}\n    {line}");
    Ok(line.to_owned())
}

/// Fails unless the error contains all these words.
fn names(error: &str, words: &[&str]) -> anyhow::Result<()> {
    let missing: Vec<_> = words.iter().filter(|word| !error.contains(**word)).collect();
    ensure!(missing.is_empty(), "{missing:?} not in {error:?}");
    Ok(())
}

#[tokio::test]
async fn a_port_in_use_is_an_error_that_names_it() -> anyhow::Result<()> {
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    for (taken, free) in [("--http", "--admin"), ("--admin", "--http")] {
        let (taken, free) = (format!("{taken}={address}"), format!("{free}=127.0.0.1:0"));
        names(
            &error_of(&["up", "--engine=sim", &taken, &free]).await?,
            &[&address],
        )?;
        names(
            &error_of(&["serve", "--discovery=static://127.0.0.1:1", &taken, &free]).await?,
            &[&address],
        )?;
    }
    names(
        &error_of(&["worker", "--engine=sim", "--listen", &address]).await?,
        &[&address],
    )
}

#[tokio::test]
async fn a_missing_or_broken_model_is_an_error_that_names_the_file() -> anyhow::Result<()> {
    let directory = TempDir::new()?;
    let missing = directory.path().join("missing.gguf").display().to_string();
    let broken = directory.path().join("broken.gguf").display().to_string();
    let cut = directory.path().join("cut.gguf").display().to_string();
    fs::write(&broken, "this is no model")?;
    // A header that announces a million entries, which do not follow.
    let mut header = b"GGUF\x03\0\0\0".to_vec();
    header.extend(1_000_000_u64.to_le_bytes());
    header.extend(1_000_000_u64.to_le_bytes());
    fs::write(&cut, header)?;
    for path in [&missing, &broken, &cut] {
        for command in ["up", "worker"] {
            let free: &[&str] = if command == "up" {
                &FREE
            } else {
                &["--listen=127.0.0.1:0"]
            };
            let arguments = [&[command, "--engine=sim", "--model", path], free].concat();
            names(&error_of(&arguments).await?, &[path])?;
        }
    }
    let folder = directory.path().display().to_string();
    let arguments = [&["up", "--engine=sim", "--tokenizer", &folder], &FREE[..]].concat();
    names(&error_of(&arguments).await?, &[&folder])
}

#[tokio::test]
async fn an_unknown_policy_is_an_error_that_names_the_known_ones() -> anyhow::Result<()> {
    let up = [&["up", "--engine=sim", "--policy=kv-unaware"], &FREE[..]].concat();
    names(&error_of(&up).await?, &["kv-unaware", "kv-aware", "round-robin"])?;
    names(
        &error_of(&["policy", "check", "nowhere.wasm"]).await?,
        &["nowhere.wasm"],
    )
}

#[tokio::test]
async fn more_simulated_workers_than_ports_is_an_error() -> anyhow::Result<()> {
    let worker = ["worker", "--engine=sim", "--model-name=m"];
    let beyond = ["--listen=127.0.0.1:65534", "--sim-workers=3"];
    names(
        &error_of(&[&worker[..], &beyond].concat()).await?,
        &["--sim-workers 3", "65534", "65535"],
    )
}

#[tokio::test]
async fn an_admin_api_open_to_other_machines_needs_a_token() -> anyhow::Result<()> {
    names(
        &error_of(&["up", "--engine=sim", "--http=127.0.0.1:0", "--admin=0.0.0.0:0"]).await?,
        &["token"],
    )
}

#[tokio::test]
async fn a_wrong_discovery_url_is_an_error_that_names_the_right_form() -> anyhow::Result<()> {
    for url in ["consul://127.0.0.1:8500", "static://", "static://somewhere"] {
        let arguments = [&["serve", "--discovery", url], &FREE[..]].concat();
        names(&error_of(&arguments).await?, &["--discovery", "host:port"])?;
    }
    Ok(())
}

#[tokio::test]
async fn a_wrong_flag_is_a_usage_error() -> anyhow::Result<()> {
    for arguments in [
        &["up", "--wrokers=2"][..],
        &["up", "--workers=0"],
        &["worker", "--sim-workers=0"],
        &["up", "--http=here"],
        &["down"],
        &[],
    ] {
        let mut process = Process::start(arguments)?;
        let ended = process.ended().await?;
        assert_eq!(
            ended.status.code(),
            Some(2),
            "{arguments:?}: {}",
            process.output()
        );
        assert!(
            ended.stdout.is_empty() && !ended.stderr.is_empty(),
            "{}",
            process.output()
        );
    }
    let mut process = Process::start(&["up", "--help"])?;
    let ended = process.ended().await?;
    assert!(ended.status.success());
    for flag in [
        "--engine",
        "--model",
        "--workers",
        "--http",
        "--admin",
        "--policy",
    ] {
        assert!(ended.stdout.contains(flag), "{flag} is not in the help");
    }
    Ok(())
}

#[tokio::test]
async fn ctrl_c_stops_an_idle_process_at_once() -> anyhow::Result<()> {
    let mut cluster = Cluster::sim(&["--workers=2", "--speedup=0"]).await?;
    let body = json!({"model": cluster.model, "messages": Workload::new(1).chat(10), "max_tokens": 2});
    assert_eq!(cluster.api.post("/v1/chat/completions", &body).await?.status, 200);
    assert_eq!(cluster.process.children().len(), 2);
    let interrupted = Instant::now();
    cluster.process.interrupt()?;
    let ended = cluster.process.ended().await?;
    let took = interrupted.elapsed();
    println!("stopped in {took:?}");
    assert!(
        ended.status.success(),
        "{}\n{}",
        ended.status,
        cluster.process.output()
    );
    assert!(
        cluster.process.children().is_empty(),
        "{:?}",
        cluster.process.children()
    );
    assert_eq!(ended.stderr, "", "a requested stop prints no error");
    assert!(took < STOPS_WITHIN, "{took:?}");
    Ok(())
}

#[tokio::test]
async fn contradicting_plane_options_are_errors() -> anyhow::Result<()> {
    let known = "--discovery=static://127.0.0.1:1";
    names(
        &error_of(&["serve"]).await?,
        &["--discovery", "static://", "etcd://"],
    )?;
    for (wrong, words) in [
        (["serve", "--discovery=etcd://etcd"], &["etcd", "host:port"][..]),
        (["worker", known], &["registers", "etcd://"]),
    ] {
        names(&error_of(&wrong).await?, words)?;
    }
    let events = [&["serve", known, "--events=http://nats"], &FREE[..]].concat();
    names(&error_of(&events).await?, &["--events", "nats://host:port"])?;
    let ca = [
        "serve",
        "--discovery=etcd://127.0.0.1:1",
        "--etcd-ca=/does/not/exist.pem",
    ];
    names(&error_of(&ca).await?, &["/does/not/exist.pem"])
}

#[tokio::test]
async fn a_file_of_settings_is_used_checked_and_shown() -> anyhow::Result<()> {
    let directory = TempDir::new()?;
    let file = |name: &str, text: &str| -> anyhow::Result<String> {
        let path = directory.path().join(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let wrong = file("wrong.toml", "[serve]\nhtpp = '127.0.0.1:0'\n")?;
    for command in [["config", "check", &wrong], ["serve", "--config", &wrong]] {
        names(
            &error_of(&command).await?,
            &[&wrong, "htpp", "did you mean http?"],
        )?;
    }
    names(
        &error_of(&["config", "check", "/does/not/exist.toml"]).await?,
        &["/does/not/exist.toml"],
    )?;

    let worker = Worker::sim("w", &["--speedup=0"]).await?;
    let right = file(
        "right.toml",
        &format!(
            "[serve]\ndiscovery = 'static://{}'\npolicy = 'round-robin'\nhttp = '127.0.0.1:1'\n",
            worker.address
        ),
    )?;
    let mut check = Process::start(&["config", "check", &right])?;
    assert!(check.ended().await?.stdout.contains("right"));
    let mut show = Process::start(&[
        "config",
        "show",
        "serve",
        "--config",
        &right,
        "--http=127.0.0.1:2",
    ])?;
    let shown = show.ended().await?.stdout;
    for line in [
        "policy = \"round-robin\"  # file",
        "http = \"127.0.0.1:2\"  # flag",
        "grace_s = 30  # default",
    ] {
        ensure!(shown.contains(line), "{line:?} not in\n{shown}");
    }
    // A flag wins over the file.
    let cluster = Cluster::serve_with(&["--config", &right]).await?;
    eventually("the worker named in the file is ready", || async {
        Ok((cluster.api.get("/ready").await?.status == 200).then_some(()))
    })
    .await?;
    let mut example = Process::start(&["config", "example"])?;
    let example = file("example.toml", &example.ended().await?.stdout)?;
    let mut check = Process::start(&["config", "check", &example])?;
    assert!(check.ended().await?.status.success());
    Ok(())
}

#[tokio::test]
async fn a_worker_whose_card_routers_would_skip_does_not_start() -> anyhow::Result<()> {
    let label = format!("--label=note={}", "x".repeat(70_000));
    let worker = [
        "worker",
        "--engine=sim",
        "--listen=127.0.0.1:0",
        "--discovery=etcd://127.0.0.1:1",
        &label,
    ];
    names(&error_of(&worker).await?, &["card", "65536", "--label"])
}

#[tokio::test]
async fn no_secret_is_shown() -> anyhow::Result<()> {
    let mut show = Process::start(&[
        "config",
        "show",
        "serve",
        "--discovery=etcd://me:secret@etcd:2379",
        "--events=nats://me:sec,secret@nats:4222",
        "--nats-token=secret",
        "--etcd-user=me",
        "--etcd-password=secret",
        "--admin-token=secret",
    ])?;
    let shown = show.ended().await?.stdout;
    ensure!(shown.contains("events = \"nats://***@nats:4222\""), "{shown}");
    ensure!(!shown.contains("secret"), "{shown}");
    Ok(())
}

#[tokio::test]
async fn ctrl_c_lets_an_answer_under_way_finish() -> anyhow::Result<()> {
    let mut cluster = Cluster::sim(&["--workers=2", "--speedup=1"]).await?;
    let body = json!({"model": cluster.model, "messages": Workload::new(1).chat(10), "max_tokens": 100, "stream": true});
    let mut stream = cluster.api.stream("/v1/chat/completions", &body).await?;
    stream.next().await?.unwrap();
    cluster.process.interrupt()?;
    let rest = stream.rest().await?;
    assert!(rest.is_whole(), "{:?}", rest.events.last());
    assert_eq!(rest.finish_reason(0)?.as_deref(), Some("length"));
    assert!(cluster.process.ended().await?.status.success());
    assert!(cluster.process.children().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_second_ctrl_c_exits_at_once() -> anyhow::Result<()> {
    let mut cluster = Cluster::sim(&["--workers=1", "--speedup=1"]).await?;
    let body = json!({"model": cluster.model, "messages": Workload::new(1).chat(10), "max_tokens": 30_000, "stream": true});
    let mut stream = cluster.api.stream("/v1/chat/completions", &body).await?;
    stream.next().await?.unwrap();
    cluster.process.interrupt()?;
    eventually("the router is draining", || async {
        // A closed listener counts too.
        Ok(cluster
            .api
            .get("/ready")
            .await
            .map_or(true, |reply| reply.status == 503)
            .then_some(()))
    })
    .await?;
    cluster.process.interrupt()?;
    assert!(
        !cluster.process.ended().await?.status.success(),
        "the request under way was cancelled"
    );
    cluster.process.childless().await
}

#[tokio::test]
async fn a_child_worker_has_its_name_and_no_setting_on_its_command_line() -> anyhow::Result<()> {
    let cluster = Cluster::sim(&["--workers=1", "--speedup=0", "--admin-token=secret"]).await?;
    let words = cluster.worker_process("worker-0")?.command_line();
    assert_eq!(words[1..], ["worker", "--child", "worker-0", ""], "{words:?}");
    Ok(())
}

#[tokio::test]
async fn a_child_without_a_parent_is_an_error() -> anyhow::Result<()> {
    let mut process = Process::start(&["worker", "--child=worker-0"])?;
    let ended = process.ended().await?;
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stdout.contains("standard input"), "{}", process.output());
    Ok(())
}

#[tokio::test]
async fn workers_end_when_their_parent_is_killed() -> anyhow::Result<()> {
    let mut cluster = Cluster::sim(&["--workers=2", "--speedup=0"]).await?;
    assert_eq!(cluster.process.children().len(), 2);
    cluster.process.kill()?;
    cluster.process.ended().await?;
    cluster.process.childless().await
}

#[tokio::test]
async fn a_separate_worker_stops_at_ctrl_c() -> anyhow::Result<()> {
    let mut worker = Worker::sim("alone", &[]).await?;
    worker.process.interrupt()?;
    let ended = worker.process.ended().await?;
    assert!(ended.status.success(), "{}", worker.process.output());
    Ok(())
}
