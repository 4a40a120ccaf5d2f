//! Requests to the engines of this repository: every parameter is checked, and the prompt fits the model's context.

use std::sync::Arc;

use serde_json::Value;
use signalbox_protocol::{AnswerPart, Endpoint, WireError};
use signalbox_router::ModelView;
use signalbox_tokenize::{ChatPrompt, TextError};

use crate::{
    openai::{
        ChatRequest, CompletionRequest, DefaultLength, Fields, GenerationParams, Prompt, Rendering,
        check_least, check_stop_tokens, check_vocabulary, fit_context, prompt_too_long, with_tools,
    },
    prepared::Prepared,
    responses_chat,
};

/// OpenAI's default length of a plain completion, in tokens.
const DEFAULT_COMPLETION_TOKENS: u32 = 16;

/// Checks a request and makes the tokens of its prompts, of which only a plain completion may have several.
///
/// # Errors
/// A parameter is wrong, a prompt does not fit, or the engines do not have this route.
pub(crate) fn prepare(
    endpoint: Endpoint,
    name: String,
    fields: &mut Fields,
    model: &ModelView,
) -> Result<Vec<Prepared>, WireError> {
    match endpoint {
        Endpoint::Chat => Ok(vec![chat(ChatRequest::take(name, fields)?, model)?]),
        Endpoint::Completions => completions(name, fields, model),
        Endpoint::Responses => {
            let (request, settings) = responses_chat::take(name, fields)?;
            let mut prepared = chat(request, model).map_err(responses_chat::of_response)?;
            prepared.response = Some(Arc::new(settings));
            Ok(vec![prepared])
        }
        other => Err(no_such_route(other, &name)),
    }
}

fn no_such_route(endpoint: Endpoint, model: &str) -> WireError {
    let lacks = match endpoint {
        Endpoint::Embeddings => "makes no embeddings",
        Endpoint::Rerank | Endpoint::Score => "rates no documents",
        Endpoint::Messages
        | Endpoint::Responses
        | Endpoint::Chat
        | Endpoint::Completions
        | Endpoint::Tokenize
        | Endpoint::Detokenize => "has no such API",
    };
    let message = format!(
        "{model} is served by an engine that {lacks}, so {} cannot be used; use {} or {}",
        endpoint.path(),
        Endpoint::Chat.path(),
        Endpoint::Completions.path()
    );
    WireError::invalid_param("model", message)
}

fn chat(request: ChatRequest, model: &ModelView) -> Result<Prepared, WireError> {
    let ChatRequest {
        generation,
        messages,
        tools,
        rendering,
    } = request;
    let context = model.context_length as usize;
    let tokens = chat_tokens(messages, tools.as_ref(), &rendering, model, context)
        .map_err(|error| text_error(error, model, "messages"))?;
    fit(
        Arc::new(generation),
        tokens,
        None,
        model,
        DefaultLength::RestOfContext,
        "messages",
    )
}

/// The tokens of a chat, at most `limit`. Tools are described in the system message if the model's template has no place for
/// them.
pub(crate) fn chat_tokens(
    mut messages: Value,
    tools: Option<&Value>,
    rendering: &Rendering,
    model: &ModelView,
    limit: usize,
) -> Result<Vec<u32>, TextError> {
    let renders_tools = model.text.renders_tools();
    if let (Some(tools), false) = (tools, renders_tools) {
        messages = with_tools(&messages, tools);
    }
    let prompt = ChatPrompt {
        tools: tools.filter(|_| renders_tools),
        ..rendering.prompt(&messages)
    };
    model.text.encode_chat_within(&prompt, limit)
}

fn completions(name: String, fields: &mut Fields, model: &ModelView) -> Result<Vec<Prepared>, WireError> {
    let CompletionRequest {
        generation,
        prompts,
        echo,
        add_special_tokens,
    } = CompletionRequest::take(name, fields)?;
    let style = CompletionStyle {
        generation: Arc::new(generation),
        echo,
        add_special_tokens,
    };
    let is_one = prompts.len() == 1;
    let mut first_choice = 0;
    let mut prepared = Vec::with_capacity(prompts.len());
    for (i, prompt) in prompts.into_iter().enumerate() {
        let param = if is_one {
            "prompt".to_owned()
        } else {
            format!("prompt[{i}]")
        };
        let mut completion = completion(&style, prompt, &param, model)?;
        if !is_one {
            completion.part = Some(AnswerPart { first_choice });
            first_choice += completion.generation.sampling.n;
        }
        prepared.push(completion);
    }
    Ok(prepared)
}

/// What the completions of a request's prompts have in common.
struct CompletionStyle {
    generation: Arc<GenerationParams>,
    echo: bool,
    add_special_tokens: bool,
}

/// The completion of one prompt, which the parameter `param` holds.
fn completion(
    style: &CompletionStyle,
    prompt: Prompt,
    param: &str,
    model: &ModelView,
) -> Result<Prepared, WireError> {
    let generation = Arc::clone(&style.generation);
    let text = |error| text_error(error, model, param);
    let (tokens, echo) = match prompt {
        Prompt::Text(prompt) => {
            let context = model.context_length as usize;
            let tokens = model
                .text
                .encode_prompt_within(&prompt, style.add_special_tokens, context);
            (tokens.map_err(text)?, style.echo.then_some(prompt))
        }
        Prompt::Tokens(tokens) => {
            check_vocabulary(
                param,
                &tokens,
                &generation.sampling.logit_bias,
                model.text.vocab_size(),
            )?;
            let echo = style.echo.then(|| model.text.decode(&tokens)).transpose();
            (tokens, echo.map_err(text)?)
        }
    };
    let default = DefaultLength::Tokens(DEFAULT_COMPLETION_TOKENS);
    fit(generation, tokens, echo, model, default, param)
}

fn fit(
    generation: Arc<GenerationParams>,
    tokens: Vec<u32>,
    echo: Option<String>,
    model: &ModelView,
    default: DefaultLength,
    param: &str,
) -> Result<Prepared, WireError> {
    if tokens.is_empty() {
        return Err(WireError::invalid_param(
            param,
            format!("{param} has no tokens; give at least one"),
        ));
    }
    let vocabulary = model.text.vocab_size();
    check_vocabulary(param, &[], &generation.sampling.logit_bias, vocabulary)?;
    check_stop_tokens(&generation.sampling.stop_token_ids, vocabulary)?;
    let max_tokens = fit_context(
        tokens.len(),
        generation.max_tokens,
        default,
        model.context_length,
        param,
    )?;
    check_least(generation.sampling.min_tokens, max_tokens)?;
    Ok(Prepared {
        generation,
        max_tokens,
        tokens,
        unhashed_tokens: 0,
        unhashed: None,
        echo,
        part: None,
        response: None,
    })
}

/// Errors of the template or the tokenizer are about the prompt: `param` names the parameter that holds it.
pub(crate) fn text_error(error: TextError, model: &ModelView, param: &str) -> WireError {
    if let TextError::TooLong { least } = error {
        return prompt_too_long(&format!("at least {least}"), model.context_length, param);
    }
    let mut error = WireError::from(error);
    error.param.get_or_insert_with(|| param.to_owned());
    error
}
