//! The policy of a model: activates, rolls back, and shows who changed what.

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::ETAG,
    web::{Data, Path, Payload},
};
use bytes::Bytes;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use signalbox_protocol::{ErrorKind, WireError};
use signalbox_router::{
    AdapterView, ChangeRequest, PolicyChange, PolicyChangeError, Router, policies::Activation,
};

use super::{Admin, caller};
use crate::{body, error::ApiError, frontend::served_model};

/// Longest name of a model whose policy is prepared before a worker serves it, in bytes. The store's keys have room for it.
const MAX_MODEL_BYTES: usize = 256;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ActivationRequest {
    /// `name` for the newest version, or `name@version`.
    policy: String,
    #[serde(default)]
    settings: Option<Map<String, Value>>,
    /// The revision of the activation to be replaced; `None` for the last one that this router has.
    #[serde(default)]
    revision: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RollbackRequest {
    /// The revision to return to; `None` for the one before the present one.
    #[serde(default)]
    to_revision: Option<u64>,
    /// As for an activation.
    #[serde(default)]
    revision: Option<u64>,
}

/// A change that a call asks for.
struct Asked {
    request: ChangeRequest,
    /// Whether the revision to be replaced is in `If-Match`.
    is_conditional: bool,
}

impl Asked {
    /// `revision` is that of the body; `If-Match` may have it instead.
    fn new(request: &HttpRequest, model: &str, revision: Option<u64>) -> Result<Self, WireError> {
        let condition = caller::if_match(request)?;
        if let (Some(in_head), Some(in_body)) = (condition, revision)
            && in_head != in_body
        {
            let message = format!("If-Match is {in_head} and revision is {in_body}; give one of them");
            return Err(WireError::invalid_param("revision", message));
        }
        Ok(Self {
            request: ChangeRequest {
                model: model.to_owned(),
                expected: condition.or(revision),
                by: caller::name(request),
            },
            is_conditional: condition.is_some(),
        })
    }
}

/// The error of a change: one that another change came before is a failed precondition, if the call stated one.
fn refused(error: PolicyChangeError, is_conditional: bool) -> ApiError {
    match error {
        PolicyChangeError::Changed(message) if is_conditional => {
            ApiError::new(ErrorKind::PreconditionFailed, message)
        }
        error => error.into(),
    }
}

/// `PUT /admin/v1/models/{model}/policy`: makes the named policy decide for the model from the next decision on, at every
/// router. 409 if `revision` is not the active policy's revision, or another router changed it at the same time; 412 if
/// `If-Match` is not. A model that no worker serves yet is prepared: the policy decides from its first request on.
pub(crate) async fn activate(
    request: HttpRequest,
    model: Path<String>,
    payload: Payload,
    admin: Data<Admin>,
) -> Result<HttpResponse, ApiError> {
    let model = decided_model(&admin.router, &model)?;
    let body = body::read(&request, payload, admin.body_limits, &admin.body_budget).await?;
    let ActivationRequest {
        policy,
        settings,
        revision,
    } = parse(
        &body.bytes,
        r#"{"policy":"NAME"} or {"policy":"NAME@VERSION"}, and optionally "settings":{…} and "revision":N"#,
    )?;
    let asked = Asked::new(&request, &model, revision)?;
    let replicator = admin.router.policy_replicator();
    let change = replicator.activate(asked.request, &policy, settings).await;
    let change = change.map_err(|error| refused(error, asked.is_conditional))?;
    Ok(changed(&admin.router, &model, &change))
}

/// `POST /admin/v1/models/{model}/policy/rollback`: activates the previous policy again, or with `to_revision` in the body
/// the one that had this revision.
pub(crate) async fn rollback(
    request: HttpRequest,
    model: Path<String>,
    payload: Payload,
    admin: Data<Admin>,
) -> Result<HttpResponse, ApiError> {
    let model = decided_model(&admin.router, &model)?;
    let body = body::read(&request, payload, admin.body_limits, &admin.body_budget).await?;
    let RollbackRequest {
        to_revision,
        revision,
    } = parse_or_default(
        &body.bytes,
        r#"nothing, or {"to_revision":N} and optionally "revision":N"#,
    )?;
    let asked = Asked::new(&request, &model, revision)?;
    let replicator = admin.router.policy_replicator();
    let change = replicator.rollback(asked.request, to_revision).await;
    let change = change.map_err(|error| refused(error, asked.is_conditional))?;
    Ok(changed(&admin.router, &model, &change))
}

/// `GET /admin/v1/models/{model}/policy`
pub(crate) async fn active(model: Path<String>, admin: Data<Admin>) -> Result<HttpResponse, ApiError> {
    let (model, revision) = known_model(&admin.router, &model).await?;
    let mut shown = json!({
        "active": describe(&admin.router.policies().deciding(&model)),
        "model": model,
        "revision": revision,
    });
    shown["served"] = admin.router.model(&model).is_some().into();
    Ok(with_etag(revision, &shown))
}

/// `GET /admin/v1/models/{model}/policy/history`: the changes of the model's policy, the latest first.
pub(crate) async fn history(model: Path<String>, admin: Data<Admin>) -> Result<HttpResponse, ApiError> {
    let (model, revision) = known_model(&admin.router, &model).await?;
    let history = admin.router.policy_replicator().history(&model).await?;
    let shown = json!({"model": model, "revision": revision, "history": history});
    Ok(with_etag(revision, &shown))
}

fn with_etag(revision: u64, body: &Value) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((ETAG, format!("\"{revision}\"")))
        .json(body)
}

