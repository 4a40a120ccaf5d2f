//! The stored versions, and the rule that `name@version` names one component.

use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use super::RegistryError;
use crate::component::PolicyComponent;

/// Most stored versions. Each has about 120 KB of machine code for a policy in Rust. When all are used, the oldest
/// version that no model uses and no rollback needs is dropped.
const MAX_STORED: usize = 64;
/// Digits of the digest that distinguish equal versions: the first number that gives a version which is not taken.
const DIGEST_DIGITS: [usize; 3] = [8, 16, 64];

/// What a digest begins with, where one stands for a version, and the fewest digits of it.
const DIGEST_PREFIX: &str = "sha256:";
const MIN_DIGEST_DIGITS: usize = 8;

/// One stored version of a policy, as the admin API shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PolicyRecord {
    /// The name that it was uploaded with.
    pub name: String,
    /// The version in its description; with a part of its digest when another component of that name has the same.
    pub version: String,
    /// SHA-256 of the component, in hexadecimal.
    pub digest: String,
    /// Size of the component, in bytes.
    pub size_bytes: usize,
    /// The settings of the upload; an empty object for the defaults.
    pub settings: Value,
    /// Whether it is part of the binary.
    pub builtin: bool,
    /// `stored`, `active` (it decides for `models`) or `quarantined` (because of `reason`).
    pub state: String,
    /// The models that it decides for.
    pub models: Vec<String>,
    /// The fault that put it in quarantine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// All stored versions, the latest upload at the end.
#[derive(Debug, Default)]
pub(super) struct VersionStore(Vec<Stored>);

#[derive(Debug, Clone)]
pub(super) struct Stored {
    name: String,
    version: String,
    /// `name@version`.
    pub(super) label: Arc<str>,
    pub(super) component: Arc<PolicyComponent>,
    /// Whether it is part of the binary and therefore never dropped.
    pub(super) builtin: bool,
    /// The fault that put it in quarantine.
    quarantined: Option<String>,
}

/// A record that an upload replaced, and its place among all.
#[derive(Debug)]
pub(super) struct Replaced {
    stored: Stored,
    index: usize,
}

