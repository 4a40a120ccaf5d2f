//! Names a column that no host has.

use misbehaving::harmless;
use signalbox_policy_sdk::{Candidates, Decision, Info, Policy, Request, export_policy};

/// Names a column that no host has.
#[derive(Debug, Default)]
pub struct UnknownColumn;

impl Policy for UnknownColumn {
    fn describe(&self) -> Info {
        Info::new("unknown-column", "1.0.0").numbers(["kv-use", "phase-of-the-moon"])
    }

    fn decide(&mut self, _: &Request, candidates: &Candidates) -> Decision {
        harmless(candidates)
    }
}

export_policy!(UnknownColumn);
