//! The time of one decision, in nanoseconds, by the number of candidates: `cargo bench -p signalbox-policy-host`.
//!
//! Each figure is the lowest of several medians, since other processes on the machine can only add time.

#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "a bench prints its figures, and ends when it cannot measure"
)]

use std::{hint::black_box, sync::Arc, time::Instant};

use signalbox_policy_host::{
    Candidates, Decision, Fallback, PolicyEngine, PolicyLimits, PolicyRegistry, RequestFeatures,
    builtin_policies, trial_requests,
};

const SIZES: [usize; 4] = [8, 64, 512, 1024];
const MEDIANS: usize = 9;
const SAMPLES: usize = 101;
/// Calls in one sample: enough to make the time of reading the clock negligible.
const CALLS: u32 = 50;

fn main() -> anyhow::Result<()> {
    let engine = PolicyEngine::new(PolicyLimits::default())?;
    println!(
        "{:<34}{}",
        "ns a decision, by candidates",
        SIZES.map(|size| format!("{size:>9}")).concat()
    );
    row("fallback, native", |request, candidates, decision| {
        Fallback.decide(request, candidates, decision)
    });
    for (name, wasm) in builtin_policies() {
        let started = Instant::now();
        let component = engine.admit(wasm, "")?;
        let admitted = started.elapsed();
        let mut instance = component.instantiate()?;
        row(name, |request, candidates, decision| {
            instance
                .decide(request, candidates, decision)
                .expect("built-in policies decide");
        });
        println!(
            "{:<34}{admitted:>9.1?} to admit, {:.1?} to instantiate",
            "",
            instantiation(&component)?
        );
    }
    let registry = PolicyRegistry::new(engine, "kv-aware")?;
    let mut runner = registry.runner("model");
    row("kv-aware, through a runner", |request, candidates, decision| {
        black_box(runner.decide(request, |_| candidates, decision));
    });
    Ok(())
}

fn row(name: &str, mut decide: impl FnMut(&RequestFeatures, &Candidates, &mut Decision)) {
    let figures = SIZES.map(|size| {
        let (request, candidates) = trial_requests(&[size], 3).last().expect("three were asked for");
        let mut decision = Decision::default();
        let medians = (0..MEDIANS).map(|_| {
            median(|| {
                for _ in 0..CALLS {
                    decide(black_box(&request), black_box(&candidates), &mut decision);
                    black_box(&decision);
                }
            })
        });
        let least = medians.fold(f64::INFINITY, f64::min);
        format!("{:>9.0}", least / f64::from(CALLS))
    });
    println!("{name:<34}{}", figures.concat());
}

fn median(mut run: impl FnMut()) -> f64 {
    let mut samples: Vec<f64> = (0..SAMPLES)
        .map(|_| {
            let started = Instant::now();
            run();
            started.elapsed().as_nanos() as f64
        })
        .collect();
    samples.sort_by(f64::total_cmp);
    samples[SAMPLES / 2]
}

fn instantiation(
    component: &Arc<signalbox_policy_host::PolicyComponent>,
) -> anyhow::Result<std::time::Duration> {
    let mut least = std::time::Duration::MAX;
    for _ in 0..200 {
        let started = Instant::now();
        drop(black_box(component.instantiate()?));
        least = least.min(started.elapsed());
    }
    Ok(least)
}
