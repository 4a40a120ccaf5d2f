//! Returns one cost too many.

use misbehaving::{Trigger, harmless};
use signalbox_policy_sdk::{Candidates, Decision, Info, Policy, Request, Settings, export_policy};

/// Returns one cost too many.
#[derive(Debug, Default)]
pub struct WrongCount(Trigger);

impl Policy for WrongCount {
    fn configure(&mut self, settings: &mut Settings) -> Result<(), String> {
        self.0.configure(settings)
    }

    fn describe(&self) -> Info {
        Info::new("wrong-count", "1.0.0")
    }

    fn decide(&mut self, request: &Request, candidates: &Candidates) -> Decision {
        if !self.0.pulled(request) {
            return harmless(candidates);
        }
        Decision::Costs(vec![0.0; candidates.len() + 1])
    }
}

export_policy!(WrongCount);
