//! What the policy store holds, as every router reads and writes it. `policy-store/README.md` describes it for others.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use signalbox_policy_store::MAX_VALUE_BYTES;
use signalbox_policy_host::{Activation, PolicyRecord};

/// Choices a model can be rolled back through.
const MAX_BEFORE: usize = 8;

/// What a key of the store is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Subject {
    /// An upload, by name and digest.
    Upload { name: String, digest: String },
    /// Who decides for a model.
    Active { model: String },
}

impl Subject {
    pub(super) fn key(&self) -> String {
        match self {
            Self::Upload { name, digest } => format!("policies/{name}/{digest}"),
            Self::Active { model } => format!("active/{model}"),
        }
    }

    /// `None` for a key of a later release.
    pub(super) fn parse(key: &str) -> Option<Self> {
        if let Some(model) = key.strip_prefix("active/") {
            return Some(Self::Active { model: model.into() });
        }
        let (name, digest) = key.strip_prefix("policies/")?.split_once('/')?;
        Some(Self::Upload {
            name: name.into(),
            digest: digest.into(),
        })
    }
}

/// A policy with its settings, the same on every router.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ChosenPolicy {
    /// The name it was uploaded under.
    pub(super) policy: String,
    /// What tells it apart from others of the name, for people.
    pub(super) version: String,
    /// What it is.
    pub(super) digest: String,
    /// A JSON object, empty for the defaults.
    #[serde(default)]
    pub(super) settings: Map<String, Value>,
}

/// Who decides for a model: the value of `active/{model}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ActiveEntry {
    #[serde(flatten)]
    pub(super) choice: ChosenPolicy,
    /// What decided before, latest first.
    #[serde(default)]
    pub(super) before: Vec<ChosenPolicy>,
}

/// An upload: the value of `policies/{name}/{digest}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct UploadEntry {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) digest: String,
    #[serde(default)]
    pub(super) settings: Map<String, Value>,
    pub(super) uploaded_unix_ms: u64,
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

    /// Whether it decides the same. Versions are for people, and may differ between routers.
    pub(super) fn is(&self, other: &Self) -> bool {
        (&self.policy, &self.digest, &self.settings) == (&other.policy, &other.digest, &other.settings)
    }

    /// `name@version`
    pub(super) fn label(&self) -> String {
        format!("{}@{}", self.policy, self.version)
    }
}

impl ActiveEntry {
    /// `next`, after this or, where nothing was chosen yet, after what decides by default.
    pub(super) fn after(present: Option<&Self>, default: ChosenPolicy, next: ChosenPolicy) -> Self {
        let mut before = match present {
            // Chosen again, it is not what decided before itself.
            Some(present) if present.choice.is(&next) => present.before.clone(),
            Some(present) => std::iter::once(&present.choice)
                .chain(&present.before)
                .cloned()
                .collect(),
            None if default.is(&next) => Vec::new(),
            None => vec![default],
        };
        before.truncate(MAX_BEFORE);
        Self { choice: next, before }
    }

    /// As the store takes it: what decided long ago is left out where large settings take the room.
    pub(super) fn to_value(&self) -> Bytes {
        let mut entry = self.clone();
        loop {
            let json = to_json(&entry);
            if json.len() <= MAX_VALUE_BYTES || entry.before.pop().is_none() {
                return json;
            }
        }
    }
}

impl UploadEntry {
    /// Whether it brought the component of this choice.
    pub(super) fn is_of(&self, choice: &ChosenPolicy) -> bool {
        (&self.name, &self.digest) == (&choice.policy, &choice.digest)
    }

    pub(super) fn to_value(&self) -> Bytes {
        to_json(self)
    }
}

/// Settings as the registry takes them: empty for the defaults.
pub(super) fn settings_text(settings: &Map<String, Value>) -> String {
    if settings.is_empty() {
        return String::new();
    }
    Value::Object(settings.clone()).to_string()
}

/// Settings as the registry tells them, which are an object.
pub(super) fn object(settings: Value) -> Map<String, Value> {
    match settings {
        Value::Object(settings) => settings,
        _ => Map::new(),
    }
}

#[expect(
    clippy::expect_used,
    reason = "strings, numbers and JSON values under string keys always have a JSON form"
)]
fn to_json(entry: &impl Serialize) -> Bytes {
    serde_json::to_vec(entry)
        .expect("an entry has a JSON form")
        .into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn choice(version: usize) -> ChosenPolicy {
        ChosenPolicy {
            policy: "mine".into(),
            version: version.to_string(),
            digest: format!("{version:064}"),
            settings: Map::new(),
        }
    }

    #[test]
    fn keys_are_told_apart() {
        let digest = "0".repeat(64);
        for subject in [
            Subject::Upload {
                name: "mine".into(),
                digest,
            },
            Subject::Active {
                model: "org/model v1".into(),
            },
        ] {
            assert_eq!(Subject::parse(&subject.key()), Some(subject));
        }
        assert_eq!(Subject::parse("shadow/m"), None);
        assert_eq!(Subject::parse("policies/mine"), None);
    }

    #[test]
    fn an_active_entry_reads_as_documented_and_forgives_what_it_does_not_know() {
        let entry = ActiveEntry {
            choice: choice(2),
            before: vec![choice(1)],
        };
        let json: Value = serde_json::from_slice(&entry.to_value()).unwrap();
        let expected = json!({
            "policy": "mine", "version": "2", "digest": choice(2).digest, "settings": {},
            "before": [{"policy": "mine", "version": "1", "digest": choice(1).digest, "settings": {}}],
        });
        assert_eq!(json, expected);
        let later = json!({"policy": "mine", "version": "2", "digest": choice(2).digest, "shadow": "x"});
        let read: ActiveEntry = serde_json::from_value(later).unwrap();
        assert_eq!((read.choice, read.before), (choice(2), vec![]));
    }

    #[test]
    fn what_decided_before_is_remembered_latest_first() {
        let mut entry = ActiveEntry::after(None, choice(0), choice(1));
        assert_eq!(entry.before, [choice(0)]);
        for version in 2..=12 {
            entry = ActiveEntry::after(Some(&entry), choice(0), choice(version));
        }
        let expected: Vec<_> = (4..12).rev().map(choice).collect();
        assert_eq!(entry.before, expected);
        let again = ActiveEntry::after(Some(&entry), choice(0), choice(12));
        assert_eq!(again, entry);
        assert!(ActiveEntry::after(None, choice(0), choice(0)).before.is_empty());
    }

    #[test]
    fn large_settings_cost_memory_of_what_was_before() {
        let large = |version| ChosenPolicy {
            settings: object(json!({"text": "x".repeat(20_000)})),
            ..choice(version)
        };
        let entry = ActiveEntry {
            choice: large(9),
            before: (0..8).rev().map(large).collect(),
        };
        let value = entry.to_value();
        assert!(value.len() <= MAX_VALUE_BYTES);
        let read: ActiveEntry = serde_json::from_slice(&value).unwrap();
        assert_eq!((read.choice, read.before), (large(9), vec![large(7), large(6)]));
    }
}
