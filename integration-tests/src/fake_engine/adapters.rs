//! LoRA adapters: which are loaded, and which one a request means.
//!
//! vLLM takes an adapter's name as the model of a request. SGLang does not look at that name, but for `model:adapter`; the
//! adapter is in `lora_path`, and without one the base model answers. Both load and unload adapters while they run.

use parking_lot::Mutex;
use serde_json::Value;

use super::{
    options::{EngineOptions, Flavour},
    request::{self, Refusal},
};

/// The names of the loaded adapters, in the order in which they were loaded.
#[derive(Debug)]
pub(super) struct Adapters(Mutex<Vec<String>>);

impl Adapters {
    pub(super) fn new(names: Vec<String>) -> Self {
        Self(Mutex::new(names))
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.0.lock().clone()
    }

    fn has(&self, name: &str) -> bool {
        self.0.lock().iter().any(|adapter| adapter == name)
    }

    /// `/v1/load_lora_adapter`
    pub(super) fn load(&self, body: &Value) -> Result<String, Refusal> {
        let name = name_of(body)?;
        let mut names = self.0.lock();
        if names.contains(&name) {
            return Err(Refusal::bad(format!(
                "The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set \
                 'load_inplace' to True."
            )));
        }
        names.push(name.clone());
        Ok(format!("Success: LoRA adapter '{name}' added successfully."))
    }

    /// `/v1/unload_lora_adapter`
    pub(super) fn unload(&self, body: &Value) -> Result<String, Refusal> {
        let name = name_of(body)?;
        let mut names = self.0.lock();
        let Some(place) = names.iter().position(|adapter| *adapter == name) else {
            return Err(Refusal {
                status: 404,
                kind: "NotFoundError",
                message: format!("The lora adapter '{name}' cannot be found."),
                param: None,
            });
        };
        names.remove(place);
        Ok(format!("Success: LoRA adapter '{name}' removed successfully."))
    }

    /// Checks the `model` of a request to an engine with these options. Returns the adapter that the request means, if any.
    pub(super) fn check_model(
        &self,
        body: &Value,
        options: &EngineOptions,
    ) -> Result<Option<String>, Refusal> {
        let model = body["model"].as_str().unwrap_or(&options.model);
        match options.flavour {
            Flavour::Vllm if model == options.model => Ok(None),
            Flavour::Vllm if self.has(model) => Ok(Some(model.to_owned())),
            Flavour::Vllm => {
                let mut aliases = vec![options.model.clone()];
                aliases.extend(self.names());
                Err(Refusal {
                    status: 404,
                    kind: "NotFoundError",
                    message: format!(
                        "The model `{model}` does not exist. Valid aliases: {}.",
                        aliases.join(", ")
                    ),
                    param: Some("model".into()),
                })
            }
            Flavour::Sglang => {
                let named = model.split_once(':').map(|(_, adapter)| adapter);
                let adapter = named.or_else(|| body["lora_path"].as_str());
                if let Some(unknown) = adapter.filter(|adapter| !self.has(adapter)) {
                    return Err(Refusal::bad(format!(
                        "Got LoRA adapter that has never been loaded: {unknown}. All loaded adapters: {:?}.",
                        self.names()
                    )));
                }
                Ok(adapter.map(String::from))
            }
        }
    }
}

fn name_of(body: &Value) -> Result<String, Refusal> {
    let name = request::required(body, "lora_name")?;
    Ok(name.as_str().unwrap_or_default().to_owned())
}
