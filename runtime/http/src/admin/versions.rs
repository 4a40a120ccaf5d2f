//! The stored versions of policies, one by one, and the audit log.

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{CONTENT_DISPOSITION, ETAG},
    web::{Data, Path},
};
use serde_json::{Value, json};

use super::{Admin, caller};
use crate::error::ApiError;

/// `GET /admin/v1/policies`
pub(crate) async fn list(admin: Data<Admin>) -> HttpResponse {
    HttpResponse::Ok().json(json!({"policies": admin.router.policies().list()}))
}

/// `GET /admin/v1/policies/{policy}`: one version, and its latest quarantine at any router. `policy` is `name`,
/// `name@1.2.0`, `name@1` or `name@sha256:DIGITS`.
pub(crate) async fn show(policy: Path<String>, admin: Data<Admin>) -> Result<HttpResponse, ApiError> {
    let record = admin.router.policies().look_up(&policy)?;
    let quarantine = admin.router.policy_replicator().last_quarantine(&record).await?;
    let mut shown = json!(record);
    shown["last_quarantine"] = quarantine.map_or(Value::Null, |event| json!(event));
    Ok(HttpResponse::Ok().json(shown))
}

/// `GET /admin/v1/policies/{policy}/component`: the component's bytes.
pub(crate) async fn download(policy: Path<String>, admin: Data<Admin>) -> Result<HttpResponse, ApiError> {
    let record = admin.router.policies().look_up(&policy)?;
    let component = admin.router.policy_replicator().component(&record).await?;
    let file = format!("attachment; filename=\"{}-{}.wasm\"", record.name, record.version);
    Ok(HttpResponse::Ok()
        .content_type("application/wasm")
        .insert_header((CONTENT_DISPOSITION, file))
        .insert_header((ETAG, format!("\"sha256:{}\"", record.digest)))
        .body(component))
}

/// `DELETE /admin/v1/policies/{policy}`: deletes a version that no model uses, at every router.
pub(crate) async fn delete(
    request: HttpRequest,
    policy: Path<String>,
    admin: Data<Admin>,
) -> Result<HttpResponse, ApiError> {
    let replicator = admin.router.policy_replicator();
    let deleted = replicator.delete(&policy, caller::name(&request)).await?;
    Ok(HttpResponse::Ok().json(json!({"deleted": deleted})))
}

/// `GET /admin/v1/audit`: the latest changes of policies that this router made or received, the latest first.
pub(crate) async fn audit(admin: Data<Admin>) -> HttpResponse {
    HttpResponse::Ok().json(json!({"records": admin.router.audit().latest()}))
}
