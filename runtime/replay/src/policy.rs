//! The policies to compare: built-in ones by name, or components in files, each with its settings.

use std::{path::PathBuf, str::FromStr};

use serde_json::{Map, Value};
use signalbox_policy_host::{
    EngineError, PolicyEngine, PolicyLimits, PolicyRegistry, RegistryError, builtin_policies,
};

/// The built-in policy of a registry in which another one decides.
const DEFAULT: &str = "kv-aware";

/// A policy as it is named on the command line: `NAME` or `FILE.wasm`, with `={JSON}` for its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyChoice {
    /// As it was named.
    pub label: String,
    name: String,
    /// A JSON object; empty for the defaults.
    settings: String,
}

/// A policy that is ready to decide.
#[derive(Debug, Clone)]
pub struct ReplayPolicy {
    label: String,
    registry: PolicyRegistry,
    /// The model for which it is active. It has nothing to do with the traffic.
    model: String,
}

/// A policy cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file of the component cannot be read.
    #[error("the policy {path} cannot be read; built-in policies are {}", builtin_names().join(", "))]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The component or its settings are refused, as an upload would be.
    #[error("the policy {label} is refused")]
    Refused {
        /// As it was named.
        label: String,
        /// Why.
        source: RegistryError,
    },
    /// No policy can run on this machine.
    #[error("policies cannot run")]
    Engine(#[from] EngineError),
}

fn builtin_names() -> Vec<&'static str> {
    builtin_policies().map(|(name, _)| name).to_vec()
}

impl FromStr for PolicyChoice {
    type Err = String;

    fn from_str(label: &str) -> Result<Self, String> {
        let (name, settings) = match label.split_once("={") {
            Some((name, settings)) => (name, format!("{{{settings}")),
            None => (label, String::new()),
        };
        if name.is_empty() {
            return Err("the policy has no name; give NAME or FILE.wasm, with ={JSON} for settings".into());
        }
        Ok(Self {
            label: label.to_owned(),
            name: name.to_owned(),
            settings,
        })
    }
}

impl ReplayPolicy {
    /// Compiles policies and checks their settings, as uploads are.
    ///
    /// # Errors
    /// A file cannot be read, or a component or its settings are refused.
    pub fn load_all(choices: &[PolicyChoice]) -> Result<Vec<Self>, PolicyError> {
        let engine = PolicyEngine::new(PolicyLimits::default())?;
        let registry = PolicyRegistry::new(engine, DEFAULT).map_err(|source| PolicyError::Refused {
            label: DEFAULT.into(),
            source,
        })?;
        let load = |(number, choice): (usize, &PolicyChoice)| {
            let model = format!("replay-{number}");
            choice.activate(&registry, &model)?;
            Ok(Self {
                label: choice.label.clone(),
                registry: registry.clone(),
                model,
            })
        };
        choices.iter().enumerate().map(load).collect()
    }

    /// As it was named.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    pub(crate) fn registry(&self) -> PolicyRegistry {
        self.registry.clone()
    }

    pub(crate) fn model(&self) -> &str {
        &self.model
    }
}

impl PolicyChoice {
    /// The policy's name, or the file of its component.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same policy with these settings in addition to its own, or in place of them.
    #[must_use]
    pub fn with_settings(&self, more: &Map<String, Value>) -> Self {
        // Settings that are no object stay as they are: the policy refuses them.
        let own = serde_json::from_str::<Map<String, Value>>(&self.settings);
        let Ok(mut settings) = own.or_else(|error| match self.settings.as_str() {
            "" => Ok(Map::new()),
            _ => Err(error),
        }) else {
            return self.clone();
        };
        settings.extend(more.clone());
        let settings = Value::Object(settings).to_string();
        Self {
            label: format!("{}={settings}", self.name),
            name: self.name.clone(),
            settings,
        }
    }

    /// Makes the policy decide for `model`.
    fn activate(&self, registry: &PolicyRegistry, model: &str) -> Result<(), PolicyError> {
        let refused = |source| PolicyError::Refused {
            label: self.label.clone(),
            source,
        };
        if builtin_names().contains(&self.name.as_str()) {
            let activated = registry.activate(model, &self.name, Some(&self.settings));
            return activated.map(|_| ()).map_err(refused);
        }
        let path = PathBuf::from(&self.name);
        let component = std::fs::read(&path).map_err(|source| PolicyError::File { path, source })?;
        // The model's name serves as the policy's: two files are two policies.
        let record = registry
            .upload(model, &component, &self.settings)
            .map_err(refused)?
            .record;
        let version = format!("{}@{}", record.name, record.version);
        registry
            .activate(model, &version, Some(&self.settings))
            .map_err(refused)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(label: &str) -> String {
        let error = ReplayPolicy::load_all(&[label.parse().unwrap()]).unwrap_err();
        format!("{error}: {}", std::error::Error::source(&error).unwrap())
    }

    #[test]
    fn a_policy_is_named_with_its_settings() {
        let choice: PolicyChoice = r#"kv-aware={"min_overlap":0}"#.parse().unwrap();
        assert_eq!(
            (choice.name.as_str(), choice.settings.as_str()),
            ("kv-aware", r#"{"min_overlap":0}"#)
        );
        let more = serde_json::json!({"spread": 1});
        let with_more = choice.with_settings(more.as_object().unwrap());
        assert_eq!(with_more.settings, r#"{"min_overlap":0,"spread":1}"#);
        assert_eq!("a=b.wasm".parse::<PolicyChoice>().unwrap().name, "a=b.wasm");
        assert!("={}".parse::<PolicyChoice>().is_err());
    }

    #[test]
    fn what_an_upload_refuses_is_refused_with_its_name() {
        let error = refusal(r#"kv-aware={"min_overlap":2}"#);
        assert!(
            error.contains("kv-aware") && error.contains("min_overlap"),
            "{error}"
        );
        let error = refusal("missing.wasm");
        assert!(
            error.contains("missing.wasm") && error.contains("round-robin"),
            "{error}"
        );
    }

    #[test]
    fn a_component_in_a_file_is_a_policy() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../policies/built/round-robin.wasm"
        );
        let choices = [path.parse().unwrap(), "round-robin".parse().unwrap()];
        let policies = ReplayPolicy::load_all(&choices).unwrap();
        assert_eq!(policies[0].label(), path);
        assert_ne!(policies[0].model(), policies[1].model());
    }
}
