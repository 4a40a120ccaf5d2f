//! Picks the next token from a model's logits.
//!
//! llama.cpp's samplers do the picking, in the order OpenAI-compatible servers use: logit bias, penalties over the
//! generated tokens, temperature, top-k, top-p, draw. Log probabilities are of the model's own distribution, before
//! any of that.

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token::logit_bias::LlamaLogitBias;
use signalbox_protocol::{SamplingParams, WireError};

use crate::engine::TokenLogprobs;

/// Most alternatives told with a token: OpenAI's limit.
pub(super) const MAX_TOP_LOGPROBS: u32 = 20;

/// Picks the tokens of one sequence and remembers which ones it picked.
pub(super) struct TokenPicker {
    chain: LlamaSampler,
    logprobs: Option<u32>,
}

impl std::fmt::Debug for TokenPicker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenPicker")
            .field("logprobs", &self.logprobs)
            .finish_non_exhaustive()
    }
}

impl TokenPicker {
    /// For a model of `vocab` tokens and answers of at most `longest` tokens. Names the parameter that cannot be
    /// honoured.
    pub(super) fn new(params: &SamplingParams, vocab: u32, longest: u32) -> Result<Self, WireError> {
        check(params, vocab)?;
        let vocab = vocab as i32;
        let mut chain = Vec::with_capacity(6);
        if !params.logit_bias.is_empty() {
            let biases: Vec<_> = params
                .logit_bias
                .iter()
                .map(|(&token, &bias)| LlamaLogitBias::new(LlamaToken(token as i32), bias))
                .collect();
            chain.push(LlamaSampler::logit_bias(vocab, &biases));
        }
        if params.presence_penalty != 0.0 || params.frequency_penalty != 0.0 {
            const NO_REPEAT_PENALTY: f32 = 1.0;
            chain.push(LlamaSampler::penalties(
                vocab,
                longest as i32,
                NO_REPEAT_PENALTY,
                params.frequency_penalty,
                params.presence_penalty,
            ));
        }
        if params.temperature <= 0.0 {
            chain.push(LlamaSampler::greedy());
        } else {
            chain.push(LlamaSampler::temp(params.temperature));
            if params.top_k > 0 {
                chain.push(LlamaSampler::top_k(params.top_k.min(vocab as u32) as i32));
            }
            if params.top_p < 1.0 {
                chain.push(LlamaSampler::top_p(params.top_p, 1));
            }
            chain.push(LlamaSampler::dist(seed32(
                params.seed.unwrap_or_else(rand::random),
            )));
        }
        Ok(Self {
            chain: LlamaSampler::chain_simple(chain),
            logprobs: params.logprobs,
        })
    }

    /// Picks from the logits at `index` of the last batch; `None` where they are no numbers.
    pub(super) fn pick(
        &mut self,
        context: &LlamaContext<'_>,
        index: i32,
    ) -> Option<(u32, Option<TokenLogprobs>)> {
        let token = self.chain.sample(context, index).0;
        let logits = context.get_logits_ith(index);
        let place = usize::try_from(token).ok()?;
        let chosen = *logits.get(place)?;
        let logprobs = self.logprobs.map(|top| logprobs(logits, chosen, top as usize));
        chosen.is_finite().then_some((token as u32, logprobs))
    }
}

/// llama.cpp's generator takes 32 bits, of which all ones means "a random seed".
fn seed32(seed: u64) -> u32 {
    let folded = (seed ^ (seed >> 32)) as u32;
    if folded == u32::MAX { 0x5EED } else { folded }
}

fn check(params: &SamplingParams, vocab: u32) -> Result<(), WireError> {
    if let Some(token) = params.logit_bias.keys().find(|&&token| token >= vocab) {
        return Err(WireError::invalid_param(
            "logit_bias",
            format!(
                "logit_bias names token {token}; this model has tokens 0 to {}",
                vocab - 1
            ),
        ));
    }
    if let Some(bias) = params.logit_bias.values().find(|bias| !bias.is_finite()) {
        return Err(WireError::invalid_param(
            "logit_bias",
            format!("a logit_bias is {bias}; give -100 to 100"),
        ));
    }
    if params.logprobs.is_some_and(|top| top > MAX_TOP_LOGPROBS) {
        return Err(WireError::invalid_param(
            "top_logprobs",
            format!("at most {MAX_TOP_LOGPROBS} alternatives can be told with a token"),
        ));
    }
    let numbers = [
        ("temperature", params.temperature),
        ("top_p", params.top_p),
        ("presence_penalty", params.presence_penalty),
        ("frequency_penalty", params.frequency_penalty),
    ];
    match numbers.into_iter().find(|(_, value)| !value.is_finite()) {
        Some((name, value)) => Err(WireError::invalid_param(
            name,
            format!("{name} is {value}; give a number"),
        )),
        None => Ok(()),
    }
}

/// log softmax of the chosen token's logit and of the `top` largest ones.
fn logprobs(logits: &[f32], chosen: f32, top: usize) -> TokenLogprobs {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    let log_sum = sum.ln() as f32 + max;
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(top + 1);
    for (token, &logit) in (0..).zip(logits) {
        if best.len() < top || best.last().is_some_and(|&(_, worst)| logit > worst) {
            let place = best.partition_point(|&(_, other)| other >= logit);
            best.insert(place, (token, logit));
            best.truncate(top);
        }
    }
    let top = best
        .into_iter()
        .map(|(token, logit)| (token, logit - log_sum))
        .collect();
    TokenLogprobs {
        chosen: chosen - log_sum,
        top,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_are_a_log_softmax_with_the_likeliest_first() {
        let logits = [1.0_f32, 3.0, -2.0, 3.0];
        let told = logprobs(&logits, logits[0], 3);
        let sum: f32 = logits.iter().map(|logit| logit.exp()).sum();
        assert_eq!(
            told.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(),
            [1, 3, 0]
        );
        assert!((told.chosen - (1.0_f32.exp() / sum).ln()).abs() < 1e-5);
        assert!((told.top[0].1 - (3.0_f32.exp() / sum).ln()).abs() < 1e-5);
        assert_eq!(logprobs(&logits, logits[0], 0).top, []);
    }

    #[test]
    fn no_seed_means_random_to_llama_cpp() {
        assert!(
            [0, 1, u64::MAX, u64::from(u32::MAX)]
                .into_iter()
                .all(|seed| seed32(seed) != u32::MAX)
        );
        assert_ne!(seed32(1), seed32(1 << 40));
    }

    #[test]
    fn what_cannot_be_honoured_is_named() {
        let with = |params: SamplingParams| check(&params, 10).unwrap_err().param.unwrap();
        let default = SamplingParams::default;
        assert_eq!(
            with(SamplingParams {
                logit_bias: [(10, 1.0)].into(),
                ..default()
            }),
            "logit_bias"
        );
        assert_eq!(
            with(SamplingParams {
                logprobs: Some(21),
                ..default()
            }),
            "top_logprobs"
        );
        assert_eq!(
            with(SamplingParams {
                temperature: f32::NAN,
                ..default()
            }),
            "temperature"
        );
        assert_eq!(
            check(
                &SamplingParams {
                    logit_bias: [(9, 1.0)].into(),
                    ..default()
                },
                10
            ),
            Ok(())
        );
    }
}
