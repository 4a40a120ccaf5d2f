//! Calls itself without end.

use misbehaving::{Trigger, harmless};
use signalbox_policy_sdk::{Candidates, Decision, Info, Policy, Request, Settings, export_policy};

/// Calls itself without end.
#[derive(Debug, Default)]
pub struct DeepRecursion(Trigger);

impl Policy for DeepRecursion {
    fn configure(&mut self, settings: &mut Settings) -> Result<(), String> {
        self.0.configure(settings)
    }

    fn describe(&self) -> Info {
        Info::new("deep-recursion", "1.0.0")
    }

    fn decide(&mut self, request: &Request, candidates: &Candidates) -> Decision {
        if !self.0.pulled(request) {
            return harmless(candidates);
        }
        Decision::Pick(descend(candidates.len() as u32))
    }
}

/// The compiler cannot turn this into a loop: each call needs the result of the next.
#[expect(unconditional_recursion, reason = "what this guest is for")]
fn descend(depth: u32) -> u32 {
    descend(std::hint::black_box(depth.wrapping_add(1))) ^ depth
}

export_policy!(DeepRecursion);
