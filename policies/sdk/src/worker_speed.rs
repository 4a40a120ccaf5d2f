//! How fast each worker is beside [`StepCurves`], learned from what workers and routers measure.
//!
//! The curves have the shape of one GPU with one model. This finds the size for every worker: the factors by which its
//! prefill and its decode steps take longer. It promises:
//!
//! - Nothing measured: the worker is as fast as the mean of the others, and the curves' own speed if none is known.
//! - Equal workers get equal factors. Measurements differ by chance, and a formula that followed them would prefer a
//!   worker for no reason: only a difference of a fifth from the mean counts.
//! - A wrong measurement fades, and no factor leaves `FACTORS`.

use std::ops::RangeInclusive;

use crate::{StepCurves, row_memory::RowMemory};

/// Weight of a new measurement among those before. What is measured is a mean of some twenty steps already.
const NEWEST: f32 = 0.03;
/// Logarithm of the factor by which a worker must differ from the mean of all to count as different.
const DIFFERENT: f32 = 0.2;
/// What a factor may be: from a fiftieth of the time on the curves to fifty times.
const FACTORS: RangeInclusive<f32> = 0.02..=50.0;
/// A step of fewer tokens takes little longer than an empty one, so its rate says little.
const LEAST_TOKENS: f32 = 64.0;

/// What is measured of the workers: a row for each candidate in each slice. 0 is unknown.
#[derive(Debug, Clone, Copy)]
pub struct MeasuredRows<'a> {
    /// Prompt tokens that the worker computes in a second of prefill.
    pub prefill_tokens_per_s: &'a [f32],
    /// The mean prompt tokens of the steps that this rate was measured on.
    pub prefill_step_tokens: &'a [f32],
    /// How long a decode step takes, in milliseconds.
    pub decode_step_ms: &'a [f32],
    /// The mean KV blocks of running sequences in those steps.
    pub decode_step_blocks: &'a [f32],
    /// KV blocks of the requests in flight.
    pub decode_blocks: &'a [u32],
    /// KV blocks of the cache.
    pub kv_blocks_total: &'a [u32],
}

