//! How two policies differ, and how sure that is.
//!
//! Both policies ran on the same traffic with the same seeds. The difference is taken seed by seed, so that what the
//! traffic of a seed does to both cancels out; the confidence interval is that of the mean of these differences.

use serde::Serialize;

use crate::{figures::Figures, runs::Run};

/// A policy compared with the first one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The first policy.
    pub of: String,
    /// The policy compared with it.
    pub with: String,
    /// One for each figure that is compared.
    pub differences: Vec<Difference>,
}

/// The difference of one figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// The name of the figure.
    pub figure: &'static str,
    /// The mean of the first policy over the seeds.
    pub before: f64,
    /// The mean of the other policy over the seeds.
    pub after: f64,
    /// The mean difference, `after` less `before`.
    pub mean: f64,
    /// Half the width of the interval that contains the true mean difference with 95 % confidence. `None` with one seed,
    /// which says nothing about it.
    pub confidence_95: Option<f64>,
}

/// A figure that is compared: its name, and where it is.
type Compared = (&'static str, fn(&Figures) -> f64);

/// What is compared: the aims first, then the guards against reaching them at the cost of something else.
const COMPARED: [Compared; 10] = [
    ("mean_ttft_ms", |figures| figures.ttft.mean),
    ("p50_ttft_ms", |figures| figures.ttft.p50),
    ("p99_ttft_ms", |figures| figures.ttft.p99),
    ("mean_itl_ms", |figures| figures.itl.mean),
    ("mean_e2e_ms", |figures| figures.e2e.mean),
    ("prefix_reuse", |figures| figures.prefix_reuse),
    ("goodput_share", |figures| figures.goodput_share),
    ("largest_worker_share", |figures| figures.largest_worker_share),
    ("p99_long_prompt_ttft_ms", |figures| figures.long_ttft.p99),
    ("completed", |figures| figures.completed as f64),
];

/// The 97.5th percentiles of Student's t distribution for 1 to 30 degrees of freedom.
const STUDENT_T: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];
/// The same for more: that of the normal distribution.
const NORMAL: f64 = 1.960;

impl Comparison {
    /// Compares each later policy with the first one. `runs` are in the order of [`run_all`](crate::run_all).
    #[must_use]
    pub fn of_runs(runs: &[Run], seeds: usize) -> Vec<Self> {
        let mut policies = runs.chunks(seeds.max(1));
        let Some(first) = policies.next() else {
            return Vec::new();
        };
        policies.map(|other| Self::of(first, other)).collect()
    }

    fn of(first: &[Run], other: &[Run]) -> Self {
        let name = |runs: &[Run]| runs.first().map(|run| run.policy.clone()).unwrap_or_default();
        let difference = |&(name, value): &Compared| {
            let values = |runs: &[Run]| runs.iter().map(|run| value(&run.figures)).collect::<Vec<_>>();
            Difference::of(name, &values(first), &values(other))
        };
        Self {
            of: name(first),
            with: name(other),
            differences: COMPARED.iter().map(difference).collect(),
        }
    }
}

impl Difference {
    fn of(figure: &'static str, before: &[f64], after: &[f64]) -> Self {
        let each: Vec<f64> = before
            .iter()
            .zip(after)
            .map(|(before, after)| after - before)
            .collect();
        let mean = mean(&each);
        let degrees = each.len().saturating_sub(1);
        let confidence_95 = (degrees > 0).then(|| {
            let squares: f64 = each.iter().map(|value| (value - mean) * (value - mean)).sum();
            let error = (squares / degrees as f64 / each.len() as f64).sqrt();
            STUDENT_T.get(degrees - 1).copied().unwrap_or(NORMAL) * error
        });
        Self {
            figure,
            before: self::mean(before),
            after: self::mean(after),
            mean,
            confidence_95,
        }
    }

    /// The difference as a share of the first policy's value.
    #[must_use]
    pub fn relative(&self) -> Option<f64> {
        (self.before != 0.0).then(|| self.mean / self.before)
    }

    /// Whether the interval leaves no doubt that there is a difference.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        self.confidence_95.is_some_and(|half| self.mean.abs() > half)
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::figures::Times;

    fn runs(policy: &str, means: &[f64]) -> Vec<Run> {
        let run = |(seed, &mean): (usize, &f64)| Run {
            policy: policy.into(),
            seed: seed as u64,
            figures: Figures {
                ttft: Times {
                    mean,
                    ..Times::default()
                },
                ..Figures::default()
            },
            decision_time: Duration::ZERO,
            record: None,
        };
        means.iter().enumerate().map(run).collect()
    }

    #[test]
    fn differences_are_taken_seed_by_seed() {
        // Traffic differs widely between the seeds, the policies by about ten.
        let runs = [
            runs("a", &[100.0, 500.0, 900.0]),
            runs("b", &[91.0, 490.0, 889.0]),
        ]
        .concat();
        let comparison = &Comparison::of_runs(&runs, 3)[0];
        assert_eq!((comparison.of.as_str(), comparison.with.as_str()), ("a", "b"));
        let ttft = &comparison.differences[0];
        assert_eq!(
            (ttft.figure, ttft.before, ttft.after, ttft.mean),
            ("mean_ttft_ms", 500.0, 490.0, -10.0)
        );
        // 4.303 * 1 / sqrt(3)
        let half = ttft.confidence_95.unwrap();
        assert!((half - 2.484).abs() < 0.001, "{half}");
        assert!(ttft.is_certain());
        assert_eq!(ttft.relative(), Some(-0.02));
        assert!(!comparison.differences[1].is_certain(), "both are 0");
    }

    #[test]
    fn one_seed_says_nothing_about_chance() {
        let runs = [runs("a", &[100.0]), runs("b", &[50.0]), runs("c", &[70.0])].concat();
        let comparisons = Comparison::of_runs(&runs, 1);
        assert_eq!(comparisons.len(), 2);
        assert_eq!(comparisons[1].differences[0].confidence_95, None);
        assert!(!comparisons[1].differences[0].is_certain());
        assert!(Comparison::of_runs(&[], 1).is_empty());
    }
}
