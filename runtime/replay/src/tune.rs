//! A search for the settings of a policy that reach an aim best on a trace.
//!
//! It is a random search that closes in: half of the trials lie anywhere in the ranges, the others near the best so far.
//! An aim alone is easily gamed: the p95 of the TTFT falls if every request goes to one worker. So there are guards
//! ([`Guards`]), and what was found on one half of the traffic must hold on the other half, which no trial has seen. The
//! policy's own settings take part, so what is chosen is never worse than they are there.
//!
//! Equal arguments choose equal settings on every machine.

use std::str::FromStr;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Map, Value};

use crate::{
    cluster::ReplayError,
    figures::Figures,
    policy::{PolicyChoice, PolicyError, ReplayPolicy},
    runs::{Plan, Run, run_all},
    trace::Trace,
};

mod halves;
mod report;

pub use halves::halves;
pub use report::tune_table;

/// Trials that run before the next ones are placed near the best of them.
const ROUND: usize = 8;
/// Rounds with trials anywhere: half of the usual number.
const WIDE_SHARE: f64 = 0.5;
/// How far a trial lies from the one that it varies, at most, as a share of each range.
const STEP: f64 = 0.2;
/// The best trials that are judged on the traffic held back.
const FINALISTS: usize = 4;

/// A setting and the values that it may have: `NAME=LOW..HIGH`.
#[derive(Debug, Clone, PartialEq)]
pub struct SettingRange {
    /// The setting.
    pub name: String,
    /// The least value.
    pub low: f64,
    /// The greatest value.
    pub high: f64,
}

impl FromStr for SettingRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not NAME=LOW..HIGH");
        let (name, range) = text.split_once('=').ok_or_else(wrong)?;
        let (low, high) = range.split_once("..").ok_or_else(wrong)?;
        let number = |text: &str| text.parse::<f64>().ok().filter(|number| number.is_finite());
        let (low, high) = number(low).zip(number(high)).ok_or_else(wrong)?;
        if name.is_empty() || low >= high {
            return Err(wrong());
        }
        Ok(Self {
            name: name.to_owned(),
            low,
            high,
        })
    }
}

impl SettingRange {
    /// The ranges of a built-in policy; empty for any other, whose ranges must be given.
    #[must_use]
    pub fn of_builtin(policy: &str) -> Vec<Self> {
        let ranges: &[(&str, f64, f64)] = match policy {
            "kv-aware" => &[
                ("pressure_ms", 0.0, 200.0),
                ("interruption", 0.0, 1.0),
                ("company", 0.0, 3.0),
                ("company_requests", 0.1, 10.0),
                ("churn", 0.0, 1.0),
            ],
            "kv-linear" | "replica-synced" => &[
                ("overlap_credit", 0.5, 4.0),
                ("credit_decay", 0.0, 2.0),
                ("prefill_load_scale", 0.25, 4.0),
                ("request_weight", 0.0, 100.0),
                ("min_overlap", 0.0, 0.3),
            ],
            _ => &[],
        };
        let range = |&(name, low, high): &(&str, f64, f64)| Self {
            name: name.into(),
            low,
            high,
        };
        ranges.iter().map(range).collect()
    }

    /// The value at a place from 0 to 1 of the range. A range that does not begin at 0 is divided by factors, and one that
    /// does has half of its places in its lowest quarter: weights differ by factors.
    fn at(&self, place: f64) -> f64 {
        let value = if self.low > 0.0 {
            self.low * libm::pow(self.high / self.low, place)
        } else {
            self.low + (self.high - self.low) * place * place
        };
        // Three digits are more than a search can tell apart.
        let digits = 2 - libm::floor(libm::log10(value.abs().max(1e-3))) as i32;
        let unit = libm::pow(10.0, f64::from(digits));
        ((value * unit).round() / unit).clamp(self.low, self.high)
    }
}

/// A figure to make as low as possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Mean time to the first token.
    MeanTtft,
    /// Its 90th percentile.
    P90Ttft,
    /// Its 99th percentile.
    P99Ttft,
    /// Mean time to the last token.
    MeanE2e,
}

impl Goal {
    const ALL: [(&'static str, Self); 4] = [
        ("mean_ttft_ms", Self::MeanTtft),
        ("p90_ttft_ms", Self::P90Ttft),
        ("p99_ttft_ms", Self::P99Ttft),
        ("mean_e2e_ms", Self::MeanE2e),
    ];

    /// Its name among the figures.
    #[must_use]
    pub fn name(self) -> &'static str {
        let is_self = |(_, goal): &&(&str, Self)| *goal == self;
        Self::ALL.iter().find(is_self).map_or("", |(name, _)| name)
    }

    fn of(self, figures: &Outcome) -> f64 {
        match self {
            Self::MeanTtft => figures.mean_ttft_ms,
            Self::P90Ttft => figures.p90_ttft_ms,
            Self::P99Ttft => figures.p99_ttft_ms,
            Self::MeanE2e => figures.mean_e2e_ms,
        }
    }
}