impl Stored {
    fn if_usable(&self) -> Result<&Self, RegistryError> {
        match &self.quarantined {
            None => Ok(self),
            Some(reason) => Err(RegistryError::Conflict(format!(
                "{} is in quarantine, because it {reason}; to end the quarantine, upload it again",
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

    /// Refuses another component under the name of a built-in policy. The newest version of a name decides for the models
    /// that ask for the name alone, and every new model asks for a built-in policy.
    pub(super) fn check_builtin(&self, name: &str, component: &PolicyComponent) -> Result<(), RegistryError> {
        let of_name = |stored: &&Stored| stored.builtin && stored.name == name;
        match self.0.iter().find(of_name) {
            Some(builtin) if builtin.component.digest() != component.digest() => {
                Err(RegistryError::Conflict(format!(
                    "{name:?} is the name of a policy that is part of this program; upload under another name"
                )))
            }
            _ => Ok(()),
        }
    }

    /// Stores a component as the newest version of `name`, out of quarantine. Returns its label, and the record that it
    /// replaces. A component that is not stored yet gets `version`, else the version in its description, unless another
    /// component has it.
    pub(super) fn keep(
        &mut self,
        name: &str,
        component: Arc<PolicyComponent>,
        version: Option<&str>,
        builtin: bool,
    ) -> Result<(Arc<str>, Option<Replaced>), RegistryError> {
        let again = self
            .0
            .iter()
            .position(|stored| stored.name == name && stored.component.digest() == component.digest());
        let (stored, before) = match again {
            Some(index) => {
                let before = self.0.remove(index);
                let again = Stored {
                    component,
                    quarantined: None,
                    ..before.clone()
                };
                (
                    again,
                    Some(Replaced {
                        stored: before,
                        index,
                    }),
                )
            }
            None => {
                let version = self.distinct_version(name, &component, version)?;
                let label = format!("{name}@{version}").into();
                let new = Stored {
                    name: name.to_owned(),
                    version,
                    label,
                    component,
                    builtin,
                    quarantined: None,
                };
                (new, None)
            }
        };
        let label = Arc::clone(&stored.label);
        self.0.push(stored);
        Ok((label, before))
    }

    /// Removes the version of this label, and puts back what it replaced.
    pub(super) fn put_back(&mut self, label: &str, before: Option<Replaced>) {
        self.0.retain(|stored| *stored.label != *label);
        if let Some(Replaced { stored, index }) = before {
            self.0.insert(index.min(self.0.len()), stored);
        }
    }

    /// `version`, else the version in the component's description, with as much of its digest as makes it unique.
    fn distinct_version(
        &self,
        name: &str,
        component: &PolicyComponent,
        version: Option<&str>,
    ) -> Result<String, RegistryError> {
        let declared = component.version();
        let is_free = |version: &String| {
            let is_taken = |stored: &Stored| stored.name == name && stored.version == *version;
            !self.0.iter().any(is_taken)
        };
        // `+` begins the build metadata of a version, and can occur once.
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
            .find(is_free)
            .ok_or_else(|| {
                RegistryError::Conflict(format!(
                    "{name:?} already has a version {declared} with this digest"
                ))
            })
    }

    /// As [`VersionStore::look_up`], unless the version is in quarantine.
    pub(super) fn find(&self, policy: &str) -> Result<&Stored, RegistryError> {
        self.look_up(policy)?.if_usable()
    }

    /// The version that `policy` means, in quarantine or not: `name` the newest upload of it, `name@1.2.0` that version,
    /// `name@1` or `name@1.2` the highest release that begins so, `name@sha256:DIGITS` the one whose digest begins so.
    pub(super) fn look_up(&self, policy: &str) -> Result<&Stored, RegistryError> {
        let Some((name, version)) = policy.split_once('@') else {
            let newest = self.0.iter().rfind(|stored| stored.name == policy);
            return newest.ok_or_else(|| self.unknown(policy));
        };
        if let Some(digits) = version.strip_prefix(DIGEST_PREFIX) {
            return self.by_digest_prefix(name, digits);
        }
        if let Ok(exact) = self.by_label(policy) {
            return Ok(exact);
        }
        let released = self.0.iter().filter(|stored| stored.name == name);
        let released =
            released.filter_map(|stored| Some((release_within(&stored.version, version)?, stored)));
        let highest = released.max_by_key(|(release, _)| *release);
        highest
            .map(|(_, stored)| stored)
            .ok_or_else(|| self.unknown(policy))
    }

    fn by_digest_prefix(&self, name: &str, digits: &str) -> Result<&Stored, RegistryError> {
        let label = || format!("{name}@{DIGEST_PREFIX}{digits}");
        if digits.len() < MIN_DIGEST_DIGITS {
            return Err(RegistryError::Conflict(format!(
                "{} names no version: give at least {MIN_DIGEST_DIGITS} digits of the digest",
                label()
            )));
        }
        let mut found = self
            .0
            .iter()
            .filter(|stored| stored.name == name && stored.component.digest().starts_with(digits));
        match (found.next(), found.next()) {
            (Some(only), None) => Ok(only),
            (None, _) => Err(self.unknown(&label())),
            (Some(_), Some(_)) => Err(RegistryError::Conflict(format!(
                "the digests of several versions begin like that of {}; give more digits",
                label()
            ))),
        }
    }

    /// Removes an upload. The caller makes sure that no model needs it.
    pub(super) fn remove(&mut self, label: &str) {
        self.0.retain(|stored| stored.builtin || *stored.label != *label);
    }

    /// The version of `name` with this digest, unless it is in quarantine.
    pub(super) fn usable(&self, name: &str, digest: &str) -> Result<&Stored, RegistryError> {
        self.by_digest(name, digest)
            .ok_or_else(|| self.unknown(&format!("{name} with the digest {digest}")))?
            .if_usable()
    }

    pub(super) fn by_digest(&self, name: &str, digest: &str) -> Option<&Stored> {
        self.0
            .iter()
            .find(|stored| stored.name == name && stored.component.digest() == digest)
    }

    pub(super) fn by_label(&self, label: &str) -> Result<&Stored, RegistryError> {
        self.0
            .iter()
            .find(|stored| *stored.label == *label)
            .ok_or_else(|| self.unknown(label))
    }

    /// The newest version of a built-in policy, in quarantine or not.
    #[expect(
        clippy::expect_used,
        reason = "built-in policies are never dropped, and only they are the default"
    )]
    pub(super) fn newest(&self, name: &str) -> &Stored {
        self.0
            .iter()
            .rfind(|stored| stored.name == name)
            .expect("the default policy is built in")
    }

    /// Puts a version in quarantine. False when it is already there, or not stored any more.
    pub(super) fn quarantine(&mut self, label: &str, reason: String) -> bool {
        match self.0.iter_mut().find(|stored| *stored.label == *label) {
            Some(stored) if stored.quarantined.is_none() => {
                stored.quarantined = Some(reason);
                true
            }
            _ => false,
        }
    }

    /// When the store is full, drops the oldest version that is not `needed`.
    pub(super) fn make_room(&mut self, needed: impl Fn(&str) -> bool) -> Result<(), RegistryError> {
        if self.0.len() < MAX_STORED {
            return Ok(());
        }
        let is_unneeded = |stored: &Stored| !stored.builtin && !needed(&stored.label);
        match self.0.iter().position(is_unneeded) {
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
        let known: Vec<&str> = self.0.iter().map(|stored| &*stored.label).collect();
        RegistryError::Unknown {
            name: name.to_owned(),
            known: known.join(", "),
        }
    }
}

/// The numbers of a released version, if they begin with those of `wanted`: `1` or `1.2`. Build metadata, after a `+`,
/// counts for nothing, and a version with a `-` is no release.
fn release_within(version: &str, wanted: &str) -> Option<(u64, u64, u64)> {
    let numbers =
        |text: &str| -> Option<Vec<u64>> { text.split('.').map(|part| part.parse().ok()).collect() };
    let (wanted, version) = (numbers(wanted)?, numbers(version.split('+').next()?)?);
    let &[major, minor, patch] = version.as_slice() else {
        return None;
    };
    (wanted.len() < version.len() && version.starts_with(&wanted)).then_some((major, minor, patch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_within_the_numbers_that_it_begins_with() {
        let cases = [
            ("1.2.3", "1", Some((1, 2, 3))),
            ("1.2.3", "1.2", Some((1, 2, 3))),
            ("1.2.3+0a1b", "1.2", Some((1, 2, 3))),
            ("1.20.3", "1.2", None),
            ("1.2.3", "1.2.3", None),
            ("1.2.3-beta", "1.2", None),
            ("1.2", "1", None),
            ("1.2.3", "", None),
            ("1.2.3", "x", None),
        ];
        for (version, wanted, expected) in cases {
            assert_eq!(release_within(version, wanted), expected, "{version} in {wanted}");
        }
    }
}
