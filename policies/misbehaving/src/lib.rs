//! The trigger that all misbehaving guests share.
//!
//! Admission tries a component and refuses one that misbehaves in its trial. By default these guests behave well in the
//! trial and misbehave afterwards; with the setting `{"always": true}` they misbehave at once. They recognise the trial
//! by its decision numbers, which begin at 2^32.

use signalbox_policy_sdk::{Candidates, Decision, Request, Settings};

/// Decision numbers of the trial begin here.
const FIRST_TRIAL_DECISION: u64 = 1 << 32;

/// Says when to misbehave.
#[derive(Debug, Default)]
pub struct Trigger {
    always: bool,
}

impl Trigger {
    /// Reads the setting `always`.
    ///
    /// # Errors
    /// The setting is not a boolean.
    pub fn configure(&mut self, settings: &mut Settings) -> Result<(), String> {
        self.always = settings.switch("always", false)?;
        Ok(())
    }

    /// Whether the guest misbehaves in this decision.
    #[must_use]
    pub fn pulled(&self, request: &Request) -> bool {
        self.always || request.decision_number < FIRST_TRIAL_DECISION
    }
}

/// A valid decision.
#[must_use]
pub fn harmless(candidates: &Candidates) -> Decision {
    Decision::Costs(vec![0.0; candidates.len()])
}