impl FromStr for Goal {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(known, _)| *known == name);
        found.map(|&(_, goal)| goal).ok_or_else(|| {
            let known = Self::ALL.map(|(known, _)| known).join(", ");
            format!("`{name}` is no goal; goals are {known}")
        })
    }
}

/// What a trial may not make worse than the policy's own settings do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guards {
    /// How many times as long the p99 of the TTFT may be.
    pub p99_ttft: f64,
    /// How many times as long the mean time to the last token may be.
    pub mean_e2e: f64,
    /// By how much the largest share of one worker may be greater.
    pub largest_share: f64,
}

impl Default for Guards {
    /// Two, one and five per cent: about the chance differences of a trace.
    fn default() -> Self {
        Self {
            p99_ttft: 1.02,
            mean_e2e: 1.01,
            largest_share: 0.05,
        }
    }
}

/// What came of settings on some traffic: means over the seeds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Outcome {
    /// Mean time to the first token.
    pub mean_ttft_ms: f64,
    /// Its 90th percentile.
    pub p90_ttft_ms: f64,
    /// Its 99th percentile.
    pub p99_ttft_ms: f64,
    /// Mean time to the last token.
    pub mean_e2e_ms: f64,
    /// The largest share of the requests that one worker was given.
    pub largest_worker_share: f64,
    /// Requests that were completed.
    pub completed: f64,
}

impl Outcome {
    fn of(runs: &[Run]) -> Self {
        let mean = |value: fn(&Figures) -> f64| {
            runs.iter().map(|run| value(&run.figures)).sum::<f64>() / runs.len().max(1) as f64
        };
        Self {
            mean_ttft_ms: mean(|figures| figures.ttft.mean),
            p90_ttft_ms: mean(|figures| figures.ttft.p90),
            p99_ttft_ms: mean(|figures| figures.ttft.p99),
            mean_e2e_ms: mean(|figures| figures.e2e.mean),
            largest_worker_share: mean(|figures| figures.largest_worker_share),
            completed: mean(|figures| figures.completed as f64),
        }
    }

    fn keeps(&self, guards: &Guards, own: &Self) -> bool {
        self.p99_ttft_ms <= guards.p99_ttft * own.p99_ttft_ms
            && self.mean_e2e_ms <= guards.mean_e2e * own.mean_e2e_ms
            && self.largest_worker_share <= guards.largest_share + own.largest_worker_share
            && self.completed >= own.completed
    }

    /// Whether it is no worse in any aim, and better in one.
    fn dominates(&self, other: &Self) -> bool {
        let aims = |outcome: &Self| [outcome.mean_ttft_ms, outcome.p99_ttft_ms, outcome.mean_e2e_ms];
        let pairs = || aims(self).into_iter().zip(aims(other));
        pairs().all(|(own, other)| own <= other) && pairs().any(|(own, other)| own < other)
    }
}

/// One trial.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    /// The settings; empty for the policy's own.
    pub settings: Map<String, Value>,
    /// Where they lie in the ranges.
    places: Vec<f64>,
    /// What came of them on the traffic of the search.
    pub searched: Outcome,
    /// What came of them on the traffic held back, for those that were judged there.
    pub held_back: Option<Outcome>,
    /// Whether they keep the guards, wherever they were judged.
    pub keeps_guards: bool,
}

/// What was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Tuned {
    /// All trials, the policy's own settings first.
    pub trials: Vec<Trial>,
    /// The trial that is best on the traffic held back.
    pub chosen: usize,
    /// The trials that keep the guards and that no other such trial beats in every aim.
    pub front: Vec<usize>,
}

/// A search cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum TuneError {
    /// There is nothing to vary.
    #[error("the ranges of the settings are unknown; give --setting NAME=LOW..HIGH")]
    NoRanges,
    /// The policy or some settings are refused.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A replay failed.
    #[error(transparent)]
    Replay(#[from] ReplayError),
}

/// What to search for.
#[derive(Debug)]
pub struct Search<'a> {
    /// The policy, with the settings that all trials share.
    pub policy: &'a PolicyChoice,
    /// What is varied.
    pub ranges: &'a [SettingRange],
    /// What is to be as low as possible.
    pub goal: Goal,
    /// What must not become worse.
    pub guards: Guards,
    /// Trials beside the policy's own settings.
    pub trials: usize,
    /// Cluster, seeds and threads; its policies do not count.
    pub plan: &'a Plan<'a>,
}

