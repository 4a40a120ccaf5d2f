//! Chats as the text of a prompt: the engine's preparation of the messages, and the model's template.

use std::borrow::Cow;

use minijinja::Value;
use serde_json::{Map, Value as Json};

use crate::artifacts::ModelArtifacts;
use crate::chat::ChatPrompt;
use crate::error::json_type;
use crate::messages::{Message, Rules, prepared};
use crate::preparation::{CodedChat, MessagePreparation};
use crate::template::{ChatTemplate, strip, strip_end};
use crate::tools::template_tools;
use crate::values::value;
use crate::{ArtifactError, TextError};

/// Marks the end of the message to continue, so that the rendered prompt can be cut there. The space shows whether
/// the template strips messages. Templates of some models look for this very mark of `transformers`.
const CONTINUE_MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Renders the chats of one model.
pub(crate) struct ChatRenderer {
    preparation: MessagePreparation,
    source: Source,
}

/// Where prompts come from.
enum Source {
    /// The model is a base model.
    None,
    /// The prompts of the engine cannot be rendered, for this reason.
    Engine(String),
    Templates(Box<Templates>),
}

/// The templates of a model.
struct Templates {
    chat: ChatTemplate,
    /// The template for requests with tools, if it is another one.
    tools: Option<ChatTemplate>,
}

/// A rendered chat.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rendered {
    /// The prompt's text.
    pub(crate) prompt: String,
    /// Text that follows the prompt and is encoded by itself: SGLang's way to continue a message.
    pub(crate) prefix_of_answer: Option<String>,
}

impl ChatRenderer {
    /// Compiles the templates.
    ///
    /// # Errors
    /// A template does not compile, and the model is served by an engine of this repository. An engine that has its
    /// own template engine serves the model all the same: its prompts are then [`TextError::Unrenderable`].
    pub(crate) fn load(artifacts: &ModelArtifacts) -> Result<Self, ArtifactError> {
        let preparation = artifacts.preparation();
        let source = match artifacts.coded_chat() {
            Some(coded) if in_code(preparation, coded) => Source::Engine(format!(
                "the engine renders chats of this model in its code ({}), and not with a template",
                coded.description()
            )),
            _ => match Self::templates(artifacts, preparation) {
                Err(error) if preparation.is_of_another_engine() => Source::Engine(error.to_string()),
                templates => templates?,
            },
        };
        Ok(Self { preparation, source })
    }

    fn templates(
        artifacts: &ModelArtifacts,
        preparation: MessagePreparation,
    ) -> Result<Source, ArtifactError> {
        let compile = |source: &str| ChatTemplate::compile(source, artifacts.special_tokens(), preparation);
        let tools = artifacts.tool_template().map(compile).transpose()?;
        Ok(match artifacts.chat_template().map(compile).transpose()? {
            Some(chat) => Source::Templates(Box::new(Templates { chat, tools })),
            None => Source::None,
        })
    }

    /// Whether the model has a template.
    pub(crate) fn has_template(&self) -> bool {
        matches!(self.source, Source::Templates(_))
    }

    /// Whether a template describes tools.
    pub(crate) fn renders_tools(&self) -> bool {
        match &self.source {
            Source::Templates(templates) => templates.tools.is_some() || templates.chat.names_tools(),
            Source::None | Source::Engine(_) => false,
        }
    }

    /// Renders the chat.
    ///
    /// # Errors
    /// The model has no template, a part of the chat has the wrong shape, the template refuses the messages, or only
    /// the engine can render the prompt.
    pub(crate) fn render(&self, chat: &ChatPrompt<'_>) -> Result<Rendered, TextError> {
        let template = match &self.source {
            Source::None => return Err(TextError::NoTemplate),
            Source::Engine(reason) => return Err(TextError::unrenderable("messages", reason.clone())),
            Source::Templates(templates) => match &templates.tools {
                Some(tools) if chat.tools.is_some() => tools,
                _ => &templates.chat,
            },
        };
        let rules = Rules {
            preparation: self.preparation,
            content: template.content_format(),
            has_developer_role: template.has_developer_role(),
        };
        let mut messages = prepared(chat.messages, &rules)?;
        let mut continued = None;
        let mut prefix_of_answer = None;
        if chat.continue_final_message {
            if self.preparation == MessagePreparation::Sglang {
                prefix_of_answer = prefix(&mut messages)?;
            } else {
                continued = Some(marked(&mut messages, template, chat)?);
            }
        }
        let variables = self.variables(chat)?;
        let messages = messages.into_iter().map(Message::into_value).collect();
        let prompt = template.render(messages, variables.into_iter())?;
        let prompt = match continued {
            Some(text) => cut_at_mark(prompt, &text)?,
            None => prompt,
        };
        Ok(Rendered {
            prompt,
            prefix_of_answer,
        })
    }

