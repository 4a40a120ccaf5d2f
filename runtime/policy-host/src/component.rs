//! A policy that was admitted: compiled, checked, ready to be started any number of times.

use std::{fmt, sync::Arc};

use serde_json::{Map, Value};
use wasmtime::component::InstancePre;

use crate::{
    bindings::{explainer, observer, routing, state},
    candidates::Wanted,
    description::Description,
    engine::PolicyEngine,
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

/// The machine code of a component, and where its exports are. A clone shares the code.
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
    /// The name in its description.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.description.name
    }

    /// The version in its description.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.description.version
    }

    /// SHA-256 of the component's bytes, in hexadecimal.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The settings that its instances are configured with: a JSON object, or empty for the defaults.
    #[must_use]
    pub fn settings(&self) -> &str {
        &self.settings
    }

    /// The settings as a JSON object, which is empty for the defaults.
    #[must_use]
    pub fn settings_json(&self) -> Value {
        settings_json(&self.settings).unwrap_or_else(|| Value::Object(Map::new()))
    }

    /// `name@version`; its digest before it is described.
    pub(crate) fn label(&self) -> &str {
        self.description.label.as_deref().unwrap_or(&self.digest)
    }

    /// What it reads beside the columns that every decision fills.
    #[must_use]
    pub fn wanted(&self) -> Wanted<'_> {
        let names = &self.description.names;
        Wanted {
            groups: names.groups,
            labels: &names.labels,
            number_labels: &names.number_labels,
        }
    }

    /// Size of the uploaded component, in bytes.
    #[must_use]
    pub const fn size_bytes(&self) -> usize {
        self.size_bytes
    }
}

/// Settings as JSON; empty settings are an empty object. `None` when they are not JSON.
pub(crate) fn settings_json(settings: &str) -> Option<Value> {
    if settings.is_empty() {
        return Some(Value::Object(Map::new()));
    }
    serde_json::from_str(settings).ok()
}
