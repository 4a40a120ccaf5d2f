//! `GET /v1/models`, `GET /v1/models/{id}` and `GET /tokenizer_info`. A LoRA adapter is a model of its own.

use actix_web::{
    HttpRequest, HttpResponse,
    web::{Data, Path},
};
use serde_json::{Value, json};
use signalbox_protocol::{ErrorKind, WireError};
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

/// The special tokens of the one model that engines of this repository serve, under vLLM's names. Clients such as lm-eval look
/// here for a tokenizer that they can call, and name no model.
pub(crate) async fn tokenizer(request: HttpRequest, frontend: Data<Frontend>) -> HttpResponse {
    let models = frontend.router.models();
    let [model] = &models[..] else {
        return no_tokenizer(&request, "there is not one served model");
    };
    if model.reads_body {
        return no_tokenizer(&request, "the engine of the model does not tell its tokenizer");
    }
    let special = model.text.special_tokens();
    let [bos, eos, pad, unk] = [&special.bos, &special.eos, &special.pad, &special.unk]
        .map(|token| token.as_ref().map(|token| token.content.as_str()));
    HttpResponse::Ok().json(json!({"bos_token": bos, "eos_token": eos, "pad_token": pad, "unk_token": unk}))
}

fn no_tokenizer(request: &HttpRequest, why: &str) -> HttpResponse {
    let error = WireError::new(ErrorKind::NotFound, why);
    error::response(error, &error::request_id(request))
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
