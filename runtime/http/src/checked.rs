//! Requests to the engines of this repository: every parameter is checked, and the prompt fits the model's context.

use signalbox_protocol::{Endpoint, WireError};
use signalbox_router::ModelView;
use signalbox_tokenize::{ChatPrompt, TextError};

use crate::{
    openai::{
        ChatRequest, CompletionRequest, DefaultLength, Fields, GenerationParams, Prompt, check_least,
        check_stop_tokens, check_vocabulary, fit_context, prompt_too_long,
    },
    prepared::Prepared,
};

/// OpenAI's default length of a plain completion, in tokens.
const DEFAULT_COMPLETION_TOKENS: u32 = 16;

/// Checks a request and makes its prompt's tokens.
///
/// # Errors
/// A parameter is wrong, the prompt does not fit, or the engines do not have this route.
pub(crate) fn prepare(
    endpoint: Endpoint,
    name: String,
    fields: &mut Fields,
    model: &ModelView,
) -> Result<Prepared, WireError> {
    match endpoint {
        Endpoint::Chat => chat(name, fields, model),
        Endpoint::Completions => completion(name, fields, model),
        other => Err(no_such_route(other, &name)),
    }
}

fn no_such_route(endpoint: Endpoint, model: &str) -> WireError {
    let lacks = match endpoint {
        Endpoint::Embeddings => "makes no embeddings",
        Endpoint::Rerank | Endpoint::Score => "rates no documents",
        Endpoint::Tokenize | Endpoint::Detokenize => "offers no tokenizer",
        Endpoint::Responses | Endpoint::Messages | Endpoint::Chat | Endpoint::Completions => {
            "has no such API"
        }
    };
    let message = format!(
        "{model} is served by an engine that {lacks}, so {} cannot be used; use {} or {}",
        endpoint.path(),
        Endpoint::Chat.path(),
        Endpoint::Completions.path()
    );
    WireError::invalid_param("model", message)
}

fn chat(name: String, fields: &mut Fields, model: &ModelView) -> Result<Prepared, WireError> {
    let ChatRequest { generation, messages } = ChatRequest::take(name, fields)?;
    let tokens = model
        .text
        .encode_chat_within(&ChatPrompt::new(&messages), model.context_length as usize)
        .map_err(|error| text_error(error, model, "messages"))?;
    fit(
        generation,
        tokens,
        None,
        model,
        DefaultLength::RestOfContext,
        "messages",
    )
}

fn completion(name: String, fields: &mut Fields, model: &ModelView) -> Result<Prepared, WireError> {
    let CompletionRequest {
        generation,
        prompt,
        echo,
    } = CompletionRequest::take(name, fields)?;
    let (tokens, text) = match prompt {
        Prompt::Text(text) => (
            model
                .text
                .encode_prompt_within(&text, true, model.context_length as usize)
                .map_err(|error| text_error(error, model, "prompt"))?,
            Some(text),
        ),
        Prompt::Tokens(tokens) => {
            check_vocabulary(&tokens, &generation.sampling.logit_bias, model.text.vocab_size())?;
            (tokens, None)
        }
    };
    let echo = match (echo, text) {
        (false, _) => None,
        (true, Some(text)) => Some(text),
        (true, None) => Some(
            model
                .text
                .decode(&tokens)
                .map_err(|error| text_error(error, model, "prompt"))?,
        ),
    };
    fit(
        generation,
        tokens,
        echo,
        model,
        DefaultLength::Tokens(DEFAULT_COMPLETION_TOKENS),
        "prompt",
    )
}

fn fit(
    mut generation: GenerationParams,
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
    check_vocabulary(&[], &generation.sampling.logit_bias, vocabulary)?;
    check_stop_tokens(&generation.sampling.stop_token_ids, vocabulary)?;
    generation.sampling.max_tokens = fit_context(
        tokens.len(),
        generation.max_tokens,
        default,
        model.context_length,
        param,
    )?;
    check_least(generation.sampling.min_tokens, generation.sampling.max_tokens)?;
    Ok(Prepared {
        generation,
        tokens,
        unhashed_tokens: 0,
        unhashed: None,
        echo,
    })
}

/// Errors of the template or the tokenizer are about the prompt: `param` names the parameter that holds it.
fn text_error(error: TextError, model: &ModelView, param: &str) -> WireError {
    if let TextError::TooLong { least } = error {
        return prompt_too_long(&format!("at least {least}"), model.context_length, param);
    }
    let mut error = WireError::from(error);
    error.param.get_or_insert_with(|| param.to_owned());
    error
}
