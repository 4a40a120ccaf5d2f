//! Turns OpenAI's `messages` into the messages that a chat template gets, in the way of the engine that serves the model.
//!
//! Clients send a message's content as a string, as an array of parts, or not at all beside tool calls; they send tool
//! calls with their arguments as a string of JSON, and the reasoning of a model under two names. What the template gets
//! instead differs between engines: a child module has the rules of each.

mod own;
mod sglang;
mod shape;
mod tool_calls;
mod vllm;

use std::borrow::Cow;

use minijinja::Value;
use serde_json::Value as Json;

use crate::TextError;
use crate::preparation::MessagePreparation;
use crate::template::ContentFormat;
use crate::values::object;

/// What decides how messages are prepared.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// The engine whose rules hold.
    pub(crate) preparation: MessagePreparation,
    /// What the template expects as a message's content.
    pub(crate) content: ContentFormat,
    /// Whether the template has the role `developer`, OpenAI's newer name of the system role.
    pub(crate) has_developer_role: bool,
}

/// A message as the template gets it.
#[derive(Debug)]
pub(crate) struct Message<'a> {
    role: &'a str,
    content: Content<'a>,
    /// All other members, in order.
    others: Vec<(&'a str, Value)>,
}

#[derive(Debug)]
enum Content<'a> {
    Text(Cow<'a, str>),
    Parts(Vec<Part<'a>>),
}

#[derive(Debug)]
enum Part<'a> {
    Text(Cow<'a, str>),
    /// The name of a tool whose description the template prints here.
    ToolReference(&'a str),
}

/// The messages in the engine's way.
///
/// # Errors
/// A message has the wrong shape (the error names the parameter), or parts that only the engine can render
/// ([`TextError::Unrenderable`]).
pub(crate) fn prepared<'a>(messages: &'a Json, rules: &Rules) -> Result<Vec<Message<'a>>, TextError> {
    let messages = shape::list(messages)?.iter().enumerate();
    match rules.preparation {
        MessagePreparation::Signalbox => messages
            .map(|(index, message)| own::message(index, message, rules))
            .collect(),
        MessagePreparation::Sglang => messages
            .map(|(index, message)| sglang::message(index, message, rules.content))
            .collect(),
        MessagePreparation::Vllm => {
            let messages: Result<Vec<_>, _> = messages
                .map(|(index, message)| vllm::message(index, message, rules.content))
                .collect();
            let messages = messages?;
            Ok(if rules.has_developer_role {
                messages
            } else {
                vllm::with_system_for_developer(messages)
            })
        }
    }
}

impl<'a> Message<'a> {
    pub(crate) fn role(&self) -> &str {
        self.role
    }

    /// The text that the assistant continues: the content, or its last part that is text.
    pub(crate) fn last_text(&mut self) -> Option<&mut Cow<'a, str>> {
        match &mut self.content {
            Content::Text(text) => Some(text),
            Content::Parts(parts) => parts.iter_mut().rev().find_map(|part| match part {
                Part::Text(text) => Some(text),
                Part::ToolReference(_) => None,
            }),
        }
    }

    /// The content, if it is one text.
    pub(crate) fn only_text(&mut self) -> Option<Cow<'a, str>> {
        match &mut self.content {
            Content::Text(text) => Some(std::mem::take(text)),
            Content::Parts(_) => None,
        }
    }

    pub(crate) fn into_value(self) -> Value {
        let content = match self.content {
            Content::Text(text) => Value::from(&*text),
            Content::Parts(parts) => parts.into_iter().map(Part::into_value).collect(),
        };
        let named = [("role", Value::from(self.role)), ("content", content)];
        object(named.into_iter().chain(self.others))
    }
}

impl Part<'_> {
    fn into_value(self) -> Value {
        let (kind, name, text) = match &self {
            Self::Text(text) => ("text", "text", &**text),
            Self::ToolReference(name) => ("tool_reference", "name", *name),
        };
        object([("type", Value::from(kind)), (name, Value::from(text))].into_iter())
    }
}

/// The texts joined with `separator`, borrowed if there is one text.
fn joined<'a>(mut texts: Vec<Cow<'a, str>>, separator: &str) -> Cow<'a, str> {
    match texts.len() {
        0 => Cow::Borrowed(""),
        1 => texts.remove(0),
        _ => Cow::Owned(texts.join(separator)),
    }
}

#[cfg(test)]
mod tests;
