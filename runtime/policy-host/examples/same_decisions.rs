//! Checks that two components decide alike: `same_decisions A.wasm B.wasm SNAPSHOTS.jsonl`.
//!
//! Compilers of different versions make different bytes from one source. A rebuilt policy is therefore compared with
//! the committed one by its decisions: bit for bit, on recorded snapshots, with several settings.

use std::{env, fs, process::ExitCode, sync::Arc};

use anyhow::{Context, ensure};
use signalbox_policy_host::{
    AdmissionError, Candidates, Decision, PolicyComponent, PolicyEngine, PolicyLimits, RequestFeatures,
};

/// Each policy accepts some of these and refuses the others. Both components must do the same.
const SETTINGS: [&str; 8] = [
    "",
    r#"{"overlap_credit": 1.5, "credit_decay": 0.5, "prefill_load_scale": 2, "request_weight": 3}"#,
    r#"{"pressure_ms": 100, "interruption": 1, "company": 2, "company_requests": 5, "churn": 0}"#,
    r#"{"replicas": true, "host_weight": 0.5, "disk_weight": 0}"#,
    r#"{"spread": 0.5}"#,
    r#"{"load": "decode_blocks"}"#,
    r#"{"max_load": 2}"#,
    r#"{"weight": "price"}"#,
];

fn main() -> ExitCode {
    match run() {
        Ok(decisions) => {
            eprintln!("{decisions} decisions, all equal");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<usize> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [first, second, snapshots] = arguments.as_slice() else {
        anyhow::bail!("usage: same_decisions A.wasm B.wasm SNAPSHOTS.jsonl");
    };
    let engine = PolicyEngine::new(PolicyLimits::default())?;
    let text = fs::read_to_string(snapshots).with_context(|| snapshots.clone())?;
    let snapshots: Vec<(RequestFeatures, Candidates)> = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .with_context(|| snapshots.clone())?;
    ensure!(!snapshots.is_empty(), "the file has no snapshots");
    let wasm = |path: &String| fs::read(path).with_context(|| path.clone());
    let (a, b) = (wasm(first)?, wasm(second)?);

    let mut decisions = 0;
    for settings in SETTINGS {
        match (engine.admit(&a, settings), engine.admit(&b, settings)) {
            (Ok(a), Ok(b)) => {
                decisions += compare(&a, &b, &snapshots).with_context(|| format!("settings {settings:?}"))?
            }
            (Err(AdmissionError::Settings(a)), Err(AdmissionError::Settings(b))) if !settings.is_empty() => {
                ensure!(a == b, "they refuse {settings} differently: {a:?} and {b:?}");
            }
            (a, b) => anyhow::bail!(
                "with the settings {settings:?} one or both are refused: {:?} and {:?}",
                a.err(),
                b.err()
            ),
        }
    }
    Ok(decisions)
}

fn compare(
    a: &Arc<PolicyComponent>,
    b: &Arc<PolicyComponent>,
    snapshots: &[(RequestFeatures, Candidates)],
) -> anyhow::Result<usize> {
    ensure!(
        a.name() == b.name(),
        "their names are {} and {}",
        a.name(),
        b.name()
    );
    ensure!(
        a.version() == b.version(),
        "their versions are {} and {}",
        a.version(),
        b.version()
    );
    let (mut a, mut b) = (a.instantiate()?, b.instantiate()?);
    let (mut first, mut second) = (Decision::default(), Decision::default());
    for (line, (request, candidates)) in snapshots.iter().enumerate() {
        a.decide(request, candidates, &mut first)?;
        b.decide(request, candidates, &mut second)?;
        let bits = |decision: &Decision| {
            decision
                .costs
                .iter()
                .map(|cost| cost.to_bits())
                .collect::<Vec<_>>()
        };
        ensure!(
            first.pick == second.pick && bits(&first) == bits(&second),
            "they decide snapshot {} differently: {first:?} and {second:?}",
            line + 1
        );
    }
    Ok(snapshots.len())
}
