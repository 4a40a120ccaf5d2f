//! Names a signal that no host has.

use misbehaving::harmless;
use signalbox_policy_sdk::{Candidates, Columns, Decision, Info, Policy, Request, export_policy};

/// Names a signal that no host has.
#[derive(Debug, Default)]
pub struct UnknownSignal;

impl Policy for UnknownSignal {
    fn describe(&self) -> Info {
        let info = Info::new("unknown-signal", "1.0.0", Columns::empty());
        Info {
            extra: vec!["kv-use".into(), "phase-of-the-moon".into()],
            ..info
        }
    }

    fn decide(&mut self, _: &Request, candidates: &Candidates) -> Decision {
        harmless(candidates)
    }
}

export_policy!(UnknownSignal);
