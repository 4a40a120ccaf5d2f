//! Parameters that the router recognises and no engine supports.
//!
//! Ignoring such a parameter would give an answer that the client did not ask for, so the request is refused. A value
//! that changes nothing (an empty list, a penalty of 1) is accepted, since client libraries send such values by
//! default.

use serde_json::Value;
use signalbox_protocol::WireError;

use super::fields::Fields;

/// The values of a parameter that change nothing.
#[derive(Debug, Clone, Copy)]
enum Neutral {
    /// Only `null`.
    Never,
    /// An empty array, object or string.
    Empty,
    /// This truth value.
    Is(bool),
    /// This number.
    Number(f64),
    /// This string.
    Word(&'static str),
    /// This string, or an object of this `type`.
    Type(&'static str),
    /// An array in which every element is this.
    Only(&'static str),
}

/// Refused parameters of both endpoints: name, values that change nothing, and what other values ask for.
const REFUSED: [(&str, Neutral, &str); 62] = [
    // Older and other shapes of the answer
    ("functions", Neutral::Empty, "function calls"),
    ("function_call", Neutral::Word("none"), "function calls"),
    ("guided_json", Neutral::Never, "guided decoding"),
    ("guided_regex", Neutral::Never, "guided decoding"),
    ("guided_choice", Neutral::Empty, "guided decoding"),
    ("guided_grammar", Neutral::Never, "guided decoding"),
    ("guided_decoding_backend", Neutral::Never, "guided decoding"),
    ("prediction", Neutral::Never, "predicted output"),
    // Other media and web search
    ("audio", Neutral::Never, "audio"),
    ("modalities", Neutral::Only("text"), "output other than text"),
    ("web_search_options", Neutral::Never, "web search"),
    // Sampling that the engines do not implement
    ("typical_p", Neutral::Number(1.0), "locally typical sampling"),
    ("length_penalty", Neutral::Number(1.0), "a length penalty"),
    ("use_beam_search", Neutral::Is(false), "beam search"),
    ("allowed_token_ids", Neutral::Empty, "allowed tokens"),
    ("logits_processors", Neutral::Empty, "logits processors"),
    (
        "prompt_logprobs",
        Neutral::Never,
        "log probabilities of the prompt",
    ),
    ("truncate_prompt_tokens", Neutral::Never, "prompt truncation"),
    (
        "skip_special_tokens",
        Neutral::Is(true),
        "special tokens in the text",
    ),
    (
        "spaces_between_special_tokens",
        Neutral::Is(true),
        "special tokens in the text",
    ),
    (
        "include_stop_str_in_output",
        Neutral::Is(false),
        "stop texts in the answer",
    ),
    // How the prompt is made; a client's template would be code from a client
    ("chat_template", Neutral::Never, "a chat template from the client"),
    ("documents", Neutral::Empty, "documents"),
    ("prompt_embeds", Neutral::Empty, "prompt embeddings"),
    ("mm_processor_kwargs", Neutral::Empty, "other media"),
    ("lora_request", Neutral::Empty, "a LoRA adapter"),
    ("lora_path", Neutral::Empty, "a LoRA adapter"),
    // The names that SGLang, TGI, llama.cpp and newer vLLM have for shapes of the answer
    ("json_schema", Neutral::Never, "structured output"),
    ("regex", Neutral::Never, "structured output"),
    ("ebnf", Neutral::Never, "structured output"),
    ("grammar", Neutral::Never, "structured output"),
    ("structural_tag", Neutral::Never, "structured output"),
    ("guided_json_object", Neutral::Is(false), "guided decoding"),
    ("guided_whitespace_pattern", Neutral::Never, "guided decoding"),
    // Reasoning and style
    ("reasoning_effort", Neutral::Word("none"), "reasoning"),
    ("reasoning", Neutral::Empty, "reasoning"),
    ("thinking", Neutral::Type("disabled"), "reasoning"),
    ("enable_thinking", Neutral::Is(false), "reasoning"),
    ("thinking_budget", Neutral::Number(0.0), "reasoning"),
    ("thinking_token_budget", Neutral::Number(0.0), "reasoning"),
    ("verbosity", Neutral::Word("medium"), "an answer of another style"),
    // Other names and kinds of limits and samplers
    (
        "max_new_tokens",
        Neutral::Never,
        "a limit under another name than max_tokens",
    ),
    (
        "max_length",
        Neutral::Never,
        "a limit under another name than max_tokens",
    ),
    ("min_new_tokens", Neutral::Number(0.0), "a shortest answer"),
    ("min_length", Neutral::Number(0.0), "a shortest answer"),
    (
        "n_predict",
        Neutral::Never,
        "a limit under another name than max_tokens",
    ),
    ("stop_regex", Neutral::Empty, "stop texts by pattern"),
    ("no_stop_trim", Neutral::Is(false), "stop texts in the answer"),
    ("repeat_penalty", Neutral::Number(1.0), "a repetition penalty"),
    ("no_repeat_ngram_size", Neutral::Number(0.0), "a repetition limit"),
    ("repetition_detection", Neutral::Never, "a repetition limit"),
    ("xtc_probability", Neutral::Number(0.0), "a sampler"),
    ("dry_multiplier", Neutral::Number(0.0), "a sampler"),
    ("mirostat", Neutral::Number(0.0), "a sampler"),
    ("tfs_z", Neutral::Number(1.0), "a sampler"),
    ("top_a", Neutral::Number(0.0), "a sampler"),
    ("top_n_sigma", Neutral::Never, "a sampler"),
    ("custom_logit_processor", Neutral::Empty, "a logits processor"),
    ("input_ids", Neutral::Never, "a prompt under another name"),
    // What the answer would have beside its text
    (
        "return_tokens_as_token_ids",
        Neutral::Is(false),
        "token ids in place of texts",
    ),
    ("return_hidden_states", Neutral::Is(false), "hidden states"),
    (
        "return_prompt_logprobs",
        Neutral::Is(false),
        "log probabilities of the prompt",
    ),
];

/// The names of the refused parameters, which are parsed with the others.
pub(super) const NAMES: [&str; REFUSED.len()] = {
    let mut names = [""; REFUSED.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = REFUSED[i].0;
        i += 1;
    }
    names
};

/// Refuses the request if one of these parameters has a value other than its neutral one.
pub(super) fn check(fields: &mut Fields) -> Result<(), WireError> {
    for (name, neutral, asked) in REFUSED {
        let refused = match fields.take(name) {
            Ok(None) => false,
            Ok(Some(value)) => !neutral.matches(&value),
            // A value too large to be kept is not the neutral one.
            Err(_) => true,
        };
        if refused {
            let message = format!("{name} asks for {asked}, which the engines do not support; leave it out");
            return Err(WireError::invalid_param(name, message));
        }
    }
    Ok(())
}

impl Neutral {
    fn matches(self, value: &Value) -> bool {
        match (self, value) {
            (Self::Empty, Value::Array(items)) => items.is_empty(),
            (Self::Empty, Value::Object(members)) => members.is_empty(),
            (Self::Empty, Value::String(text)) => text.is_empty(),
            (Self::Is(neutral), Value::Bool(flag)) => neutral == *flag,
            (Self::Number(neutral), Value::Number(number)) => number.as_f64() == Some(neutral),
            (Self::Word(word) | Self::Type(word), Value::String(text)) => text == word,
            (Self::Type(word), Value::Object(members)) => {
                members.get("type").is_some_and(|kind| kind == word)
            }
            (Self::Only(word), Value::Array(items)) => items.iter().all(|item| item == word),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use signalbox_protocol::ErrorKind;

    use super::*;

    fn checked(body: &str) -> Result<(), WireError> {
        check(&mut Fields::parse(body.as_bytes(), &[&NAMES]).unwrap())
    }

    #[test]
    fn values_that_change_nothing_are_accepted() {
        for body in [
            "{}",
            r#"{"audio":null,"function_call":"none","functions":[]}"#,
            r#"{"guided_choice":[],"modalities":["text"]}"#,
            r#"{"typical_p":1,"length_penalty":1.0,"use_beam_search":false}"#,
            r#"{"reasoning_effort":"none","thinking":{"type":"disabled"},"skip_special_tokens":true}"#,
        ] {
            assert_eq!(checked(body), Ok(()), "{body}");
        }
    }

    #[test]
    fn values_that_ask_for_something_are_refused_by_name() {
        for (body, param) in [
            (r#"{"functions":[{"name":"f"}]}"#, "functions"),
            (r#"{"modalities":["text","audio"]}"#, "modalities"),
            (r#"{"audio":{}}"#, "audio"),
            (r#"{"guided_json":{}}"#, "guided_json"),
            (r#"{"typical_p":0.5}"#, "typical_p"),
            (r#"{"length_penalty":"1"}"#, "length_penalty"),
            (r#"{"chat_template":"{{ 1 }}"}"#, "chat_template"),
            (r#"{"regex":"a+"}"#, "regex"),
            (r#"{"ebnf":""}"#, "ebnf"),
            (r#"{"json_schema":"{}"}"#, "json_schema"),
            (r#"{"structural_tag":"{}"}"#, "structural_tag"),
            (r#"{"lora_path":"a"}"#, "lora_path"),
            (r#"{"reasoning_effort":"low"}"#, "reasoning_effort"),
            (r#"{"max_new_tokens":3}"#, "max_new_tokens"),
        ] {
            let error = checked(body).unwrap_err();
            assert_eq!(
                (error.param.as_deref(), error.kind),
                (Some(param), ErrorKind::InvalidRequest),
                "{body}"
            );
        }
    }

    #[test]
    fn a_list_too_large_to_keep_is_refused_by_its_name() {
        let body = format!(r#"{{"functions":[{}0]}}"#, "0,".repeat(10_000));
        assert_eq!(checked(&body).unwrap_err().param.as_deref(), Some("functions"));
    }
}
