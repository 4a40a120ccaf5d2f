//! A policy that was accepted: compiled, checked, ready to be started any number of times.

use std::{fmt, sync::Arc};

use serde_json::{Map, Value};
use wasmtime::component::InstancePre;

use crate::{
    bindings::{explainer, observer, routing, state},
    engine::PolicyEngine,
    fault::PolicyFault,
    instance::{Description, PolicyInstance},
    sandbox::Sandbox,
};

/// An admitted component with its settings: compiled, ready to instantiate.
pub struct PolicyComponent {
    pub(crate) engine: PolicyEngine,
    pub(crate) exports: Exports,
    pub(crate) description: Description,
    pub(crate) digest: Arc<str>,
    pub(crate) settings: String,
    pub(crate) size_bytes: usize,
}

/// A compiled component and where its exports are. A clone shares the code.
#[derive(Clone)]
pub(crate) struct Exports {
    pub(crate) pre: InstancePre<Sandbox>,
    pub(crate) routing: routing::GuestIndices,
    pub(crate) observer: Option<observer::GuestIndices>,
    pub(crate) state: Option<state::GuestIndices>,
    pub(crate) explainer: Option<explainer::GuestIndices>,
}

impl fmt::Debug for PolicyComponent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyComponent")
            .field("name", &self.name())
            .field("version", &self.version())
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

impl PolicyComponent {
    /// The name it gives itself.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.description.name
    }

    /// The version it gives itself.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.description.version
    }

    /// SHA-256 of the bytes, in hexadecimal.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The settings its instances are configured with: a JSON object, or empty for the defaults.
    #[must_use]
    pub fn settings(&self) -> &str {
        &self.settings
    }

    /// The settings as JSON: an object, empty for the defaults.
    #[must_use]
    pub fn settings_json(&self) -> Value {
        settings_json(&self.settings).unwrap_or_else(|| Value::Object(Map::new()))
    }

    /// Whether it wants to see any of the columns that few policies do.
    pub(crate) fn wants_optional(&self) -> bool {
        use crate::bindings::types::Columns;
        let optional = Columns::TRAITS
            | Columns::PREFILL_TOKENS_ALL
            | Columns::DECODE_BLOCKS_ALL
            | Columns::REQUESTS_ALL
            | Columns::QUEUE_DEPTH;
        self.description.columns & optional != Columns::empty()
    }

    /// Bytes of the component as it was uploaded.
    #[must_use]
    pub const fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    /// Starts an instance and configures it: some 30 µs for a policy in Rust, at most twice `configure_budget_ms`.
    ///
    /// # Errors
    /// It faults or refuses its settings, neither of which it did when it was admitted; or the host has no place left.
    pub fn instantiate(self: &Arc<Self>) -> Result<PolicyInstance, PolicyFault> {
        let mut instance = PolicyInstance::start(self)?;
        let configured = instance.configure(&self.settings)?;
        configured.map_err(|refusal| PolicyFault::Instantiate {
            reason: format!("it refuses the settings it had accepted: {refusal}"),
            blamed: true,
        })?;
        Ok(instance)
    }
}

/// Settings as JSON: empty ones are an object without members. `None` where they are no JSON.
pub(crate) fn settings_json(settings: &str) -> Option<Value> {
    if settings.is_empty() {
        return Some(Value::Object(Map::new()));
    }
    serde_json::from_str(settings).ok()
}
