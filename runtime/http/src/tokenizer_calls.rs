//! `POST /tokenize` and `POST /detokenize` of models that engines of this repository serve, in vLLM's shape.
//!
//! The router has the tokenizer and answers itself. Models of engines next door have their engine's answer.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use signalbox_protocol::{Endpoint, WireError};
use signalbox_router::ModelView;
use signalbox_tokenize::TextError;

use crate::{
    checked::{chat_tokens, text_error},
    openai::{Fields, Rendering, check_vocabulary, described_tools, messages, token_ids, wrong},
};

/// Most tokens of a text: a request whose text certainly has more is refused.
const MAX_TOKENS: usize = 1 << 20;

/// The parameters of both calls.
pub(crate) const NAMES: [&str; 10] = [
    "prompt",
    "messages",
    "tokens",
    "tools",
    "chat_template",
    "chat_template_kwargs",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "return_token_strs",
];

/// Whether requests to the endpoint are such calls.
pub(crate) fn is_one(endpoint: Endpoint) -> bool {
    matches!(endpoint, Endpoint::Tokenize | Endpoint::Detokenize)
}

/// The answer to a call of `endpoint`, which is one of the two: a JSON document.
///
/// # Errors
/// A parameter is missing or wrong.
pub(crate) fn answer(
    endpoint: Endpoint,
    fields: &mut Fields,
    model: &ModelView,
) -> Result<String, WireError> {
    let answer = if endpoint == Endpoint::Tokenize {
        tokenize(fields, model)
    } else {
        detokenize(fields, model)
    };
    answer.map(|answer| answer.to_string())
}

fn tokenize(fields: &mut Fields, model: &ModelView) -> Result<Value, WireError> {
    let tokens = match fields.text("prompt")? {
        Some(prompt) => {
            let special = fields.flag("add_special_tokens")?.unwrap_or(true);
            let tokens = model.text.encode_prompt_within(&prompt, special, MAX_TOKENS);
            tokens.map_err(|error| refusal(error, model, "prompt"))?
        }
        None => chat(fields, model)?,
    };
    let text = |token: &u32| model.text.written_token(*token);
    let texts = fields.flag("return_token_strs")?.unwrap_or(false);
    let texts: Option<Vec<String>> = texts.then(|| tokens.iter().map(text).collect());
    let context = model.longest_context();
    Ok(json!({
        "count": tokens.len(),
        "max_model_len": (context != u32::MAX).then_some(context),
        "tokens": tokens,
        "token_strs": texts,
    }))
}

fn chat(fields: &mut Fields, model: &ModelView) -> Result<Vec<u32>, WireError> {
    if fields.take("chat_template")?.is_some() {
        let message =
            "chat_template asks for a chat template from the client, which is not supported; leave it out";
        return Err(WireError::invalid_param("chat_template", message));
    }
    let messages = messages(fields)?;
    let rendering = Rendering::take(fields)?;
    let tools = described_tools(fields)?;
    let tools = (!tools.is_empty()).then_some(Value::Array(tools));
    let tokens = chat_tokens(messages, tools.as_ref(), &rendering, model, MAX_TOKENS);
    tokens.map_err(|error| refusal(error, model, "messages"))
}

fn refusal(error: TextError, model: &ModelView, param: &str) -> WireError {
    if let TextError::TooLong { least } = error {
        let message = format!("{param} has at least {least} tokens; give at most {MAX_TOKENS}");
        return WireError::invalid_param(param, message);
    }
    text_error(error, model, param)
}

fn detokenize(fields: &mut Fields, model: &ModelView) -> Result<Value, WireError> {
    let items = match fields.take("tokens")? {
        Some(Value::Array(items)) => items,
        other => {
            let value = other.unwrap_or(Value::Null);
            return Err(wrong("tokens", &value, "an array of token ids"));
        }
    };
    let tokens = token_ids("tokens", &items)?;
    check_vocabulary("tokens", &tokens, &BTreeMap::new(), model.text.vocab_size())?;
    let text = model.text.decode_with_special(&tokens);
    let text = text.map_err(|error| text_error(error, model, "tokens"))?;
    Ok(json!({"prompt": text}))
}
