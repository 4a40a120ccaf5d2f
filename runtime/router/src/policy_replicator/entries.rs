//! The entries of the policy store, as every router reads and writes them. `policy-store/README.md` documents them.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use signalbox_policy_host::{Activation, PolicyRecord, Succession};
use signalbox_policy_store::MAX_VALUE_BYTES;

/// Most earlier choices that an entry keeps for rollbacks.
const MAX_BEFORE: usize = 8;

/// What a key of the store stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    /// An upload, by name and digest.
    Upload { name: String, digest: String },
    /// The choice of a policy for a model.
    Active { model: String },
}

impl Subject {
    pub(super) fn active(model: &str) -> Self {
        Self::Active { model: model.into() }
    }

    pub(super) fn key(&self) -> String {
        match self {
            Self::Upload { name, digest } => format!("policies/{name}/{digest}"),
            Self::Active { model } => format!("active/{model}"),
        }
    }

    /// `None` for a key that this release does not know.
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

/// The choice of a policy for a model: the value of `active/{model}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ActiveEntry {
    #[serde(flatten)]
    pub(super) choice: ChosenPolicy,
    /// Earlier choices, the latest first.
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

    /// Whether both decide the same. Versions are for people, and may differ between routers.
    pub(super) fn is(&self, other: &Self) -> bool {
        (&self.policy, &self.digest, &self.settings) == (&other.policy, &other.digest, &other.settings)
    }

    /// `name@version`
    pub(super) fn label(&self) -> String {
        format!("{}@{}", self.policy, self.version)
    }
}

impl ActiveEntry {
    /// The entry of `next`, which follows the present entry or, for a model without one, the default policy.
    pub(super) fn after(present: Option<&Self>, default: ChosenPolicy, next: ChosenPolicy) -> Self {
        let mut before = match present {
            // A policy that is chosen again is not its own predecessor.
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

    /// The entries that a rollback from this one writes, the latest choice first.
    pub(super) fn earlier(&self) -> Vec<Self> {
        let before = |index: usize| self.before.iter().skip(index + 1).cloned().collect();
        let choices = self.before.iter().enumerate();
        let entry = choices.map(|(index, choice)| Self {
            choice: choice.clone(),
            before: before(index),
        });
        entry.collect()
    }

    /// How this choice succeeds the one that decides here: it goes back when that one is not among its earlier choices,
    /// because a rollback has left it.
    pub(super) fn succession_after(&self, deciding: &ChosenPolicy) -> Succession {
        if self.before.iter().any(|before| before.is(deciding)) {
            Succession::Forward
        } else {
            Succession::Back
        }
    }

    /// The value as the store takes it: when large settings exceed its bound, the oldest choices are left out.
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
    pub(super) fn subject(&self) -> Subject {
        let (name, digest) = (self.name.clone(), self.digest.clone());
        Subject::Upload { name, digest }
    }

    /// Whether this upload is the component of `choice`.
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

/// The settings of a registry's record, which are a JSON object.
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
    use proptest::{collection, prelude::*};
    use serde_json::json;

    use super::*;

    /// Settings with every kind of JSON value, and integers as keys. Fractions have up to nine digits: `serde_json` may
    /// change the last bit of one with 17, and then a router prepares a choice that it has already once more.
    fn settings() -> impl Strategy<Value = Map<String, Value>> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (any::<i32>(), 0..9).prop_map(|(digits, places)| {
                let fraction = f64::from(digits) / 10f64.powi(places);
                Value::from(fraction)
            }),
            ".{0,8}".prop_map(Value::from),
        ];
        let value = leaf.prop_recursive(3, 16, 4, |value| {
            prop_oneof![
                collection::vec(value.clone(), 0..4).prop_map(Value::from),
                collection::btree_map("([0-9]{1,3}|.{0,4})", value, 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        });
        collection::btree_map(".{0,8}", value, 0..4).prop_map(|members| members.into_iter().collect())
    }

    fn any_choice() -> impl Strategy<Value = ChosenPolicy> {
        (".{0,8}", ".{0,8}", "[0-9a-f]{64}", settings()).prop_map(|(policy, version, digest, settings)| {
            ChosenPolicy {
                policy,
                version,
                digest,
                settings,
            }
        })
    }

    proptest! {
        /// What is read decides as what was written does, or routers would not agree that nothing has changed.
        #[test]
        fn entries_are_read_as_written(
            choice in any_choice(), before in collection::vec(any_choice(), 0..3), uploaded_unix_ms: u64,
        ) {
            let ChosenPolicy { policy, version, digest, settings } = choice.clone();
            let entry = ActiveEntry { choice, before };
            let read: ActiveEntry = serde_json::from_slice(&entry.to_value()).unwrap();
            prop_assert!(read.choice.is(&entry.choice));
            prop_assert_eq!(read, entry);
            let text = settings_text(&settings);
            let given = if text.is_empty() { json!({}) } else { serde_json::from_str(&text).unwrap() };
            prop_assert_eq!(object(given), settings.clone(), "as a policy's instances get them");
            let upload = UploadEntry { name: policy, version, digest, settings, uploaded_unix_ms };
            prop_assert_eq!(serde_json::from_slice::<UploadEntry>(&upload.to_value()).unwrap(), upload);
        }
    }

    fn choice(version: usize) -> ChosenPolicy {
        ChosenPolicy {
            policy: "mine".into(),
            version: version.to_string(),
            digest: format!("{version:064}"),
            settings: Map::new(),
        }
    }

    #[test]
    fn every_subject_has_its_own_key() {
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
    fn an_active_entry_has_the_documented_form_and_unknown_members_are_ignored() {
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
    fn an_entry_keeps_earlier_choices_with_the_latest_first() {
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
    fn a_rollback_may_return_to_each_earlier_choice_and_forgets_the_later_ones() {
        let entry = ActiveEntry {
            choice: choice(3),
            before: vec![choice(2), choice(1)],
        };
        let earlier = entry.earlier();
        let first = ActiveEntry {
            choice: choice(2),
            before: vec![choice(1)],
        };
        let second = ActiveEntry {
            choice: choice(1),
            before: vec![],
        };
        assert_eq!(earlier, [first, second]);
        assert_eq!(earlier[0].succession_after(&choice(3)), Succession::Back);
        assert_eq!(entry.succession_after(&choice(2)), Succession::Forward);
    }

    #[test]
    fn large_settings_push_out_the_oldest_choices() {
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