    /// The template's variables beside the messages, in the order in which later ones win.
    fn variables<'a>(&self, chat: &ChatPrompt<'a>) -> Result<Vec<(&'a str, Value)>, TextError> {
        let is_vllm = self.preparation == MessagePreparation::Vllm;
        let kwargs = kwargs(chat)?;
        let mut variables = Vec::with_capacity(8);
        if chat.tools.is_some() {
            variables.push(("tools", template_tools(chat, self.preparation)?));
        }
        for (name, member) in kwargs.into_iter().flatten() {
            // vLLM reads these two as "not set".
            if !(is_vllm && (member.is_null() || member == "auto")) {
                variables.push((&**name, value(member)));
            }
        }
        if let Some(documents) = chat.documents.filter(|documents| !documents.is_null()) {
            variables.push(("documents", value(documents)));
        }
        if let Some(effort) = chat.reasoning_effort {
            variables.push(("reasoning_effort", Value::from(effort)));
            let chosen = kwargs.is_some_and(|kwargs| kwargs.contains_key("enable_thinking"));
            if is_vllm && !chosen {
                variables.push(("enable_thinking", Value::from(effort != "none")));
            }
        }
        let generation = chat.add_generation_prompt || self.preparation == MessagePreparation::Sglang;
        variables.push(("add_generation_prompt", Value::from(generation)));
        Ok(variables)
    }
}

/// Whether the engine ignores the model's template.
fn in_code(preparation: MessagePreparation, coded: CodedChat) -> bool {
    match preparation {
        MessagePreparation::Signalbox => false,
        MessagePreparation::Vllm => true,
        // SGLang renders gpt-oss and Mistral's models with their templates.
        MessagePreparation::Sglang => matches!(coded, CodedChat::DeepseekV32 | CodedChat::DeepseekV4),
    }
}

fn kwargs<'a>(chat: &ChatPrompt<'a>) -> Result<Option<&'a Map<String, Json>>, TextError> {
    match chat.template_kwargs {
        None | Some(Json::Null) => Ok(None),
        Some(Json::Object(kwargs)) => Ok(Some(kwargs)),
        Some(other) => {
            let message = format!(
                "chat_template_kwargs is {}; it should be an object of the template's variables",
                json_type(other)
            );
            Err(TextError::param("chat_template_kwargs", message))
        }
    }
}

/// SGLang: the last message is taken out, and its text follows the prompt for an answer.
fn prefix(messages: &mut Vec<Message<'_>>) -> Result<Option<String>, TextError> {
    if messages
        .last()
        .is_none_or(|message| message.role() != "assistant")
    {
        return Ok(None);
    }
    let mut last = messages.pop();
    let text = last.as_mut().and_then(Message::only_text);
    text.map(|text| Some(text.into_owned())).ok_or_else(|| {
        TextError::unrenderable(
            "continue_final_message",
            "continue_final_message is set, and the last message has parts; only the engine can continue those",
        )
    })
}

/// Marks the end of the last message's text, and returns the text.
fn marked(
    messages: &mut [Message<'_>],
    template: &ChatTemplate,
    chat: &ChatPrompt<'_>,
) -> Result<String, TextError> {
    let wrong = |message: &str| TextError::param("continue_final_message", message);
    if chat.add_generation_prompt {
        return Err(wrong(
            "continue_final_message and add_generation_prompt are both true; set add_generation_prompt to false to \
             continue the last message",
        ));
    }
    let text = messages
        .last_mut()
        .and_then(Message::last_text)
        .filter(|_| template.names_content())
        .ok_or_else(|| {
            wrong("continue_final_message is set, and the last message has no text to continue")
        })?;
    let unmarked = text.clone().into_owned();
    *text = Cow::Owned([&unmarked, CONTINUE_MARK].concat());
    Ok(unmarked)
}

/// The prompt up to the end of the continued message, as `transformers` cuts it.
fn cut_at_mark(mut prompt: String, continued: &str) -> Result<String, TextError> {
    let mark = CONTINUE_MARK.trim_end();
    let at = prompt
        .rfind(mark)
        .filter(|_| prompt.contains(strip(continued)))
        .ok_or_else(|| {
            TextError::param(
                "continue_final_message",
                "continue_final_message is set, and the model's chat template leaves out a part of the last message",
            )
        })?;
    let keeps_space = prompt[at..].starts_with(CONTINUE_MARK);
    prompt.truncate(at);
    if !keeps_space {
        prompt.truncate(strip_end(&prompt).len());
    }
    Ok(prompt)
}

#[cfg(test)]
mod tests;
