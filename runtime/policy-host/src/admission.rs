//! Admission: the checks that a component passes before it decides any request. They are its form, its imports and
//! exports, its settings, and trial decisions on generated candidates under the limits of real decisions.
//!
//! Every refusal is a sentence for the author of the component: what is wrong, and what would be right.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use serde_json::Value;
use sha2::{Digest, Sha256};
use wasmtime::component::{Component, HasSelf, InstancePre, Linker};

use crate::{
    bindings::{diagnostics, explainer, observer, routing, state},
    component::{Exports, PolicyComponent},
    description::Description,
    engine::PolicyEngine,
    fault::PolicyFault,
    features::Decision,
    instance::PolicyInstance,
    sandbox::Sandbox,
};

mod inspect;
mod trial;

pub use trial::trial_requests;

/// The interface that every policy exports.
const ROUTING: &str = "signalbox:policy/routing@0.2.0";
/// The only imports of a policy: the types, which contain no code, and the log. Any version 0.2 fits.
const IMPORTS: [&str; 2] = ["signalbox:policy/types@0.2.", "signalbox:policy/diagnostics@0.2."];
/// The end of a refusal because of imports or exports.
const SEE_WIT: &str = "see the world `policy` in wit/policy.wit";

/// Longest settings, in bytes, as they are given and as they are stored. A policy has some ten numbers.
pub const MAX_SETTINGS_BYTES: usize = 64 << 10;

/// Why a component is not admitted. Each message says what is wrong and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// The component is too large.
    #[error("the component is larger than {limit} bytes, the limit for a policy")]
    TooLarge {
        /// Largest size, in bytes.
        limit: usize,
    },
    /// The component is not a policy of this world, or failed its trial.
    #[error("{0}")]
    Unsound(String),
    /// The policy refuses the settings.
    #[error("the settings are refused: {0}")]
    Settings(String),
}

fn unsound(message: impl Into<String>) -> AdmissionError {
    AdmissionError::Unsound(message.into())
}

impl PolicyEngine {
    /// Checks, compiles, configures and tries the component `wasm`. `settings` are a JSON object, or empty for the
    /// defaults. Takes some 50 ms for a policy in Rust, and seconds at most, since one component is compiled at a time:
    /// call it off the request threads.
    ///
    /// # Errors
    /// The reason that the component is not admitted, as a sentence for its author.
    pub fn admit(&self, wasm: &[u8], settings: &str) -> Result<Arc<PolicyComponent>, AdmissionError> {
        let limit = self.limits().max_component_bytes;
        if wasm.len() > limit {
            return Err(AdmissionError::TooLarge { limit });
        }
        inspect::inspect(wasm).map_err(unsound)?;
        caught(|| self.compile_and_try(wasm, settings))
    }

    fn compile_and_try(&self, wasm: &[u8], settings: &str) -> Result<Arc<PolicyComponent>, AdmissionError> {
        let component = self
            .compile(wasm)
            .map_err(|error| unsound(format!("the component is not valid: {error:#}")))?;
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

    /// The same component with other settings: tried again, but not compiled again.
    ///
    /// # Errors
    /// The policy refuses the settings, or faults with them.
    pub fn reconfigure(
        &self,
        component: &PolicyComponent,
        settings: &str,
    ) -> Result<Arc<PolicyComponent>, AdmissionError> {
        let reconfigured = PolicyComponent {
            engine: self.clone(),
            exports: component.exports.clone(),
            description: Description::default(),
            digest: Arc::clone(&component.digest),
            settings: settings.to_owned(),
            size_bytes: component.size_bytes,
        };
        caught(|| self.try_out(reconfigured))
    }

    fn check_imports(&self, component: &Component) -> Result<(), AdmissionError> {
        let ty = component.component_type();
        let foreign: Vec<&str> = ty
            .imports(self.wasm())
            .map(|(name, _)| name)
            .filter(|name| !IMPORTS.iter().any(|import| name.starts_with(import)))
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
            "the component imports {}; a policy imports only {}x{wasi}; {SEE_WIT}",
            foreign.join(", "),
            IMPORTS.join("x and ")
        )))
    }

    fn find_exports(&self, component: &Component) -> Result<Exports, AdmissionError> {
        let mut linker = Linker::new(self.wasm());
        let pre: InstancePre<Sandbox> =
            diagnostics::add_to_linker::<_, HasSelf<_>>(&mut linker, |sandbox: &mut Sandbox| {
                &mut sandbox.diagnostics
            })
            .and_then(|()| linker.instantiate_pre(component))
            .map_err(|error| {
                unsound(format!(
                    "the component does not fit this host: {error:#}; {SEE_WIT}"
                ))
            })?;
        let routing = routing::GuestIndices::new(&pre).map_err(|_| {
            let ty = component.component_type();
            let exports: Vec<&str> = ty.exports(self.wasm()).map(|(name, _)| name).collect();
            let found = if exports.is_empty() {
                "nothing".into()
            } else {
                exports.join(", ")
            };
            unsound(format!(
                "the component exports {found}; a policy exports all of {ROUTING}; {SEE_WIT}"
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

    /// Starts, configures and describes the component, and makes trial decisions with it. Each trial decision is made
    /// once: without threads, relaxed SIMD, and imports that return something, a second answer cannot differ.
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

        // The trial decisions use the columns of the description, and an instance that starts as later ones do.
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

/// What `work` returns. A panic in it is a refusal: the compiler is not made for every input that a stranger can think of.
/// Nothing outside the component is left half changed, as each component has machine code and Stores of its own.
fn caught<T>(work: impl FnOnce() -> Result<T, AdmissionError>) -> Result<T, AdmissionError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let reason = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "it states no reason".into());
        Err(unsound(format!(
            "the component cannot be compiled, because the compiler failed: {reason}"
        )))
    })
}

fn check_settings(settings: &str) -> Result<(), AdmissionError> {
    let check_size = |bytes: usize| {
        if bytes <= MAX_SETTINGS_BYTES {
            return Ok(());
        }
        Err(AdmissionError::Settings(format!(
            "they have {bytes} bytes; at most {MAX_SETTINGS_BYTES} are possible"
        )))
    };
    check_size(settings.len())?;
    if settings.is_empty() {
        return Ok(());
    }
    match serde_json::from_str(settings) {
        // As they are stored: `1e15` takes more bytes there than here.
        Ok(settings @ Value::Object(_)) => check_size(settings.to_string().len()),
        Ok(_) => Err(AdmissionError::Settings(
            "they must be a JSON object, such as {\"weight\": 1}".into(),
        )),
        Err(error) => Err(AdmissionError::Settings(format!("they are not JSON: {error}"))),
    }
}

fn failed(when: &str, fault: &PolicyFault) -> AdmissionError {
    unsound(format!("the component failed its trial: {when}, it {fault}"))
}

#[cfg(test)]
mod tests;
