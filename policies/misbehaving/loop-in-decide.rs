//! Never returns from `decide`.

use misbehaving::{Trigger, harmless};
use signalbox_policy_sdk::{Candidates, Decision, Info, Policy, Request, Settings, export_policy};

/// Never returns from `decide`.
#[derive(Debug, Default)]
pub struct LoopInDecide(Trigger);

impl Policy for LoopInDecide {
    fn configure(&mut self, settings: &mut Settings) -> Result<(), String> {
        self.0.configure(settings)
    }

    fn describe(&self) -> Info {
        Info::new("loop-in-decide", "1.0.0")
    }

    fn decide(&mut self, request: &Request, candidates: &Candidates) -> Decision {
        if !self.0.pulled(request) {
            return harmless(candidates);
        }
        // Work that the compiler cannot remove.
        let mut rounds = 0_u64;
        loop {
            rounds = std::hint::black_box(rounds + 1);
        }
    }
}

export_policy!(LoopInDecide);
