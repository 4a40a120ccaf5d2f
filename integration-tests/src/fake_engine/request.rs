//! What a request asks to generate, parsed and checked with vLLM's own words for what is wrong.

use serde_json::{Value, json};

/// Most alternatives of a token that vLLM reports (`--max-logprobs`).
const MAX_LOGPROBS: u64 = 20;

/// The type of errors of bodies that do not pass validation.
const INVALID: &str = "Bad Request";

/// A refused request: the parts of an error object.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) kind: &'static str,
    pub(super) message: String,
    pub(super) param: Option<String>,
}

impl Refusal {
    /// A request that the engine itself refuses.
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self {
            status: 400,
            kind: "BadRequestError",
            message: message.into(),
            param: None,
        }
    }

    /// As [`Self::bad`], for one member, with its value as the message ends in it.
    pub(super) fn of_member(param: &str, value: impl std::fmt::Display, message: &str) -> Self {
        Self {
            param: Some(param.into()),
            ..Self::bad(format!("{message} (parameter={param}, value={value})"))
        }
    }

    /// A body that does not pass validation, which has a type of its own.
    pub(super) fn invalid(param: Option<&str>, details: &str) -> Self {
        Self {
            status: 400,
            kind: INVALID,
            message: format!("1 validation error:\n  {details}"),
            param: param.map(String::from),
        }
    }

    /// Whether the body did not pass validation.
    pub(super) fn is_invalid(&self) -> bool {
        self.kind == INVALID
    }

    /// The members of the error object.
    pub(super) fn members(&self) -> Value {
        json!({"message": self.message, "type": self.kind, "param": self.param, "code": self.status})
    }
}

/// How to generate, equal for all generating routes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sampling {
    /// `None` for as much as the context has room for.
    pub(super) most: Option<usize>,
    pub(super) least: usize,
    pub(super) choices: usize,
    pub(super) may_end: bool,
    pub(super) stop: Vec<String>,
    pub(super) stop_tokens: Vec<u32>,
    /// Alternatives of each token to report; `None` for no logprobs.
    pub(super) logprobs: Option<usize>,
    pub(super) salt: Option<String>,
}

/// How to answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Delivery {
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) continuous_usage: bool,
    pub(super) token_ids: bool,
    /// Tokens per event.
    pub(super) interval: usize,
}

/// Parses the body.
pub(super) fn parse(content_type: &str, body: &[u8]) -> Result<Value, Refusal> {
    if !content_type.starts_with("application/json") {
        return Err(Refusal::invalid(
            None,
            "Unsupported Media Type: Only 'application/json' is allowed",
        ));
    }
    let value: Value = serde_json::from_slice(body).map_err(|error| {
        let at = error.column().saturating_sub(1);
        // The words of Python's decoder for the commonest fault.
        let fault = "Expecting property name enclosed in double quotes";
        Refusal::invalid(
            Some(&format!("body.{at}")),
            &format!(
                "{{'type': 'json_invalid', 'loc': 'body.{at}', 'msg': 'JSON decode error', 'input': '<dict of 0 items>', \
                 'ctx': {{'error': '{fault}'}}}}"
            ),
        )
    })?;
    if !value.is_object() {
        return Err(Refusal::invalid(
            Some("body"),
            "{'type': 'model_attributes_type', 'loc': 'body', 'msg': 'Input should be a valid dictionary or object to \
             extract fields from', 'input': '<list>'}",
        ));
    }
    Ok(value)
}

/// The member, which must be there.
pub(super) fn required<'a>(body: &'a Value, member: &str) -> Result<&'a Value, Refusal> {
    body.get(member).ok_or_else(|| {
        let members = body.as_object().map_or(0, serde_json::Map::len);
        Refusal::invalid(
            Some(&format!("body.{member}")),
            &format!(
                "{{'type': 'missing', 'loc': 'body.{member}', 'msg': 'Field required', 'input': '<dict of {members} \
                 items>'}}"
            ),
        )
    })
}

