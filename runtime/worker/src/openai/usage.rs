//! The token counts that engines report in their answers, in the shapes of the routes they have.

use serde::Deserialize;
use signalbox_protocol::StreamSummary;

/// The object `usage` of an answer. Members that an engine leaves out or writes as `null` count as 0.
///
/// Chats and completions: `prompt_tokens`, `completion_tokens`, `prompt_tokens_details.cached_tokens`. `/v1/responses`:
/// `input_tokens`, `output_tokens`, `input_tokens_details.cached_tokens`. `/v1/messages`: `input_tokens`,
/// `output_tokens`, `cache_read_input_tokens`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Usage {
    #[serde(alias = "input_tokens")]
    prompt_tokens: Option<u32>,
    #[serde(alias = "output_tokens")]
    completion_tokens: Option<u32>,
    #[serde(alias = "input_tokens_details")]
    prompt_tokens_details: Option<TokenDetails>,
    cache_read_input_tokens: Option<u32>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct TokenDetails {
    cached_tokens: Option<u32>,
}

impl Usage {
    /// Reads the object; `None` if it is not one, or has counts that are none.
    pub(crate) fn read(json: &[u8]) -> Option<Self> {
        serde_json::from_slice(json).ok()
    }

    /// Tokens of the prompt that the engine took from its KV cache; `None` if it does not report them.
    pub(crate) fn cached_tokens(&self) -> Option<u32> {
        self.prompt_tokens_details
            .and_then(|details| details.cached_tokens)
            .or(self.cache_read_input_tokens)
    }

    /// Takes what `later` reports: an engine can spread its counts over several events.
    pub(crate) fn update(&mut self, later: Self) {
        self.prompt_tokens = later.prompt_tokens.or(self.prompt_tokens);
        self.completion_tokens = later.completion_tokens.or(self.completion_tokens);
        self.prompt_tokens_details = later.prompt_tokens_details.or(self.prompt_tokens_details);
        self.cache_read_input_tokens = later.cache_read_input_tokens.or(self.cache_read_input_tokens);
    }

    /// The summary of an answer with these counts. `prompt` and `generated` are the adapter's own counts, which count
    /// where the engine reports none.
    pub(crate) fn summary(&self, prompt: u32, generated: u32) -> StreamSummary {
        StreamSummary {
            prompt_tokens: self.prompt_tokens.unwrap_or(prompt),
            cached_tokens: self.cached_tokens().unwrap_or(0),
            completion_tokens: self.completion_tokens.unwrap_or(generated),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_of_all_routes_are_read() {
        for (json, expected) in [
            (
                r#"{"prompt_tokens":26,"total_tokens":32,"completion_tokens":6,"prompt_tokens_details":{"cached_tokens":16,"created_cache_tokens":0}}"#,
                (26, 16, 6),
            ),
            (
                r#"{"prompt_tokens":26,"completion_tokens":6,"prompt_tokens_details":null}"#,
                (26, 0, 6),
            ),
            (
                r#"{"input_tokens":7,"output_tokens":2,"input_tokens_details":{"cached_tokens":4}}"#,
                (7, 4, 2),
            ),
            (
                r#"{"input_tokens":7,"output_tokens":2,"cache_read_input_tokens":4}"#,
                (7, 4, 2),
            ),
            (r#"{"prompt_tokens":3,"completion_tokens":null}"#, (3, 0, 9)),
            (r#"{}"#, (5, 0, 9)),
        ] {
            let StreamSummary {
                prompt_tokens,
                cached_tokens,
                completion_tokens,
            } = Usage::read(json.as_bytes()).unwrap().summary(5, 9);
            assert_eq!(
                (prompt_tokens, cached_tokens, completion_tokens),
                expected,
                "{json}"
            );
        }
        assert_eq!(Usage::read(br#"{"prompt_tokens":-1}"#), None);
        assert_eq!(Usage::read(b"null"), None);
    }

    #[test]
    fn an_engine_that_leaves_cached_tokens_out_does_not_report_zero() {
        let cached = |json: &str| Usage::read(json.as_bytes()).unwrap().cached_tokens();
        assert_eq!(cached(r#"{"prompt_tokens":26}"#), None);
        assert_eq!(
            cached(r#"{"prompt_tokens_details":{"cached_tokens":0}}"#),
            Some(0)
        );
    }
}
