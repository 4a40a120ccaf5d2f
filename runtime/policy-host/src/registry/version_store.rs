//! The stored versions, and the rule that `name@version` names one component.

use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use super::RegistryError;
use crate::component::PolicyComponent;

/// Versions that are kept. Each holds about 120 KB of machine code for a policy in Rust; when they are used up the
/// oldest one that neither decides nor would come back by a rollback makes room.
const MAX_STORED: usize = 64;
/// Digits of a digest that tell versions apart, and how many more when those are taken.
const DIGEST_DIGITS: [usize; 3] = [8, 16, 64];

/// One stored version of a policy, as the admin API shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PolicyRecord {
    /// The name it was uploaded under.
    pub name: String,
    /// The version it gives itself, told apart by digest where another component gave itself the same.
    pub version: String,
    /// SHA-256 of the component, in hexadecimal.
    pub digest: String,
    /// Bytes of the component.
    pub size_bytes: usize,
    /// The settings it was uploaded with; an empty object for the defaults.
    pub settings: Value,
    /// Whether it is part of the binary.
    pub builtin: bool,
    /// `stored`, `active` (it decides for the `models`) or `quarantined` (for the `reason`).
    pub state: String,
    /// The models it decides for.
    pub models: Vec<String>,
    /// Why it is in quarantine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// All stored versions, the one uploaded last at the end.
#[derive(Debug, Default)]
pub(super) struct VersionStore(Vec<Stored>);

#[derive(Debug)]
pub(super) struct Stored {
    name: String,
    version: String,
    /// `name@version`.
    pub(super) label: Arc<str>,
    pub(super) component: Arc<PolicyComponent>,
    /// Part of the binary: never dropped.
    builtin: bool,
    quarantined: Option<String>,
}

impl Stored {
    fn if_usable(&self) -> Result<&Self, RegistryError> {
        match &self.quarantined {
            None => Ok(self),
            Some(reason) => Err(RegistryError::Conflict(format!(
                "{} is in quarantine, because it {reason}; uploading it again tries it again and lifts that",
                self.label
            ))),
        }
    }

    pub(super) fn record(&self, models: Vec<String>) -> PolicyRecord {
        let state = match (&self.quarantined, models.is_empty()) {
            (Some(_), _) => "quarantined",
            (None, false) => "active",
            (None, true) => "stored",
        };
        PolicyRecord {
            name: self.name.clone(),
            version: self.version.clone(),
            digest: self.component.digest().to_owned(),
            size_bytes: self.component.size_bytes(),
            settings: self.component.settings_json(),
            builtin: self.builtin,
            state: state.to_owned(),
            models,
            reason: self.quarantined.clone(),
        }
    }
}

impl VersionStore {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Stored> {
        self.0.iter()
    }

    /// Stores a component as the newest version of `name`, out of quarantine, and answers with its label. A new one
    /// gets the `version` asked for, or else the one it gives itself, as long as no other has it.
    pub(super) fn keep(
        &mut self,
        name: &str,
        component: Arc<PolicyComponent>,
        version: Option<&str>,
        builtin: bool,
    ) -> Result<Arc<str>, RegistryError> {
        let again = self
            .0
            .iter()
            .position(|it| it.name == name && it.component.digest() == component.digest());
        let stored = match again {
            Some(index) => Stored {
                component,
                quarantined: None,
                ..self.0.remove(index)
            },
            None => {
                let version = self.distinct_version(name, &component, version)?;
                let label = format!("{name}@{version}").into();
                Stored {
                    name: name.to_owned(),
                    version,
                    label,
                    component,
                    builtin,
                    quarantined: None,
                }
            }
        };
        let label = Arc::clone(&stored.label);
        self.0.push(stored);
        Ok(label)
    }