impl Sampling {
    /// Reads and checks the members. `most` is the member that bounds the answer, `default_most` what holds without it.
    pub(super) fn read(
        body: &Value,
        most: &[&str],
        default_most: Option<usize>,
        context: usize,
    ) -> Result<Self, Refusal> {
        let mut limit = default_most;
        for name in most {
            if let Some(tokens) = body[*name].as_i64() {
                if tokens < 1 {
                    let message = format!("max_tokens must be at least 1, got {tokens}.");
                    return Err(Refusal::of_member("max_tokens", tokens, &message));
                }
                let tokens = tokens as usize;
                if tokens > context {
                    let message = format!(
                        "max_tokens={tokens} cannot be greater than max_model_len={context}. Please request fewer output \
                         tokens."
                    );
                    return Err(Refusal::of_member("max_tokens", tokens, &message));
                }
                limit = Some(tokens);
                break;
            }
        }
        if let Some(temperature) = body["temperature"].as_f64().filter(|value| *value < 0.0) {
            let message = format!("temperature must be non-negative, got {temperature:?}.");
            return Err(Refusal::of_member(
                "temperature",
                format_args!("{temperature:?}"),
                &message,
            ));
        }
        let choices = body["n"].as_i64().unwrap_or(1);
        if choices < 1 {
            return Err(Refusal::bad(format!("n must be at least 1, got {choices}.")));
        }
        if choices > 1 && body["temperature"].as_f64() == Some(0.0) {
            return Err(Refusal::bad(format!(
                "n must be 1 when using greedy sampling, got {choices}."
            )));
        }
        let salt = body["cache_salt"].as_str().map(String::from);
        if salt.as_deref() == Some("") {
            return Err(Refusal {
                param: Some("cache_salt".into()),
                ..Refusal::bad(
                    "Parameter 'cache_salt' must be a non-empty string if provided. (parameter=cache_salt)",
                )
            });
        }
        Ok(Self {
            most: limit,
            least: body["min_tokens"].as_u64().unwrap_or(0) as usize,
            choices: choices as usize,
            may_end: !body["ignore_eos"].as_bool().unwrap_or(false),
            stop: strings(&body["stop"]),
            stop_tokens: tokens(&body["stop_token_ids"]).unwrap_or_default(),
            logprobs: logprobs(body)?,
            salt,
        })
    }
}

impl Delivery {
    pub(super) fn read(body: &Value) -> Self {
        let options = &body["stream_options"];
        Self {
            stream: body["stream"].as_bool().unwrap_or(false),
            include_usage: options["include_usage"].as_bool().unwrap_or(false),
            continuous_usage: options["continuous_usage_stats"].as_bool().unwrap_or(false),
            token_ids: body["return_token_ids"].as_bool().unwrap_or(false),
            interval: body["stream_interval"].as_u64().unwrap_or(1).max(1) as usize,
        }
    }
}

/// The token ids of a list of numbers.
pub(super) fn tokens(value: &Value) -> Option<Vec<u32>> {
    value
        .as_array()?
        .iter()
        .map(|token| token.as_u64().and_then(|token| u32::try_from(token).ok()))
        .collect()
}

/// A string, or a list of strings.
pub(super) fn strings(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(texts) => texts.iter().filter_map(Value::as_str).map(String::from).collect(),
        _ => Vec::new(),
    }
}

/// Chats have a switch and a number, completions a number.
fn logprobs(body: &Value) -> Result<Option<usize>, Refusal> {
    let number = match &body["logprobs"] {
        Value::Bool(true) => body["top_logprobs"].as_u64().unwrap_or(0),
        Value::Number(number) => number.as_u64().unwrap_or(0),
        _ => return Ok(None),
    };
    if number > MAX_LOGPROBS {
        let message = format!(
            "Requested sample logprobs of {number}, which is greater than max allowed: {MAX_LOGPROBS}"
        );
        return Err(Refusal::of_member("logprobs", number, &message));
    }
    Ok(Some(number as usize))
}
