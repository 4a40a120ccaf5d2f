//! A policy with its settings, as the policy store names it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use signalbox_policy_host::{Activation, PolicyRecord};

/// A policy with its settings, the same on every router.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct ChosenPolicy {
    /// The name of the upload.
    pub(super) policy: String,
    /// Names the component among others of the same name, for people.
    pub(super) version: String,
    /// SHA-256 of the component, in hexadecimal.
    pub(super) digest: String,
    /// A JSON object, empty for the defaults.
    #[serde(default)]
    pub(super) settings: Map<String, Value>,
}

impl ChosenPolicy {
    pub(super) fn of_record(record: &PolicyRecord, settings: Map<String, Value>) -> Self {
        Self {
            policy: record.name.clone(),
            version: record.version.clone(),
            digest: record.digest.clone(),
            settings,
        }
    }

    pub(super) fn of_activation(activation: &Activation) -> Self {
        let (policy, version) = activation
            .label
            .split_once('@')
            .unwrap_or((&activation.label, ""));
        Self {
            policy: policy.into(),
            version: version.into(),
            digest: activation.component.digest().into(),
            settings: object(activation.component.settings_json()),
        }
    }

    /// Whether both decide the same. Versions are for people, and may differ between routers.
    pub(super) fn is(&self, other: &Self) -> bool {
        (&self.policy, &self.digest, &self.settings) == (&other.policy, &other.digest, &other.settings)
    }

    /// `name@version`
    pub(super) fn label(&self) -> String {
        format!("{}@{}", self.policy, self.version)
    }
}

/// Settings as the registry takes them: empty for the defaults.
pub(super) fn settings_text(settings: &Map<String, Value>) -> String {
    if settings.is_empty() {
        return String::new();
    }
    Value::Object(settings.clone()).to_string()
}

/// The settings of a registry's record, which are a JSON object.
pub(super) fn object(settings: Value) -> Map<String, Value> {
    match settings {
        Value::Object(settings) => settings,
        _ => Map::new(),
    }
}
