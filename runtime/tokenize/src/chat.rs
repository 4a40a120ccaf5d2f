//! The parts of a chat request that become its prompt.

use serde_json::{Map, Value as Json};

use crate::TextError;
use crate::error::json_type;

/// A chat as a client sends it: the members of a request to `/v1/chat/completions` on which the prompt depends.
#[derive(Debug, Clone, Copy)]
pub struct ChatPrompt<'a> {
    /// OpenAI's `messages`.
    pub messages: &'a Json,
    /// OpenAI's `tools`: an array of `{"type": "function", "function": {…}}`. `None` and null are the same.
    pub tools: Option<&'a Json>,
    /// OpenAI's `tool_choice`. SGLang shows a model only the tools that it may call.
    pub tool_choice: Option<&'a Json>,
    /// Documents to answer from, an array of objects with `title` and `text`.
    pub documents: Option<&'a Json>,
    /// More variables of the template, an object, such as `{"enable_thinking": false}`.
    pub template_kwargs: Option<&'a Json>,
    /// OpenAI's `reasoning_effort`.
    pub reasoning_effort: Option<&'a str>,
    /// Whether the prompt ends with the beginning of the assistant's answer.
    pub add_generation_prompt: bool,
    /// Whether the prompt ends with the text of the last message, which the answer continues.
    pub continue_final_message: bool,
    /// Whether the tokens around a prompt without a template are added to those that the template writes.
    pub add_special_tokens: bool,
}

impl<'a> ChatPrompt<'a> {
    /// A chat of messages alone, to be answered by the assistant.
    pub fn new(messages: &'a Json) -> Self {
        Self {
            messages,
            tools: None,
            tool_choice: None,
            documents: None,
            template_kwargs: None,
            reasoning_effort: None,
            add_generation_prompt: true,
            continue_final_message: false,
            add_special_tokens: false,
        }
    }

    /// The chat of a request body. Members on which the prompt does not depend are not read.
    ///
    /// # Errors
    /// `messages` is missing, a member has the wrong type, or the request brings a template of its own
    /// ([`TextError::Unrenderable`]).
    pub fn of_request(body: &'a Map<String, Json>) -> Result<Self, TextError> {
        let given = |name: &str| body.get(name).filter(|value| !value.is_null());
        let flag = |name: &str, default: bool| match given(name) {
            None => Ok(default),
            Some(Json::Bool(flag)) => Ok(*flag),
            Some(other) => Err(wrong(name, other, "true or false")),
        };
        if given("chat_template").is_some() {
            return Err(TextError::unrenderable(
                "chat_template",
                "chat_template is a template of the request; prompts are rendered with the model's template only",
            ));
        }
        let messages = given("messages").ok_or_else(|| {
            TextError::param(
                "messages",
                "messages is missing; it should be an array of messages",
            )
        })?;
        let reasoning_effort = match given("reasoning_effort") {
            None => None,
            Some(Json::String(effort)) => Some(&**effort),
            Some(other) => return Err(wrong("reasoning_effort", other, "a string such as \"low\"")),
        };
        Ok(Self {
            messages,
            tools: given("tools"),
            tool_choice: given("tool_choice"),
            documents: given("documents"),
            template_kwargs: given("chat_template_kwargs"),
            reasoning_effort,
            add_generation_prompt: flag("add_generation_prompt", true)?,
            continue_final_message: flag("continue_final_message", false)?,
            add_special_tokens: flag("add_special_tokens", false)?,
        })
    }
}

fn wrong(name: &str, found: &Json, expected: &str) -> TextError {
    TextError::param(
        name,
        format!("{name} is {}; it should be {expected}", json_type(found)),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_gives_its_chat_and_wrong_members_are_named() {
        let body = json!({
            "model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": [], "documents": null,
            "chat_template_kwargs": {"enable_thinking": false}, "reasoning_effort": "low",
            "add_generation_prompt": false, "continue_final_message": true,
        });
        let chat = ChatPrompt::of_request(body.as_object().unwrap()).unwrap();
        assert_eq!(chat.messages, &body["messages"]);
        assert_eq!(
            (chat.tools, chat.documents),
            (Some(&json!([])), None),
            "null is as good as absent"
        );
        assert_eq!(chat.reasoning_effort, Some("low"));
        assert!(!chat.add_generation_prompt && chat.continue_final_message && !chat.add_special_tokens);

        let refused = |body: Json| ChatPrompt::of_request(body.as_object().unwrap()).unwrap_err();
        assert_eq!(refused(json!({})).param_name(), Some("messages"));
        let error = refused(json!({"messages": [], "add_special_tokens": "yes"}));
        assert_eq!(
            error.to_string(),
            "add_special_tokens is a string; it should be true or false"
        );
        let error = refused(json!({"messages": [], "chat_template": "{{ messages }}"}));
        assert!(error.is_unrenderable(), "{error}");
    }
}
