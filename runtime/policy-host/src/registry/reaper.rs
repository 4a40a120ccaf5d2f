//! A thread that drops instances and activations for the request threads: to unmap memory takes up to milliseconds.

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
};

use super::active_policy::Activation;
use crate::instance::PolicyInstance;

/// Most values that wait for the reaper: the instances of all threads and models when every policy is swapped. While
/// the queue is full, the caller drops the value itself.
const MAX_WAITING: usize = 256;

/// A value for the reaper to drop.
#[derive(Debug)]
pub(crate) enum Retired {
    Instance(#[expect(dead_code, reason = "the reaper only drops it")] Box<PolicyInstance>),
    Activation(#[expect(dead_code, reason = "the reaper only drops it")] Arc<Activation>),
}

/// The handle on the thread, which ends with it.
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
        // A full queue returns the value, which is then dropped here.
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
