//! How fast an engine computes, measured from its own steps: what its load reports say of prefill and decode, and how many
//! steps it has done.
//!
//! A step takes longer the more prompt tokens it computes, and the more KV blocks the running sequences have. So with each
//! time goes what the steps were like. All are exponentially weighted means. New values are reported where one differs by
//! a twentieth from the one before, so that an engine at a steady speed reports steady rates.

use std::time::Duration;

use signalbox_protocol::LoadReport;

use crate::engine::StepOutput;

/// Weight of the newest step: the last twenty steps have nearly nine tenths of the weight of all.
const NEWEST: f32 = 0.1;
/// Fewer prompt tokens in a step say more about the step's fixed cost than about the rate of prefill.
const FEWEST_TOKENS: u32 = 16;
/// The share by which a mean must differ from the one that was reported last.
const REPORTED_CHANGE: f32 = 0.05;

/// The rates of one engine.
#[derive(Debug, Clone, Default)]
pub struct StepRates {
    /// Sized by prompt tokens.
    prefill: Steps,
    /// Sized by KV blocks.
    decode: Steps,
    /// Steps so far.
    done: u64,
}

/// Steps of one kind.
#[derive(Debug, Clone, Default)]
struct Steps {
    /// `None` before the first step.
    mean: Option<Step>,
    reported: Option<Step>,
}

#[derive(Debug, Clone, Copy)]
struct Step {
    took_us: f32,
    size: f32,
}

impl StepRates {
    /// A step took this long and had these results. `active_kv_blocks` are those of the running sequences.
    pub fn add(&mut self, took: Duration, output: &StepOutput, active_kv_blocks: u32) {
        self.done += 1;
        let took_us = took.as_secs_f32() * 1e6;
        if took_us <= 0.0 {
            return;
        }
        if output.prefill_tokens == 0 {
            if !output.tokens.is_empty() {
                self.decode.add(took_us, active_kv_blocks as f32);
            }
            return;
        }
        if output.prefill_tokens >= FEWEST_TOKENS {
            // In a step with both, the decode takes what it usually takes. Sequences whose prefill ended in this step did
            // not decode.
            let decodes = output.tokens.len() > output.prefilled.len();
            let of_decode = match self.decode.mean {
                Some(decode) if decodes => decode.took_us,
                _ => 0.0,
            };
            let took_us = (took_us - of_decode).max(took_us / 10.0);
            self.prefill.add(took_us, output.prefill_tokens as f32);
        }
    }

    /// The load with these rates.
    pub fn report(&mut self, load: LoadReport) -> LoadReport {
        let (prefill, decode) = (self.prefill.report(), self.decode.report());
        LoadReport {
            prefill_tokens_per_s: prefill.map_or(0, |step| known(step.size / step.took_us * 1e6)),
            prefill_step_tokens: prefill.map_or(0, |step| known(step.size)),
            decode_step_us: decode.map_or(0, |step| known(step.took_us)),
            decode_step_blocks: decode.map_or(0, |step| known(step.size)),
            steps_done: self.done,
            ..load
        }
    }
}

/// What is known is not 0.
fn known(mean: f32) -> u32 {
    (mean.round() as u32).max(1)
}

impl Steps {
    fn add(&mut self, took_us: f32, size: f32) {
        self.mean = Some(match self.mean {
            None => Step { took_us, size },
            Some(mean) => Step {
                took_us: mean.took_us + NEWEST * (took_us - mean.took_us),
                size: mean.size + NEWEST * (size - mean.size),
            },
        });
    }

    fn report(&mut self) -> Option<Step> {
        let differs = |old: f32, new: f32| (new - old).abs() > REPORTED_CHANGE * old;
        let is_new = match (self.reported, self.mean) {
            (Some(old), Some(new)) => differs(old.took_us, new.took_us) || differs(old.size, new.size),
            (None, _) => true,
            (_, None) => false,
        };
        if is_new {
            self.reported = self.mean;
        }
        self.reported
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{SampledToken, SequenceId};

    fn step(prefill_tokens: u32, tokens: usize, prefilled: usize) -> StepOutput {
        let id = SequenceId::new(1, 0);
        let token = SampledToken {
            sequence: id,
            token: 0,
            logprobs: None,
        };
        StepOutput {
            prefill_tokens,
            tokens: std::iter::repeat_n(token, tokens).collect(),
            prefilled: vec![(id, 0); prefilled],
            ..StepOutput::default()
        }
    }

    fn reported(rates: &mut StepRates) -> (u32, u32) {
        let load = rates.report(LoadReport::default());
        (load.prefill_tokens_per_s, load.decode_step_us)
    }

    #[test]
    fn prefill_and_decode_are_told_apart_in_a_step_with_both() {
        let mut rates = StepRates::default();
        assert_eq!(reported(&mut rates), (0, 0), "nothing is known");
        let milliseconds = Duration::from_millis;
        rates.add(milliseconds(100), &step(1_000, 1, 1), 0);
        assert_eq!(reported(&mut rates), (10_000, 0));
        rates.add(milliseconds(20), &step(0, 3, 0), 0);
        assert_eq!(reported(&mut rates), (10_000, 20_000));
        for _ in 0..100 {
            rates.add(milliseconds(120), &step(500, 4, 1), 0);
        }
        assert_eq!(
            reported(&mut rates),
            (5_000, 20_000),
            "100 ms of prefill, 20 of decode"
        );
        rates.add(milliseconds(50), &step(2, 1, 1), 0);
        assert_eq!(
            reported(&mut rates).0,
            5_000,
            "two tokens say nothing about the rate"
        );
    }

    #[test]
    fn every_step_shows_that_the_engine_is_alive() {
        let mut rates = StepRates::default();
        rates.add(Duration::ZERO, &step(0, 1, 0), 1);
        rates.add(Duration::from_millis(1), &step(3, 0, 0), 1);
        assert_eq!(rates.report(LoadReport::default()).steps_done, 2);
    }

    #[test]
    fn small_changes_are_not_reported() {
        let mut rates = StepRates::default();
        rates.add(Duration::from_millis(20), &step(0, 1, 0), 0);
        assert_eq!(reported(&mut rates).1, 20_000);
        rates.add(Duration::from_millis(28), &step(0, 1, 0), 0);
        assert_eq!(reported(&mut rates).1, 20_000, "the mean moved by 4 %");
        rates.add(Duration::from_millis(40), &step(0, 1, 0), 0);
        assert!(reported(&mut rates).1 > 21_000);
    }

    #[test]
    fn what_the_steps_were_like_is_reported_with_their_times() {
        let mut rates = StepRates::default();
        // The time of a step is 10 ms and 10 us a token: long steps have a higher rate.
        for tokens in [100, 1_900].repeat(100) {
            let took = Duration::from_micros(10_000 + 10 * u64::from(tokens));
            rates.add(took, &step(tokens, 1, 1), 0);
            rates.add(Duration::from_millis(5), &step(0, 2, 0), 40);
        }
        let load = rates.report(LoadReport::default());
        let expected_us = 10_000.0 + 10.0 * load.prefill_step_tokens as f32;
        let measured_us = load.prefill_step_tokens as f32 * 1e6 / load.prefill_tokens_per_s as f32;
        assert!((measured_us / expected_us - 1.0).abs() < 0.01, "{load:?}");
        assert_eq!(load.decode_step_blocks, 40);
        assert_eq!(load.decode_step_us, 5_000);
    }
}
