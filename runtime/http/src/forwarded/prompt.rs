//! What is known of a request's prompt.

use crate::prepared::Unhashed;

/// Bytes of a text or body for each token, about. It is used where tokens are unknown and count as load only.
pub(super) const BYTES_PER_TOKEN: usize = 4;

/// The prompt of a request, or the first one of several.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Prompt {
    /// Empty if they are unknown.
    pub(super) tokens: Vec<u32>,
    /// About how many tokens the later prompts have.
    pub(super) later_tokens: u32,
    /// How many prompts the request has; 0 for a route without one.
    pub(super) prompts: u32,
    /// Why the prompt, or a later one, is not looked up in the KV index.
    pub(super) unhashed: Option<Unhashed>,
    /// Names the conversation that an unhashed prompt belongs to; 0 if that is unknown.
    pub(super) opening: u64,
}

impl Prompt {
    /// One prompt.
    pub(super) fn of(tokens: Vec<u32>) -> Self {
        Self {
            tokens,
            prompts: 1,
            ..Self::default()
        }
    }

    /// A prompt without known tokens.
    pub(super) fn unhashed(reason: Unhashed, opening: u64) -> Self {
        Self {
            prompts: 1,
            unhashed: Some(reason),
            opening,
            ..Self::default()
        }
    }

    /// Drops the tokens of a prompt that the engine cuts or refuses: they are not what the engine computes.
    pub(super) fn fit(&mut self, truncation: Option<u32>, context_length: u32) {
        let longer_than = |limit: u32| u32::try_from(self.tokens.len()).map_or(true, |tokens| tokens > limit);
        let reason = match truncation {
            Some(_) if self.unhashed == Some(Unhashed::TooLong) => Unhashed::Truncated,
            Some(limit) if longer_than(limit.min(context_length)) => Unhashed::Truncated,
            _ if longer_than(context_length) => Unhashed::TooLong,
            _ => return,
        };
        self.tokens = Vec::new();
        self.unhashed = Some(reason);
    }
}
