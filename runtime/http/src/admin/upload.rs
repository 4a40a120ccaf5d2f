//! Uploads policies.
//!
//! A component is the body of a request, with its name and settings in the query. The head of a request is limited, so long
//! settings do not fit there: they travel in a JSON document, beside the component in base64.

use std::time::Duration;

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::CONTENT_TYPE,
    web::{Data, Payload, Query},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value};
use signalbox_protocol::{ErrorKind, WireError};
use signalbox_router::policies::{AdmissionError, MAX_SETTINGS_BYTES, RegistryError};
use tokio::time::timeout;

use super::{Admin, caller};
use crate::{
    body::{self, BodyLimits},
    error::ApiError,
};

/// Longest wait for earlier uploads to be checked. Checking one takes seconds at most, so a longer wait means a queue.
const UPLOAD_WAIT: Duration = Duration::from_secs(30);

/// Room in a document for names and for the white space of settings, in bytes.
const DOCUMENT_SPARE: usize = 64 << 10;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UploadQuery {
    name: Option<String>,
    /// A JSON object; `None` for the policy's defaults.
    settings: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UploadDocument {
    /// The component in base64.
    component: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    settings: Option<Map<String, Value>>,
}

/// What an upload consists of; the registry checks the values.
#[derive(Debug, PartialEq)]
struct Upload {
    name: String,
    component: Bytes,
    /// A JSON object, or empty for the policy's defaults.
    settings: String,
}

/// `POST /admin/v1/policies?name=…[&settings=…]` with the component as its body, or with a JSON document
/// `{"component":BASE64}`, which can also have the name and the settings: 201, or 200 if it is already stored.
pub(crate) async fn upload(
    request: HttpRequest,
    payload: Payload,
    admin: Data<Admin>,
) -> Result<HttpResponse, ApiError> {
    let query = upload_query(request.query_string())?;
    let is_document = is_json(&request);
    if !is_document && query.name.is_none() {
        return Err(no_name().into());
    }
    // Held while the body is read too, so that a waiting upload takes no memory for its component.
    let _turn = timeout(UPLOAD_WAIT, admin.uploads.acquire()).await.map_err(|_| {
        ApiError::new(
            ErrorKind::Overloaded,
            "other uploads are being checked; try again shortly",
        )
    })?;
    let limit = admin.policy_limits.bytes;
    // A larger component would be refused after reading.
    let bytes = if is_document {
        limit.div_ceil(3) * 4 + MAX_SETTINGS_BYTES + DOCUMENT_SPARE
    } else {
        limit
    };
    let limits = BodyLimits {
        bytes,
        ..admin.policy_limits
    };
    let body = body::read(&request, payload, limits, &admin.body_budget)
        .await
        .map_err(|error| match error.kind {
            // The registry's message: its limit is the same.
            ErrorKind::TooLarge => RegistryError::from(AdmissionError::TooLarge { limit }).into(),
            _ => ApiError(error),
        })?;
    let Upload {
        name,
        component,
        settings,
    } = if is_document {
        from_document(&body.bytes, query)?
    } else {
        from_bytes(body.bytes, query)?
    };
    let replicator = admin.router.policy_replicator();
    let by = caller::name(&request);
    let (record, created) = replicator.upload(name, component, settings, by).await?;
    let mut response = if created {
        HttpResponse::Created()
    } else {
        HttpResponse::Ok()
    };
    Ok(response.json(record))
}

fn is_json(request: &HttpRequest) -> bool {
    let content_type = request.headers().get(CONTENT_TYPE);
    content_type
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|mime| mime.trim().eq_ignore_ascii_case("application/json"))
}

fn upload_query(query: &str) -> Result<UploadQuery, ApiError> {
    let query = Query::<UploadQuery>::from_query(query).map_err(|error| {
        let message =
            format!("the query cannot be read: {error}; give ?name=NAME and optionally &settings=JSON");
        ApiError::new(ErrorKind::InvalidRequest, message)
    })?;
    Ok(query.into_inner())
}

fn from_bytes(component: Bytes, query: UploadQuery) -> Result<Upload, WireError> {
    Ok(Upload {
        name: query.name.ok_or_else(no_name)?,
        component,
        settings: query.settings.unwrap_or_default(),
    })
}

