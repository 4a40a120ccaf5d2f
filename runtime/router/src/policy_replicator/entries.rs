//! The entries of the policy store, as every router reads and writes them. `policy-store/README.md` documents them.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use signalbox_policy_host::Succession;
use signalbox_policy_store::{MAX_VALUE_BYTES, Revision};

use crate::audit::AuditRecord;

use super::{
    chosen_policy::ChosenPolicy,
    history::{ChangeAction, ChangeNote, HistoryItem, MAX_HISTORY, PastChange},
};

/// Most earlier choices that an entry keeps for rollbacks.
const MAX_BEFORE: usize = 8;

/// What a key of the store stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    /// An upload, by name and digest.
    Upload { name: String, digest: String },
    /// The choice of a policy for a model.
    Active { model: String },
    /// The latest quarantine of a version, by name and digest.
    Quarantine { name: String, digest: String },
}

impl Subject {
    pub(super) fn active(model: &str) -> Self {
        Self::Active { model: model.into() }
    }

    pub(super) fn key(&self) -> String {
        match self {
            Self::Upload { name, digest } => format!("policies/{name}/{digest}"),
            Self::Active { model } => format!("active/{model}"),
            Self::Quarantine { name, digest } => format!("quarantines/{name}/{digest}"),
        }
    }

    /// `None` for a key that this release does not know.
    pub(super) fn parse(key: &str) -> Option<Self> {
        if let Some(model) = key.strip_prefix("active/") {
            return Some(Self::Active { model: model.into() });
        }
        let (kind, version) = key.split_once('/')?;
        let (name, digest) = version.split_once('/')?;
        let (name, digest) = (name.into(), digest.into());
        match kind {
            "policies" => Some(Self::Upload { name, digest }),
            "quarantines" => Some(Self::Quarantine { name, digest }),
            _ => None,
        }
    }
}

/// The choice of a policy for a model: the value of `active/{model}`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct ActiveEntry {
    #[serde(flatten)]
    pub(super) choice: ChosenPolicy,
    /// Earlier choices, the latest first.
    #[serde(default)]
    pub(super) before: Vec<ChosenPolicy>,
    /// Who made this change, when, and why; `None` in entries of releases that kept no notes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) change: Option<ChangeNote>,
    /// The changes before this one, the latest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) history: Vec<PastChange>,
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
    /// Who uploaded it; empty if that is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) by: String,
}

/// A quarantine: the value of `quarantines/{name}/{digest}`. Only the router that it names has the version in quarantine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuarantineEvent {
    /// The name of the upload.
    pub(super) policy: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of its component.
    pub(super) digest: String,
    /// The fault that led to it.
    pub reason: String,
    /// The models that it decided for there.
    pub models: Vec<String>,
    /// When, in milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    /// The router.
    pub router: String,
}

impl QuarantineEvent {
    pub(super) fn subject(&self) -> Subject {
        let (name, digest) = (self.policy.clone(), self.digest.clone());
        Subject::Quarantine { name, digest }
    }

    pub(super) fn to_value(&self) -> Bytes {
        to_json(self)
    }
}

impl ActiveEntry {
    /// The entry of `next`, which follows the present entry or, for a model without one, the default policy.
    pub(super) fn after(present: Option<&Self>, default: ChosenPolicy, next: ChosenPolicy) -> Self {
        let history = present.map(|present| present.history.clone()).unwrap_or_default();
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
        Self {
            choice: next,
            before,
            change: None,
            history,
        }
    }

    /// The same entry as the change that this note is about, which follows `present` with the revision `replaced`.
    pub(super) fn noted(
        mut self,
        note: ChangeNote,
        present: Option<&Self>,
        replaced: Revision,
        default: &ChosenPolicy,
    ) -> Self {
        let past = match present {
            Some(present) => PastChange {
                revision: replaced,
                note: present.change.clone().unwrap_or_default(),
                choice: present.choice.clone(),
            },
            None => PastChange {
                revision: Revision::ABSENT,
                note: ChangeNote {
                    action: ChangeAction::Default,
                    ..ChangeNote::default()
                },
                choice: default.clone(),
            },
        };
        let earlier = present
            .map(|present| present.history.as_slice())
            .unwrap_or_default();
        self.history = std::iter::once(past)
            .chain(earlier.iter().cloned())
            .take(MAX_HISTORY)
            .collect();
        self.change = Some(note);
        self
    }

    /// All changes that led to this entry of this revision, the latest first.
    pub(super) fn changes(&self, revision: Revision) -> Vec<HistoryItem> {
        let note = self.change.clone().unwrap_or_default();
        let present = HistoryItem::new(revision, &note, &self.choice);
        std::iter::once(present)
            .chain(self.history.iter().cloned().map(HistoryItem::from))
            .collect()
    }

    /// The entry that a rollback to the choice of an earlier revision writes; `None` when it is not known any more. A later
    /// rollback returns to what decided before that revision, not to what this one leaves.
    pub(super) fn back_to(&self, revision: Revision) -> Option<Self> {
        let past = self.history.iter().find(|past| past.revision == revision)?;
        let known = self
            .earlier()
            .into_iter()
            .find(|earlier| earlier.choice.is(&past.choice));
        Some(known.unwrap_or_else(|| Self {
            choice: past.choice.clone(),
            ..Self::default()
        }))
    }

    /// This change in the audit log.
    pub(super) fn audit_record(&self, model: &str, revision: Revision, here: bool) -> AuditRecord {
        let note = self.change.clone().unwrap_or_default();
        AuditRecord {
            at_unix_ms: note.at_unix_ms,
            action: note.action.name().into(),
            by: note.by,
            here,
            model: Some(model.to_owned()),
            policy: self.choice.label(),
            digest: self.choice.digest.clone(),
            settings: self.choice.settings.clone(),
            revision: Some(revision.0),
            reason: note.reason,
        }
    }

