//! Panics.

use misbehaving::{Trigger, harmless};
use signalbox_policy_sdk::{Candidates, Decision, Info, Policy, Request, Settings, export_policy};

/// Panics.
#[derive(Debug, Default)]
pub struct Trap(Trigger);

impl Policy for Trap {
    fn configure(&mut self, settings: &mut Settings) -> Result<(), String> {
        self.0.configure(settings)
    }

    fn describe(&self) -> Info {
        Info::new("trap", "1.0.0")
    }

    fn decide(&mut self, request: &Request, candidates: &Candidates) -> Decision {
        if !self.0.pulled(request) {
            return harmless(candidates);
        }
        panic!("as told")
    }
}

export_policy!(Trap);