fn parse<T: DeserializeOwned>(body: &[u8], form: &str) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        let message = format!("the body cannot be read: {error}; give {form}");
        ApiError::new(ErrorKind::InvalidRequest, message)
    })
}

fn parse_or_default<T: DeserializeOwned + Default>(body: &Bytes, form: &str) -> Result<T, ApiError> {
    match body.is_empty() {
        true => Ok(T::default()),
        false => parse(body, form),
    }
}

/// The name of a model that has a policy, or can get one before a worker serves it.
fn decided_model(router: &Router, name: &str) -> Result<String, WireError> {
    let Some(model) = router.model(name) else {
        let is_possible =
            !name.is_empty() && name.len() <= MAX_MODEL_BYTES && !name.contains(char::is_control);
        return match is_possible {
            true => Ok(name.to_owned()),
            false => Err(WireError::invalid_param(
                "model",
                format!("a model's name has 1 to {MAX_MODEL_BYTES} bytes and no control characters"),
            )),
        };
    };
    match model.adapter {
        None => Ok(model.name),
        Some(AdapterView { base, .. }) => {
            let message = format!(
                "{name} is a LoRA adapter of {base}, whose policy decides for it too: use /admin/v1/models/{base}/policy"
            );
            Err(WireError::invalid_param("model", message))
        }
    }
}

/// The name of a model that is served or has a policy, and the revision of the choice for it.
async fn known_model(router: &Router, name: &str) -> Result<(String, u64), ApiError> {
    let model = decided_model(router, name)?;
    let revision = router.policy_replicator().revision(&model).await?;
    if revision == 0 {
        served_model(router, &model)?;
    }
    Ok((model, revision))
}

/// The active policy and the one before it.
fn changed(router: &Router, model: &str, change: &PolicyChange) -> HttpResponse {
    let shown = json!({
        "active": describe(&change.active),
        "before": describe(&change.before),
        "model": model,
        "revision": change.revision,
        "served": router.model(model).is_some(),
    });
    with_etag(change.revision, &shown)
}

fn describe(activation: &Activation) -> Value {
    let component = &activation.component;
    json!({
        "policy": &*activation.label,
        "generation": activation.number,
        "digest": component.digest(),
        "settings": component.settings_json(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn activation(body: &[u8]) -> Result<ActivationRequest, ApiError> {
        parse(body, "{}")
    }

    #[test]
    fn a_rollback_has_no_body_or_names_a_revision() {
        let read = |body: &'static str| {
            parse_or_default::<RollbackRequest>(&body.into(), "").map(|request| request.to_revision)
        };
        assert_eq!(read("").ok(), Some(None));
        assert_eq!(read(r#"{"to_revision":7}"#).ok(), Some(Some(7)));
        assert!(read(r#"{"to":7}"#).is_err());
    }

    #[test]
    fn an_activation_with_unknown_members_is_refused() {
        let parsed = activation(br#"{"policy":"mine@1.0.0","settings":{"weight":2},"revision":7}"#).unwrap();
        assert_eq!((parsed.policy.as_str(), parsed.revision), ("mine@1.0.0", Some(7)));
        assert_eq!(parsed.settings.unwrap()["weight"], 2);
        for wrong in [
            "",
            "{}",
            r#"{"policy":1}"#,
            r#"{"policy":"a","setings":{}}"#,
            r#"{"policy":"a","settings":[]}"#,
            r#"{"policy":"a","revision":-1}"#,
        ] {
            assert!(activation(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
