//! The messages of a request, in the form of OpenAI's chats, and their tokens.

use serde_json::Value;
use signalbox_protocol::name_hash;
use signalbox_tokenize::{ChatPrompt, ModelText, TextError};

use super::{lenient, prompt::Prompt};
use crate::{openai::Fields, prepared::Unhashed};

/// The parameters that the prompt of a chat is made from.
pub(super) const CHAT_NAMES: [&str; 11] = [
    "messages",
    "tools",
    "tool_choice",
    "documents",
    "chat_template",
    "chat_template_kwargs",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "reasoning_effort",
    "truncate_prompt_tokens",
];

/// What a chat template makes a prompt of.
#[derive(Debug, PartialEq)]
pub(super) struct Conversation {
    pub(super) messages: Vec<Value>,
    /// OpenAI's array of tools, if there is one.
    pub(super) tools: Option<Value>,
    pub(super) tool_choice: Option<Value>,
    pub(super) documents: Option<Value>,
    /// Variables of the template, an object.
    pub(super) template_kwargs: Option<Value>,
    pub(super) reasoning_effort: Option<String>,
    pub(super) add_generation_prompt: bool,
    pub(super) continue_final_message: bool,
    pub(super) add_special_tokens: bool,
    /// Why the prompt's tokens are unknown already before a template runs. The first reason counts.
    pub(super) unhashed: Option<Unhashed>,
}

impl Default for Conversation {
    fn default() -> Self {
        Self {
            messages: Vec::new(),
            tools: None,
            tool_choice: None,
            documents: None,
            template_kwargs: None,
            reasoning_effort: None,
            add_generation_prompt: true,
            continue_final_message: false,
            add_special_tokens: false,
            unhashed: None,
        }
    }
}

/// The conversation of a request to `/v1/chat/completions`.
pub(super) fn chat(fields: &mut Fields) -> Conversation {
    let mut chat = Conversation::default();
    if let Some(Value::Array(messages)) = chat.content(fields, "messages") {
        chat.messages = messages;
    } else {
        chat.unknown(Unhashed::Unreadable);
    }
    chat.template_kwargs = chat.content(fields, "chat_template_kwargs");
    chat.tools = chat.content(fields, "tools");
    chat.tool_choice = lenient::value(fields, "tool_choice");
    chat.documents = chat.content(fields, "documents");
    if lenient::is_given(fields, "chat_template") {
        chat.unknown(Unhashed::ClientTemplate);
    }
    chat.reasoning_effort = lenient::text(fields, "reasoning_effort");
    chat.add_generation_prompt = lenient::flag(fields, "add_generation_prompt").unwrap_or(true);
    chat.continue_final_message = lenient::flag(fields, "continue_final_message").unwrap_or(false);
    chat.add_special_tokens = lenient::flag(fields, "add_special_tokens").unwrap_or(false);
    chat
}

impl Conversation {
    /// The prompt's tokens are unknown for this reason.
    pub(super) fn unknown(&mut self, reason: Unhashed) {
        self.unhashed.get_or_insert(reason);
    }

    /// The value of a parameter that becomes part of the prompt.
    pub(super) fn content(&mut self, fields: &mut Fields, name: &str) -> Option<Value> {
        fields.take(name).unwrap_or_else(|_| {
            self.unknown(Unhashed::TooLarge);
            None
        })
    }

    /// The prompt's tokens, or why they are unknown. A prompt that cannot fit the model's context is not encoded.
    pub(super) fn into_prompt(mut self, text: &ModelText, context_length: u32) -> Prompt {
        let messages = Value::Array(std::mem::take(&mut self.messages));
        match self.encode(&messages, text, context_length) {
            Ok(tokens) => Prompt::of(tokens),
            Err(reason) => Prompt::unhashed(reason, opening(&messages)),
        }
    }

    fn encode(&self, messages: &Value, text: &ModelText, context_length: u32) -> Result<Vec<u32>, Unhashed> {
        if let Some(reason) = self.unhashed {
            return Err(reason);
        }
        let chat = ChatPrompt {
            messages,
            tools: self.tools.as_ref(),
            tool_choice: self.tool_choice.as_ref(),
            documents: self.documents.as_ref(),
            template_kwargs: self.template_kwargs.as_ref(),
            reasoning_effort: self.reasoning_effort.as_deref(),
            add_generation_prompt: self.add_generation_prompt,
            continue_final_message: self.continue_final_message,
            add_special_tokens: self.add_special_tokens,
        };
        let encoded = text.encode_chat_within(&chat, context_length as usize);
        encoded.map_err(|error| match error {
            TextError::TooLong { .. } => Unhashed::TooLong,
            TextError::Template { .. } => Unhashed::Refused,
            TextError::Unrenderable { .. } => Unhashed::Unrenderable,
            TextError::NoTemplate => Unhashed::NoTemplate,
            TextError::Encode(_) => Unhashed::Tokenizer,
        })
    }
}

/// Names a conversation by its texts up to the first one of the user. All turns of a conversation begin with them, and
/// other conversations rarely do. 0 if there are none.
fn opening(messages: &Value) -> u64 {
    let mut opening = String::new();
    for message in messages.as_array().into_iter().flatten() {
        append_texts(&mut opening, &message["content"]);
        if message["role"] == "user" {
            break;
        }
    }
    if opening.is_empty() {
        0
    } else {
        name_hash(&opening)
    }
}

/// Appends the text of a message's content: a string, or an array of parts.
fn append_texts(out: &mut String, content: &Value) {
    match content {
        Value::String(text) => out.push_str(text),
        Value::Array(parts) => {
            for text in parts.iter().filter_map(|part| part["text"].as_str()) {
                out.push_str(text);
            }
        }
        _ => {}
    }
}
