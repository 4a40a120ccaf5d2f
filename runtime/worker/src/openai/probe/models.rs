//! The answer to `GET /v1/models`.

use serde::Deserialize;

/// The models that an engine serves: one base model, and its LoRA adapters.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ModelList {
    pub(crate) base: Model,
    /// The names of the adapters in requests.
    pub(crate) adapters: Vec<String>,
    pub(crate) owned_by: Option<String>,
}

/// One model. vLLM and SGLang state more than OpenAI's API has.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Model {
    pub(crate) id: String,
    pub(crate) root: Option<String>,
    parent: Option<String>,
    pub(crate) max_model_len: Option<u32>,
    owned_by: Option<String>,
}

#[derive(Deserialize)]
struct Answer {
    data: Vec<Model>,
}

impl ModelList {
    /// `None` if the answer is none, or has no model.
    pub(crate) fn parse(json: &[u8]) -> Option<Self> {
        let answer: Answer = serde_json::from_slice(json).ok()?;
        let (bases, adapters): (Vec<_>, Vec<_>) =
            answer.data.into_iter().partition(|model| model.parent.is_none());
        // Further names of the same model follow the first.
        let base = bases.into_iter().next()?;
        Some(Self {
            owned_by: base.owned_by.clone(),
            adapters: adapters.into_iter().map(|model| model.id).collect(),
            base,
        })
    }
}
