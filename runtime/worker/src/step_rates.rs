//! How fast an engine computes, measured from its own steps: what its load reports say of prefill and decode.
//!
//! Both are exponentially weighted means. A new value is reported where it differs by a twentieth from the one before, so
//! that a load whose rates hardly change is not reported anew after each step.

use std::time::Duration;

use signalbox_protocol::LoadReport;

use crate::engine::StepOutput;

/// Weight of the newest step: the last twenty steps have nearly nine tenths of the weight of all.
const NEWEST: f32 = 0.1;
/// Fewer prompt tokens in a step say more about the step's fixed cost than about the rate of prefill.
const FEWEST_TOKENS: u32 = 16;
/// The share by which a rate must differ from the one that was reported last.
const REPORTED_CHANGE: f32 = 0.05;

/// The rates of one engine.
#[derive(Debug, Clone, Default)]
pub struct StepRates {
    /// Prompt tokens a second.
    prefill: Rate,
    /// Microseconds a step.
    decode: Rate,
}

#[derive(Debug, Clone, Default)]
struct Rate {
    /// 0 before the first step.
    mean: f32,
    reported: f32,
}

impl StepRates {
    /// A step took this long and had these results.
    pub fn add(&mut self, took: Duration, output: &StepOutput) {
        let took_us = took.as_secs_f32() * 1e6;
        if took_us <= 0.0 {
            return;
        }
        if output.prefill_tokens == 0 {
            if !output.tokens.is_empty() {
                self.decode.add(took_us);
            }
            return;
        }
        if output.prefill_tokens >= FEWEST_TOKENS {
            // In a step with both, the decode takes what it usually takes. Sequences whose prefill ended in this step did
            // not decode.
            let decodes = output.tokens.len() > output.prefilled.len();
            let of_decode = if decodes { self.decode.mean } else { 0.0 };
            let took_us = (took_us - of_decode).max(took_us / 10.0);
            self.prefill.add(output.prefill_tokens as f32 * 1e6 / took_us);
        }
    }

    /// The load with these rates.
    pub fn report(&mut self, load: LoadReport) -> LoadReport {
        LoadReport {
            prefill_tokens_per_s: self.prefill.report(),
            decode_step_us: self.decode.report(),
            ..load
        }
    }
}

impl Rate {
    fn add(&mut self, sample: f32) {
        self.mean = match self.mean {
            0.0 => sample,
            mean => mean + NEWEST * (sample - mean),
        };
    }

    fn report(&mut self) -> u32 {
        if (self.mean - self.reported).abs() > REPORTED_CHANGE * self.reported {
            self.reported = self.mean;
        }
        // A rate that is known is not 0.
        if self.reported > 0.0 {
            (self.reported.round() as u32).max(1)
        } else {
            0
        }
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
        rates.add(milliseconds(100), &step(1_000, 1, 1));
        assert_eq!(reported(&mut rates), (10_000, 0));
        rates.add(milliseconds(20), &step(0, 3, 0));
        assert_eq!(reported(&mut rates), (10_000, 20_000));
        for _ in 0..100 {
            rates.add(milliseconds(120), &step(500, 4, 1));
        }
        assert_eq!(
            reported(&mut rates),
            (5_000, 20_000),
            "100 ms of prefill, 20 of decode"
        );
        rates.add(milliseconds(50), &step(2, 1, 1));
        assert_eq!(
            reported(&mut rates).0,
            5_000,
            "two tokens say nothing about the rate"
        );
    }

    #[test]
    fn small_changes_are_not_reported() {
        let mut rates = StepRates::default();
        rates.add(Duration::from_millis(20), &step(0, 1, 0));
        assert_eq!(reported(&mut rates).1, 20_000);
        rates.add(Duration::from_millis(28), &step(0, 1, 0));
        assert_eq!(reported(&mut rates).1, 20_000, "the mean moved by 4 %");
        rates.add(Duration::from_millis(40), &step(0, 1, 0));
        assert!(reported(&mut rates).1 > 21_000);
    }
}