/// The factors of all workers.
#[derive(Debug, Clone, Default)]
pub struct WorkerSpeeds {
    learned: RowMemory<Speed>,
    /// See [`WorkerRows::prefill_scale`](crate::WorkerRows::prefill_scale), in the order of the latest decision.
    pub prefill_scale: Vec<f32>,
    /// See [`WorkerRows::decode_scale`](crate::WorkerRows::decode_scale).
    pub decode_scale: Vec<f32>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Speed {
    prefill: Factor,
    decode: Factor,
}

/// A factor as the mean of the logarithms of its samples: twice as fast and half as fast cancel out.
#[derive(Debug, Clone, Copy, Default)]
struct Factor {
    log: f32,
    samples: u32,
    /// What was measured last: an equal value is no new sample.
    seen: f32,
}

impl Factor {
    /// A new measurement `seen`, by which the factor is what `factor` returns.
    fn learn(&mut self, seen: f32, factor: impl FnOnce() -> f32) {
        if seen == self.seen || seen.is_nan() || seen <= 0.0 {
            return;
        }
        self.seen = seen;
        let log = factor().clamp(*FACTORS.start(), *FACTORS.end()).ln();
        self.samples = self.samples.saturating_add(1);
        let weight = NEWEST.max(1.0 / self.samples as f32);
        self.log += weight * (log - self.log);
    }
}

impl WorkerSpeeds {
    /// Takes what is measured now, and brings the factors into the order of `workers`, which has a number for each row
    /// that stays the same while the worker is present.
    pub fn follow(
        &mut self,
        workers: impl ExactSizeIterator<Item = u64> + Clone,
        curves: &StepCurves,
        step_tokens: f32,
        measured: &MeasuredRows<'_>,
    ) {
        self.learned.follow(workers);
        for (row, speed) in self.learned.values_mut().enumerate() {
            let tokens = measured.prefill_step_tokens[row];
            if tokens > 0.0 {
                let rate = measured.prefill_tokens_per_s[row];
                speed.prefill.learn(rate, || {
                    let tokens = tokens.clamp(LEAST_TOKENS, step_tokens.max(LEAST_TOKENS));
                    tokens / curves.prefill_ms(tokens, step_tokens) * 1e3 / rate
                });
            }
            let step_ms = measured.decode_step_ms[row];
            speed.decode.learn(step_ms, || {
                let total = measured.kv_blocks_total[row].max(1) as f32;
                let blocks = match measured.decode_step_blocks[row] {
                    0.0 => measured.decode_blocks[row] as f32,
                    blocks => blocks,
                };
                step_ms / curves.decode_ms(blocks / total)
            });
        }
        scales(
            self.learned.values().map(|speed| speed.prefill),
            &mut self.prefill_scale,
        );
        scales(
            self.learned.values().map(|speed| speed.decode),
            &mut self.decode_scale,
        );
    }
}

/// Stores a factor for each row in `out`: its own where it differs from the mean, and the mean elsewhere.
fn scales(factors: impl Iterator<Item = Factor> + Clone, out: &mut Vec<f32>) {
    let (sum, count) = factors
        .clone()
        .filter(|factor| factor.samples > 0)
        .fold((0.0, 0.0), |(sum, count), factor| (sum + factor.log, count + 1.0));
    let mean: f32 = if count > 0.0 { sum / count } else { 0.0 };
    let usual = mean.exp();
    out.clear();
    out.extend(factors.map(|factor| {
        if factor.samples > 0 && (factor.log - mean).abs() > DIFFERENT {
            factor.log.exp()
        } else {
            usual
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP_TOKENS: f32 = 8_192.0;

    /// Follows a worker for each entry of `slowness`, which has prompts of 2,000 tokens and half its cache in use. `noise`
    /// is a factor on what is measured.
    fn follow(speeds: &mut WorkerSpeeds, slowness: &[f32], noise: f32) {
        let curves = StepCurves::default();
        let rate = |slow: &f32| match slow {
            0.0 => 0.0,
            slow => 2_000.0 / curves.prefill_ms(2_000.0, STEP_TOKENS) * 1e3 / (slow * noise),
        };
        let step = |slow: &f32| slow * noise * curves.decode_ms(0.5);
        let measured = MeasuredRows {
            prefill_tokens_per_s: &slowness.iter().map(rate).collect::<Vec<_>>(),
            prefill_step_tokens: &vec![2_000.0; slowness.len()],
            decode_step_ms: &slowness.iter().map(step).collect::<Vec<_>>(),
            decode_step_blocks: &vec![500.0; slowness.len()],
            // The worker is idle now; its steps were measured before.
            decode_blocks: &vec![0; slowness.len()],
            kv_blocks_total: &vec![1_000; slowness.len()],
        };
        speeds.follow(
            (0..slowness.len()).map(|row| row as u64),
            &curves,
            STEP_TOKENS,
            &measured,
        );
    }

    fn near(actual: &[f32], expected: &[f32]) -> bool {
        let pairs = actual.iter().zip(expected);
        actual.len() == expected.len()
            && pairs
                .into_iter()
                .all(|(actual, expected)| (actual / expected - 1.0).abs() < 0.1)
    }

    #[test]
    fn each_worker_gets_its_own_speed() {
        let mut speeds = WorkerSpeeds::default();
        for sample in 0..200 {
            follow(
                &mut speeds,
                &[1.0, 2.0, 1.0, 2.0],
                0.8 + 0.4 * (sample % 11) as f32 / 10.0,
            );
        }
        assert!(near(&speeds.prefill_scale, &[1.0, 2.0, 1.0, 2.0]), "{speeds:?}");
        assert!(near(&speeds.decode_scale, &[1.0, 2.0, 1.0, 2.0]), "{speeds:?}");
    }

    #[test]
    fn an_unknown_worker_is_as_fast_as_the_others() {
        let mut speeds = WorkerSpeeds::default();
        follow(&mut speeds, &[0.0, 0.0], 1.0);
        assert_eq!(speeds.prefill_scale, [1.0, 1.0], "nothing is known");
        follow(&mut speeds, &[3.0, 0.0], 1.0);
        assert!(near(&speeds.prefill_scale, &[3.0, 3.0]), "{speeds:?}");
        assert!(near(&speeds.decode_scale, &[3.0, 3.0]), "{speeds:?}");
    }

    #[test]
    fn workers_that_differ_by_chance_get_equal_factors() {
        let mut speeds = WorkerSpeeds::default();
        follow(&mut speeds, &[1.0, 1.1, 0.9], 1.0);
        assert_eq!(speeds.prefill_scale[0], speeds.prefill_scale[1]);
        assert_eq!(speeds.decode_scale[1], speeds.decode_scale[2]);
    }

    #[test]
    fn one_wrong_measurement_fades() {
        let mut speeds = WorkerSpeeds::default();
        for noise in [1.0, 1.01, 1.0, 1.01] {
            follow(&mut speeds, &[1.0, 1.0], noise);
        }
        follow(&mut speeds, &[1.0, 1.0], f32::INFINITY);
        for sample in 0..200 {
            follow(&mut speeds, &[1.0, 1.0], if sample % 2 == 0 { 1.0 } else { 1.01 });
        }
        assert!(near(&speeds.prefill_scale, &[1.0, 1.0]), "{speeds:?}");
    }
}
