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

/// The most tokens the answer may have, at least 1.
///
/// `prompt` and `context_length` are in tokens; `param` is the parameter that holds the prompt.
///
/// # Errors
/// [`ErrorKind::ContextLengthExceeded`] if the prompt leaves less of the context than the client asks for, or none.
pub(crate) fn fit_context(
    prompt: usize,
    max_tokens: Option<u32>,
    default: DefaultLength,
    context_length: u32,
    param: &str,
) -> Result<u32, WireError> {
    let room = u32::try_from(prompt)
        .ok()
        .and_then(|prompt| context_length.checked_sub(prompt))
        .unwrap_or(0);
    let answer = match (max_tokens, default) {
        (Some(tokens), _) => tokens,
        (None, DefaultLength::RestOfContext) => room.max(1),
        (None, DefaultLength::Tokens(tokens)) => tokens.min(room.max(1)),
    };
    if answer <= room {
        return Ok(answer);
    }
    let total = prompt.saturating_add(usize::try_from(answer).unwrap_or(usize::MAX));
    Err(WireError {
        kind: ErrorKind::ContextLengthExceeded,
        // Client libraries look for "this model's maximum context length is".
        message: format!(
            "{param} has {prompt} tokens and the request asks for {answer} more, {total} tokens in all; this model's \
             maximum context length is {context_length} tokens: shorten {param} or ask for fewer tokens"
        ),
        param: Some(param.into()),
        engine: None,
    })
}

/// Refuses token ids outside the model's vocabulary: the engine uses them as indexes into its tables.
pub(crate) fn check_vocabulary(
    prompt: &[u32],
    logit_bias: &BTreeMap<u32, f32>,
    vocabulary: u32,
) -> Result<(), WireError> {
    let right = format!("the model's token ids are 0 to {}", vocabulary.saturating_sub(1));
    if let Some((i, token)) = prompt.iter().enumerate().find(|(_, token)| **token >= vocabulary) {
        let param = format!("prompt[{i}]");
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
    fn one_token_too_many_is_refused_with_both_numbers() {
        let error = fit(90, Some(11), DefaultLength::RestOfContext).unwrap_err();
        assert_eq!(error.kind, ErrorKind::ContextLengthExceeded);
        assert!(
            error.message.contains("100 tokens") && error.message.contains("101 tokens"),
            "{error}"
        );
        for prompt in [100, 101, usize::MAX] {
            assert!(
                fit(prompt, None, DefaultLength::RestOfContext).is_err(),
                "{prompt}"
            );
            assert!(fit(prompt, None, DefaultLength::Tokens(16)).is_err(), "{prompt}");
        }
        assert!(fit(1, Some(u32::MAX), DefaultLength::RestOfContext).is_err());
    }

    #[test]
    fn tokens_outside_the_vocabulary_are_named() {
        let none = BTreeMap::new();
        assert_eq!(check_vocabulary(&[0, 9], &none, 10), Ok(()));
        assert_eq!(
            check_vocabulary(&[0, 10], &none, 10)
                .unwrap_err()
                .param
                .as_deref(),
            Some("prompt[1]")
        );
        let bias = BTreeMap::from([(10, 1.0)]);
        assert_eq!(
            check_vocabulary(&[], &bias, 10).unwrap_err().param.as_deref(),
            Some("logit_bias.10")
        );
    }
}
