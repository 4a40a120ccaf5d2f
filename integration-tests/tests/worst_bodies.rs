//! A stream beside the bodies that take longest to read: they are read on other threads than those that stream.
//!
//! How long a step holds an HTTP thread is measured by the router itself (`signalbox_http_step_seconds`) and printed here.
//! This needs the model that `make model` fetches, for its tokenizer.

use std::fs;

use anyhow::{Context, ensure};
use reqwest::Method;
use serde_json::json;
use signalbox_integration_tests::{Cluster, workload::Workload, workspace_root};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const JSON: (&str, &str) = ("content-type", "application/json");

/// Nearly the limit of a body.
const LARGEST: usize = 15 << 20;

/// A path, a body, and the statuses that answer it.
type Case = (&'static str, String, &'static [u16]);

fn chat(model: &str, content: &str) -> String {
    format!(r#"{{"model":"{model}","max_tokens":1,"messages":[{{"role":"user","content":"{content}"}}]}}"#)
}

fn completion(model: &str, more: &str) -> String {
    format!(r#"{{"model":"{model}","max_tokens":1{more}}}"#)
}

fn worst_bodies(model: &str) -> Vec<Case> {
    let fits_or_not: &[u16] = &[200, 400];
    let list = |item: &str, count: usize| {
        let items = vec![item; count].join(",");
        format!("[{items}]")
    };
    let messages = list(
        &format!(r#"{{"role":"user","content":"{}"}}"#, "word ".repeat(700)),
        4_096,
    );
    vec![
        (CHAT, chat(model, &"a".repeat(LARGEST)), &[400]),
        (CHAT, chat(model, &" ".repeat(LARGEST)), &[400]),
        (CHAT, chat(model, &" ".repeat(1 << 20)), fits_or_not),
        (CHAT, chat(model, &" ".repeat(300_000)), fits_or_not),
        (CHAT, chat(model, &"a".repeat(60_000)), fits_or_not),
        (CHAT, chat(model, &"🌟".repeat(LARGEST / 4)), &[400]),
        (CHAT, chat(model, &r"\u00e9".repeat(LARGEST / 6)), &[400]),
        (
            CHAT,
            format!(r#"{{"model":"{model}","messages":{messages}}}"#),
            &[400],
        ),
        (
            CHAT,
            completion(
                model,
                &format!(
                    r#","messages":[{{"role":"user","content":{}}}]"#,
                    list(r#"{"type":"text","text":""}"#, 250_000)
                ),
            ),
            fits_or_not,
        ),
        (
            COMPLETIONS,
            completion(model, &format!(r#","prompt":{}"#, list("7", 1 << 20))),
            &[400],
        ),
        (
            COMPLETIONS,
            completion(model, &format!(r#","prompt":{}"#, list("7", 8_000))),
            &[200],
        ),
        (
            COMPLETIONS,
            completion(
                model,
                &format!(r#","prompt":"x","unknown":{}"#, list("0", LARGEST / 2)),
            ),
            &[200],
        ),
        (
            COMPLETIONS,
            completion(
                model,
                &format!(r#","prompt":"x","unknown":{}"#, "[".repeat(LARGEST)),
            ),
            &[400],
        ),
        (
            COMPLETIONS,
            completion(
                model,
                &format!(
                    r#","prompt":"x","logit_bias":{{{}}}"#,
                    (0..1_000_000)
                        .map(|token| format!(r#""{token}":1"#))
                        .collect::<Vec<_>>()
                        .join(",")
                ),
            ),
            &[400],
        ),
        (
            COMPLETIONS,
            format!(r#"{{"model":"{model}","prompt":"{}"#, "x".repeat(LARGEST)),
            &[400],
        ),
    ]
}

/// The names of a process's threads.
fn thread_names(pid: u32) -> anyhow::Result<Vec<String>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))?;
    let name = |task: std::io::Result<fs::DirEntry>| {
        let name = fs::read_to_string(task?.path().join("comm"))?;
        Ok(name.trim().to_owned())
    };
    tasks.map(name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_beside_the_worst_bodies() -> anyhow::Result<()> {
    let model = workspace_root().join(".local/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    ensure!(
        model.is_file(),
        "{} does not exist; `make model` fetches it",
        model.display()
    );
    let cluster = Cluster::sim(&[
        "--workers=1",
        "--speedup=1",
        "--http-threads=1",
        "--model",
        &model.display().to_string(),
    ])
    .await?;
    let long = json!({
        "model": cluster.model, "messages": Workload::new(1).chat(10), "max_tokens": 6_000, "ignore_eos": true,
        "stream": true,
    });
    let mut stream = cluster.api.stream(CHAT, &long).await?;
    stream.next().await?.context("the first event")?;

    let mut last = String::new();
    let bodies = worst_bodies(&cluster.model);
    assert_eq!(bodies.len(), 15);
    let large = bodies
        .iter()
        .filter(|(_, body, _)| body.len() > 16 * 1024)
        .count();
    // After each body: a thread of the pool ends when it has had nothing to do for a while.
    let mut names = Vec::new();
    for (number, (path, body, statuses)) in bodies.into_iter().enumerate() {
        let bytes = body.len();
        let posted = cluster.api.send(Method::POST, path, &[JSON], body);
        tokio::pin!(posted);
        let mut events = 0;
        let reply = loop {
            tokio::select! {
                reply = &mut posted => break reply?,
                event = stream.next() => match event? {
                    Some(event) => {
                        last = event.data;
                        events += 1;
                    }
                    None => {
                        assert_eq!(last, "[DONE]", "a stream ends whole");
                        stream = cluster.api.stream(CHAT, &long).await?;
                    }
                }
            }
        };
        println!(
            "body {number}, {bytes} bytes: {} after {:?}, {events} events meanwhile",
            reply.status, reply.took
        );
        assert!(
            statuses.contains(&reply.status),
            "body {number}: {}",
            reply.text()
        );
        names.extend(thread_names(cluster.process.pid())?);
    }
    for lane in ["large", "huge"] {
        assert!(names.contains(&format!("prepare-{lane}")), "{lane}: {names:?}");
    }
    let metrics = cluster.metrics().await?;
    let prepared: f64 = ["large", "huge"]
        .iter()
        .map(|lane| metrics.sum("signalbox_http_prepare_seconds_count", &[("lane", lane)]))
        .sum();
    assert_eq!(
        prepared, large as f64,
        "each large body was read beside the HTTP thread"
    );
    let steps = |name: &str, labels: &[(&str, &str)]| {
        let labels = [&[("listener", "public")], labels].concat();
        metrics.sum(&format!("signalbox_http_step_seconds_{name}"), &labels)
    };
    println!(
        "steps of 1 ms and more: {}, of them {} of at most 50 ms",
        steps("count", &[]),
        steps("bucket", &[("le", "0.05")])
    );
    assert!(
        metrics.has("signalbox_http_step_seconds_bucket"),
        "steps are measured"
    );
    Ok(())
}
