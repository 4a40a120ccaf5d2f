//! A new policy of each language, built by the tools of its language, decides as the one in Rust does.
//!
//! A language whose tool is not installed is skipped, with a line that says so: `make policy-languages` installs them all.

#![expect(
    clippy::print_stdout,
    reason = "it says which languages it skips, and how large the components are"
)]

use std::{path::Path, sync::Arc};

use anyhow::{Context, ensure};
use signalbox_policy_host::{
    AdmissionError, Decision, PolicyComponent, PolicyEngine, PolicyLimits, trial_requests,
};
use signalbox_policy_kit::{BuildError, Language, build_folder, write_folder};

/// Numbers of candidates, and requests of each: 1,000 decisions in all.
const SIZES: [usize; 8] = [1, 2, 3, 5, 8, 21, 40, 64];
const ROUNDS: u64 = 125;

fn engine() -> anyhow::Result<PolicyEngine> {
    Ok(PolicyEngine::new(PolicyLimits {
        // CPython's component; and no budget that a busy machine could pass.
        max_component_bytes: 32 << 20,
        max_memory_bytes: 128 << 20,
        decide_budget_ms: 1_000,
        configure_budget_ms: 10_000,
        ..PolicyLimits::default()
    })?)
}

/// The new policy of a language, built; `None` where the language's tool is not installed.
fn built(language: Language, parent: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    let folder = parent.join(language.name());
    write_folder(&folder, "least-work", language)?;
    match build_folder(&folder) {
        Ok(component) => Ok(Some(std::fs::read(component)?)),
        Err(missing @ BuildError::Missing { .. }) => {
            println!("skipped: {language}: {missing}");
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| language.to_string()),
    }
}

/// Whether a router of this release refuses the component whatever its settings: the tools for JavaScript and Python put
/// several components into one, and CPython has more functions than a policy may have.
fn is_beyond_limits(refusal: &AdmissionError) -> bool {
    let reason = refusal.to_string();
    reason.contains("another component") || (reason.contains("more than") && reason.contains("functions"))
}

/// The decisions on the same 1,000 requests.
fn decisions(component: &Arc<PolicyComponent>) -> anyhow::Result<Vec<Decision>> {
    let mut instance = component.instantiate()?;
    let decide = |(request, candidates)| {
        let mut decision = Decision::default();
        instance.decide(&request, &candidates, &mut decision)?;
        anyhow::Ok(decision)
    };
    trial_requests(&SIZES, ROUNDS).map(decide).collect()
}

#[test]
fn a_new_policy_decides_1000_requests_alike_in_every_language() -> anyhow::Result<()> {
    let parent = tempfile::tempdir()?;
    let engine = engine()?;
    let Some(rust) = built(Language::Rust, parent.path())? else {
        return Ok(());
    };
    let settings = ["", r#"{"request_weight": 2.5}"#];
    for language in [Language::C, Language::Js, Language::Python] {
        let Some(other) = built(language, parent.path())? else {
            continue;
        };
        println!("{language}: {} bytes, in Rust {}", other.len(), rust.len());
        if let Err(refusal) = engine.admit(&other, "")
            && is_beyond_limits(&refusal)
        {
            println!("not compared: {language}: {refusal}");
            continue;
        }
        for settings in settings {
            let rust = decisions(&engine.admit(&rust, settings)?)?;
            let other = engine
                .admit(&other, settings)
                .with_context(|| format!("{language} with {settings:?}"))?;
            let other = decisions(&other)?;
            ensure!(rust.len() == 1_000);
            let alike = rust
                .iter()
                .zip(&other)
                .filter(|(rust, other)| rust == other)
                .count();
            ensure!(alike == 1_000, "{language} decides {alike} of 1,000 as Rust does");
        }
        // The sentence is for the person who wrote the settings, and each language words it for itself.
        for wrong in [r#"{"request_weight": -1}"#, r#"{"request_wait": 1}"#, "[]"] {
            let refusal = engine.admit(&other, wrong);
            ensure!(
                matches!(refusal, Err(AdmissionError::Settings(_))),
                "{language} with {wrong}: {refusal:?}"
            );
        }
    }
    Ok(())
}
