//! Several policies on the same traffic, each with several seeds.

use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
    time::Duration,
};

use serde::Serialize;

use crate::{
    cluster::{ClusterConfig, ReplayError, RunRecord, replay},
    figures::{Figures, ServiceLimits},
    policy::ReplayPolicy,
    trace::Trace,
};

/// What to run.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The cluster.
    pub cluster: &'a ClusterConfig,
    /// Up to which times a request counts as served well.
    pub limits: ServiceLimits,
    /// The policies.
    pub policies: &'a [ReplayPolicy],
    /// The seeds.
    pub seeds: &'a [u64],
    /// Runs at the same time, at least 1.
    pub threads: usize,
    /// Counts the requests that have ended in all runs, for a progress bar.
    pub ended: &'a AtomicUsize,
}

/// One run of one policy.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// The policy as it was named.
    pub policy: String,
    /// The seed of its decisions, and of generated traffic.
    pub seed: u64,
    /// What it meant for clients and workers.
    #[serde(flatten)]
    pub figures: Figures,
    /// Mean time of a decision on this machine. No part of the JSON, which is equal on every machine.
    #[serde(skip)]
    pub decision_time: Duration,
    /// Everything that happened, for the first seed.
    #[serde(skip)]
    pub record: Option<RunRecord>,
}

/// Runs each policy with each seed. The runs are in the order of the policies, and of the seeds for one policy,
/// whichever ends first. `traffic` makes the trace of a seed, so all policies get the same traffic and the same seeds of
/// decisions (*common random numbers*).
///
/// # Errors
/// The first run that failed.
pub fn run_all(plan: &Plan<'_>, traffic: impl Fn(u64) -> Trace + Sync) -> Result<Vec<Run>, ReplayError> {
    let one = |policy: &ReplayPolicy, number: usize| {
        let seed = plan.seeds[number];
        let record = replay(&traffic(seed), plan.cluster, policy, seed, plan.ended)?;
        let decisions = record.decisions.count.max(1);
        Ok(Run {
            policy: policy.label().to_owned(),
            seed,
            figures: Figures::new(&record, plan.limits),
            decision_time: record.decisions.took.div_f64(decisions as f64),
            record: (number == 0).then_some(record),
        })
    };
    let numbers = 0..plan.seeds.len();
    let jobs: Vec<_> = plan
        .policies
        .iter()
        .flat_map(|policy| numbers.clone().map(move |number| (policy, number)))
        .collect();
    let next = AtomicUsize::new(0);
    // Each thread takes the next job until none is left.
    let work = || {
        let take = || next.fetch_add(1, Relaxed);
        std::iter::from_fn(|| {
            let place = take();
            let (policy, number) = *jobs.get(place)?;
            Some((place, one(policy, number)))
        })
        .collect::<Vec<_>>()
    };
    let mut done = thread::scope(|scope| {
        let threads: Vec<_> = (1..plan.threads).map(|_| scope.spawn(work)).collect();
        let mut done = work();
        for thread in threads {
            match thread.join() {
                Ok(runs) => done.extend(runs),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    });
    done.sort_by_key(|(place, _)| *place);
    done.into_iter().map(|(_, run)| run).collect()
}
