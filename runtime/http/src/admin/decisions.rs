//! `GET /admin/v1/decisions`: why requests went where they went.

use actix_web::{
    HttpRequest, HttpResponse,
    web::{Data, Query},
};
use serde::Deserialize;
use serde_json::json;
use signalbox_protocol::ErrorKind;
use signalbox_router::DecisionFilter;

use super::Admin;
use crate::error::ApiError;

/// Decisions in one answer, if the caller names no number.
const DEFAULT_LIMIT: usize = 20;
/// Most decisions in one answer. With 64 candidates each takes some 30 KB of JSON.
const MAX_LIMIT: usize = 256;
/// Most decisions in one answer whose policies are asked for their reasons: each may take some 100 ms.
const MAX_EXPLAINED: usize = 20;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DecisionsQuery {
    model: Option<String>,
    worker: Option<String>,
    /// `name` or `name@version`.
    policy: Option<String>,
    /// A request's id, as `x-request-id` gives it.
    request: Option<String>,
    limit: Option<usize>,
    /// Ask each decision's policy for its reason.
    #[serde(default)]
    explain: bool,
}

/// The latest decisions of this router, the latest first: what each saw and chose, in words, too, and what became of the
/// request. With `explain=true` the policies add their own reasons.
pub(crate) async fn list(request: HttpRequest, admin: Data<Admin>) -> Result<HttpResponse, ApiError> {
    let query = Query::<DecisionsQuery>::from_query(request.query_string()).map_err(|error| {
        let message = format!(
            "the query cannot be read: {error}; it may have model, worker, policy, request, limit and explain"
        );
        ApiError::new(ErrorKind::InvalidRequest, message)
    })?;
    let Query(DecisionsQuery {
        model,
        worker,
        policy,
        request,
        limit,
        explain,
    }) = query;
    let filter = DecisionFilter {
        model,
        worker,
        policy,
        request,
        explained: explain,
        limit: limit.unwrap_or(DEFAULT_LIMIT).min(match explain {
            true => MAX_EXPLAINED,
            false => MAX_LIMIT,
        }),
    };
    // Explanations run policies, and large answers are long to write: metrics and other calls of the admin API go on.
    let router = admin.router.clone();
    let decisions = actix_web::web::block(move || router.decisions(&filter))
        .await
        .map_err(|error| ApiError::new(ErrorKind::Internal, error.to_string()))?;
    Ok(HttpResponse::Ok().json(json!({"decisions": decisions})))
}
