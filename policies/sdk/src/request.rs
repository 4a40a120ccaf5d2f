//! The request as a policy reads it.

use std::rc::Rc;

use crate::{
    RequestCount, RequestKey, RequestNumber, bindings::policy::signalbox::policy::types, columns::Layout,
};

/// The request to place. `wit/types.wit` says what each value means. What the policy names in its [`Info`](crate::Info)
/// comes by [`Request::count`], [`Request::number`] and [`Request::key`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Request {
    /// Tokens in the prompt, after the chat template.
    pub prompt_tokens: u32,
    /// Whole KV blocks that the prompt fills.
    pub prompt_blocks: u32,
    /// Tokens in one KV block; at least 1.
    pub block_size: u32,
    /// Most output tokens of one choice, as the client set it.
    pub max_output_tokens: Option<u32>,
    /// Higher is more urgent; 0 is ordinary.
    pub priority: i32,
    /// How many workers failed the request before this decision.
    pub attempt: u32,
    /// Milliseconds of the router's monotonic clock.
    pub now_ms: u64,
    /// A fresh random number for this decision: the only randomness that a policy has.
    pub seed: u64,
    /// Decisions that this router made for this model before this one, on all threads.
    pub decision_number: u64,
    /// What the policy named.
    pub named: NamedValues,
}

/// The values of a request that the policy named.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NamedValues {
    layout: Rc<Layout>,
    counts: Vec<u32>,
    numbers: Vec<f32>,
    keys: Vec<u64>,
}

impl Request {
    pub(crate) fn new(request: types::Request, layout: &Rc<Layout>) -> Self {
        Self {
            prompt_tokens: request.prompt_tokens,
            prompt_blocks: request.prompt_blocks,
            block_size: request.block_size,
            max_output_tokens: request.max_output_tokens,
            priority: request.priority,
            attempt: request.attempt,
            now_ms: request.now_ms,
            seed: request.seed,
            decision_number: request.decision_number,
            named: NamedValues {
                layout: Rc::clone(layout),
                counts: request.counts,
                numbers: request.numbers,
                keys: request.keys,
            },
        }
    }

    /// A whole number of the request.
    ///
    /// # Panics
    /// The policy did not name it; so do the following.
    #[must_use]
    pub fn count(&self, name: RequestCount) -> u32 {
        self.named.counts[self.named.layout.request_count(name)]
    }

    /// A whole number by its name, for one that a later host has.
    #[must_use]
    pub fn count_named(&self, name: &str) -> u32 {
        self.named.counts[self.named.layout.request_count_named(name)]
    }

    /// A number of the request.
    #[must_use]
    pub fn number(&self, name: RequestNumber) -> f32 {
        self.named.numbers[self.named.layout.request_number(name)]
    }

    /// A number by its name, for one that a later host has.
    #[must_use]
    pub fn number_named(&self, name: &str) -> f32 {
        self.named.numbers[self.named.layout.request_number_named(name)]
    }

    /// A key of the request; 0 for none.
    #[must_use]
    pub fn key(&self, name: RequestKey) -> u64 {
        self.named.keys[self.named.layout.request_key(name)]
    }

    /// A key by its name, such as `header:x-team`; 0 for none.
    #[must_use]
    pub fn key_named(&self, name: &str) -> u64 {
        self.named.keys[self.named.layout.request_key_named(name)]
    }

    /// The same request with this number: for tests.
    #[must_use]
    pub fn with_count(mut self, name: RequestCount, value: u32) -> Self {
        Rc::make_mut(&mut self.named.layout).add_request_count(name.name());
        self.named.counts.push(value);
        self
    }

    /// The same request with this key: for tests.
    #[must_use]
    pub fn with_key(self, name: RequestKey, key: u64) -> Self {
        self.with_key_named(name.name(), key)
    }

    /// The same request with the key of this name: for tests.
    #[must_use]
    pub fn with_key_named(mut self, name: &str, key: u64) -> Self {
        Rc::make_mut(&mut self.named.layout).add_request_key(name);
        self.named.keys.push(key);
        self
    }

    /// The same request with this number: for tests.
    #[must_use]
    pub fn with_number(mut self, name: RequestNumber, value: f32) -> Self {
        Rc::make_mut(&mut self.named.layout).add_request_number(name.name());
        self.named.numbers.push(value);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_policy_named_is_found_by_its_name() {
        let request = Request::default()
            .with_key_named("header:x-team", 7)
            .with_key(RequestKey::Session, 5)
            .with_count(RequestCount::Choices, 2);
        assert_eq!(request.key(RequestKey::Session), 5);
        assert_eq!(request.key_named("header:x-team"), 7);
        assert_eq!(request.count(RequestCount::Choices), 2);
    }
}
