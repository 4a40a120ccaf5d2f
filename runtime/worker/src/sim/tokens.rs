//! The tokens of simulated answers: they look random, and the same request gives the same tokens.

use std::sync::Arc;

use signalbox_tokenize::ModelText;

use crate::engine::{SequenceId, TokenLogprobs};

/// The tokens that a simulated engine may generate: those that are readable text by themselves. They are valid UTF-8
/// without control characters, not special, and do not end a generation.
///
/// Decodes every token of the vocabulary once, which takes up to a second for the largest vocabularies.
pub fn ordinary_tokens(text: &ModelText) -> Arc<[u32]> {
    (0..text.vocab_size())
        .filter(|token| {
            let bytes = text.token_bytes(*token);
            let readable = std::str::from_utf8(&bytes).is_ok_and(is_readable);
            // A special token has bytes, but decodes to no text.
            readable
                && !text.eos_tokens().contains(token)
                && text.decode(&[*token]).is_ok_and(|decoded| is_readable(&decoded))
        })
        .collect()
}

fn is_readable(text: &str) -> bool {
    !text.is_empty()
        && !text
            .chars()
            .any(|c| c.is_control() || c == char::REPLACEMENT_CHARACTER)
}

/// Generates the tokens of one sequence. A token depends on the engine's seed, the request's seed, the prompt, the
/// choice and the position, and on nothing else.
#[derive(Debug, Clone, Copy)]
pub(super) struct TokenSource {
    start: u64,
    /// Position in the answer of the first token that this engine generates.
    first: usize,
}

impl TokenSource {
    /// `tokens`: the prompt, and then the `generated` tokens with which another engine began the answer. The rest is what
    /// that engine would have generated.
    pub(super) fn new(
        engine_seed: u64,
        request_seed: Option<u64>,
        tokens: &[u32],
        generated: usize,
        id: SequenceId,
    ) -> Self {
        let prompt = &tokens[..tokens.len().saturating_sub(generated)];
        // Two tokens at a time: prompts are long, and this is the only work that each of their tokens costs.
        let (pairs, last) = prompt.as_chunks::<2>();
        let prompt_hash = pairs
            .iter()
            .map(|[first, second]| u64::from(*first) << 32 | u64::from(*second))
            .chain(last.iter().map(|token| u64::from(*token)))
            .fold(0_u64, |state, word| {
                (state.rotate_left(29) ^ word).wrapping_mul(GOLDEN)
            });
        // Without a request seed the tokens depend on the prompt alone, so the same request gets the same answer.
        let words = [
            prompt_hash,
            prompt.len() as u64,
            request_seed.map_or(0, |seed| scramble(seed ^ 1)),
            u64::from(id.choice()),
        ];
        Self {
            start: words
                .into_iter()
                .fold(scramble(engine_seed), |state, word| scramble(state ^ word)),
            first: generated,
        }
    }

    /// The token at `position` among those of this engine, out of `vocabulary`. If it is not allowed, the next one that is.
    pub(super) fn token(self, position: usize, vocabulary: &[u32], is_allowed: impl Fn(u32) -> bool) -> u32 {
        let first = self.index(position, vocabulary.len());
        let (before, from) = vocabulary.split_at(first);
        let mut tokens = from.iter().chain(before).copied();
        tokens
            .find(|token| is_allowed(*token))
            .unwrap_or(vocabulary[first])
    }

    /// One of two cases, at random.
    pub(super) fn is_even(self, position: usize) -> bool {
        scramble(self.random(position) ^ 1) & 1 == 0
    }

    /// Simulated log probabilities for [`Self::token`]. That token is always the likeliest, all probabilities together
    /// are below 1, and the alternatives are distinct tokens.
    pub(super) fn logprobs(self, position: usize, top: u32, vocabulary: &[u32]) -> TokenLogprobs {
        let first = self.index(position, vocabulary.len());
        let fraction = (scramble(self.random(position)) >> 11) as f64 / (1u64 << 53) as f64;
        let probability = 0.5 + 0.4 * fraction;
        let count = (top as usize).min(vocabulary.len());
        let top = (0..count)
            .map(|rank| {
                let probability = if rank == 0 {
                    probability
                } else {
                    (1.0 - probability) * 0.5f64.powi(rank as i32)
                };
                (
                    vocabulary[(first + rank) % vocabulary.len()],
                    probability.ln() as f32,
                )
            })
            .collect();
        TokenLogprobs {
            chosen: probability.ln() as f32,
            top,
        }
    }

    /// A random index below `count` for this position.
    fn index(self, position: usize, count: usize) -> usize {
        // The high half of the product spreads 64 bits evenly over `count` values.
        ((u128::from(self.random(position)) * count as u128) >> 64) as usize
    }

    /// 64 random bits for this position.
    fn random(self, position: usize) -> u64 {
        let position = (self.first + position) as u64;
        scramble(self.start.wrapping_add(position.wrapping_mul(GOLDEN)))
    }
}

