//! Picks a row past the last candidate.

use misbehaving::{Trigger, harmless};
use signalbox_policy_sdk::{Candidates, Decision, Info, Policy, Request, Settings, export_policy};

/// Picks a row past the last candidate.
#[derive(Debug, Default)]
pub struct PickOutOfRange(Trigger);

impl Policy for PickOutOfRange {
    fn configure(&mut self, settings: &mut Settings) -> Result<(), String> {
        self.0.configure(settings)
    }

    fn describe(&self) -> Info {
        Info::new("pick-out-of-range", "1.0.0")
    }

    fn decide(&mut self, request: &Request, candidates: &Candidates) -> Decision {
        if !self.0.pulled(request) {
            return harmless(candidates);
        }
        Decision::Pick(candidates.len() as u32)
    }
}

export_policy!(PickOutOfRange);