    /// The version asked for, or the one the component gives itself, with as much of its digest as it takes to be the
    /// only one.
    fn distinct_version(
        &self,
        name: &str,
        component: &PolicyComponent,
        version: Option<&str>,
    ) -> Result<String, RegistryError> {
        let declared = component.version();
        let free = |version: &String| !self.0.iter().any(|it| it.name == name && it.version == *version);
        // `+` begins what is only information in a version, and can stand there once.
        let separator = if declared.contains('+') { '.' } else { '+' };
        let with_digest = |digits| {
            component
                .digest()
                .get(..digits)
                .map(|part| format!("{declared}{separator}{part}"))
        };
        version
            .into_iter()
            .chain([declared])
            .map(str::to_owned)
            .chain(DIGEST_DIGITS.into_iter().filter_map(with_digest))
            .find(free)
            .ok_or_else(|| {
                RegistryError::Conflict(format!(
                    "{name:?} has a version {declared} with this digest already"
                ))
            })
    }

    /// The version asked for by `name@version`, or the newest by `name`, if it may be activated.
    pub(super) fn find(&self, policy: &str) -> Result<&Stored, RegistryError> {
        let stored = if policy.contains('@') {
            self.by_label(policy)?
        } else {
            self.0
                .iter()
                .rfind(|it| it.name == policy)
                .ok_or_else(|| self.unknown(policy))?
        };
        stored.if_usable()
    }

    /// The version with exactly these bytes, if it may be activated.
    pub(super) fn usable(&self, name: &str, digest: &str) -> Result<&Stored, RegistryError> {
        self.by_digest(name, digest)
            .ok_or_else(|| self.unknown(&format!("{name} with the digest {digest}")))?
            .if_usable()
    }

    pub(super) fn by_digest(&self, name: &str, digest: &str) -> Option<&Stored> {
        self.0
            .iter()
            .find(|it| it.name == name && it.component.digest() == digest)
    }

    pub(super) fn by_label(&self, label: &str) -> Result<&Stored, RegistryError> {
        self.0
            .iter()
            .find(|it| *it.label == *label)
            .ok_or_else(|| self.unknown(label))
    }

    /// The newest version of a policy that is known to be there, quarantined or not.
    #[expect(
        clippy::expect_used,
        reason = "built-in policies are never dropped, and only they are the default"
    )]
    pub(super) fn newest(&self, name: &str) -> &Stored {
        self.0
            .iter()
            .rfind(|it| it.name == name)
            .expect("the default policy is built in")
    }

    /// Marks a version; false when it is marked already, or gone.
    pub(super) fn quarantine(&mut self, label: &str, reason: String) -> bool {
        match self.0.iter_mut().find(|it| *it.label == *label) {
            Some(stored) if stored.quarantined.is_none() => {
                stored.quarantined = Some(reason);
                true
            }
            _ => false,
        }
    }

    pub(super) fn is_quarantined(&self, label: &str) -> bool {
        self.0
            .iter()
            .any(|it| *it.label == *label && it.quarantined.is_some())
    }

    /// When the versions is full, drops the oldest version that is not `needed`.
    pub(super) fn make_room(&mut self, needed: impl Fn(&str) -> bool) -> Result<(), RegistryError> {
        if self.0.len() < MAX_STORED {
            return Ok(());
        }
        match self.0.iter().position(|it| !it.builtin && !needed(&it.label)) {
            Some(oldest) => {
                let dropped = self.0.remove(oldest);
                tracing::info!(
                    policy.name = &*dropped.label,
                    "policy dropped to make room for a newer one"
                );
                Ok(())
            }
            None => Err(RegistryError::Conflict(format!(
                "all {MAX_STORED} policy versions that can be stored are in use; activate others for some models first"
            ))),
        }
    }

    fn unknown(&self, name: &str) -> RegistryError {
        let known: Vec<&str> = self.0.iter().map(|it| &*it.label).collect();
        RegistryError::Unknown {
            name: name.to_owned(),
            known: known.join(", "),
        }
    }
}
