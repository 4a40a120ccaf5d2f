//! Rules out every candidate.

use misbehaving::{Trigger, harmless};
use signalbox_policy_sdk::{Candidates, Decision, Info, Policy, Request, Settings, export_policy};

/// Rules out every candidate.
#[derive(Debug, Default)]
pub struct ExcludesAll(Trigger);

impl Policy for ExcludesAll {
    fn configure(&mut self, settings: &mut Settings) -> Result<(), String> {
        self.0.configure(settings)
    }

    fn describe(&self) -> Info {
        Info::new("excludes-all", "1.0.0")
    }

    fn decide(&mut self, request: &Request, candidates: &Candidates) -> Decision {
        if !self.0.pulled(request) {
            return harmless(candidates);
        }
        Decision::Costs(vec![f32::INFINITY; candidates.len()])
    }
}

export_policy!(ExcludesAll);
