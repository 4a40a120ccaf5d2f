//! The shape of an error, which depends on the API that the client called.
//!
//! | route | error answer | error in a stream |
//! |---|---|---|
//! | OpenAI's older ones and the engines' own | `{"error":{"message","type","param","code"}}` | `data:` with the same |
//! | `/v1/responses` | the same | `event: error` with `{"type":"error","code","message","param"}` |
//! | `/v1/messages` | `{"type":"error","error":{"type","message"}}` | `event: error` with the same |
//!
//! The error of an engine that reads bodies itself keeps its status and its body, unless a client of the route could not
//! read the body. Sources: <https://platform.openai.com/docs/api-reference/responses-streaming/error> and
//! <https://docs.anthropic.com/en/api/errors>.

use bytes::Bytes;
use serde_json::{Value, json};
use signalbox_protocol::{Endpoint, WireError};

/// The JSON body of an error answer.
pub(crate) fn body(endpoint: Endpoint, error: &WireError) -> String {
    match endpoint {
        Endpoint::Messages => anthropic(error),
        _ => error.to_openai_json(),
    }
}

/// The last event of a stream that failed.
pub(crate) fn event(endpoint: Endpoint, error: &WireError) -> Bytes {
    let event = match endpoint {
        Endpoint::Messages => format!("event: error\ndata: {}\n\n", in_one_line(anthropic(error))),
        Endpoint::Responses => format!("event: error\ndata: {}\n\n", responses_event(error)),
        _ => format!("data: {}\n\n", in_one_line(error.to_openai_json())),
    };
    Bytes::from(event)
}

/// An engine's document may have several lines, and a line break ends an event's data. In JSON it stands between tokens
/// only, where a space means the same.
fn in_one_line(json: String) -> String {
    if json.contains(['\n', '\r']) {
        json.replace(['\n', '\r'], " ")
    } else {
        json
    }
}

fn anthropic(error: &WireError) -> String {
    let message = match &error.engine {
        None => error.message.clone(),
        Some(engine) => {
            let body: Value = serde_json::from_str(&engine.body).unwrap_or_default();
            let has_shape = body["type"] == "error" && body["error"]["type"].is_string();
            match body["error"]["message"].as_str() {
                Some(_) if has_shape => return engine.body.clone(),
                Some(message) => message.to_owned(),
                None => error.message.clone(),
            }
        }
    };
    let kind = anthropic_type(error.status());
    json!({"type": "error", "error": {"type": kind, "message": message}}).to_string()
}

fn anthropic_type(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        503 | 529 => "overloaded_error",
        504 => "timeout_error",
        _ => "api_error",
    }
}

/// OpenAI's schema has the members at the top. OpenAI's client libraries raise an exception for an event with `error`.
fn responses_event(error: &WireError) -> Value {
    let body: Value = serde_json::from_str(&error.to_openai_json()).unwrap_or_default();
    let error = &body["error"];
    json!({
        "type": "error",
        "code": error["code"],
        "message": error["message"],
        "param": error["param"],
        "error": error,
    })
}

#[cfg(test)]
mod tests {
    use signalbox_protocol::{EngineError, ErrorKind};

    use super::*;

    fn engine_error(status: u16, body: &str) -> WireError {
        WireError {
            engine: Some(Box::new(EngineError {
                status,
                body: body.into(),
            })),
            ..WireError::new(ErrorKind::InvalidRequest, "the engine refused the request")
        }
    }

    fn data(event: &Bytes) -> Value {
        let text = std::str::from_utf8(event).unwrap();
        let data = text.strip_prefix("event: error\n").unwrap_or(text);
        let data = data
            .strip_prefix("data: ")
            .and_then(|data| data.strip_suffix("\n\n"));
        let data = data.unwrap_or_else(|| panic!("one event: {text:?}"));
        assert!(!data.contains(['\n', '\r']), "{text:?}");
        serde_json::from_str(data).unwrap()
    }

    #[test]
    fn an_error_of_messages_has_anthropics_shape() {
        for (kind, name) in [
            (ErrorKind::InvalidRequest, "invalid_request_error"),
            (ErrorKind::NotFound, "not_found_error"),
            (ErrorKind::TooLarge, "request_too_large"),
            (ErrorKind::Overloaded, "rate_limit_error"),
            (ErrorKind::Unavailable, "overloaded_error"),
            (ErrorKind::DeadlineExceeded, "timeout_error"),
            (ErrorKind::Internal, "api_error"),
        ] {
            let error = WireError::new(kind, "why");
            let expected = json!({"type": "error", "error": {"type": name, "message": "why"}});
            let shown: Value = serde_json::from_str(&body(Endpoint::Messages, &error)).unwrap();
            assert_eq!(shown, expected);
            let event = event(Endpoint::Messages, &error);
            assert!(event.starts_with(b"event: error\n"));
            assert_eq!(data(&event), expected);
        }
    }

    #[test]
    fn an_engines_error_is_converted_only_where_a_client_could_not_read_it() {
        let openai = engine_error(
            400,
            r#"{"error":{"message":"too long","type":"BadRequestError","param":null,"code":400}}"#,
        );
        assert_eq!(
            body(Endpoint::Chat, &openai),
            openai.engine.as_ref().unwrap().body
        );
        let shown: Value = serde_json::from_str(&body(Endpoint::Messages, &openai)).unwrap();
        let expected =
            json!({"type": "error", "error": {"type": "invalid_request_error", "message": "too long"}});
        assert_eq!(shown, expected);
        let anthropic = engine_error(
            400,
            r#"{"type": "error", "error": {"type": "BadRequestError", "message": "too long"}}"#,
        );
        assert_eq!(
            body(Endpoint::Messages, &anthropic),
            anthropic.engine.as_ref().unwrap().body
        );
        let broken = engine_error(502, "<html>");
        let shown: Value = serde_json::from_str(&body(Endpoint::Messages, &broken)).unwrap();
        assert_eq!(shown["error"]["message"], "the engine refused the request");
    }

    #[test]
    fn an_event_is_one_line_whatever_an_engine_writes() {
        let pretty = engine_error(500, "{\r\n  \"error\": {\n\"message\": \"a\\nb\"}}");
        for endpoint in Endpoint::ALL {
            assert_eq!(data(&event(endpoint, &pretty))["error"]["message"], "a\nb");
        }
    }

    #[test]
    fn an_error_event_of_responses_has_the_members_of_the_schema() {
        let error = WireError::invalid_param("input", "input is 7");
        let event = event(Endpoint::Responses, &error);
        assert!(event.starts_with(b"event: error\n"));
        let data = data(&event);
        assert_eq!(
            (&data["type"], &data["message"], &data["param"]),
            (&json!("error"), &json!("input is 7"), &json!("input"))
        );
        assert_eq!(data["error"]["type"], "invalid_request_error");
    }
}
