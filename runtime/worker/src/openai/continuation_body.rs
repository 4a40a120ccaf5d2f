//! Which requests can be continued at another engine, and the request for the rest of such an answer.
//!
//! The rest is asked of `/v1/completions`, with the tokens of the prompt and of what was delivered: no chat template and
//! no tokenizer is between them and the engine. A body can be continued if it has no member but those below. Others
//! would not keep their meaning over two requests: a stop text that both halves have a part of, a grammar that begins
//! anew, tools and reasoning that an engine parses out of the whole text.
//!
//! Penalties of presence and frequency count the tokens of the rest alone, because engines do not count a prompt's. An
//! answer with a seed goes on with other random numbers than the lost engine would have drawn.

use bytes::Bytes;
use serde_json::{Map, Value, json};
use signalbox_protocol::Endpoint;

use super::json_members::JsonMembers;

/// Members that the rest takes over.
const KEPT: [&str; 16] = [
    "model",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "ignore_eos",
    "stop_token_ids",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "priority",
    "cache_salt",
    "skip_special_tokens",
    "spaces_between_special_tokens",
];

/// Members that the rest states in its own way, or that have done their part: in the prompt's tokens, in routing.
const SPENT: [&str; 17] = [
    "messages",
    "prompt",
    "stream",
    "max_tokens",
    "max_completion_tokens",
    "min_tokens",
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "session_id",
    "chat_template_kwargs",
    "add_generation_prompt",
    "add_special_tokens",
    "parallel_tool_calls",
];