impl Search<'_> {
    /// Searches. `traffic` makes the trace of a seed.
    ///
    /// # Errors
    /// There are no ranges, the policy is refused or a replay fails.
    pub fn run(&self, traffic: impl Fn(u64) -> Trace + Sync) -> Result<Tuned, TuneError> {
        if self.ranges.is_empty() {
            return Err(TuneError::NoRanges);
        }
        let mut random = StdRng::seed_from_u64(self.plan.seeds.first().copied().unwrap_or(0));
        let searched = |seed| halves(&traffic(seed)).0;
        let mut trials = vec![Trial::own()];
        self.judge(&mut trials, searched, |trial, outcome| trial.searched = outcome)?;
        while trials.len() <= self.trials {
            let count = ROUND.min(self.trials + 1 - trials.len());
            let is_wide = (trials.len() as f64) < WIDE_SHARE * self.trials as f64;
            let best = self.best(&trials).filter(|_| !is_wide);
            let mut round: Vec<_> = (0..count)
                .map(|_| self.trial(best.map(|best| trials[best].places.as_slice()), &mut random))
                .collect();
            self.judge(&mut round, searched, |trial, outcome| trial.searched = outcome)?;
            let own = trials[0].searched;
            for trial in &mut round {
                trial.keeps_guards = trial.searched.keeps(&self.guards, &own);
            }
            trials.extend(round);
        }
        self.judge_finalists(&mut trials, |seed| halves(&traffic(seed)).1)?;
        Ok(self.tuned(trials))
    }

    /// A trial anywhere, or near `places`.
    fn trial(&self, places: Option<&[f64]>, random: &mut StdRng) -> Trial {
        let mut unit = || (random.random::<u64>() >> 11) as f64 / (1_u64 << 53) as f64;
        let places: Vec<f64> = (0..self.ranges.len())
            .map(|number| match places.and_then(|places| places.get(number)) {
                Some(place) => (place + STEP * (2.0 * unit() - 1.0)).clamp(0.0, 1.0),
                None => unit(),
            })
            .collect();
        let settings = self.ranges.iter().zip(&places);
        let settings = settings.map(|(range, &place)| (range.name.clone(), range.at(place).into()));
        Trial {
            settings: settings.collect(),
            places,
            ..Trial::own()
        }
    }

    /// The best of the trials that keep the guards, on the traffic of the search.
    fn best(&self, trials: &[Trial]) -> Option<usize> {
        self.ranked(trials).into_iter().find(|&number| number > 0)
    }

    /// The trials that keep the guards, best first.
    fn ranked(&self, trials: &[Trial]) -> Vec<usize> {
        let mut ranked: Vec<_> = (0..trials.len())
            .filter(|&number| trials[number].keeps_guards)
            .collect();
        let goal = |number: usize| self.goal.of(&trials[number].searched);
        ranked.sort_by(|&a, &b| goal(a).total_cmp(&goal(b)));
        ranked
    }

    fn judge_finalists(
        &self,
        trials: &mut [Trial],
        held_back: impl Fn(u64) -> Trace + Sync,
    ) -> Result<(), TuneError> {
        let mut finalists = self.ranked(trials);
        finalists.retain(|&number| number > 0);
        finalists.truncate(FINALISTS);
        finalists.insert(0, 0);
        let mut judged: Vec<_> = finalists.iter().map(|&number| trials[number].clone()).collect();
        self.judge(&mut judged, held_back, |trial, outcome| {
            trial.held_back = Some(outcome)
        })?;
        let own = judged[0].held_back.unwrap_or_default();
        for (number, mut trial) in finalists.into_iter().zip(judged) {
            let outcome = trial.held_back.unwrap_or_default();
            trial.keeps_guards &= outcome.keeps(&self.guards, &own);
            trials[number] = trial;
        }
        Ok(())
    }

    fn tuned(&self, trials: Vec<Trial>) -> Tuned {
        let judged = |number: &usize| trials[*number].keeps_guards && trials[*number].held_back.is_some();
        let goal = |number: usize| {
            trials[number]
                .held_back
                .map_or(f64::INFINITY, |outcome| self.goal.of(&outcome))
        };
        let chosen = (0..trials.len())
            .filter(judged)
            .min_by(|&a, &b| goal(a).total_cmp(&goal(b)))
            .unwrap_or(0);
        let kept = self.ranked(&trials);
        let is_beaten = |&number: &usize| {
            kept.iter()
                .any(|&other| trials[other].searched.dominates(&trials[number].searched))
        };
        let front = kept.iter().copied().filter(|number| !is_beaten(number)).collect();
        Tuned {
            trials,
            chosen,
            front,
        }
    }

    /// Replays the traffic with the settings of each trial, and stores what came of it.
    fn judge(
        &self,
        trials: &mut [Trial],
        traffic: impl Fn(u64) -> Trace + Sync,
        store: impl Fn(&mut Trial, Outcome),
    ) -> Result<(), TuneError> {
        let choice = |trial: &Trial| self.policy.with_settings(&trial.settings);
        let choices: Vec<_> = trials.iter().map(choice).collect();
        let policies = ReplayPolicy::load_all(&choices)?;
        let plan = Plan {
            policies: &policies,
            ..*self.plan
        };
        let runs = run_all(&plan, traffic)?;
        for (trial, runs) in trials.iter_mut().zip(runs.chunks(plan.seeds.len().max(1))) {
            store(trial, Outcome::of(runs));
        }
        Ok(())
    }
}

impl Trial {
    /// The policy's own settings, not judged yet.
    fn own() -> Self {
        Self {
            settings: Map::new(),
            places: Vec::new(),
            searched: Outcome::default(),
            held_back: None,
            keeps_guards: true,
        }
    }
}

#[cfg(test)]
mod tests;
