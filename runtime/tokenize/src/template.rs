//! Runs chat templates as the reference (`transformers`) does, with bounds that the reference does not have.
//!
//! The environment is that of the reference: trimmed blocks, Python's string methods, `raise_exception`,
//! `strftime_now`, `tojson` without HTML escapes, `loopcontrols`, and `{% generation %}` markers that print nothing.
//! The template comes with the model and is compiled once. Requests bring data, never templates.

mod tojson;

use std::cell::Cell;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Enumerator, Object, Serde, Value};
use minijinja::{Environment, Error, ErrorKind};
use serde::{Serialize, Serializer};
use serde_json::Value as Json;

use crate::artifacts::SpecialTokens;
use crate::error::json_type;
use crate::{ArtifactError, TextError};

/// Most steps of one rendering. minijinja also counts a step for every 64 bytes that a template produces, so this
/// bounds memory (320 MB at worst) and time (well under a second). A conversation of 1,000 turns takes about 100,000.
const FUEL: u64 = 5_000_000;
/// Most levels of nesting. A block or loop counts one, a macro call about ten. Templates that print a tool's schema
/// call themselves once for each level of the schema.
const MAX_RECURSION: usize = 500;
const NAME: &str = "chat_template";

/// A model's compiled chat template.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    special: Vec<(&'static str, Value)>,
    has_developer_role: bool,
}

/// The message of a template's `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

impl ChatTemplate {
    pub(crate) fn compile(source: &str, special: &SpecialTokens) -> Result<Self, ArtifactError> {
        let compile = |error: Error| ArtifactError::Template(describe(&error));
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(compile)?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(MAX_RECURSION);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", tojson::tojson);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment
            .add_template_owned(NAME, without_generation_markers(source))
            .map_err(compile)?;
        let tokens = [
            ("bos_token", &special.bos),
            ("eos_token", &special.eos),
            ("pad_token", &special.pad),
            ("unk_token", &special.unk),
        ];
        let special = tokens
            .into_iter()
            .filter_map(|(name, token)| Some((name, Value::from(&token.as_ref()?.content))));
        Ok(Self {
            environment,
            special: special.collect(),
            has_developer_role: source.contains("developer"),
        })
    }

    /// Whether the template has the role `developer`, OpenAI's newer name of the system role.
    pub(crate) fn has_developer_role(&self) -> bool {
        self.has_developer_role
    }

    /// The prompt for `messages`, up to the beginning of the assistant's answer. The members of `extra`, an object or
    /// null, become variables of the template: `tools`, `enable_thinking`, ….
    pub(crate) fn render(&self, messages: Value, extra: &Json) -> Result<String, TextError> {
        // In the reference, absent variables are none and not undefined, and templates distinguish the two.
        let absent = [("tools", Value::from(())), ("documents", Value::from(()))];
        let prompt = [("add_generation_prompt", Value::from(true))];
        let special = self.special.iter().map(|(name, token)| (*name, token.clone()));
        let extra = match extra {
            Json::Null => None,
            Json::Object(extra) => Some(
                extra
                    .iter()
                    .map(|(name, value)| (&**name, Value::from(Serde(value)))),
            ),
            _ => {
                let message = format!(
                    "chat_template_kwargs is {}; it should be an object of the template's variables",
                    json_type(extra)
                );
                return Err(TextError::param("chat_template_kwargs", message));
            }
        };
        let context = absent.into_iter().chain(prompt).chain(special);
        let context = context
            .chain(extra.into_iter().flatten())
            .chain([("messages", messages)]);
        let template = self.environment.get_template(NAME).map_err(failure)?;
        template.render(object(context)).map_err(failure)
    }
}

/// An object with these members, in this order. If two members have the same name, the later one counts.
pub(crate) fn object<'a>(members: impl Iterator<Item = (&'a str, Value)>) -> Value {
    let mut first = Vec::new();
    let mut members = members.peekable();
    while first.len() < MAX_LISTED_MEMBERS
        && let Some((name, value)) = members.next()
    {
        match first
            .iter_mut()
            .find(|(known, _): &&mut (&str, _)| *known == name)
        {
            Some((_, known)) => *known = value,
            None => first.push((name, value)),
        }
    }
    if members.peek().is_some() {
        return Value::from(Serde(MemberMap(Cell::new(Some(
            first.into_iter().chain(members),
        )))));
    }
    let members = first.into_iter().map(|(name, value)| (Value::from(name), value));
    Value::from_object(MemberList(members.collect()))
}

/// Most members of an object that is a list. Searching so few members is faster than building a map. Messages and
/// templates have fewer members; an object with more becomes a map, so that no client can make searches slow.
const MAX_LISTED_MEMBERS: usize = 16;

/// The members of a large object, serialised once into a map.
struct MemberMap<T>(Cell<Option<T>>);

impl<'a, T: Iterator<Item = (&'a str, Value)>> Serialize for MemberMap<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.take().into_iter().flatten())
    }
}

/// At most [`MAX_LISTED_MEMBERS`] members.
#[derive(Debug)]
struct MemberList(Vec<(Value, Value)>);

impl Object for MemberList {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let (_, value) = self.0.iter().find(|(name, _)| name == key)?;
        Some(value.clone())
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        let (_, value) = self.0.iter().find(|(name, _)| name.as_str() == Some(key))?;
        Some(value.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.iter().map(|(name, _)| name.clone()).collect())
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.0.len())
    }
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "the template refused").with_source(Refusal(message)))
}

/// The current time in UTC. The reference uses the machine's own time zone; here, routers in two zones must render
/// alike.
fn strftime_now(format: &str) -> Result<String, Error> {
    let now = Timestamp::now().to_zoned(TimeZone::UTC);
    jiff::fmt::strtime::format(format, &now)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}")))
}

fn failure(error: Error) -> TextError {
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        if let Some(Refusal(message)) = cause.downcast_ref() {
            return TextError::param(
                "messages",
                format!("the model's chat template refuses these messages: {message}"),
            );
        }
        source = cause.source();
    }
    let message = if error.kind() == ErrorKind::OutOfFuel {
        format!(
            "rendering these messages takes the model's chat template more than {FUEL} steps; send fewer messages"
        )
    } else {
        format!(
            "the model's chat template cannot render these messages: {}",
            describe(&error)
        )
    };
    TextError::param("messages", message)
}

fn describe(error: &Error) -> String {
    let line = error
        .line()
        .map(|line| format!(" (line {line} of the template)"))
        .unwrap_or_default();
    let detail = error
        .detail()
        .map(|detail| format!(": {detail}"))
        .unwrap_or_default();
    format!("{}{detail}{line}", error.kind())
}

/// Replaces `{% generation %}` and `{% endgeneration %}`, which mark the assistant's part for training, by a condition
/// that always holds. This keeps the effect of the markers on white space.
fn without_generation_markers(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, block) = rest.split_at(start);
        let Some(length) = block[2..].find("%}") else {
            break;
        };
        let inner = &block[2..2 + length];
        let word = inner
            .trim_start_matches(['-', '+'])
            .trim_end_matches(['-', '+'])
            .trim();
        let replacement = match word {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        out.push_str(before);
        match replacement {
            Some(replacement) => out.push_str(&format!("{{%{}%}}", inner.replace(word, replacement))),
            None => out.push_str(&block[..length + 4]),
        }
        rest = &block[length + 4..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests;
