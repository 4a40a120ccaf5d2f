//! Turns the error answers of engines into errors for routers and clients.
//!
//! The client receives the engine's status and body, in OpenAI's shape. vLLM writes that shape, SGLang the inner object
//! alone, and FastAPI, under both, `{"detail": …}` for unknown routes and invalid bodies. The kind of the error decides
//! what the router does: an engine that is overloaded or in trouble makes it try another worker.

use bytes::Bytes;
use hyper::StatusCode;
use serde_json::{Value, json};
use signalbox_protocol::{EngineError, ErrorKind, WireError};

/// The error of an answer with an error status.
pub(crate) fn wire_error(status: StatusCode, body: &Bytes) -> WireError {
    let error = error_object(status, body);
    let text = |key: &str| error.get(key).and_then(Value::as_str).map(str::to_owned);
    let message = text("message").unwrap_or_else(|| format!("the engine answered {status}"));
    WireError {
        kind: match kind_of(status) {
            ErrorKind::InvalidRequest if is_about_context(&message) => ErrorKind::ContextLengthExceeded,
            // SGLang refuses with a 503 where vLLM and others do with a 429.
            ErrorKind::Unavailable if message.to_ascii_lowercase().contains("queue is full") => {
                ErrorKind::Overloaded
            }
            kind => kind,
        },
        message,
        param: text("param"),
        retry_after_s: None,
        engine: Some(Box::new(EngineError {
            status: status.as_u16(),
            body: json!({"error": error}).to_string(),
        })),
    }
}

/// OpenAI's error object in an error answer of any known shape.
fn error_object(status: StatusCode, body: &Bytes) -> Value {
    let made = |message: String| {
        json!({
            "message": message,
            "type": kind_of(status).openai_type(),
            "param": null,
            "code": status.as_u16(),
        })
    };
    match serde_json::from_slice::<Value>(body) {
        Ok(Value::Object(mut answer)) => match (answer.remove("error"), answer.remove("detail")) {
            (Some(Value::Object(error)), _) => Value::Object(error),
            (Some(Value::String(message)), _) | (None, Some(Value::String(message))) => made(message),
            (None, Some(detail)) => made(detail.to_string()),
            // SGLang's object has an `object` beside the members of OpenAI's.
            (None, None) if answer.contains_key("message") => {
                answer.remove("object");
                Value::Object(answer)
            }
            _ => made(format!("the engine answered {status}: {}", excerpt(body))),
        },
        _ if body.trim_ascii().is_empty() => made(format!("the engine answered {status}")),
        _ => made(format!("the engine answered {status}: {}", excerpt(body))),
    }
}

fn kind_of(status: StatusCode) -> ErrorKind {
    match status.as_u16() {
        401 | 403 => ErrorKind::Unauthorized,
        404 => ErrorKind::NotFound,
        405 => ErrorKind::MethodNotAllowed,
        408 => ErrorKind::RequestTimeout,
        409 => ErrorKind::Conflict,
        413 => ErrorKind::TooLarge,
        415 => ErrorKind::UnsupportedMedia,
        422 => ErrorKind::Unprocessable,
        429 => ErrorKind::Overloaded,
        // vLLM that is shutting down answers 500 to new requests, so that another worker should be tried.
        500..=599 => ErrorKind::Unavailable,
        _ => ErrorKind::InvalidRequest,
    }
}

/// Whether a refusal says that the prompt is too long for the engine's context: another engine of the model may have a
/// longer one. The phrases are those of vLLM and SGLang.
fn is_about_context(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    [
        "maximum context length",
        "maximum model length",
        "context length (",
    ]
    .iter()
    .any(|phrase| message.contains(phrase))
}

/// The beginning of a body that is not JSON.
fn excerpt(body: &Bytes) -> String {
    const LONGEST: usize = 200;
    let text = String::from_utf8_lossy(&body[..body.len().min(4 * LONGEST)]);
    text.chars().take(LONGEST).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(status: u16, body: &str) -> (ErrorKind, String, Value) {
        let status = StatusCode::from_u16(status).unwrap();
        let error = wire_error(status, &Bytes::copy_from_slice(body.as_bytes()));
        let engine = error.engine.unwrap();
        assert_eq!(engine.status, status.as_u16());
        (
            error.kind,
            error.message,
            serde_json::from_str(&engine.body).unwrap(),
        )
    }

    #[test]
    fn an_error_of_vllm_keeps_its_members() {
        let body = r#"{"error":{"message":"This model's maximum context length is 4096 tokens.","type":"BadRequestError","param":"input_tokens","code":400}}"#;
        let (kind, message, shape) = error(400, body);
        assert_eq!(kind, ErrorKind::ContextLengthExceeded);
        assert!(message.starts_with("This model's maximum"));
        assert_eq!(shape, serde_json::from_str::<Value>(body).unwrap());
    }

    #[test]
    fn other_shapes_become_openais() {
        let (_, message, shape) = error(
            400,
            r#"{"object":"error","message":"too long","type":"BadRequestError","param":null,"code":400}"#,
        );
        assert_eq!(
            (message.as_str(), &shape["error"]["code"]),
            ("too long", &json!(400))
        );
        assert!(shape["error"].get("object").is_none());

        let (kind, message, shape) = error(404, r#"{"detail":"Not Found"}"#);
        assert_eq!((kind, message.as_str()), (ErrorKind::NotFound, "Not Found"));
        assert_eq!(shape["error"]["type"], "invalid_request_error");

        let (kind, message, _) = error(422, r#"{"detail":[{"loc":["body","model"],"msg":"missing"}]}"#);
        assert!(
            kind == ErrorKind::Unprocessable && message.contains("missing"),
            "{message}"
        );

        for body in ["", "<html>Bad Gateway</html>", "[]", "{}", r#"{"error":null}"#] {
            let (kind, message, shape) = error(502, body);
            assert_eq!(kind, ErrorKind::Unavailable);
            assert!(
                message.contains("502") && shape["error"]["message"] == message,
                "{body}: {message}"
            );
        }
        assert!(error(500, &"é".repeat(1_000)).1.len() < 600);
    }

    #[test]
    fn an_engine_in_trouble_makes_the_router_try_another_worker() {
        for (status, kind) in [
            (429, ErrorKind::Overloaded),
            (500, ErrorKind::Unavailable),
            (503, ErrorKind::Unavailable),
            (400, ErrorKind::InvalidRequest),
            (401, ErrorKind::Unauthorized),
        ] {
            assert_eq!(error(status, "{}").0, kind);
        }
        let full = r#"{"object":"error","message":"The request queue is full.","code":503}"#;
        assert_eq!(
            error(503, full).0,
            ErrorKind::Overloaded,
            "no trouble, but no room"
        );
    }
}
