//! Reports how one attempt at a worker ended, to the worker's breaker and to the memory of lost requests.
//!
//! An attempt is reported once, when its answer is whole or it has failed. One that is dropped before says nothing: the
//! client left, or its deadline passed.

use crate::{
    breaker::Fault,
    health::AttemptHealth,
    retries::{PromptId, Retries},
};

/// One attempt whose end is to be reported.
#[derive(Debug)]
pub(crate) struct AttemptReport {
    pub(crate) health: AttemptHealth,
    pub(crate) retries: Retries,
    pub(crate) prompt: PromptId,
}

impl AttemptReport {
    /// The answer is whole.
    pub(crate) fn answered(self) {
        self.health.answered();
        self.retries.answered(self.prompt);
    }

    /// The attempt failed, by this fault of the worker if it was one; `cause` is for people. Returns whether the request is
    /// refused from now on, because it has lost a second worker.
    pub(crate) fn failed(self, fault: Option<Fault>, cause: &dyn std::fmt::Display) -> bool {
        let Some(fault) = fault else {
            return false;
        };
        let worker = self.health.worker();
        self.health.failed(fault, &cause.to_string());
        fault == Fault::Lost && self.retries.lost(self.prompt, worker)
    }
}
