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
    openai::take_model,
};

/// What a body asks for.
#[derive(Debug)]
pub(crate) struct ReadRequest {
    /// The served model that the body names; `None` if it names none.
    pub(crate) model: Option<String>,
    /// The prompts that are routed one by one, at least one; or why there is none.
    pub(crate) prompts: Result<Vec<EveryForm>, WireError>,
}

/// Reads the body of a request to `endpoint`.
pub(crate) fn read_request(endpoint: Endpoint, body: &Bytes, router: &Router) -> ReadRequest {
    let named = parse(endpoint, body).and_then(|mut fields| {
        let name = take_model(&mut fields)?;
        let model = served_model(router, &name)?;
        Ok((fields, name, model))
    });
    match named {
        Ok((fields, name, model)) => ReadRequest {
            prompts: EveryForm::read(endpoint, &name, fields, &model, body),
            model: Some(model.name),
        },
        Err(error) => ReadRequest {
            model: None,
            prompts: Err(error),
        },
    }
}