/// Simulated log probabilities of a prompt's token at this position. All probabilities together are below 1.
pub(super) fn prompt_logprobs(position: usize, token: u32, top: u32, vocabulary: &[u32]) -> TokenLogprobs {
    let random = scramble(u64::from(token) << 32 | position as u64);
    let fraction = (random >> 11) as f64 / (1u64 << 53) as f64;
    let probability = 0.05 + 0.4 * fraction;
    let first = ((u128::from(scramble(random)) * vocabulary.len() as u128) >> 64) as usize;
    let others = (0..vocabulary.len()).map(|rank| vocabulary[(first + rank) % vocabulary.len()]);
    let top = others.filter(|other| *other != token).take(top as usize);
    let halves = (1..).map(|rank| ((1.0 - probability) * 0.5f64.powi(rank)).ln() as f32);
    TokenLogprobs {
        chosen: probability.ln() as f32,
        top: top.zip(halves).collect(),
    }
}

/// 2⁶⁴ divided by the golden ratio: SplitMix64's increment.
pub const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's output function (Steele, Lea, Flood 2014): each bit of the input changes half of the output's bits.
#[must_use]
pub fn scramble(word: u64) -> u64 {
    let word = word.wrapping_add(GOLDEN);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(engine_seed: u64, seed: Option<u64>, prompt: &[u32], choice: u16) -> Vec<u32> {
        let vocabulary: Vec<u32> = (100..200).collect();
        let source = TokenSource::new(engine_seed, seed, prompt, 0, SequenceId::new(7, choice));
        (0..20)
            .map(|position| source.token(position, &vocabulary, |_| true))
            .collect()
    }

    #[test]
    fn the_tokens_depend_on_seeds_prompt_and_choice_alone() {
        let base = answer(1, None, &[1, 2], 0);
        assert_eq!(base, answer(1, None, &[1, 2], 0));
        let others = [
            answer(2, None, &[1, 2], 0),
            answer(1, Some(0), &[1, 2], 0),
            answer(1, Some(1), &[1, 2], 0),
            answer(1, None, &[2, 1], 0),
            answer(1, None, &[1, 2], 1),
        ];
        for (i, other) in others.iter().enumerate() {
            assert!(
                *other != base && others[i + 1..].iter().all(|o| o != other),
                "variant {i}"
            );
        }
        assert!(base.iter().all(|token| (100..200).contains(token)));
    }

    #[test]
    fn an_answer_continues_where_another_engine_left_it() {
        let vocabulary: Vec<u32> = (100..200).collect();
        let whole = answer(1, Some(3), &[1, 2], 0);
        for generated in 0..whole.len() {
            let tokens = [&[1, 2], &whole[..generated]].concat();
            let source = TokenSource::new(1, Some(3), &tokens, generated, SequenceId::new(8, 0));
            let rest =
                (0..whole.len() - generated).map(|position| source.token(position, &vocabulary, |_| true));
            assert!(rest.eq(whole[generated..].iter().copied()), "from {generated} on");
        }
    }

    #[test]
    fn log_probabilities_of_a_prompt_depend_on_token_and_position_and_add_up_to_less_than_one() {
        let vocabulary: Vec<u32> = (0..50).collect();
        for (position, token) in (1..100).zip((0..50).cycle()) {
            let logprobs = prompt_logprobs(position, token, 20, &vocabulary);
            assert_eq!(logprobs, prompt_logprobs(position, token, 20, &vocabulary));
            assert_ne!(logprobs, prompt_logprobs(position, token + 1, 20, &vocabulary));
            assert!(logprobs.top.iter().all(|(other, _)| *other != token) && logprobs.top.len() == 20);
            assert!(logprobs.top.is_sorted_by(|a, b| a.1 > b.1));
            let all = logprobs
                .top
                .iter()
                .map(|(_, logprob)| *logprob)
                .chain([logprobs.chosen]);
            let sum: f64 = all.map(|logprob| f64::from(logprob).exp()).sum();
            assert!(sum < 1.0, "{sum}");
        }
    }

    #[test]
    fn simulated_log_probabilities_add_up_to_less_than_one() {
        let vocabulary: Vec<u32> = (0..50).collect();
        let source = TokenSource::new(1, None, &[1], 0, SequenceId::new(0, 0));
        for position in 0..100 {
            let logprobs = source.logprobs(position, 20, &vocabulary);
            assert_eq!(
                logprobs.top[0],
                (source.token(position, &vocabulary, |_| true), logprobs.chosen)
            );
            assert!(logprobs.top.is_sorted_by(|a, b| a.1 > b.1));
            let sum: f64 = logprobs
                .top
                .iter()
                .map(|(_, logprob)| f64::from(*logprob).exp())
                .sum();
            assert!(sum < 1.0, "{sum}");
        }
    }
}
