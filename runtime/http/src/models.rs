//! `GET /v1/models` and `GET /v1/models/{id}`. A LoRA adapter is a model of its own.

use actix_web::{
    HttpRequest, HttpResponse,
    web::{Data, Path},
};
use serde_json::{Value, json};
use signalbox_router::ModelView;

use crate::{error, frontend::Frontend};

/// All served models, as OpenAI's list.
pub(crate) async fn list(frontend: Data<Frontend>) -> HttpResponse {
    let models: Vec<Value> = frontend.router.models().iter().map(describe).collect();
    HttpResponse::Ok().json(json!({"object": "list", "data": models}))
}

/// One served model; its name may contain slashes.
pub(crate) async fn one(request: HttpRequest, id: Path<String>, frontend: Data<Frontend>) -> HttpResponse {
    match frontend.model(&id) {
        Ok(model) => HttpResponse::Ok().json(describe(&model)),
        Err(error) => error::response(error, &error::request_id(&request)),
    }
}

/// OpenAI's model object, plus the longest context of any ready worker under vLLM's name for it, or null if the engine does not state it. A LoRA
/// adapter's also names the base model and where the engine loaded the adapter from, as vLLM does.
fn describe(model: &ModelView) -> Value {
    let context_length = model.longest_context();
    let mut described = json!({
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "signalbox",
        "max_model_len": (context_length != u32::MAX).then_some(context_length),
    });
    if let Some(adapter) = &model.adapter {
        described["root"] = json!(adapter.root);
        described["parent"] = json!(adapter.base);
    }
    described
}