    /// The policies that this entry puts to work.
    pub(super) fn choices(&self) -> impl Iterator<Item = &ChosenPolicy> {
        std::iter::once(&self.choice)
    }

    /// The entries that a rollback from this one writes, the latest choice first.
    pub(super) fn earlier(&self) -> Vec<Self> {
        let before = |index: usize| self.before.iter().skip(index + 1).cloned().collect();
        let choices = self.before.iter().enumerate();
        let entry = choices.map(|(index, choice)| Self {
            choice: choice.clone(),
            before: before(index),
            ..Self::default()
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

    /// The value as the store takes it: when large settings exceed its bound, the oldest changes are left out, then the
    /// oldest choices.
    pub(super) fn to_value(&self) -> Bytes {
        let mut entry = self.clone();
        loop {
            let json = to_json(&entry);
            if json.len() <= MAX_VALUE_BYTES || entry.history.pop().is_none() && entry.before.pop().is_none()
            {
                return json;
            }
        }
    }
}

impl UploadEntry {
    pub(super) fn audit_record(&self, revision: Revision, here: bool) -> AuditRecord {
        AuditRecord {
            at_unix_ms: self.uploaded_unix_ms,
            action: "upload".into(),
            by: self.by.clone(),
            here,
            policy: format!("{}@{}", self.name, self.version),
            digest: self.digest.clone(),
            settings: self.settings.clone(),
            revision: Some(revision.0),
            ..AuditRecord::default()
        }
    }

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

    use super::super::chosen_policy::{object, settings_text};

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
            let entry = ActiveEntry { choice, before, ..ActiveEntry::default() };
            let read: ActiveEntry = serde_json::from_slice(&entry.to_value()).unwrap();
            prop_assert!(read.choice.is(&entry.choice));
            prop_assert_eq!(read, entry);
            let text = settings_text(&settings);
            let given = if text.is_empty() { json!({}) } else { serde_json::from_str(&text).unwrap() };
            prop_assert_eq!(object(given), settings.clone(), "as a policy's instances get them");
            let by = "alice at 127.0.0.1".to_owned();
            let upload = UploadEntry { name: policy, version, digest, settings, uploaded_unix_ms, by };
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
                digest: digest.clone(),
            },
            Subject::Quarantine {
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
            ..ActiveEntry::default()
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
            ..ActiveEntry::default()
        };
        let earlier = entry.earlier();
        let first = ActiveEntry {
            choice: choice(2),
            before: vec![choice(1)],
            ..ActiveEntry::default()
        };
        let second = ActiveEntry {
            choice: choice(1),
            before: vec![],
            ..ActiveEntry::default()
        };
        assert_eq!(earlier, [first, second]);
        assert_eq!(earlier[0].succession_after(&choice(3)), Succession::Back);
        assert_eq!(entry.succession_after(&choice(2)), Succession::Forward);
    }

    #[test]
    fn an_entry_keeps_who_changed_what_and_a_rollback_finds_each_revision() {
        let note = |by: &str| ChangeNote {
            action: ChangeAction::Activate,
            at_unix_ms: 5,
            by: by.into(),
            reason: None,
        };
        let mut entry = ActiveEntry::after(None, choice(0), choice(1)).noted(
            note("first"),
            None,
            Revision::ABSENT,
            &choice(0),
        );
        for version in 2..=40 {
            let replaced = Revision(version as u64 - 1);
            entry = ActiveEntry::after(Some(&entry), choice(0), choice(version)).noted(
                note(&version.to_string()),
                Some(&entry),
                replaced,
                &choice(0),
            );
            if version == 3 {
                let shown: Vec<_> = entry
                    .changes(Revision(3))
                    .into_iter()
                    .map(|item| (item.revision, item.note.by, item.policy, item.note.action))
                    .collect();
                let item = |revision, by: &str, action| {
                    (revision, by.to_owned(), format!("mine@{revision}"), action)
                };
                let expected = [
                    item(3, "3", ChangeAction::Activate),
                    item(2, "2", ChangeAction::Activate),
                    item(1, "first", ChangeAction::Activate),
                    item(0, "", ChangeAction::Default),
                ];
                assert_eq!(shown, expected);
                let read: ActiveEntry = serde_json::from_slice(&entry.to_value()).unwrap();
                assert_eq!(read, entry);
            }
        }
        assert_eq!(entry.changes(Revision(40)).len(), MAX_HISTORY + 1);
        let back = entry.back_to(Revision(35)).unwrap();
        assert_eq!(back.choice, choice(35));
        assert_eq!(back.before.first(), Some(&choice(34)), "what decided before it");
        let further = entry.back_to(Revision(20)).unwrap();
        assert_eq!((further.choice, further.before), (choice(20), vec![]));
        assert_eq!(entry.back_to(Revision(1)), None, "older than what is kept");
    }

    #[test]
    fn an_action_of_a_later_release_is_read_as_unknown() {
        let note: ChangeNote =
            serde_json::from_value(json!({"action": "teleport", "by": "x", "mood": 1})).unwrap();
        assert_eq!((note.action, note.by.as_str()), (ChangeAction::Unknown, "x"));
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
            ..ActiveEntry::default()
        };
        let value = entry.to_value();
        assert!(value.len() <= MAX_VALUE_BYTES);
        let read: ActiveEntry = serde_json::from_slice(&value).unwrap();
        assert_eq!((read.choice, read.before), (large(9), vec![large(7), large(6)]));
    }
}
