//! A body becomes a request that is ready to be routed: JSON, parameters, template, tokens.
//!
//! This is the work that takes time in proportion to the body. It needs nothing of the HTTP thread, so a large body is
//! read on another one ([`crate::prepare_pool`]).

use bytes::Bytes;
use signalbox_protocol::{Endpoint, WireError};
use signalbox_router::Router;

use crate::{
    every_form::{EveryForm, parse},
    frontend::served_model,
    openai::{Fields, take_model},
    tokenizer_calls,
};

/// What a body asks for.
#[derive(Debug)]
pub(crate) struct ReadRequest {
    /// The served model that the body names; `None` if it names none.
    pub(crate) model: Option<String>,
    /// What it asks of the model, or why there is nothing.
    pub(crate) asked: Result<Asked, WireError>,
}

/// What a body asks of a model.
#[derive(Debug)]
pub(crate) enum Asked {
    /// Answers to prompts that are routed one by one, at least one.
    Prompts(Vec<EveryForm>),
    /// What the router knows itself, which is this JSON document.
    Document(String),
}

/// Reads the body of a request to `endpoint`.
pub(crate) fn read_request(endpoint: Endpoint, body: &Bytes, router: &Router) -> ReadRequest {
    let named = parse(endpoint, body).and_then(|mut fields| {
        let name = model_name(endpoint, &mut fields, router)?;
        let model = served_model(router, &name)?;
        Ok((fields, name, model))
    });
    match named {
        Ok((mut fields, name, model)) => {
            let asked = if tokenizer_calls::is_one(endpoint) && !model.reads_body {
                tokenizer_calls::answer(endpoint, &mut fields, &model).map(Asked::Document)
            } else {
                EveryForm::read(endpoint, &name, fields, &model, body).map(Asked::Prompts)
            };
            ReadRequest {
                asked,
                model: Some(model.name),
            }
        }
        Err(error) => ReadRequest {
            model: None,
            asked: Err(error),
        },
    }
}

/// The model that the body names. Clients of `/tokenize` name none if one model is served, which vLLM allows.
fn model_name(endpoint: Endpoint, fields: &mut Fields, router: &Router) -> Result<String, WireError> {
    if tokenizer_calls::is_one(endpoint) && fields.is_absent("model") {
        let mut models = router.models();
        if let (Some(only), true) = (models.pop(), models.is_empty())
            && !only.reads_body
        {
            return Ok(only.name);
        }
    }
    take_model(fields)
}
