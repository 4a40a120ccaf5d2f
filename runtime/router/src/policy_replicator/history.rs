//! Who changed a model's policy, when and how: the notes that an entry of the policy store keeps.

use serde::{Deserialize, Serialize};
use signalbox_policy_store::Revision;

use super::chosen_policy::ChosenPolicy;

/// Most earlier changes that an entry keeps. With settings of 1 KiB they take half of an entry's room.
pub(super) const MAX_HISTORY: usize = 32;

/// What a change of a model's policy did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeAction {
    /// Nothing was chosen yet: the default policy decides.
    Default,
    /// Another policy, or other settings, decide.
    Activate,
    /// An earlier policy decides again.
    Rollback,
    /// A change by a release that kept no notes, or of a kind that this release does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

impl ChangeAction {
    /// As it is in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Default => "default",
            Self::Activate => "activate",
            Self::Rollback => "rollback",
        }
    }
}

/// Who made a change, when, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeNote {
    /// What it did.
    #[serde(default)]
    pub action: ChangeAction,
    /// When, in milliseconds since the Unix epoch; 0 if that is not known.
    #[serde(default)]
    pub at_unix_ms: u64,
    /// Who: the name that the caller gave and its address, or the router itself. Empty if that is not known.
    #[serde(default)]
    pub by: String,
    /// Why, where the router made the change by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A change before the present one, with the choice that it made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct PastChange {
    /// The revision of the change; 0 where nothing was chosen.
    pub(super) revision: Revision,
    #[serde(flatten)]
    pub(super) note: ChangeNote,
    #[serde(flatten)]
    pub(super) choice: ChosenPolicy,
}

/// A change of a model's policy, as the admin API shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HistoryItem {
    /// The revision of the change: `to_revision` of a rollback. 0 where nothing was chosen.
    pub revision: u64,
    /// Who made it, when, and why.
    #[serde(flatten)]
    pub note: ChangeNote,
    /// `name@version` of the policy that decided from then on.
    pub policy: String,
    /// SHA-256 of its component.
    pub digest: String,
    /// Its settings.
    pub settings: serde_json::Map<String, serde_json::Value>,
}

impl HistoryItem {
    pub(super) fn new(revision: Revision, note: &ChangeNote, choice: &ChosenPolicy) -> Self {
        Self {
            revision: revision.0,
            note: note.clone(),
            policy: choice.label(),
            digest: choice.digest.clone(),
            settings: choice.settings.clone(),
        }
    }
}

impl From<PastChange> for HistoryItem {
    fn from(past: PastChange) -> Self {
        Self::new(past.revision, &past.note, &past.choice)
    }
}
