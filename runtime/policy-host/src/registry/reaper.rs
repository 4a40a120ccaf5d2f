//! Drops instances and activations away from the request threads: unmapping memory takes microseconds to milliseconds.

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
};

use super::active_policy::Activation;
use crate::instance::PolicyInstance;

/// What may wait to be dropped: the instances of all threads and models in a swap of everything. Beyond it the
/// thread that is done drops by itself.
const MAX_WAITING: usize = 256;

/// Something to be dropped elsewhere; dropping is all that ever happens to it.
#[derive(Debug)]
pub(crate) enum Retired {
    Instance(#[expect(dead_code, reason = "it is here to be dropped")] Box<PolicyInstance>),
    Activation(#[expect(dead_code, reason = "it is here to be dropped")] Arc<Activation>),
}

/// A handle on the thread, which ends with the last one.
#[derive(Debug)]
pub(super) struct Reaper(mpsc::SyncSender<Retired>);

impl Reaper {
    pub(super) fn start() -> io::Result<Self> {
        let (sender, retired) = mpsc::sync_channel(MAX_WAITING);
        thread::Builder::new()
            .name("policy-reaper".into())
            .spawn(move || retired.into_iter().for_each(drop))?;
        Ok(Self(sender))
    }

    pub(super) fn take(&self, retired: Retired) {
        // A full queue gives it back, and it is dropped here.
        drop(self.0.try_send(retired));
    }
}

impl From<PolicyInstance> for Retired {
    fn from(instance: PolicyInstance) -> Self {
        Self::Instance(Box::new(instance))
    }
}

impl From<Arc<Activation>> for Retired {
    fn from(activation: Arc<Activation>) -> Self {
        Self::Activation(activation)
    }
}
