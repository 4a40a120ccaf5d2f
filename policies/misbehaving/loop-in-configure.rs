//! Never returns from `configure`.

use misbehaving::harmless;
use signalbox_policy_sdk::{Candidates, Decision, Info, Policy, Request, Settings, export_policy};

/// Never returns from `configure`.
#[derive(Debug, Default)]
pub struct LoopInConfigure;

impl Policy for LoopInConfigure {
    fn configure(&mut self, _: &mut Settings) -> Result<(), String> {
        let mut rounds = 0_u64;
        loop {
            rounds = std::hint::black_box(rounds + 1);
        }
    }

    fn describe(&self) -> Info {
        Info::new("loop-in-configure", "1.0.0")
    }

    fn decide(&mut self, _: &Request, candidates: &Candidates) -> Decision {
        harmless(candidates)
    }
}

export_policy!(LoopInConfigure);
