//! Returns costs that are NaN.

use misbehaving::{Trigger, harmless};
use signalbox_policy_sdk::{Candidates, Decision, Info, Policy, Request, Settings, export_policy};

/// Returns costs that are NaN.
#[derive(Debug, Default)]
pub struct NanCosts(Trigger);

impl Policy for NanCosts {
    fn configure(&mut self, settings: &mut Settings) -> Result<(), String> {
        self.0.configure(settings)
    }

    fn describe(&self) -> Info {
        Info::new("nan-costs", "1.0.0")
    }

    fn decide(&mut self, request: &Request, candidates: &Candidates) -> Decision {
        if !self.0.pulled(request) {
            return harmless(candidates);
        }
        Decision::Costs(vec![f32::NAN; candidates.len()])
    }
}

export_policy!(NanCosts);
