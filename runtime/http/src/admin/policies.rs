//! Activates policies and lists them.

use actix_web::{
    HttpRequest, HttpResponse,
    web::{Data, Path, Payload},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use signalbox_protocol::{ErrorKind, WireError};
use signalbox_router::{AdapterView, PolicyChange, Router, policies::Activation};

use super::Admin;
use crate::{body, error::ApiError, frontend::served_model};

/// `GET /admin/v1/policies`
pub(crate) async fn list(admin: Data<Admin>) -> HttpResponse {
    HttpResponse::Ok().json(json!({"policies": admin.router.policies().list()}))
}

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

/// `PUT /admin/v1/models/{model}/policy`: makes the named policy decide for the model from the next decision on, at every
/// router. 409 if `revision` is not the active policy's revision, or another router changed it at the same time.
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
    } = activation(&body.bytes)?;
    let replicator = admin.router.policy_replicator();
    let change = replicator.activate(&model, &policy, settings, revision).await?;
    Ok(changed(&model, &change))
}

fn activation(body: &[u8]) -> Result<ActivationRequest, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        let message = format!(
            r#"the body cannot be read: {error}; give {{"policy":"NAME"}} or {{"policy":"NAME@VERSION"}}, and optionally "settings":{{…}} and "revision":N"#
        );
        ApiError::new(ErrorKind::InvalidRequest, message)
    })
}

/// `POST /admin/v1/models/{model}/policy/rollback`: activates the previous policy again.
pub(crate) async fn rollback(model: Path<String>, admin: Data<Admin>) -> Result<HttpResponse, ApiError> {
    let model = decided_model(&admin.router, &model)?;
    let change = admin.router.policy_replicator().rollback(&model).await?;
    Ok(changed(&model, &change))
}

/// `GET /admin/v1/models/{model}/policy`
pub(crate) async fn active(model: Path<String>, admin: Data<Admin>) -> Result<HttpResponse, ApiError> {
    let model = decided_model(&admin.router, &model)?;
    let revision = admin.router.policy_replicator().revision(&model).await?;
    let active = describe(&admin.router.policies().deciding(&model));
    Ok(HttpResponse::Ok().json(json!({"active": active, "model": model, "revision": revision})))
}

/// The name of a served model that has a policy.
fn decided_model(router: &Router, name: &str) -> Result<String, WireError> {
    let model = served_model(router, name)?;
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

/// The active policy and the one before it.
fn changed(model: &str, change: &PolicyChange) -> HttpResponse {
    HttpResponse::Ok().json(json!({
        "active": describe(&change.active),
        "before": describe(&change.before),
        "model": model,
        "revision": change.revision,
    }))
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
