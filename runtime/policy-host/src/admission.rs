//! What a component has to pass before it may decide anything: its form, its imports and exports, its settings, and
//! decisions on made-up candidates under the limits it will have later.
//!
//! Every refusal is a sentence for the author: what is wrong, and what would be right.

use std::sync::Arc;

use serde_json::Value;
use sha2::{Digest, Sha256};
use wasmtime::component::{Component, InstancePre, Linker};

use crate::{
    bindings::{explainer, observer, routing, state},
    component::{Exports, PolicyComponent},
    engine::PolicyEngine,
    fault::PolicyFault,
    features::Decision,
    instance::{Description, PolicyInstance},
    sandbox::Sandbox,
};

mod inspect;
mod trial;

pub use trial::trial_requests;

/// The interface whose absence makes a component no policy.
const ROUTING: &str = "signalbox:policy/routing@0.1.0";
/// All that may be imported: the types, which are no code. Any 0.1 will do.
const TYPES: &str = "signalbox:policy/types@0.1.";
/// What a refusal of foreign imports or exports ends with.
const SEE_WIT: &str = "see the world `policy` in wit/policy.wit";

/// Longest settings, in bytes: policies have a handful of numbers.
const MAX_SETTINGS_BYTES: usize = 64 << 10;

/// Why an upload is not accepted; each message names the trouble and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// More bytes than are accepted.
    #[error("the component is larger than {limit} bytes, the most a policy may have")]
    TooLarge {
        /// Bytes it may have.
        limit: usize,
    },
    /// Not a policy of this world, or one that failed its trial.
    #[error("{0}")]
    Unsound(String),
    /// A sound policy that does not take these settings.
    #[error("the settings are refused: {0}")]
    Settings(String),
}

fn unsound(message: impl Into<String>) -> AdmissionError {
    AdmissionError::Unsound(message.into())
}

impl PolicyEngine {
    /// Checks, compiles, configures and tries `wasm`. Takes some 50 ms for a policy in Rust and seconds at most (one
    /// compilation at a time): call it off the request threads. `settings` are JSON, or empty for the defaults.
    ///
    /// # Errors
    /// Whatever makes it unfit, as a sentence for its author.
    pub fn admit(&self, wasm: &[u8], settings: &str) -> Result<Arc<PolicyComponent>, AdmissionError> {
        let limit = self.0.limits.max_component_bytes;
        if wasm.len() > limit {
            return Err(AdmissionError::TooLarge { limit });
        }
        inspect::inspect(wasm)?;
        let compiled = {
            let _one_at_a_time = self.0.compiling.lock();
            Component::new(&self.0.wasm, wasm)
        };
        let component =
            compiled.map_err(|error| unsound(format!("the component is not valid: {error:#}")))?;
        self.check_imports(&component)?;
        let exports = self.find_exports(&component)?;
        let digest: String = Sha256::digest(wasm)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        self.try_out(PolicyComponent {
            engine: self.clone(),
            exports,
            description: Description::default(),
            digest: digest.into(),
            settings: settings.to_owned(),
            size_bytes: wasm.len(),
        })
    }

    /// The same component with other settings, tried anew but not compiled again.
    ///
    /// # Errors
    /// It refuses the settings, or faults with them.
    pub fn reconfigure(
        &self,
        component: &PolicyComponent,
        settings: &str,
    ) -> Result<Arc<PolicyComponent>, AdmissionError> {
        self.try_out(PolicyComponent {
            engine: self.clone(),
            exports: component.exports.clone(),
            description: Description::default(),
            digest: Arc::clone(&component.digest),
            settings: settings.to_owned(),
            size_bytes: component.size_bytes,
        })
    }

