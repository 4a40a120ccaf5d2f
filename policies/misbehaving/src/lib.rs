//! What the misbehaving guests share: when to misbehave.
//!
//! Admission tries a component before it is accepted, so a guest that is bad from the start never gets in. By default
//! these are good there and bad later; with the setting `{"always": true}` they are bad at once. They tell by the
//! decision number, which admission takes from 2^32 on.

use signalbox_policy_sdk::{Candidates, Decision, Request, Settings};

/// Decision numbers of admission's dry runs begin here.
const DRY_RUNS: u64 = 1 << 32;

/// Decides whether it is time to misbehave.
#[derive(Debug, Default)]
pub struct Trigger {
    always: bool,
}

impl Trigger {
    /// Reads the setting `always`.
    ///
    /// # Errors
    /// It is no boolean.
    pub fn configure(&mut self, settings: &mut Settings) -> Result<(), String> {
        self.always = settings.switch("always", false)?;
        Ok(())
    }

    /// Whether this decision is to go wrong.
    #[must_use]
    pub fn pulled(&self, request: &Request) -> bool {
        self.always || request.decision_number < DRY_RUNS
    }
}

/// A decision nobody can object to.
#[must_use]
pub fn harmless(candidates: &Candidates) -> Decision {
    Decision::Costs(vec![0.0; candidates.len()])
}
