//! Samples the next token from a model's logits.
//!
//! The logits are changed first ([`LogitChanges`]). Then llama.cpp's samplers run in the order of vLLM: temperature, min-p,
//! top-k, top-p, random draw. Log probabilities are those of the model's own distribution, before all of these.

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token::data::LlamaTokenData;
use llama_cpp_2::token::data_array::LlamaTokenDataArray;
use signalbox_protocol::{SamplingParams, WireError};

use super::logits::LogitChanges;
use crate::engine::TokenLogprobs;
use crate::grammar::Grammar;
use crate::token_limits::TokenLimits;

/// Most alternatives reported with a token. The limit is OpenAI's.
pub(super) const MAX_TOP_LOGPROBS: u32 = 20;

/// Samples the tokens of one sequence.
pub(super) struct TokenSampler {
    chain: LlamaSampler,
    changes: Option<LogitChanges>,
    logprobs: Option<u32>,
}

impl std::fmt::Debug for TokenSampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenSampler")
            .field("changes", &self.changes)
            .field("logprobs", &self.logprobs)
            .finish_non_exhaustive()
    }
}

impl TokenSampler {
    /// A sampler for a model of `vocab` tokens. `tokens` are those of the prompt, and then `generated` ones of another
    /// engine.
    ///
    /// # Errors
    /// A parameter is out of its range. The error names the parameter.
    pub(super) fn new(
        params: &SamplingParams,
        limits: TokenLimits,
        tokens: &[u32],
        generated: usize,
        vocab: u32,
    ) -> Result<Self, WireError> {
        check(params, vocab)?;
        let mut chain = Vec::with_capacity(5);
        if params.temperature <= 0.0 {
            chain.push(LlamaSampler::greedy());
        } else {
            chain.push(LlamaSampler::temp(params.temperature));
            if params.min_p > 0.0 {
                chain.push(LlamaSampler::min_p(params.min_p, 1));
            }
            if params.top_k > 0 {
                chain.push(LlamaSampler::top_k(params.top_k.min(vocab) as i32));
            }
            if params.top_p < 1.0 {
                chain.push(LlamaSampler::top_p(params.top_p, 1));
            }
            chain.push(LlamaSampler::dist(seed32(
                params.seed.unwrap_or_else(rand::random),
            )));
        }
        let (prompt, generated) = tokens.split_at(tokens.len().saturating_sub(generated));
        let mut changes = LogitChanges::new(params, limits, prompt);
        if let Some(changes) = &mut changes {
            generated.iter().for_each(|token| changes.push(*token));
        }
        Ok(Self {
            chain: LlamaSampler::chain_simple(chain),
            changes,
            logprobs: params.logprobs,
        })
    }

    /// Computes what the grammar allows next, if there is one. For another thread, while the logits are computed.
    pub(super) fn prepare(&mut self) {
        if let Some(grammar) = self.grammar() {
            grammar.prepare();
        }
    }

    /// Whether there is a grammar to prepare.
    pub(super) fn has_grammar(&self) -> bool {
        self.changes.as_ref().is_some_and(LogitChanges::has_grammar)
    }

    /// Whether the grammar allows nothing more.
    pub(super) fn is_complete(&mut self) -> bool {
        self.grammar().is_some_and(|grammar| grammar.is_complete())
    }

    fn grammar(&mut self) -> Option<&mut Grammar> {
        self.changes.as_mut().and_then(LogitChanges::grammar)
    }

    /// Samples from the logits at `index` of the last batch. `candidates` is a buffer that sequences share. `None` if the
    /// logits are not finite, or no token is left to choose from.
    pub(super) fn sample(
        &mut self,
        context: &LlamaContext<'_>,
        index: i32,
        candidates: &mut Candidates,
    ) -> Option<(u32, Option<TokenLogprobs>)> {
        let token = match &mut self.changes {
            None => self.chain.sample(context, index),
            Some(changes) => candidates.choose(context.get_logits_ith(index), changes, &mut self.chain)?,
        };
        let logits = context.get_logits_ith(index);
        let chosen = *logits.get(usize::try_from(token.0).ok()?)?;
        let token = token.0 as u32;
        if let Some(changes) = &mut self.changes {
            changes.push(token);
        }
        let logprobs = self.logprobs.map(|top| logprobs(logits, chosen, top as usize));
        chosen.is_finite().then_some((token, logprobs))
    }
}

/// The tokens to choose from, with their changed logits. A reused buffer of 12 bytes for each token of the vocabulary.
#[derive(Debug)]
pub(super) struct Candidates(LlamaTokenDataArray);

impl Default for Candidates {
    fn default() -> Self {
        Self(LlamaTokenDataArray::new(Vec::new(), false))
    }
}

impl Candidates {
    fn choose(
        &mut self,
        logits: &[f32],
        changes: &mut LogitChanges,
        chain: &mut LlamaSampler,
    ) -> Option<LlamaToken> {
        let array = &mut self.0;
        (array.selected, array.sorted) = (None, false);
        array.data.clear();
        let tokens = (0..).zip(logits);
        array
            .data
            .extend(tokens.map(|(token, logit)| LlamaTokenData::new(LlamaToken(token), *logit, 0.0)));
        changes.apply(|token, change| {
            if let Some(candidate) = array.data.get_mut(token as usize) {
                candidate.set_logit(change(candidate.logit()));
            }
        });
        let allowed = changes.allowed().ok()?;
        array.data.retain(|candidate| {
            candidate.logit() != f32::NEG_INFINITY
                && allowed.is_none_or(|allowed| allowed.contains(candidate.id().0 as u32))
        });
        if array.data.is_empty() {
            return None;
        }
        array.apply_sampler(chain);
        let token = array.selected_token()?;
        chain.accept(token);
        Some(token)
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
        ("min_p", params.min_p),
        ("repetition_penalty", params.repetition_penalty),
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

/// The log probabilities of a prompt's token, from the logits at `index` of the last batch, which those of its predecessor
/// are. `None` if the logits are not finite.
pub(super) fn prompt_logprobs(
    context: &LlamaContext<'_>,
    index: i32,
    token: u32,
    top: u32,
) -> Option<TokenLogprobs> {
    let logits = context.get_logits_ith(index);
    let chosen = *logits.get(token as usize)?;
    chosen.is_finite().then(|| logprobs(logits, chosen, top as usize))
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
