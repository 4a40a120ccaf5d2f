//! Runs chat templates as the reference (`transformers`) does, with bounds that the reference does not have.
//!
//! The environment is that of the reference: trimmed blocks, Python's string methods, `raise_exception`,
//! `strftime_now`, `tojson` without HTML escapes, `loopcontrols`, and `{% generation %}` markers that print nothing.
//! The template comes with the model and is compiled once. Requests bring data, never templates.

mod arguments;
mod content_format;
mod dates;
mod filters;
mod markup;
mod methods;
mod python_text;
mod repr;
mod syntax;
mod tojson;

use minijinja::machinery;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind, Output, State, escape_formatter};

pub(crate) use self::content_format::ContentFormat;
pub(crate) use self::python_text::{strip, strip_end};
use crate::artifacts::SpecialTokens;
use crate::preparation::MessagePreparation;
use crate::values::object;
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
    content_format: ContentFormat,
    has_developer_role: bool,
    names_content: bool,
    names_tools: bool,
}

/// The message of a template's `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

impl ChatTemplate {
    /// Compiles the template. `preparation` is that of the engine that serves the model: engines conclude from the
    /// template in which form it expects a message's content.
    pub(crate) fn compile(
        source: &str,
        special: &SpecialTokens,
        preparation: MessagePreparation,
    ) -> Result<Self, ArtifactError> {
        let compile = |error: Error| ArtifactError::Template(describe(&error));
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(compile)?;
        environment.set_syntax(syntax.clone());
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(MAX_RECURSION);
        environment.set_unknown_method_callback(methods::call);
        filters::add_to(&mut environment);
        environment.set_formatter(print);
        environment.add_filter("tojson", tojson::tojson);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", dates::strftime_now);
        let plain = without_generation_markers(source);
        let tree = machinery::parse(&plain, NAME, syntax).map_err(compile)?;
        markup::add_to(&mut environment, &tree);
        let content_format = content_format::detect(source, &tree, preparation);
        drop(tree);
        environment.add_template_owned(NAME, plain).map_err(compile)?;
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
            content_format,
            // As vLLM decides it: the word in quotes, not in a comment or a variable's name.
            has_developer_role: source.contains("'developer'") || source.contains("\"developer\""),
            names_content: source.contains("content"),
            names_tools: source.contains("tools"),
        })
    }

    /// Whether the template has the role `developer`, OpenAI's newer name of the system role.
    pub(crate) fn has_developer_role(&self) -> bool {
        self.has_developer_role
    }

    /// The form of a message's content that the engine concludes from the template.
    pub(crate) fn content_format(&self) -> ContentFormat {
        self.content_format
    }

    /// Whether the template reads a message's content at all.
    pub(crate) fn names_content(&self) -> bool {
        self.names_content
    }

    /// Whether the template reads the tools of a request.
    pub(crate) fn names_tools(&self) -> bool {
        self.names_tools
    }

    /// The prompt for `messages`. Of the template's `variables`, the last one of a name counts.
    pub(crate) fn render<'a>(
        &'a self,
        messages: Value,
        variables: impl Iterator<Item = (&'a str, Value)>,
    ) -> Result<String, TextError> {
        // In the reference, absent variables are none and not undefined, and templates distinguish the two.
        let absent = [("tools", Value::from(())), ("documents", Value::from(()))];
        let special = self.special.iter().map(|(name, token)| (*name, token.clone()));
        let context = absent.into_iter().chain(special).chain(variables);
        let context = context.chain([("messages", messages)]);
        let template = self.environment.get_template(NAME).map_err(failure)?;
        template.render(object(context)).map_err(failure)
    }
}

/// Prints a value: a list or dictionary as Python's `repr`, anything else as its text.
fn print(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    match repr::of_container(value) {
        Some(repr) => Ok(out.write_str(&repr)?),
        None => escape_formatter(out, state, value),
    }
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "the template refused").with_source(Refusal(message)))
}

/// A refusal by the template is the client's error. Anything else may render with the engine's template engine.
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
    TextError::unrenderable("messages", message)
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
