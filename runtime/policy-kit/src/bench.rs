//! How long a policy's decisions take, and what it needs.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use signalbox_policy_host::{Decision, PolicyComponent, PolicyFault, trial_requests};

/// Numbers of candidates: a machine, a rack, a hall, and the most that one router has.
pub const SIZES: [usize; 4] = [8, 64, 512, 1_024];
/// Different requests of each size.
const ROUNDS: u64 = 16;
/// How long one size is measured: enough for thousands of decisions of a policy that is fit for use.
const SPAN: Duration = Duration::from_millis(500);
/// Most decisions of one size, which bounds the memory for their times.
const MAX_DECISIONS: usize = 200_000;

/// What was measured of a policy.
#[derive(Debug, Clone)]
pub struct Bench {
    /// Of each size.
    pub timings: Vec<Timing>,
    /// How long an instance takes to start, configured.
    pub start: Duration,
    /// The linear memory of an instance after all decisions, in bytes.
    pub memory_bytes: usize,
}

/// The time of decisions among some candidates.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// The candidates.
    pub candidates: usize,
    /// The decisions.
    pub decisions: usize,
    /// Half of them took at most this.
    pub median: Duration,
    /// All but a hundredth of them took at most this.
    pub p99: Duration,
}

/// Times a policy on generated requests, with an instance of its own.
///
/// # Errors
/// The policy faults.
pub fn measure(component: &Arc<PolicyComponent>) -> Result<Bench, PolicyFault> {
    let begun = Instant::now();
    let mut instance = component.instantiate()?;
    let start = begun.elapsed();
    let mut decision = Decision::default();
    let mut timings = Vec::with_capacity(SIZES.len());
    for size in SIZES {
        let requests: Vec<_> = trial_requests(&[size], ROUNDS).collect();
        // The first round grows buffers, and is not counted.
        for (request, candidates) in &requests {
            instance.decide(request, candidates, &mut decision)?;
        }
        let begun = Instant::now();
        let mut times = Vec::new();
        for (request, candidates) in requests.iter().cycle().take(MAX_DECISIONS) {
            let before = Instant::now();
            instance.decide(request, candidates, &mut decision)?;
            times.push(before.elapsed());
            if begun.elapsed() > SPAN {
                break;
            }
        }
        times.sort_unstable();
        let at = |share: usize| times[(times.len() - 1) * share / 100];
        timings.push(Timing {
            candidates: size,
            decisions: times.len(),
            median: at(50),
            p99: at(99),
        });
    }
    Ok(Bench {
        timings,
        start,
        memory_bytes: instance.memory_bytes(),
    })
}

#[cfg(test)]
mod tests {
    use signalbox_policy_host::{PolicyEngine, PolicyLimits, builtin_policies};

    use super::*;

    #[test]
    fn a_bench_has_every_size_and_the_memory() {
        let engine = PolicyEngine::new(PolicyLimits::default()).unwrap();
        let (_, wasm) = builtin_policies()[0];
        let bench = measure(&engine.admit(wasm, "").unwrap()).unwrap();
        let sizes: Vec<usize> = bench.timings.iter().map(|timing| timing.candidates).collect();
        assert_eq!(sizes, SIZES);
        for timing in bench.timings {
            assert!(timing.decisions > 0 && timing.median <= timing.p99, "{timing:?}");
        }
        // At least a page, at most the limit.
        assert!(
            (65_536..=16 << 20).contains(&bench.memory_bytes),
            "{}",
            bench.memory_bytes
        );
    }
}
