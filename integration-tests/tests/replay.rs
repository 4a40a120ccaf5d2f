//! `runtime replay`: the same replay prints the same bytes, and a faulty trace is named with its line.

use anyhow::ensure;
use serde_json::Value;
use signalbox_integration_tests::process::{Process, ProcessEnd};
use tempfile::TempDir;

async fn replay(arguments: &[&str]) -> anyhow::Result<ProcessEnd> {
    let arguments = [&["replay"], arguments].concat();
    Process::start(&arguments)?.ended().await
}

#[tokio::test]
async fn policies_are_compared_and_a_replay_repeats_to_the_byte() -> anyhow::Result<()> {
    let folder = TempDir::new()?;
    let page = folder.path().join("report.html").display().to_string();
    // One prompt that all chats share, in caches that hold little more than it.
    let arguments = [
        "--generate=requests=300,rate=20,groups=4,shared=4096,prompt=100,answer=20",
        "--workers=4",
        "--blocks=1200",
        "--policy=round-robin",
        "--policy=kv-aware",
        "--seed=1",
        "--seed=2",
        "--json",
        "--html",
        &page,
    ];
    let first = replay(&arguments).await?;
    ensure!(first.status.success(), "{}", first.stderr);
    let again = replay(&arguments).await?;
    ensure!(
        first.stdout == again.stdout,
        "the same replay printed something else"
    );

    let report: Value = serde_json::from_str(&first.stdout)?;
    let runs = report["runs"].as_array().map(Vec::as_slice).unwrap_or_default();
    let named: Vec<_> = runs
        .iter()
        .map(|run| (run["policy"].as_str(), run["seed"].as_u64()))
        .collect();
    let expected = [
        ("round-robin", 1),
        ("round-robin", 2),
        ("kv-aware", 1),
        ("kv-aware", 2),
    ];
    ensure!(
        named == expected.map(|(policy, seed)| (Some(policy), Some(seed))),
        "{named:?}"
    );
    for run in runs {
        ensure!(run["completed"] == 300 && run["fallback_decisions"] == 0, "{run}");
    }
    let reuse = |run: usize| runs[run]["prefix_reuse"].as_f64().unwrap_or_default();
    ensure!(
        reuse(2) > reuse(0) && reuse(3) > reuse(1),
        "the policy that looks at caches reuses more: {report}"
    );
    let difference = &report["comparisons"][0]["differences"][0];
    ensure!(
        difference["figure"] == "mean_ttft_ms" && difference["confidence_95"].is_number(),
        "{difference}"
    );
    let page = std::fs::read_to_string(page)?;
    ensure!(
        page.contains("<svg") && page.contains("kv-aware against round-robin"),
        "{page}"
    );
    Ok(())
}

#[tokio::test]
async fn a_faulty_trace_or_policy_is_named() -> anyhow::Result<()> {
    let folder = TempDir::new()?;
    let trace = folder.path().join("trace.jsonl");
    let good = r#"{"timestamp":0,"input_length":4,"output_length":1,"hash_ids":[1]}"#;
    std::fs::write(&trace, format!("{good}\n{{\"timestamp\":5}}\n"))?;
    let path = trace.display().to_string();
    let refused = replay(&[&path]).await?;
    ensure!(refused.status.code() == Some(1), "{}", refused.status);
    ensure!(
        refused.stderr.contains("line 2: missing field `input_length`"),
        "{}",
        refused.stderr
    );

    std::fs::write(&trace, good)?;
    let refused = replay(&[&path, "--policy", "kv-awre"]).await?;
    ensure!(
        refused.stderr.contains("kv-awre") && refused.stderr.contains("kv-aware"),
        "{}",
        refused.stderr
    );

    let table = replay(&[&path, "--policy", "round-robin"]).await?;
    ensure!(table.status.success(), "{}", table.stderr);
    ensure!(
        table.stdout.contains("round-robin") && table.stdout.contains("TTFT, ms"),
        "{}",
        table.stdout
    );
    Ok(())
}
