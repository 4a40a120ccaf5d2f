//! Samples the next token from a model's logits.
//!
//! llama.cpp's samplers run in the order of OpenAI-compatible servers: logit bias, penalties over the generated tokens,
//! temperature, top-k, top-p, random draw. Log probabilities are those of the model's own distribution, before all of
//! these.

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token::logit_bias::LlamaLogitBias;
use signalbox_protocol::{SamplingParams, WireError};

use crate::engine::TokenLogprobs;

/// Most alternatives reported with a token. The limit is OpenAI's.
pub(super) const MAX_TOP_LOGPROBS: u32 = 20;

/// Samples the tokens of one sequence. Keeps the sampled tokens for the penalties.
pub(super) struct TokenSampler {
    chain: LlamaSampler,
    logprobs: Option<u32>,
}

impl std::fmt::Debug for TokenSampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenSampler")
            .field("logprobs", &self.logprobs)
            .finish_non_exhaustive()
    }
}

impl TokenSampler {
    /// A sampler for a model of `vocab` tokens and answers of at most `longest` tokens.
    ///
    /// # Errors
    /// A parameter is out of its range. The error names the parameter.
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

    /// Takes tokens that another engine generated into the penalties.
    pub(super) fn resume(&mut self, generated: &[u32]) {
        for token in generated {
            self.chain.accept(LlamaToken(*token as i32));
        }
    }

    /// Samples from the logits at `index` of the last batch. `None` if the logits are not finite.
    pub(super) fn sample(
        &mut self,
        context: &LlamaContext<'_>,
        index: i32,
    ) -> Option<(u32, Option<TokenLogprobs>)> {
        let token = self.chain.sample(context, index).0;
        let logits = context.get_logits_ith(index);
        let chosen = *logits.get(usize::try_from(token).ok()?)?;
        let logprobs = self.logprobs.map(|top| logprobs(logits, chosen, top as usize));
        chosen.is_finite().then_some((token as u32, logprobs))
    }
}

/// The seed for llama.cpp's generator, which takes 32 bits. To llama.cpp, 32 ones mean "a random seed".
fn seed32(seed: u64) -> u32 {
    let folded = (seed ^ (seed >> 32)) as u32;
    if folded == u32::MAX { 0x5EED } else { folded }
}

fn check(params: &SamplingParams, vocab: u32) -> Result<(), WireError> {
    if let Some(token) = params.logit_bias.keys().find(|&&token| token >= vocab) {
        return Err(WireError::invalid_param(
            "logit_bias",
            format!(
                "logit_bias has token {token}; the model has tokens 0 to {}",
                vocab - 1
            ),
        ));
    }
    if let Some(bias) = params.logit_bias.values().find(|bias| !bias.is_finite()) {
        return Err(WireError::invalid_param(
            "logit_bias",
            format!("logit_bias has the bias {bias}; give -100 to 100"),
        ));
    }
    if let Some(top) = params.logprobs.filter(|top| *top > MAX_TOP_LOGPROBS) {
        return Err(WireError::invalid_param(
            "top_logprobs",
            format!("top_logprobs is {top}; give 0 to {MAX_TOP_LOGPROBS}"),
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

/// The log softmax of the chosen token's logit and of the `top` largest logits.
fn logprobs(logits: &[f32], chosen: f32, top: usize) -> TokenLogprobs {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    let log_sum = sum.ln() as f32 + max;
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(top + 1);
    for (token, &logit) in (0..).zip(logits) {
        if best.len() < top || best.last().is_some_and(|&(_, worst)| logit > worst) {
            let rank = best.partition_point(|&(_, other)| other >= logit);
            best.insert(rank, (token, logit));
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
        let result = logprobs(&logits, logits[0], 3);
        let sum: f32 = logits.iter().map(|logit| logit.exp()).sum();
        assert_eq!(
            result.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(),
            [1, 3, 0]
        );
        assert!((result.chosen - (1.0_f32.exp() / sum).ln()).abs() < 1e-5);
        assert!((result.top[0].1 - (3.0_f32.exp() / sum).ln()).abs() < 1e-5);
        assert_eq!(logprobs(&logits, logits[0], 0).top, []);
    }

    #[test]
    fn no_seed_becomes_llama_cpps_random_seed() {
        assert!(
            [0, 1, u64::MAX, u64::from(u32::MAX)]
                .into_iter()
                .all(|seed| seed32(seed) != u32::MAX)
        );
        assert_ne!(seed32(1), seed32(1 << 40));
    }

    #[test]
    fn a_parameter_out_of_its_range_is_named() {
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
