//! What the adapter adds to a client's body, and remembers to take out of the answer again.
//!
//! - `return_token_ids` on a sample of requests: the engine's own tokens of the prompt show whether the router's are
//!   the same. Also on each stream that another engine could continue.
//! - `stream_options.include_usage` on streams: the counts of tokens, and how many the engine took from its KV cache.
//! - `input_ids` for chats at SGLang, which then neither renders nor tokenizes the messages again.
//! - `lora_path` for a LoRA adapter at SGLang, which does not look at the name in `model` and would answer with the base
//!   model.
//!
//! Members that the client set are left as they are, except an `include_usage` that is not `true`.

use std::fmt::Write;

use bytes::Bytes;
use serde_json::Value;
use signalbox_protocol::{Endpoint, WireError};

use super::{
    continuation_body::is_continuable,
    facts::EngineFlavour,
    json_members::{JsonMembers, MemberEdits},
};

/// Members of a chat with which the engine renders the messages itself. The check of the tokens at the start has none of
/// them, so only without them the router's tokens are known to be the engine's.
const KEEP_MESSAGES: [&str; 7] = [
    "input_ids",
    "tools",
    "documents",
    "chat_template",
    "chat_template_kwargs",
    "reasoning_effort",
    "continue_final_message",
];

/// What was added to a body, and so has to be taken out of the answer; and what it serves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Added {
    /// `return_token_ids`.
    pub(crate) token_ids: bool,
    /// `stream_options.include_usage`.
    pub(crate) usage: bool,
    /// The answer can be continued at another engine: the router gets the token ids.
    pub(crate) continuable: bool,
}

/// What decides the additions to one request's body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Additions<'a> {
    pub(crate) flavour: EngineFlavour,
    pub(crate) endpoint: Endpoint,
    /// The request is one of the sample whose tokens are compared.
    pub(crate) wants_token_ids: bool,
    /// The router asks for the ids of the answer's tokens, to continue the answer if its engine is lost.
    pub(crate) wants_continuation: bool,
    /// The router's tokens of the prompt, if the engine may take them instead of the messages; empty otherwise.
    pub(crate) input_ids: &'a [u32],
    /// The LoRA adapter that the request names; empty for none.
    pub(crate) lora: &'a str,
}

impl Additions<'_> {
    /// # Errors
    /// The engine would answer with the base model in place of the adapter.
    pub(crate) fn check(&self) -> Result<(), WireError> {
        let applies_adapters = match self.endpoint {
            Endpoint::Chat | Endpoint::Completions => true,
            // The tokens are those of the base model.
            Endpoint::Tokenize | Endpoint::Detokenize => true,
            _ => self.flavour != EngineFlavour::Sglang,
        };
        if self.lora.is_empty() || applies_adapters {
            return Ok(());
        }
        let message = format!(
            "{} is a LoRA adapter, which SGLang applies to chats and completions only, so {} cannot be used; use {} or {}",
            self.lora,
            self.endpoint.path(),
            Endpoint::Chat.path(),
            Endpoint::Completions.path()
        );
        Err(WireError::invalid_param("model", message))
    }

    /// The body for the engine, and what was added. A body that is no JSON object is not changed: the engine refuses it.
    pub(crate) fn apply(&self, body: &Bytes) -> (Bytes, Added) {
        let mut added = Added::default();
        let takes_additions = matches!(self.endpoint, Endpoint::Chat | Endpoint::Completions)
            && self.flavour != EngineFlavour::OpenAi;
        if !takes_additions {
            return (body.clone(), added);
        }
        let Some(members) = JsonMembers::find(body) else {
            return (body.clone(), added);
        };
        let mut edits = MemberEdits::of(members);
        let is_continuable = self.wants_continuation && is_continuable(self.endpoint, edits.members());
        // SGLang refuses `return_token_ids` for chats that stream.
        if (self.wants_token_ids || is_continuable)
            && self.flavour == EngineFlavour::Vllm
            && edits.members().get("return_token_ids").is_none()
        {
            edits.set("return_token_ids", b"true");
            added.token_ids = true;
            added.continuable = is_continuable;
        }
        if edits.members().get("stream") == Some(b"true") {
            added.usage = ask_for_usage(&mut edits);
        }
        if self.flavour == EngineFlavour::Sglang
            && self.endpoint == Endpoint::Chat
            && !self.input_ids.is_empty()
            && KEEP_MESSAGES
                .iter()
                .all(|member| edits.members().get(member).is_none())
        {
            edits.set("input_ids", number_list(self.input_ids).as_bytes());
        }
        if self.flavour == EngineFlavour::Sglang
            && !self.lora.is_empty()
            && edits.members().get("lora_path").unwrap_or(b"null") == b"null"
        {
            edits.set("lora_path", Value::from(self.lora).to_string().as_bytes());
        }
        let edited = edits.apply().unwrap_or_else(|| body.clone());
        (edited, added)
    }
}

