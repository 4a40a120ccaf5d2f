//! Changes logits before a token is drawn, in the order of vLLM: biases, penalties and bans.
//!
//! A penalty is over the generated tokens, but the repetition penalty is over the prompt too. llama.cpp's sampler of
//! penalties knows one list of tokens for all of them, and forgets a token's count beyond a window.

use hashbrown::{HashMap, HashSet};
use signalbox_protocol::SamplingParams;

use crate::grammar::{AllowedTokens, Grammar};
use crate::token_limits::{BannedTokens, TokenLimits};

/// The changes of one sequence's logits.
#[derive(Debug)]
pub(super) struct LogitChanges {
    banned: Option<BannedTokens>,
    grammar: Option<Grammar>,
    biases: Vec<(u32, f32)>,
    presence: f32,
    frequency: f32,
    /// The factor of the repetition penalty, and the prompt's tokens.
    repetition: Option<(f32, HashSet<u32>)>,
    /// How often each token was generated, if a penalty needs it.
    counts: HashMap<u32, u32>,
}

impl LogitChanges {
    /// The changes that `params` and `limits` ask for. `None` if they ask for none.
    pub(super) fn new(params: &SamplingParams, mut limits: TokenLimits, prompt: &[u32]) -> Option<Self> {
        let repetition = params.repetition_penalty;
        #[expect(clippy::float_cmp, reason = "only the very number 1 changes nothing")]
        let repetition = (repetition != 1.0).then(|| (repetition, prompt.iter().copied().collect()));
        let changes = Self {
            grammar: limits.grammar.take(),
            banned: BannedTokens::new(limits),
            biases: params
                .logit_bias
                .iter()
                .map(|(&token, &bias)| (token, bias))
                .collect(),
            presence: params.presence_penalty,
            frequency: params.frequency_penalty,
            repetition,
            counts: HashMap::new(),
        };
        (changes.banned.is_some()
            || changes.grammar.is_some()
            || changes.penalises()
            || !changes.biases.is_empty())
        .then_some(changes)
    }

    fn penalises(&self) -> bool {
        self.presence != 0.0 || self.frequency != 0.0 || self.repetition.is_some()
    }

    /// The sequence has generated this token.
    pub(super) fn push(&mut self, token: u32) {
        if let Some(banned) = &mut self.banned {
            banned.push(token);
        }
        if let Some(grammar) = &mut self.grammar {
            grammar.push(token);
        }
        if self.penalises() {
            *self.counts.entry(token).or_default() += 1;
        }
    }

    /// Whether the sequence has a grammar.
    pub(super) fn has_grammar(&self) -> bool {
        self.grammar.is_some()
    }

    /// The grammar of the sequence.
    pub(super) fn grammar(&mut self) -> Option<&mut Grammar> {
        self.grammar.as_mut()
    }

    /// The tokens that may be next by the grammar: all if there is none.
    ///
    /// # Errors
    /// The grammar has become too complex.
    pub(super) fn allowed(&mut self) -> Result<Option<AllowedTokens<'_>>, TooComplex> {
        match &mut self.grammar {
            None => Ok(None),
            Some(grammar) => grammar.allowed().map(Some).ok_or(TooComplex),
        }
    }

    /// Changes the logits of the next token: calls `change` with a token and the change of its logit.
    pub(super) fn apply(&self, mut change: impl FnMut(u32, &dyn Fn(f32) -> f32)) {
        for &(token, bias) in &self.biases {
            change(token, &|logit| logit + bias);
        }
        if let Some((factor, prompt)) = &self.repetition {
            let generated = self.counts.keys().filter(|token| !prompt.contains(*token));
            for &token in prompt.iter().chain(generated) {
                change(token, &|logit| {
                    if logit > 0.0 {
                        logit / factor
                    } else {
                        logit * factor
                    }
                });
            }
        }
        if self.presence != 0.0 || self.frequency != 0.0 {
            for (&token, &count) in &self.counts {
                change(token, &|logit| {
                    logit - self.presence - self.frequency * count as f32
                });
            }
        }
        for token in self.banned.iter().flat_map(BannedTokens::next) {
            change(token, &|_| f32::NEG_INFINITY);
        }
    }
}

/// A grammar that has become too complex for its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooComplex;

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(params: &SamplingParams, limits: TokenLimits, generated: &[u32], logits: &[f32]) -> Vec<f32> {
        let mut changes = LogitChanges::new(params, limits, &[0, 1]).unwrap();
        generated.iter().for_each(|token| changes.push(*token));
        let mut logits = logits.to_vec();
        changes.apply(|token, change| {
            let logit = &mut logits[token as usize];
            *logit = change(*logit);
        });
        logits
    }

    #[test]
    fn a_repetition_is_less_likely_whatever_the_sign_of_its_logit() {
        let params = SamplingParams {
            repetition_penalty: 2.0,
            ..SamplingParams::default()
        };
        let logits = changed(
            &params,
            TokenLimits::default(),
            &[3, 3, 1],
            &[4.0, -4.0, 4.0, -4.0, -4.0],
        );
        assert_eq!(
            logits,
            [2.0, -8.0, 4.0, -8.0, -4.0],
            "the prompt's tokens 0 and 1, and 3, once each"
        );
    }

    #[test]
    fn biases_and_penalties_add_up_over_generated_tokens_alone() {
        let params = SamplingParams {
            presence_penalty: 0.5,
            frequency_penalty: 1.0,
            logit_bias: [(2, 10.0)].into(),
            ..SamplingParams::default()
        };
        let logits = changed(&params, TokenLimits::default(), &[2, 2, 3], &[0.0; 5]);
        assert_eq!(logits, [0.0, 0.0, 7.5, -1.5, 0.0]);
    }

    #[test]
    fn no_bias_lifts_a_ban() {
        let params = SamplingParams {
            logit_bias: [(2, 100.0)].into(),
            ..SamplingParams::default()
        };
        let limits = TokenLimits {
            end_tokens: [2].into(),
            min_tokens: 1,
            ..TokenLimits::default()
        };
        assert_eq!(
            changed(&params, limits.clone(), &[], &[0.0; 3])[2],
            f32::NEG_INFINITY
        );
        assert_eq!(changed(&params, limits, &[0], &[0.0; 3])[2], 100.0);
        assert!(LogitChanges::new(&SamplingParams::default(), TokenLimits::default(), &[]).is_none());
    }
}
