//! Checks that prompt and answer fit the model.

use std::collections::BTreeMap;

use signalbox_protocol::{ErrorKind, WireError};

/// How long the answer may be if the client sets no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DefaultLength {
    /// What the prompt leaves of the context: the default of chats.
    RestOfContext,
    /// This many tokens, or the rest of the context if that is less. Plain completions have 16.
    Tokens(u32),
}

/// The most tokens the answer may have, at least 1. A limit that the prompt leaves no room for is lowered to the room, as
/// vLLM does: clients set it without knowing how many tokens their prompt has.
///
/// `prompt` and `context_length` are in tokens; `param` is the parameter that holds the prompt.
///
/// # Errors
/// [`ErrorKind::ContextLengthExceeded`] if the prompt leaves no room for an answer, or if the client asks for more tokens
/// than the context has.
pub(crate) fn fit_context(
    prompt: usize,
    max_tokens: Option<u32>,
    default: DefaultLength,
    context_length: u32,
    param: &str,
) -> Result<u32, WireError> {
    if let Some(tokens) = max_tokens.filter(|tokens| *tokens > context_length) {
        return Err(too_long(
            format!("max_tokens is {tokens}"),
            context_length,
            "max_tokens",
            "ask for fewer tokens",
        ));
    }
    let room = u32::try_from(prompt)
        .ok()
        .and_then(|prompt| context_length.checked_sub(prompt))
        .filter(|room| *room > 0)
        .ok_or_else(|| prompt_too_long(&prompt.to_string(), context_length, param))?;
    Ok(match (max_tokens, default) {
        (Some(tokens), _) | (None, DefaultLength::Tokens(tokens)) => tokens.min(room),
        (None, DefaultLength::RestOfContext) => room,
    })
}

/// The error for a prompt of `tokens` tokens, which leaves no room for an answer.
pub(crate) fn prompt_too_long(tokens: &str, context_length: u32, param: &str) -> WireError {
    too_long(
        format!("{param} has {tokens} tokens and the answer needs at least 1"),
        context_length,
        param,
        &format!("shorten {param}"),
    )
}

fn too_long(what: String, context_length: u32, param: &str, right: &str) -> WireError {
    WireError {
        kind: ErrorKind::ContextLengthExceeded,
        // Client libraries look for "this model's maximum context length is".
        message: format!("{what}; this model's maximum context length is {context_length} tokens: {right}"),
        param: Some(param.into()),
        retry_after_s: None,
        engine: None,
    }
}

/// Refuses token ids outside the model's vocabulary: the engine uses them as indexes into its tables. `param` is the parameter
/// that holds `prompt`.
pub(crate) fn check_vocabulary(
    param: &str,
    prompt: &[u32],
    logit_bias: &BTreeMap<u32, f32>,
    vocabulary: u32,
) -> Result<(), WireError> {
    let right = format!("the model's token ids are 0 to {}", vocabulary.saturating_sub(1));
    if let Some((i, token)) = prompt.iter().enumerate().find(|(_, token)| **token >= vocabulary) {
        let param = format!("{param}[{i}]");
        return Err(WireError::invalid_param(
            &*param,
            format!("{param} is {token}; {right}"),
        ));
    }
    if let Some(token) = logit_bias.keys().find(|token| **token >= vocabulary) {
        let param = format!("logit_bias.{token}");
        return Err(WireError::invalid_param(
            &*param,
            format!("logit_bias names token {token}; {right}"),
        ));
    }
    Ok(())
}

/// Refuses tokens outside the model's vocabulary, which would never end an answer.
pub(crate) fn check_stop_tokens(stop_tokens: &[u32], vocabulary: u32) -> Result<(), WireError> {
    let outside = stop_tokens.iter().enumerate();
    match outside.into_iter().find(|(_, token)| **token >= vocabulary) {
        None => Ok(()),
        Some((i, token)) => {
            let param = format!("stop_token_ids[{i}]");
            let last = vocabulary.saturating_sub(1);
            let message = format!("{param} is {token}; the model's token ids are 0 to {last}");
            Err(WireError::invalid_param(param, message))
        }
    }
}

