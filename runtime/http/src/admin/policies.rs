//! Uploading policies and choosing which one decides.

use std::{sync::Arc, time::Duration};

use actix_web::{
    HttpRequest, HttpResponse,
    web::{self, Data, Path, Payload, Query},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use signalbox_protocol::{ErrorKind, WireError};
use signalbox_router::policies::{DepotError, Generation, PolicyDepot, PolicyRecord};
use tokio::time::timeout;

use super::Admin;
use crate::{body, error::ApiError, frontend::served_model};

/// Longest wait for an earlier upload to be checked: admission takes seconds at most, so a longer one means a queue.
const UPLOAD_WAIT: Duration = Duration::from_secs(30);

#[derive(Debug, Deserialize)]
struct UploadQuery {
    name: Option<String>,
    /// A JSON object; absent for the policy's defaults.
    settings: Option<String>,
}

/// `POST /admin/v1/policies?name=…[&settings=…]` with the component as its body: 201, or 200 where it is stored
/// already.
pub(crate) async fn upload(
    request: HttpRequest,
    payload: Payload,
    admin: Data<Admin>,
) -> Result<HttpResponse, ApiError> {
    let (name, settings) = upload_query(request.query_string())?;
    // Held while the body is read too: what waits is a connection, not a component in memory.
    let _turn = timeout(UPLOAD_WAIT, admin.uploads.acquire()).await.map_err(|_| {
        ApiError::new(
            ErrorKind::Overloaded,
            "other uploads are being checked; try again shortly",
        )
    })?;
    let component = body::read(&request, payload, admin.policy_limits).await?;
    let depot = admin.shared.policies().clone();
    let (record, created) = web::block(move || {
        let before = depot.list();
        let record = depot.upload(&name, &component, &settings)?;
        let same = |known: &PolicyRecord| (&known.name, &known.digest) == (&record.name, &record.digest);
        let created = !before.iter().any(same);
        Ok::<_, DepotError>((record, created))
    })
    .await
    .map_err(|_| broke_off())??;
    let mut response = if created {
        HttpResponse::Created()
    } else {
        HttpResponse::Ok()
    };
    Ok(response.json(record))
}

/// Name and settings; what they may be is the depot's to judge.
fn upload_query(query: &str) -> Result<(String, String), ApiError> {
    let UploadQuery { name, settings } = Query::<UploadQuery>::from_query(query)
        .map_err(|error| {
            let message =
                format!("the query cannot be read: {error}; give ?name=NAME and perhaps &settings=JSON");
            ApiError::new(ErrorKind::InvalidRequest, message)
        })?
        .into_inner();
    let name = name.ok_or_else(|| WireError::invalid_param("name", "name is missing; give ?name=NAME"))?;
    Ok((name, settings.unwrap_or_default()))
}

/// `GET /admin/v1/policies`
pub(crate) async fn list(admin: Data<Admin>) -> HttpResponse {
    HttpResponse::Ok().json(json!({"policies": admin.shared.policies().list()}))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Activation {
    /// `name`, for its newest version, or `name@version`.
    policy: String,
    #[serde(default)]
    settings: Option<Map<String, Value>>,
}

/// `PUT /admin/v1/models/{model}/policy`: the next decision for the model is by the policy named.
pub(crate) async fn activate(
    request: HttpRequest,
    model: Path<String>,
    payload: Payload,
    admin: Data<Admin>,
) -> Result<HttpResponse, ApiError> {
    let model = served_model(&admin.shared, &model)?.name;
    let body = body::read(&request, payload, admin.body_limits).await?;
    let Activation { policy, settings } = activation(&body)?;
    let settings = settings.map(|settings| Value::Object(settings).to_string());
    let depot = admin.shared.policies().clone();
    change(model, depot, move |depot, model| {
        depot.activate(model, &policy, settings.as_deref()).map(drop)
    })
    .await
}

fn activation(body: &[u8]) -> Result<Activation, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        let message = format!(
            r#"the body cannot be read: {error}; give {{"policy":"NAME"}} or {{"policy":"NAME@VERSION"}}"#
        );
        ApiError::new(ErrorKind::InvalidRequest, message)
    })
}

/// `POST /admin/v1/models/{model}/policy/rollback`: back to what decided before.
pub(crate) async fn rollback(model: Path<String>, admin: Data<Admin>) -> Result<HttpResponse, ApiError> {
    let model = served_model(&admin.shared, &model)?.name;
    change(model, admin.shared.policies().clone(), |depot, model| {
        depot.rollback(model).map(drop)
    })
    .await
}

/// `GET /admin/v1/models/{model}/policy`
pub(crate) async fn active(model: Path<String>, admin: Data<Admin>) -> Result<HttpResponse, ApiError> {
    let model = served_model(&admin.shared, &model)?.name;
    let depot = admin.shared.policies().clone();
    let active = web::block(move || json!({"active": describe(&deciding(&depot, &model)), "model": model}));
    Ok(HttpResponse::Ok().json(active.await.map_err(|_| broke_off())?))
}

/// Changes who decides for `model`, off this thread since new settings mean a new component, and tells who decides
/// now and who did before.
async fn change(
    model: String,
    depot: PolicyDepot,
    change: impl FnOnce(&PolicyDepot, &str) -> Result<(), DepotError> + Send + 'static,
) -> Result<HttpResponse, ApiError> {
    let changed = web::block(move || {
        let before = describe(&deciding(&depot, &model));
        change(&depot, &model)?;
        Ok::<_, DepotError>(
            json!({"active": describe(&deciding(&depot, &model)), "before": before, "model": model}),
        )
    });
    Ok(HttpResponse::Ok().json(changed.await.map_err(|_| broke_off())??))
}

/// What decides for `model` now.
fn deciding(depot: &PolicyDepot, model: &str) -> Option<Arc<Generation>> {
    depot.active(model).or_else(|| {
        // A model without requests so far has nobody in the seat yet: taking one brings the default policy.
        drop(depot.seat(model));
        depot.active(model)
    })
}

fn broke_off() -> ApiError {
    ApiError::new(ErrorKind::Internal, "the policy depot broke off; see the log")
}

fn describe(generation: &Option<Arc<Generation>>) -> Value {
    generation.as_ref().map_or(Value::Null, |generation| {
        let component = &generation.component;
        json!({
            "policy": &*generation.label,
            "generation": generation.number,
            "digest": component.digest(),
            "settings": serde_json::from_str::<Value>(component.settings()).unwrap_or(Value::Null),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_has_a_name_and_perhaps_settings() {
        assert_eq!(upload_query("name=mine").unwrap(), ("mine".into(), String::new()));
        let (_, settings) = upload_query("name=a&settings=%7B%22x%22%3A1%7D").unwrap();
        assert_eq!(settings, r#"{"x":1}"#);
        let ApiError(error) = upload_query("").unwrap_err();
        assert_eq!(
            (error.kind, error.param.as_deref()),
            (ErrorKind::InvalidRequest, Some("name"))
        );
        assert!(upload_query("name=a&name=b").is_err());
    }

    #[test]
    fn an_activation_names_a_policy_and_nothing_unknown() {
        let parsed = activation(br#"{"policy":"mine@1.0.0","settings":{"weight":2}}"#).unwrap();
        assert_eq!(parsed.policy, "mine@1.0.0");
        assert_eq!(parsed.settings.unwrap()["weight"], 2);
        for wrong in [
            "",
            "{}",
            r#"{"policy":1}"#,
            r#"{"policy":"a","setings":{}}"#,
            r#"{"policy":"a","settings":[]}"#,
        ] {
            assert!(activation(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
