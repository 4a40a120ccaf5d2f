//! The timing model: how long a step would take on a real device.
//!
//! The polynomials are the default timing of NVIDIA Dynamo's mocker (`lib/mocker`), so that results can be compared
//! with it. Dynamo fitted them to measured prefill and decode times of a GPU.

use std::time::Duration;

/// The work of one step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct StepWork {
    /// Prompt tokens whose KV is computed.
    pub(super) prefill_tokens: u32,
    /// Sequences that advance by one token.
    pub(super) decoding: u32,
}

impl StepWork {
    /// Milliseconds for this work while running sequences hold `active_share` (0 to 1) of the KV cache. In a step with
    /// both, prefill and decode follow one another.
    pub(super) fn duration_ms(self, active_share: f64) -> f64 {
        let mut total_ms = 0.0;
        if self.prefill_tokens > 0 {
            total_ms += prefill_ms(f64::from(self.prefill_tokens));
        }
        if self.decoding > 0 {
            total_ms += decode_ms(active_share);
        }
        total_ms
    }

    /// The time for this work on a device that is `speedup` times faster; `None` if it takes no time.
    pub(super) fn pace(self, active_share: f64, speedup: f64) -> Option<Duration> {
        let paced_ms = self.duration_ms(active_share) / speedup;
        (speedup > 0.0 && paced_ms > 0.0).then(|| Duration::from_secs_f64(paced_ms / 1e3))
    }
}

/// The time of a prefill of `t` new tokens in one batch, in milliseconds.
fn prefill_ms(t: f64) -> f64 {
    4.209989e-7 * t * t + 1.518344e-2 * t + 16.50142
}

/// The time of one token for every running sequence with the share `p` of the KV cache active, in milliseconds.
fn decode_ms(p: f64) -> f64 {
    (-25.74 * p * p + 54.01 * p + 5.74).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_step_is_its_prefill_plus_its_decode() {
        let prefill = StepWork {
            prefill_tokens: 1000,
            decoding: 0,
        }
        .duration_ms(0.5);
        assert!(
            (prefill - (0.420_998_9 + 15.183_44 + 16.501_42)).abs() < 1e-6,
            "{prefill}"
        );
        let decode = StepWork {
            prefill_tokens: 0,
            decoding: 3,
        }
        .duration_ms(0.5);
        assert!((decode - (-6.435 + 27.005 + 5.74)).abs() < 1e-9, "{decode}");
        let both = StepWork {
            prefill_tokens: 1000,
            decoding: 3,
        }
        .duration_ms(0.5);
        assert!((both - prefill - decode).abs() < 1e-9);
    }

    #[test]
    fn speedup_divides_the_time_and_zero_means_no_time() {
        let work = StepWork {
            prefill_tokens: 0,
            decoding: 1,
        };
        assert_eq!(work.pace(0.0, 1.0), Some(Duration::from_secs_f64(5.74e-3)));
        assert_eq!(work.pace(0.0, 2.0), Some(Duration::from_secs_f64(2.87e-3)));
        assert_eq!(work.pace(0.0, 0.0), None);
        assert_eq!(StepWork::default().pace(0.0, 1.0), None);
    }
}
