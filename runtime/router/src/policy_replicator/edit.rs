//! What a command makes of a model's entry in the policy store.

use signalbox_policy_store::Revision;

use super::{
    change::{ChangeRequest, PolicyChangeError},
    chosen_policy::ChosenPolicy,
    entries::ActiveEntry,
    history::{ChangeAction, ChangeNote},
};

/// A change of a model's entry.
#[derive(Debug, Clone)]
pub(super) enum Edit {
    /// This policy decides.
    Activate(ChosenPolicy),
    /// An earlier policy decides again: that of this revision, or else the latest one that can.
    RollBack { to: Option<Revision> },
}

/// A change to be written to the store.
#[derive(Debug)]
pub(super) struct PlannedChange {
    pub(super) request: ChangeRequest,
    pub(super) edit: Edit,
    /// The revision that the change replaces.
    pub(super) expected: Revision,
    /// The entry of that revision, `Some(None)` when it is absent or unreadable; `None` when this router has not
    /// received that revision.
    pub(super) present: Option<Option<ActiveEntry>>,
    /// The name and digest of every upload in the store.
    pub(super) uploads: Vec<(String, String)>,
}

impl Edit {
    pub(super) fn action(&self) -> ChangeAction {
        match self {
            Self::Activate(_) => ChangeAction::Activate,
            Self::RollBack { .. } => ChangeAction::Rollback,
        }
    }

    /// The entries to try one after the other: the first one whose policies can decide is written. `replaced` is the
    /// revision of `present`, and `default` decides while there is none.
    pub(super) fn entries(
        self,
        model: &str,
        present: Option<&ActiveEntry>,
        replaced: Revision,
        default: &ChosenPolicy,
        note: &ChangeNote,
    ) -> Result<Vec<ActiveEntry>, PolicyChangeError> {
        let entries = match self {
            Self::Activate(choice) => vec![ActiveEntry::after(present, default.clone(), choice)],
            Self::RollBack { to: None } => present.map(ActiveEntry::earlier).unwrap_or_default(),
            Self::RollBack { to: Some(to) } => {
                let back = present.and_then(|present| present.back_to(to));
                let back = back.ok_or_else(|| unknown_revision(model, to, present, replaced))?;
                vec![back]
            }
        };
        let noted = |entry: ActiveEntry| entry.noted(note.clone(), present, replaced, default);
        Ok(entries.into_iter().map(noted).collect())
    }
}

fn unknown_revision(
    model: &str,
    to: Revision,
    present: Option<&ActiveEntry>,
    replaced: Revision,
) -> PolicyChangeError {
    if present.is_some() && to == replaced {
        return PolicyChangeError::Conflict(format!("revision {to} is the present one of {model:?}"));
    }
    let known: Vec<String> = present
        .iter()
        .flat_map(|present| &present.history)
        .map(|past| past.revision.to_string())
        .collect();
    let known = if known.is_empty() {
        "none".to_owned()
    } else {
        known.join(", ")
    };
    PolicyChangeError::Conflict(format!(
        "no earlier change of {model:?} has revision {to}; known: {known}"
    ))
}
