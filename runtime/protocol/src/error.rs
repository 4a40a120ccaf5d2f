//! The errors that clients and other processes receive.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a request was not answered, in the terms of OpenAI's error object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct WireError {
    /// The kind of error; decides the HTTP status.
    pub kind: ErrorKind,
    /// For a person: what is wrong, and what would be right. A lower-case fragment without a full stop.
    pub message: String,
    /// The request's parameter at fault, as the client spelled it: `max_tokens`, `messages[2].content`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub param: Option<String>,
    /// Seconds after which the client may try again, where something better is known than the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u32>,
    /// The error as an engine answered it. The client receives this answer instead of one made from the other fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<Box<EngineError>>,
}

/// The error answer of an engine that reads requests itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineError {
    /// The HTTP status, 400 to 599.
    pub status: u16,
    /// A JSON document in OpenAI's shape: `{"error":{…}}`.
    pub body: String,
}

/// The kinds of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request is wrong in itself; a retry fails the same way.
    InvalidRequest,
    /// The prompt and the requested answer together exceed the model's context.
    ContextLengthExceeded,
    /// The path or object does not exist.
    NotFound,
    /// No model has the requested name. Only routers make this kind, for clients.
    ModelNotFound,
    /// The path exists, but not with this method.
    MethodNotAllowed,
    /// The body did not arrive in time.
    RequestTimeout,
    /// Another client changed the object first.
    Conflict,
    /// The object is not in the state that the caller made a condition.
    PreconditionFailed,
    /// The body is larger than allowed.
    TooLarge,
    /// The body has a type or encoding that is not supported.
    UnsupportedMedia,
    /// The body is well-formed and its content is not acceptable: an unsound policy, for example.
    Unprocessable,
    /// The caller did not prove its identity.
    Unauthorized,
    /// The worker, or every worker, holds as many requests as it may. A retry helps.
    Overloaded,
    /// No worker is present, or the worker has left. A retry may help.
    Unavailable,
    /// The deadline passed before the answer was whole.
    DeadlineExceeded,
    /// The client disconnected or cancelled the request.
    Cancelled,
    /// There is no room to store something: a disk is full, for example.
    StorageFull,
    /// A defect of this program.
    Internal,
}

impl ErrorKind {
    /// The corresponding HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidRequest | Self::ContextLengthExceeded => 400,
            Self::Unauthorized => 401,
            Self::NotFound | Self::ModelNotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::RequestTimeout => 408,
            Self::Conflict => 409,
            Self::PreconditionFailed => 412,
            Self::TooLarge => 413,
            Self::UnsupportedMedia => 415,
            Self::Unprocessable => 422,
            Self::Overloaded => 429,
            // The status that common proxies log for a client that closed its connection. No client receives it.
            Self::Cancelled => 499,
            Self::Internal => 500,
            Self::Unavailable => 503,
            Self::DeadlineExceeded => 504,
            Self::StorageFull => 507,
        }
    }

    /// OpenAI's `type`.
    pub fn openai_type(self) -> &'static str {
        match self.status() {
            401 => "authentication_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            503 => "service_unavailable_error",
            504 => "timeout_error",
            _ => "server_error",
        }
    }

    /// OpenAI's `code`; `None` where the type says enough.
    pub fn openai_code(self) -> Option<&'static str> {
        match self {
            Self::ContextLengthExceeded => Some("context_length_exceeded"),
            Self::NotFound => Some("not_found"),
            Self::ModelNotFound => Some("model_not_found"),
            Self::Conflict => Some("conflict"),
            Self::PreconditionFailed => Some("precondition_failed"),
            Self::TooLarge => Some("request_too_large"),
            Self::UnsupportedMedia => Some("unsupported_media_type"),
            Self::Overloaded => Some("overloaded"),
            Self::Unavailable => Some("no_worker"),
            Self::DeadlineExceeded => Some("deadline_exceeded"),
            Self::RequestTimeout => Some("request_timeout"),
            Self::StorageFull => Some("storage_full"),
            _ => None,
        }
    }

    /// Seconds after which a retry may succeed, for the `Retry-After` header.
    pub fn retry_after_s(self) -> Option<u32> {
        matches!(self, Self::Overloaded | Self::Unavailable).then_some(1)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.openai_code().unwrap_or_else(|| self.openai_type()))
    }
}

impl WireError {
    /// An error without a parameter at fault.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            param: None,
            retry_after_s: None,
            engine: None,
        }
    }

    /// An error for a parameter with an invalid value.
    pub fn invalid_param(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            kind: ErrorKind::InvalidRequest,
            message: message.into(),
            param: Some(param.into()),
            retry_after_s: None,
            engine: None,
        }
    }

    /// The HTTP status of an error answer.
    pub fn status(&self) -> u16 {
        let own = self.kind.status();
        self.engine.as_ref().map_or(own, |engine| engine.status)
    }

    /// The body of an OpenAI error answer: `{"error":{"message","type","param","code"}}`.
    pub fn to_openai_json(&self) -> String {
        if let Some(engine) = &self.engine {
            return engine.body.clone();
        }
        serde_json::json!({"error": {
            "message": self.message,
            "type": self.kind.openai_type(),
            "param": self.param,
            "code": self.kind.openai_code(),
        }})
        .to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_the_four_fields_openai_clients_read() {
        let error = WireError::invalid_param("max_tokens", "max_tokens is -1; give 1 or more");
        let body: serde_json::Value = serde_json::from_str(&error.to_openai_json()).unwrap();
        assert_eq!(body["error"]["type"], "invalid_request_error");
        assert_eq!(body["error"]["param"], "max_tokens");
        assert!(body["error"]["code"].is_null());
        assert_eq!(error.kind.status(), 400);
    }
}
