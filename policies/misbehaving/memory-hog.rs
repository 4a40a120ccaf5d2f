//! Takes memory until it is stopped.

use misbehaving::{Trigger, harmless};
use signalbox_policy_sdk::{Candidates, Decision, Info, Policy, Request, Settings, export_policy};

/// Takes memory until it is stopped.
#[derive(Debug, Default)]
pub struct MemoryHog(Trigger);

impl Policy for MemoryHog {
    fn configure(&mut self, settings: &mut Settings) -> Result<(), String> {
        self.0.configure(settings)
    }

    fn describe(&self) -> Info {
        Info::new("memory-hog", "1.0.0")
    }

    fn decide(&mut self, request: &Request, candidates: &Candidates) -> Decision {
        if !self.0.pulled(request) {
            return harmless(candidates);
        }
        // It does not write to the memory: the host must refuse the growth before the time budget ends.
        loop {
            std::mem::forget(std::hint::black_box(Vec::<u8>::with_capacity(1 << 20)));
        }
    }
}

export_policy!(MemoryHog);
