//! The prompt of `/v1/completions`: a text, token ids, or a list of either.

use serde_json::Value;
use signalbox_protocol::name_hash;
use signalbox_tokenize::{ModelText, TextError};

use super::{
    lenient,
    prompt::{BYTES_PER_TOKEN, Prompt},
};
use crate::{
    openai::{Fields, token_id},
    prepared::Unhashed,
};

/// The parameters that the prompt is made from.
pub(super) const NAMES: [&str; 4] = [
    "prompt",
    "prompt_embeds",
    "add_special_tokens",
    "truncate_prompt_tokens",
];

/// Bytes of a text's beginning that name its conversation.
const OPENING_BYTES: usize = 1_024;

/// The tokens of the prompt. Of several prompts the first one decides where the request goes.
pub(super) fn prompt(fields: &mut Fields, text: &ModelText, context_length: u32) -> Prompt {
    let adds_special = lenient::flag(fields, "add_special_tokens").unwrap_or(true);
    let embeds = lenient::is_given(fields, "prompt_embeds");
    let encode = |text_prompt: &str| encode(text_prompt, text, adds_special, context_length);
    let prompt = match fields.take("prompt") {
        Err(_) => return Prompt::unhashed(Unhashed::TooLarge, 0),
        Ok(_) if embeds => return Prompt::unhashed(Unhashed::PromptEmbeds, 0),
        Ok(prompt) => prompt,
    };
    match prompt {
        Some(Value::String(text)) => encode(&text),
        Some(Value::Array(items)) => match items.first() {
            Some(Value::String(first)) => several(encode(first), &items[1..]),
            Some(Value::Array(first)) => several(from_ids(first), &items[1..]),
            Some(_) => from_ids(&items),
            None => Prompt::unhashed(Unhashed::Unreadable, 0),
        },
        _ => Prompt::unhashed(Unhashed::Unreadable, 0),
    }
}

fn encode(prompt: &str, text: &ModelText, adds_special: bool, context_length: u32) -> Prompt {
    let error = match text.encode_prompt_within(prompt, adds_special, context_length as usize) {
        Ok(tokens) => return Prompt::of(tokens),
        Err(error) => error,
    };
    let reason = match error {
        TextError::TooLong { .. } => Unhashed::TooLong,
        _ => Unhashed::Tokenizer,
    };
    let opening = &prompt[..prompt.floor_char_boundary(OPENING_BYTES)];
    Prompt::unhashed(reason, name_hash(opening))
}

fn from_ids(ids: &[Value]) -> Prompt {
    match ids.iter().map(token_id).collect::<Option<Vec<u32>>>() {
        Some(tokens) if !tokens.is_empty() => Prompt::of(tokens),
        _ => Prompt::unhashed(Unhashed::Unreadable, 0),
    }
}

/// The first of several prompts, with the load of the later ones.
fn several(first: Prompt, later: &[Value]) -> Prompt {
    if later.is_empty() {
        return first;
    }
    let tokens = later.iter().map(|prompt| match prompt {
        Value::String(text) => text.len() / BYTES_PER_TOKEN,
        Value::Array(ids) => ids.len(),
        _ => 0,
    });
    Prompt {
        later_tokens: u32::try_from(tokens.sum::<usize>()).unwrap_or(u32::MAX),
        prompts: u32::try_from(later.len() + 1).unwrap_or(u32::MAX),
        unhashed: first.unhashed.or(Some(Unhashed::LaterPrompts)),
        ..first
    }
}