/// Sets `stream_options.include_usage`; returns whether the client did not ask for it.
fn ask_for_usage(edits: &mut MemberEdits<'_>) -> bool {
    let options = edits.members().get("stream_options").unwrap_or(b"null");
    if options == b"null" {
        edits.set("stream_options", br#"{"include_usage":true}"#);
        return true;
    }
    // Options that are no object are the engine's to refuse.
    let Some(members) = JsonMembers::find(options) else {
        return false;
    };
    // With `continuous_usage_stats` the engine would begin to report usage in every chunk.
    if members.get("include_usage") == Some(b"true") || members.get("continuous_usage_stats").is_some() {
        return false;
    }
    let mut options = MemberEdits::of(members);
    options.set("include_usage", b"true");
    match options.apply() {
        Some(options) => edits.set("stream_options", &options),
        None => return false,
    }
    true
}

/// A JSON array of numbers.
fn number_list(numbers: &[u32]) -> String {
    // Token ids have up to six digits, and a separator.
    let mut list = String::with_capacity(7 * numbers.len() + 2);
    list.push('[');
    for (index, number) in numbers.iter().enumerate() {
        let separator = if index == 0 { "" } else { "," };
        // Writing to a string cannot fail.
        let _ = write!(list, "{separator}{number}");
    }
    list.push(']');
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added(flavour: EngineFlavour, endpoint: Endpoint, ids: &[u32], body: &str) -> (String, bool, bool) {
        let additions = Additions {
            flavour,
            endpoint,
            wants_token_ids: true,
            wants_continuation: false,
            input_ids: ids,
            lora: "",
        };
        let (after, added) = additions.apply(&Bytes::copy_from_slice(body.as_bytes()));
        let after = String::from_utf8(after.to_vec()).unwrap();
        (after, added.token_ids, added.usage)
    }

    #[test]
    fn a_chat_at_vllm_asks_for_tokens_and_usage() {
        let chat = |body| added(EngineFlavour::Vllm, Endpoint::Chat, &[1], body);
        for (body, expected) in [
            (
                r#"{"stream": true, "x":1}"#,
                (
                    r#"{"stream": true, "x":1,"return_token_ids":true,"stream_options":{"include_usage":true}}"#,
                    true,
                    true,
                ),
            ),
            (
                r#"{"stream":false}"#,
                (r#"{"stream":false,"return_token_ids":true}"#, true, false),
            ),
            (
                r#"{"return_token_ids":false}"#,
                (r#"{"return_token_ids":false}"#, false, false),
            ),
            (
                r#"{"stream":true,"stream_options":null,"return_token_ids":true}"#,
                (
                    r#"{"stream":true,"stream_options":{"include_usage":true},"return_token_ids":true}"#,
                    false,
                    true,
                ),
            ),
            (
                r#"{"stream":true,"stream_options":{"include_usage":false,"y":[]},"return_token_ids":true}"#,
                (
                    r#"{"stream":true,"stream_options":{"include_usage":true,"y":[]},"return_token_ids":true}"#,
                    false,
                    true,
                ),
            ),
            (
                r#"{"stream":true,"stream_options":{"include_usage": true},"return_token_ids":true}"#,
                (
                    r#"{"stream":true,"stream_options":{"include_usage": true},"return_token_ids":true}"#,
                    false,
                    false,
                ),
            ),
            (
                r#"{"stream":true,"stream_options":{"continuous_usage_stats":true},"return_token_ids":true}"#,
                (
                    r#"{"stream":true,"stream_options":{"continuous_usage_stats":true},"return_token_ids":true}"#,
                    false,
                    false,
                ),
            ),
            (
                r#"{"stream":true,"stream_options":7,"return_token_ids":true}"#,
                (
                    r#"{"stream":true,"stream_options":7,"return_token_ids":true}"#,
                    false,
                    false,
                ),
            ),
        ] {
            let (text, ids, usage) = chat(body);
            assert_eq!((text.as_str(), ids, usage), expected, "{body}");
        }
    }

    #[test]
    fn an_answer_is_continuable_only_with_the_ids_that_were_asked_for() {
        let continuable = |flavour, wants_continuation, body: &str| {
            let additions = Additions {
                flavour,
                endpoint: Endpoint::Chat,
                wants_token_ids: true,
                wants_continuation,
                input_ids: &[],
                lora: "",
            };
            let (_, added) = additions.apply(&Bytes::copy_from_slice(body.as_bytes()));
            assert!(added.token_ids || !added.continuable, "{body}");
            added.continuable
        };
        use EngineFlavour::{Sglang, Vllm};
        assert!(continuable(Vllm, true, r#"{"stream":true}"#));
        assert!(!continuable(Vllm, false, r#"{"stream":true}"#));
        assert!(!continuable(Vllm, true, r#"{"stream":true,"stop":"END"}"#));
        assert!(!continuable(Sglang, true, r#"{"stream":true}"#));
        // The client's own value stays, so the engine sends no ids.
        assert!(!continuable(
            Vllm,
            true,
            r#"{"stream":true,"return_token_ids":false}"#
        ));
        assert!(!continuable(
            Vllm,
            true,
            r#"{"stream":true,"return_token_ids":null}"#
        ));
    }

    #[test]
    fn a_chat_at_sglang_carries_the_routers_tokens() {
        let sglang = |endpoint, ids: &[u32], body| added(EngineFlavour::Sglang, endpoint, ids, body).0;
        assert_eq!(sglang(Endpoint::Chat, &[1, 20], "{}"), r#"{"input_ids":[1,20]}"#);
        assert_eq!(sglang(Endpoint::Chat, &[], "{}"), "{}");
        assert_eq!(
            sglang(Endpoint::Chat, &[1], r#"{"input_ids":[2]}"#),
            r#"{"input_ids":[2]}"#
        );
        assert_eq!(sglang(Endpoint::Chat, &[1], r#"{"tools":[]}"#), r#"{"tools":[]}"#);
        assert_eq!(sglang(Endpoint::Completions, &[1], "{}"), "{}");
    }

    #[test]
    fn only_sglang_needs_the_adapters_name_beside_the_model() {
        for (flavour, body, expected) in [
            (
                EngineFlavour::Vllm,
                r#"{"model":"s\"ql"}"#,
                r#"{"model":"s\"ql"}"#,
            ),
            (
                EngineFlavour::Sglang,
                r#"{"n":1}"#,
                r#"{"n":1,"lora_path":"s\"ql"}"#,
            ),
            (
                EngineFlavour::Sglang,
                r#"{"lora_path":null}"#,
                r#"{"lora_path":"s\"ql"}"#,
            ),
            (
                EngineFlavour::Sglang,
                r#"{"lora_path":"x"}"#,
                r#"{"lora_path":"x"}"#,
            ),
        ] {
            let additions = Additions {
                flavour,
                endpoint: Endpoint::Completions,
                wants_token_ids: false,
                wants_continuation: false,
                input_ids: &[],
                lora: "s\"ql",
            };
            let (after, _) = additions.apply(&Bytes::copy_from_slice(body.as_bytes()));
            assert_eq!(after, expected);
        }
    }

    #[test]
    fn a_route_where_sglang_ignores_adapters_is_refused_for_them() {
        let check = |flavour, endpoint, lora| {
            let additions = Additions {
                flavour,
                endpoint,
                wants_token_ids: false,
                wants_continuation: false,
                input_ids: &[],
                lora,
            };
            additions.check()
        };
        use EngineFlavour::{Sglang, Vllm};
        for endpoint in Endpoint::ALL {
            assert_eq!(check(Vllm, endpoint, "sql"), Ok(()));
            assert_eq!(check(Sglang, endpoint, ""), Ok(()));
        }
        for endpoint in [Endpoint::Chat, Endpoint::Completions, Endpoint::Tokenize] {
            assert_eq!(check(Sglang, endpoint, "sql"), Ok(()));
        }
        let error = check(Sglang, Endpoint::Responses, "sql").unwrap_err();
        assert_eq!(error.param.as_deref(), Some("model"));
        assert!(
            error.message.contains("/v1/chat/completions"),
            "{}",
            error.message
        );
    }

    #[test]
    fn other_bodies_reach_the_engine_as_they_are() {
        for (flavour, endpoint, body) in [
            (EngineFlavour::OpenAi, Endpoint::Chat, r#"{"stream":true}"#),
            (EngineFlavour::Vllm, Endpoint::Responses, r#"{"stream":true}"#),
            (EngineFlavour::Vllm, Endpoint::Embeddings, "{}"),
            (EngineFlavour::Vllm, Endpoint::Chat, "{nope"),
            (EngineFlavour::Vllm, Endpoint::Chat, "[]"),
        ] {
            assert_eq!(
                added(flavour, endpoint, &[1], body),
                (body.to_owned(), false, false)
            );
        }
    }
}