/// Refuses an answer that must be longer than it may be.
pub(crate) fn check_least(min_tokens: u32, max_tokens: u32) -> Result<(), WireError> {
    if min_tokens <= max_tokens {
        return Ok(());
    }
    let message = format!("min_tokens is {min_tokens}; the answer may have at most {max_tokens} tokens");
    Err(WireError::invalid_param("min_tokens", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit(prompt: usize, max_tokens: Option<u32>, default: DefaultLength) -> Result<u32, WireError> {
        fit_context(prompt, max_tokens, default, 100, "messages")
    }

    #[test]
    fn an_answer_may_fill_the_context_to_its_last_token() {
        assert_eq!(fit(90, Some(10), DefaultLength::RestOfContext), Ok(10));
        assert_eq!(fit(99, None, DefaultLength::RestOfContext), Ok(1));
        assert_eq!(fit(40, None, DefaultLength::RestOfContext), Ok(60));
        assert_eq!(fit(40, None, DefaultLength::Tokens(16)), Ok(16));
        assert_eq!(fit(95, None, DefaultLength::Tokens(16)), Ok(5));
    }

    #[test]
    fn a_limit_above_the_room_is_lowered_to_the_room() {
        for default in [DefaultLength::RestOfContext, DefaultLength::Tokens(16)] {
            assert_eq!(fit(90, Some(11), default), Ok(10));
            assert_eq!(fit(90, Some(100), default), Ok(10), "as many as the context has");
            assert_eq!(fit(99, Some(2), default), Ok(1));
        }
    }

    #[test]
    fn a_limit_above_the_context_is_refused_by_its_name() {
        for prompt in [1, 100] {
            let error = fit(prompt, Some(101), DefaultLength::RestOfContext).unwrap_err();
            assert_eq!(
                (error.kind, error.param.as_deref()),
                (ErrorKind::ContextLengthExceeded, Some("max_tokens"))
            );
            assert!(
                error.message.contains("101") && error.message.contains("100 tokens"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_prompt_that_leaves_no_room_is_refused_with_both_numbers() {
        for prompt in [100, 101, usize::MAX] {
            for (tokens, default) in [
                (None, DefaultLength::RestOfContext),
                (None, DefaultLength::Tokens(16)),
                (Some(1), DefaultLength::Tokens(16)),
            ] {
                let error = fit(prompt, tokens, default).unwrap_err();
                assert_eq!(
                    (error.kind, error.param.as_deref()),
                    (ErrorKind::ContextLengthExceeded, Some("messages"))
                );
                let has = |number: usize| error.message.contains(&format!("{number} tokens"));
                assert!(has(prompt) && has(100), "{error}");
            }
        }
    }

    #[test]
    fn an_answer_is_not_longer_than_it_may_be() {
        assert_eq!(check_least(0, 1), Ok(()));
        assert_eq!(check_least(5, 5), Ok(()));
        let error = check_least(6, 5).unwrap_err();
        assert_eq!(
            error.message,
            "min_tokens is 6; the answer may have at most 5 tokens"
        );
    }

    #[test]
    fn tokens_outside_the_vocabulary_are_named() {
        assert_eq!(check_stop_tokens(&[0, 9], 10), Ok(()));
        let error = check_stop_tokens(&[0, 10], 10).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("stop_token_ids[1]"));
        let none = BTreeMap::new();
        assert_eq!(check_vocabulary("prompt", &[0, 9], &none, 10), Ok(()));
        assert_eq!(
            check_vocabulary("prompt", &[0, 10], &none, 10)
                .unwrap_err()
                .param
                .as_deref(),
            Some("prompt[1]")
        );
        let bias = BTreeMap::from([(10, 1.0)]);
        assert_eq!(
            check_vocabulary("prompt", &[], &bias, 10)
                .unwrap_err()
                .param
                .as_deref(),
            Some("logit_bias.10")
        );
    }
}
