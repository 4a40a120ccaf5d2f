//! Tokens that a sequence must not generate at its next position.
//!
//! They are those that would end the answer before `min_tokens`, and the last token of each forbidden text whose other
//! tokens were just generated. Engines ask before each token; the rules are vLLM's.

use std::sync::Arc;

use crate::grammar::Grammar;

/// The limits of a sequence, which its choices share.
#[derive(Debug, Clone, Default)]
pub struct TokenLimits {
    /// Tokens that end the answer.
    pub end_tokens: Arc<[u32]>,
    /// The least number of tokens before one of these, those of another engine included.
    pub min_tokens: u32,
    /// The tokens of each forbidden text, at least one.
    pub bad_words: Arc<[Vec<u32>]>,
    /// What the answer obeys, after the tokens of another engine.
    pub grammar: Option<Grammar>,
}

/// The limits of a sequence and the tokens that it has generated.
#[derive(Debug)]
pub struct BannedTokens {
    limits: TokenLimits,
    generated: Vec<u32>,
}

impl BannedTokens {
    /// The bans of a sequence that has generated nothing. `None` if there will never be one.
    pub fn new(limits: TokenLimits) -> Option<Self> {
        let delays_end = limits.min_tokens > 0 && !limits.end_tokens.is_empty();
        (delays_end || !limits.bad_words.is_empty()).then(|| Self {
            limits,
            generated: Vec::new(),
        })
    }

    /// The sequence has generated this token.
    pub fn push(&mut self, token: u32) {
        self.generated.push(token);
    }

    /// The tokens that must not be the next one.
    pub fn next(&self) -> impl Iterator<Item = u32> {
        let is_early = self.generated.len() < self.limits.min_tokens as usize;
        let ends = is_early.then_some(&*self.limits.end_tokens).into_iter().flatten();
        let words = self.limits.bad_words.iter().filter_map(|word| {
            let (last, before) = word.split_last()?;
            self.generated.ends_with(before).then_some(last)
        });
        ends.chain(words).copied()
    }

    /// Whether `token` must not be the next one.
    pub fn bans(&self, token: u32) -> bool {
        self.next().any(|banned| banned == token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(min_tokens: u32, bad_words: &[&[u32]]) -> TokenLimits {
        TokenLimits {
            end_tokens: [2, 7].into(),
            min_tokens,
            bad_words: bad_words.iter().map(|word| word.to_vec()).collect(),
            grammar: None,
        }
    }

    fn next(banned: &BannedTokens) -> Vec<u32> {
        banned.next().collect()
    }

    #[test]
    fn an_answer_cannot_end_before_its_least_length() {
        let mut banned = BannedTokens::new(limits(2, &[])).unwrap();
        for (token, expected) in [(5, &[2, 7][..]), (5, &[2, 7]), (5, &[])] {
            assert_eq!(next(&banned), expected);
            banned.push(token);
        }
        assert!(
            BannedTokens::new(limits(0, &[])).is_none(),
            "costs nothing where it asks nothing"
        );
    }

    #[test]
    fn the_last_token_of_a_forbidden_text_is_banned_behind_the_others() {
        let mut banned = BannedTokens::new(limits(0, &[&[4], &[5, 6, 9]])).unwrap();
        assert_eq!(next(&banned), [4], "a text of one token always is");
        for (token, expected) in [(5, &[4][..]), (6, &[4, 9]), (6, &[4]), (5, &[4]), (6, &[4, 9])] {
            banned.push(token);
            assert_eq!(next(&banned), expected, "behind {token}");
        }
        assert!(banned.bans(9) && !banned.bans(6));
    }
}