    fn check_imports(&self, component: &Component) -> Result<(), AdmissionError> {
        let ty = component.component_type();
        let foreign: Vec<&str> = ty
            .imports(&self.0.wasm)
            .map(|(name, _)| name)
            .filter(|name| !name.starts_with(TYPES))
            .collect();
        if foreign.is_empty() {
            return Ok(());
        }
        let wasi = if foreign.iter().any(|name| name.starts_with("wasi:")) {
            "; build it for wasm32-unknown-unknown, which has no WASI"
        } else {
            ""
        };
        Err(unsound(format!(
            "it imports {}; a policy may import nothing but {TYPES}x{wasi}; {SEE_WIT}",
            foreign.join(", ")
        )))
    }

    fn find_exports(&self, component: &Component) -> Result<Exports, AdmissionError> {
        let pre: InstancePre<Sandbox> = Linker::new(&self.0.wasm)
            .instantiate_pre(component)
            .map_err(|error| unsound(format!("it does not fit this host: {error:#}; {SEE_WIT}")))?;
        let routing = routing::GuestIndices::new(&pre).map_err(|_| {
            let ty = component.component_type();
            let exports: Vec<&str> = ty.exports(&self.0.wasm).map(|(name, _)| name).collect();
            let found = if exports.is_empty() {
                "nothing".into()
            } else {
                exports.join(", ")
            };
            unsound(format!(
                "it exports {found}; a policy exports {ROUTING}, whole; {SEE_WIT}"
            ))
        })?;
        Ok(Exports {
            routing,
            observer: observer::GuestIndices::new(&pre).ok(),
            state: state::GuestIndices::new(&pre).ok(),
            explainer: explainer::GuestIndices::new(&pre).ok(),
            pre,
        })
    }

    /// Starts it, configures it, asks who it is, and has it decide: all it will do later. Twice the same decision is
    /// not asked for: without imports, threads and relaxed SIMD there is nothing an answer could differ by.
    fn try_out(&self, component: PolicyComponent) -> Result<Arc<PolicyComponent>, AdmissionError> {
        check_settings(&component.settings)?;
        let component = Arc::new(component);
        let mut instance = PolicyInstance::start(&component).map_err(|fault| failed("starting", &fault))?;
        let settings = component.settings.as_str();
        instance
            .configure(settings)
            .map_err(|fault| failed("reading its settings", &fault))?
            .map_err(AdmissionError::Settings)?;
        let description = instance
            .describe()
            .map_err(|fault| failed("describing itself", &fault))?
            .map_err(unsound)?;
        drop(instance);

        // From here on with what it asked to see, started the way it always will be.
        let component = Arc::new(PolicyComponent {
            engine: component.engine.clone(),
            exports: component.exports.clone(),
            description,
            digest: Arc::clone(&component.digest),
            settings: component.settings.clone(),
            size_bytes: component.size_bytes,
        });
        let mut instance = component
            .instantiate()
            .map_err(|fault| failed("starting", &fault))?;
        let mut decision = Decision::default();
        for (request, candidates) in trial::trial_decisions() {
            instance
                .decide(&request, &candidates, &mut decision)
                .map_err(|fault| {
                    failed(
                        &format!("a trial decision on {} candidates", candidates.len()),
                        &fault,
                    )
                })?;
        }
        Ok(component)
    }
}

fn check_settings(settings: &str) -> Result<(), AdmissionError> {
    if settings.len() > MAX_SETTINGS_BYTES {
        let bytes = settings.len();
        return Err(AdmissionError::Settings(format!(
            "{bytes} bytes; {MAX_SETTINGS_BYTES} is the most"
        )));
    }
    if settings.is_empty() {
        return Ok(());
    }
    match serde_json::from_str(settings) {
        Ok(Value::Object(_)) => Ok(()),
        Ok(_) => Err(AdmissionError::Settings(
            "they must be a JSON object, such as {\"weight\": 1}".into(),
        )),
        Err(error) => Err(AdmissionError::Settings(format!("they are no JSON: {error}"))),
    }
}

fn failed(when: &str, fault: &PolicyFault) -> AdmissionError {
    unsound(format!("it failed its trial: {when}, it {fault}"))
}

#[cfg(test)]
mod tests;
