//! A change of the active policy of a model, on its way from the plan to the result.

use std::sync::Arc;

use signalbox_policy_host::{Activation, PreparedPolicy, RegistryError, Succession};
use signalbox_policy_store::{Revision, StoreError};

use super::entries::ActiveEntry;

/// Which model's policy a command changes, and on whose behalf.
#[derive(Debug, Clone, Default)]
pub struct ChangeRequest {
    /// The model.
    pub model: String,
    /// The revision of the choice that the caller wants to replace; `None` means the last one that this router received.
    pub expected: Option<u64>,
    /// Who asks, for the history and the audit log.
    pub by: String,
}

/// A policy became the active one of a model.
#[derive(Debug, Clone)]
pub struct PolicyChange {
    /// What decided on this router before.
    pub before: Arc<Activation>,
    /// What decides on this router now.
    pub active: Arc<Activation>,
    /// The revision of the change in the store.
    pub revision: u64,
}

/// Why a change was not made.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PolicyChangeError {
    /// The registry does not accept the policy.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The store did not take the change.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another change came first.
    #[error("{0}")]
    Changed(String),
    /// The present state of the policies does not allow the change.
    #[error("{0}")]
    Conflict(String),
    /// A defect of this router.
    #[error("the router failed while it changed policies; its log has the reason")]
    BrokeOff,
}

impl PolicyChangeError {
    /// Whether the same change may succeed later.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Store(error) => !matches!(error, StoreError::Refused(_)),
            Self::Registry(_) | Self::Changed(_) | Self::Conflict(_) | Self::BrokeOff => false,
        }
    }
}

/// A choice that the store has taken and this router has prepared.
#[derive(Debug)]
pub(super) struct WrittenChoice {
    pub(super) model: String,
    pub(super) entry: ActiveEntry,
    pub(super) revision: Revision,
    pub(super) prepared: PreparedPolicy,
    pub(super) succession: Succession,
}
