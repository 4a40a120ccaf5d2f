//! Checks the cost of the hot paths, in instructions, against recorded bounds. Counts are repeatable where times are
//! not: a change that makes a path more expensive is seen here on any machine.
//!
//! callgrind counts in `runtime/http/examples/hot_paths.rs`. This workspace's crates are built with the optimisation of a
//! release, their dependencies as for all tests.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context, ensure};
use serde_json::Value;
use signalbox_integration_tests::workspace_root;

/// Most instructions that a path may take per run: the count when it was last made cheaper, plus a tenth for other
/// compilers and C libraries. A change that makes a path cheaper lowers its bound.
const BOUNDS: [(&str, u64); 5] = [
    // `kv-aware`, the predicted TTFT, among 64 workers, recorded: 67,370
    ("decision", 70_000),
    // without the record: 65,230
    ("unrecorded", 70_000),
    // 1,000 blocks of 64 workers: 12,140
    ("lookup", 13_400),
    // 16 frames: 16,150
    ("frame", 17_700),
    // 16 chunks: 35,550
    ("chunk", 37_300),
];

/// Most instructions that the record of a decision among 64 workers takes: 2,140, plus a tenth.
const RECORD_BOUND: u64 = 2_360;

const TIMES: u64 = 100;

#[test]
fn the_hot_paths_take_no_more_instructions_than_recorded() -> anyhow::Result<()> {
    let program = build()?;
    let mut exceeded = Vec::new();
    let program = program.as_path();
    let counts = thread::scope(|scope| {
        let counting = BOUNDS.map(|(path, _)| scope.spawn(move || instructions(program, path)));
        counting.map(|count| count.join().expect("counting does not panic"))
    });
    let (mut recorded, mut unrecorded) = (0, 0);
    for ((path, bound), count) in BOUNDS.into_iter().zip(counts) {
        let each = count? / TIMES;
        match path {
            "decision" => recorded = each,
            "unrecorded" => unrecorded = each,
            _ => {}
        }
        println!("{path}: {each} instructions, at most {bound}");
        ensure!(each > 0, "callgrind found no call of the function to be counted");
        if each > bound {
            exceeded.push(format!(
                "{path} takes {each} instructions; at most {bound} are allowed"
            ));
        }
    }
    let record = recorded.saturating_sub(unrecorded);
    println!("record: {record} instructions, at most {RECORD_BOUND}");
    ensure!(record > 0, "nothing was recorded");
    if record > RECORD_BOUND {
        exceeded.push(format!(
            "the record of a decision takes {record} instructions; at most {RECORD_BOUND} are allowed"
        ));
    }
    ensure!(exceeded.is_empty(), "{}", exceeded.join("; "));
    Ok(())
}

/// Builds the program from optimised crates of this workspace, on the dependencies that the tests have built. It selects
/// the packages and features of `make test`: with others, cargo would build the dependencies once more.
fn build() -> anyhow::Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut features = vec!["signalbox-http/bench-support"];
    if cfg!(feature = "llama") {
        features.extend(["runtime/llama", "signalbox-integration-tests/llama"]);
    }
    let built = Command::new(&cargo)
        .args(["build", "--config=.cargo/optimised.toml", "--workspace"])
        .args(["--example=hot_paths", "--features", &features.join(",")])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(workspace_root())
        .output()
        .with_context(|| format!("{cargo:?}"))?;
    let errors = String::from_utf8_lossy(&built.stderr);
    ensure!(built.status.success(), "hot_paths was not built: {errors}");
    String::from_utf8(built.stdout)?
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|message| message["target"]["name"] == "hot_paths")
        .and_then(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo reports no executable hot_paths")
}

fn instructions(program: &Path, path: &str) -> anyhow::Result<u64> {
    let ran = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg("--toggle-collect=*hot_paths::counted*")
        .arg(program)
        .args([path, &TIMES.to_string()])
        .output()
        .context("valgrind, which `make deps` installs")?;
    let report = String::from_utf8_lossy(&ran.stderr);
    ensure!(ran.status.success(), "hot_paths {path}: {report}");
    report
        .lines()
        .find_map(|line| line.split_once("Collected : "))
        .and_then(|(_, count)| count.trim().parse().ok())
        .with_context(|| format!("callgrind counted nothing: {report}"))
}
