//! What the links of a process log: one line when a worker is lost, and one when it answers again.
//!
//! Every HTTP thread has a link to each worker, and the process has more. They all lose a worker at the same moment, and
//! each dials it again many times. The first that notices a loss or a return logs it for all.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use signalbox_protocol::WorkerId;
use tracing::{debug, info, warn};

/// The workers that the links of a process have lost, by address. Clone = handle: the links share it with their settings.
#[derive(Debug, Clone, Default)]
pub struct LinkLosses(Arc<Mutex<HashMap<String, Links>>>);

/// The links to one address.
#[derive(Debug, Default)]
struct Links {
    count: usize,
    loss: Option<Loss>,
}

/// How a loss was logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    Warned,
    /// The worker drained before.
    Expected,
}

/// One link's part. The address is forgotten with its last link.
#[derive(Debug)]
pub(super) struct LinkLog {
    losses: LinkLosses,
    address: String,
}

impl LinkLog {
    pub(super) fn new(losses: LinkLosses, address: String) -> Self {
        losses.0.lock().entry(address.clone()).or_default().count += 1;
        Self { losses, address }
    }

    pub(super) fn connected(&self, worker: &WorkerId) {
        let address = &self.address;
        let loss = self
            .losses
            .0
            .lock()
            .get_mut(address)
            .and_then(|links| links.loss.take());
        match loss {
            Some(Loss::Warned) => {
                warn!(worker.id = %worker, worker.address = address, "the worker answers again");
            }
            Some(Loss::Expected) => {
                info!(worker.id = %worker, worker.address = address, "a worker answers where one has drained");
            }
            None => debug!(worker.id = %worker, worker.address = address, "link to worker is up"),
        }
    }

    /// A dial failed or the connection ended; `expected` if the worker drained before.
    pub(super) fn lost(&self, reason: &str, expected: bool) {
        let address = &self.address;
        match self.note_loss(expected) {
            Some(Loss::Warned) => {
                warn!(
                    worker.address = address,
                    reason, "no link to worker; it is dialled until it answers or leaves"
                );
            }
            Some(Loss::Expected) => info!(worker.address = address, reason, "a worker that drained has gone"),
            None => debug!(worker.address = address, reason, "no link to worker"),
        }
    }

    /// Returns how to log the loss; `None` if another link has, or this one before.
    fn note_loss(&self, expected: bool) -> Option<Loss> {
        let mut losses = self.losses.0.lock();
        let links = losses.get_mut(&self.address)?;
        if links.loss.is_some() {
            return None;
        }
        let loss = if expected { Loss::Expected } else { Loss::Warned };
        links.loss = Some(loss);
        Some(loss)
    }
}

impl Drop for LinkLog {
    fn drop(&mut self) {
        let mut losses = self.losses.0.lock();
        if let Some(links) = losses.get_mut(&self.address) {
            links.count -= 1;
            if links.count == 0 {
                losses.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_links_of_a_process_log_a_loss_and_a_return_once() {
        let losses = LinkLosses::default();
        let link = || LinkLog::new(losses.clone(), "w:1".into());
        let other = LinkLog::new(losses.clone(), "w:2".into());
        let worker = "w".parse().unwrap();
        let links: Vec<_> = (0..16).map(|_| link()).collect();
        for round in 0..2 {
            let logged = links
                .iter()
                .chain(&links)
                .filter_map(|link| link.note_loss(false));
            assert_eq!(logged.count(), 1, "round {round}");
            links.iter().for_each(|link| link.connected(&worker));
        }
        assert_eq!(links[0].note_loss(true), Some(Loss::Expected));
        assert_eq!(
            links[1].note_loss(false),
            None,
            "it is known that the worker has gone"
        );
        assert_eq!(other.note_loss(false), Some(Loss::Warned));
        drop((links, other));
        assert!(
            losses.0.lock().is_empty(),
            "nothing is kept of addresses without links"
        );
    }
}
