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
    /// The tokens of those sequences, whose KV they read.
    pub(super) context_tokens: u64,
}

impl StepWork {
    /// Milliseconds for this work on a device whose KV cache has room for `cache_tokens`. In a step with both, prefill
    /// and decode follow one another.
    pub(super) fn duration_ms(self, cache_tokens: u64) -> f64 {
        let mut total_ms = 0.0;
        if self.prefill_tokens > 0 {
            total_ms += prefill_ms(f64::from(self.prefill_tokens));
        }
        if self.decoding > 0 {
            // Sequences that share blocks may read more than the cache has room for.
            total_ms += decode_ms((self.context_tokens as f64 / cache_tokens as f64).min(1.0));
        }
        total_ms
    }

    /// The time for this work on a device that is `speedup` times faster; `None` if it takes no time.
    pub(super) fn pace(self, cache_tokens: u64, speedup: f64) -> Option<Duration> {
        let paced_ms = self.duration_ms(cache_tokens) / speedup;
        (speedup > 0.0 && paced_ms > 0.0).then(|| Duration::from_secs_f64(paced_ms / 1e3))
    }
}

/// The time of a prefill of `t` new tokens in one batch, in milliseconds.
fn prefill_ms(t: f64) -> f64 {
    4.209989e-7 * t * t + 1.518344e-2 * t + 16.50142
}

/// The time of one token for every decoding sequence, which together read the share `p` of the KV cache, in milliseconds.
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
            ..StepWork::default()
        }
        .duration_ms(100);
        assert!(
            (prefill - (0.420_998_9 + 15.183_44 + 16.501_42)).abs() < 1e-6,
            "{prefill}"
        );
        let decode = StepWork {
            decoding: 3,
            context_tokens: 50,
            ..StepWork::default()
        };
        let decode_ms = decode.duration_ms(100);
        assert!((decode_ms - (-6.435 + 27.005 + 5.74)).abs() < 1e-9, "{decode_ms}");
        let both = StepWork {
            prefill_tokens: 1000,
            ..decode
        }
        .duration_ms(100);
        assert!((both - prefill - decode_ms).abs() < 1e-9);
        let reads = |context_tokens| {
            StepWork {
                context_tokens,
                ..decode
            }
            .duration_ms(100)
        };
        assert_eq!(reads(250), reads(100), "the model ends at a full cache");
    }

    #[test]
    fn speedup_divides_the_time_and_zero_means_no_time() {
        let work = StepWork {
            decoding: 1,
            ..StepWork::default()
        };
        assert_eq!(work.pace(1, 1.0), Some(Duration::from_secs_f64(5.74e-3)));
        assert_eq!(work.pace(1, 2.0), Some(Duration::from_secs_f64(2.87e-3)));
        assert_eq!(work.pace(1, 0.0), None);
        assert_eq!(StepWork::default().pace(1, 1.0), None);
    }
}