fn from_document(body: &[u8], query: UploadQuery) -> Result<Upload, WireError> {
    let document: UploadDocument = serde_json::from_slice(body).map_err(|error| {
        let message = format!(
            r#"the body cannot be read: {error}; give {{"name":"NAME","component":BASE64}} and optionally "settings":{{…}}, or send the component's bytes with the content type application/wasm"#
        );
        WireError::new(ErrorKind::InvalidRequest, message)
    })?;
    let component = BASE64_STANDARD.decode(document.component).map_err(|error| {
        WireError::invalid_param("component", format!("component is not base64: {error}"))
    })?;
    let given = document.settings.map(|settings| match settings.is_empty() {
        true => String::new(),
        false => Value::Object(settings).to_string(),
    });
    Ok(Upload {
        name: once("name", document.name, query.name)?.ok_or_else(no_name)?,
        component: component.into(),
        settings: once("settings", given, query.settings)?.unwrap_or_default(),
    })
}

/// A value that the document or the query may have.
fn once(
    param: &str,
    in_document: Option<String>,
    in_query: Option<String>,
) -> Result<Option<String>, WireError> {
    if in_document.is_some() && in_query.is_some() {
        let message = format!("{param} is in the query and in the body; give it once");
        return Err(WireError::invalid_param(param, message));
    }
    Ok(in_document.or(in_query))
}

fn no_name() -> WireError {
    WireError::invalid_param("name", "name is missing; give ?name=NAME")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_has_a_name_and_optional_settings() {
        let read = |query: &str| from_bytes(Bytes::new(), upload_query(query).unwrap());
        let upload = read("name=mine").unwrap();
        assert_eq!((upload.name.as_str(), upload.settings.as_str()), ("mine", ""));
        let upload = read("name=a&settings=%7B%22x%22%3A1%7D").unwrap();
        assert_eq!(upload.settings, r#"{"x":1}"#);
        let error = read("").unwrap_err();
        assert_eq!(
            (error.kind, error.param.as_deref()),
            (ErrorKind::InvalidRequest, Some("name"))
        );
        assert!(upload_query("name=a&name=b").is_err());
        let ApiError(unknown) = upload_query("name=a&seting=%7B%7D").unwrap_err();
        assert_eq!(unknown.kind, ErrorKind::InvalidRequest);
        assert!(unknown.message.contains("seting"), "{unknown}");
    }

    #[test]
    fn a_document_has_the_component_in_base64_and_long_settings() {
        let query = |text: &str| upload_query(text).unwrap();
        let settings = serde_json::json!({"table": "x".repeat(60_000)});
        let body =
            serde_json::json!({"name": "mine", "component": "AGFzbQ==", "settings": settings}).to_string();
        let upload = from_document(body.as_bytes(), query("")).unwrap();
        assert_eq!(
            (upload.name.as_str(), &upload.component[..]),
            ("mine", &b"\0asm"[..])
        );
        assert_eq!(upload.settings, settings.to_string());
        let upload = from_document(br#"{"component":"AGFzbQ==","settings":{}}"#, query("name=a")).unwrap();
        assert_eq!((upload.name.as_str(), upload.settings.as_str()), ("a", ""));
        for (body, in_query, param) in [
            (r#"{"component":"AGFzbQ=="}"#, "", Some("name")),
            (r#"{"component":"AGFzbQ==","name":"a"}"#, "name=a", Some("name")),
            (
                r#"{"component":"AGFzbQ==","settings":{}}"#,
                "name=a&settings={}",
                Some("settings"),
            ),
            (r#"{"component":"%"}"#, "name=a", Some("component")),
            (r#"{"component":"AGFzbQ==","setings":{}}"#, "name=a", None),
            ("{}", "name=a", None),
            ("", "name=a", None),
        ] {
            let error = from_document(body.as_bytes(), query(in_query)).unwrap_err();
            assert_eq!(
                (error.kind, error.param.as_deref()),
                (ErrorKind::InvalidRequest, param),
                "{body}"
            );
        }
    }
}