/// Values with which a member that is not in the lists has no effect.
const WITHOUT_EFFECT: [(&str, &[&str]); 12] = [
    ("n", &["1"]),
    ("best_of", &["1"]),
    ("echo", &["false"]),
    ("stop", &["[]", "\"\""]),
    ("suffix", &["\"\""]),
    ("logprobs", &["false"]),
    ("top_logprobs", &["0"]),
    ("tools", &["[]"]),
    ("tool_choice", &["\"none\""]),
    ("response_format", &[r#"{"type":"text"}"#, r#"{"type": "text"}"#]),
    ("use_beam_search", &["false"]),
    ("return_token_ids", &["false"]),
];

/// Whether the answer to a body with these members can be continued.
pub(crate) fn is_continuable(endpoint: Endpoint, members: &JsonMembers<'_>) -> bool {
    matches!(endpoint, Endpoint::Chat | Endpoint::Completions)
        && members.get("stream") == Some(b"true")
        && members.iter().all(|(name, value)| keeps_its_meaning(name, value))
}

fn keeps_its_meaning(name: &[u8], value: &[u8]) -> bool {
    let is_named = |names: &[&str]| names.iter().any(|other| other.as_bytes() == name);
    let has_no_effect = WITHOUT_EFFECT.iter().any(|(other, values)| {
        other.as_bytes() == name && values.iter().any(|same| same.as_bytes() == value)
    });
    value == b"null"
        || is_named(&KEPT)
        || is_named(&SPENT)
        || has_no_effect
        || (name == b"stream_options" && is_plain_stream_options(value))
}

/// Usage in each chunk would count the rest alone.
fn is_plain_stream_options(value: &[u8]) -> bool {
    JsonMembers::find(value).is_some_and(|options| options.iter().all(|(name, _)| name == b"include_usage"))
}

/// The body for the rest of the answer to `body`. `tokens` are the prompt's, and then the `delivered` ones.
///
/// # Errors
/// The body cannot be continued, or the answer has all its tokens already. Each in words for a client.
pub(crate) fn body_of_rest(
    endpoint: Endpoint,
    body: &[u8],
    tokens: &[u32],
    delivered: u32,
    context_length: Option<u32>,
) -> Result<Bytes, &'static str> {
    if !JsonMembers::find(body).is_some_and(|members| is_continuable(endpoint, &members)) {
        return Err("the answer cannot be continued by another engine");
    }
    let Ok(Value::Object(members)) = serde_json::from_slice(body) else {
        return Err("the body of an answer to continue is no JSON object");
    };
    let number = |name: &str| members.get(name).and_then(Value::as_u64);
    let room = context_length.map(|length| u64::from(length).saturating_sub(tokens.len() as u64));
    let asked = match endpoint {
        Endpoint::Chat => number("max_completion_tokens").or_else(|| number("max_tokens")),
        // The default of the API.
        _ => Some(number("max_tokens").unwrap_or(16)),
    };
    let left = match asked {
        Some(asked) => Some(asked.saturating_sub(u64::from(delivered))),
        None => room,
    };
    if left == Some(0) {
        return Err("the end of an answer was lost after all its tokens");
    }
    let mut rest: Map<String, Value> = KEPT
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), members.get(*name)?.clone())))
        .collect();
    rest.insert("prompt".into(), json!(tokens));
    rest.insert("stream".into(), json!(true));
    if let Some(options) = members.get("stream_options") {
        rest.insert("stream_options".into(), options.clone());
    }
    if let Some(left) = left {
        rest.insert("max_tokens".into(), json!(left));
    }
    if let Some(least) = number("min_tokens") {
        rest.insert(
            "min_tokens".into(),
            json!(least.saturating_sub(u64::from(delivered))),
        );
    }
    serde_json::to_vec(&rest)
        .map(Bytes::from)
        .map_err(|_| "the body of an answer to continue cannot be written")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn continuable(endpoint: Endpoint, body: &str) -> bool {
        JsonMembers::find(body.as_bytes()).is_some_and(|members| is_continuable(endpoint, &members))
    }

    #[test]
    fn plain_text_is_continued_and_what_engines_parse_is_not() {
        for (body, expected) in [
            (
                r#"{"stream":true,"messages":[],"temperature":0,"max_tokens":9,"user":"u"}"#,
                true,
            ),
            (
                r#"{"stream":true,"n":1,"stop":[],"tools":null,"logprobs":false,"tool_choice":"none"}"#,
                true,
            ),
            (
                r#"{"stream":true,"stream_options":{"include_usage":true},"response_format":{"type":"text"}}"#,
                true,
            ),
            (
                r#"{"stream":true,"stream_options":{"continuous_usage_stats":true}}"#,
                false,
            ),
            (r#"{"stream":true,"stop":"END"}"#, false),
            (r#"{"stream":true,"n":2}"#, false),
            (r#"{"stream":true,"logprobs":true}"#, false),
            (r#"{"stream":true,"tools":[{"type":"function"}]}"#, false),
            (
                r#"{"stream":true,"response_format":{"type":"json_object"}}"#,
                false,
            ),
            (r#"{"stream":true,"return_token_ids":true}"#, false),
            (r#"{"stream":true,"a_member_of_next_year":1}"#, false),
            (r#"{"stream":false}"#, false),
            ("[]", false),
        ] {
            assert_eq!(continuable(Endpoint::Chat, body), expected, "{body}");
        }
        assert!(!continuable(Endpoint::Responses, r#"{"stream":true}"#));
    }

    fn rest(endpoint: Endpoint, body: &str, context: Option<u32>) -> Result<Value, &'static str> {
        let body = body_of_rest(endpoint, body.as_bytes(), &[1, 2, 30, 31], 2, context)?;
        Ok(serde_json::from_slice(&body).unwrap())
    }

    #[test]
    fn the_rest_has_the_tokens_the_sampling_and_the_tokens_that_are_left() {
        let chat = r#"{"model":"m","messages":[{"role":"user"}],"stream":true,"temperature":0.5,"seed":3,
            "max_completion_tokens":10,"max_tokens":7,"min_tokens":3,"user":"u"}"#;
        assert_eq!(
            rest(Endpoint::Chat, chat, Some(100)).unwrap(),
            json!({"model":"m","prompt":[1,2,30,31],"stream":true,"temperature":0.5,"seed":3,"max_tokens":8,"min_tokens":1})
        );
        let unbounded = rest(Endpoint::Chat, r#"{"stream":true}"#, Some(100)).unwrap();
        assert_eq!(unbounded["max_tokens"], 96);
        let unknown = rest(Endpoint::Chat, r#"{"stream":true}"#, None).unwrap();
        assert_eq!(unknown.get("max_tokens"), None);
        let completion = rest(
            Endpoint::Completions,
            r#"{"stream":true,"prompt":"x"}"#,
            Some(100),
        )
        .unwrap();
        assert_eq!(completion["max_tokens"], 14);
    }

    #[test]
    fn what_cannot_be_continued_is_refused() {
        assert!(rest(Endpoint::Chat, r#"{"stream":true,"max_tokens":2}"#, None).is_err());
        assert!(rest(Endpoint::Chat, r#"{"stream":true}"#, Some(4)).is_err());
        assert!(rest(Endpoint::Chat, r#"{"stream":true,"tools":[1]}"#, None).is_err());
    }
}
