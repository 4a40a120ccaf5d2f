//! The handle of a link.

use std::{borrow::Borrow, cell::RefCell, fmt, rc::Rc, sync::Arc};

use actix::prelude::*;
use signalbox_protocol::{ErrorKind, WireError, WorkerCard};

use super::{
    config::LinkConfig,
    error::LinkError,
    link::{self, WorkerLink},
    link_events::LinkEvent,
    link_state::{LinkState, StateChanges},
    mux::{self, OpenRefusal},
    response::ResponseStream,
    state::{self, SharedLink},
};
use crate::call_parts::CallParts;

/// Cheap handle of one link to a worker. The link is an actor on this arbiter.
///
/// Dropping the last clone closes the link, like [`LinkHandle::close`].
#[derive(Debug, Clone)]
pub struct LinkHandle {
    owner: Rc<Owner>,
}

impl LinkHandle {
    /// Starts the link actor on the current arbiter. It dials at once, and reconnects with jittered backoff until it is
    /// closed. `address` is `host:port`, or `nats:<worker>` if the config has a NATS transport.
    pub fn start(address: String, config: LinkConfig, watcher: Option<Recipient<LinkEvent>>) -> Self {
        metrics::describe_gauge!(
            "signalbox_link_state",
            "Links in each state, by worker address: every HTTP thread has a link to each worker"
        );
        metrics::describe_counter!(
            "signalbox_link_reconnects_total",
            "Times an established link was lost, by worker address"
        );
        let link = SharedLink::new(address, config, watcher.is_some());
        let actor = WorkerLink::start(link.clone(), watcher.clone());
        Self {
            owner: Rc::new(Owner {
                link,
                watcher,
                actor: RefCell::new(actor),
            }),
        }
    }

    /// Opens a stream. While the link connects, the call is queued. Dropping the stream before its end cancels it at the
    /// worker.
    ///
    /// # Errors
    /// [`LinkError::Unreachable`] without a connection, or if too many bytes wait to be written;
    /// [`LinkError::Draining`]; [`LinkError::Full`]; [`LinkError::Refused`] for a call larger than a frame. After any of
    /// these errors the call has not reached the worker.
    pub fn open(&self, parts: impl Borrow<CallParts>) -> Result<ResponseStream, LinkError> {
        self.owner.restart_if_panicked();
        let link = &self.owner.link;
        let stream = link.with(|link| {
            let address = || link.address.clone();
            match link.state {
                LinkState::Connecting | LinkState::Up => {}
                LinkState::Draining => return Err(LinkError::Draining { address: address() }),
                LinkState::Backoff | LinkState::Closed => {
                    let reason = link.down_reason.clone();
                    return Err(LinkError::Unreachable {
                        address: address(),
                        reason,
                    });
                }
            }
            link.mux.open(parts.borrow()).map_err(|refusal| match refusal {
                OpenRefusal::Full { limit } => LinkError::Full {
                    address: address(),
                    limit,
                },
                OpenRefusal::Congested { bytes } => LinkError::Unreachable {
                    address: address(),
                    reason: format!("{bytes} bytes already wait to be written to it"),
                },
                OpenRefusal::TooLarge { bytes, limit } => mux::too_large(bytes, limit),
                OpenRefusal::Json(error) => LinkError::Refused(WireError::new(
                    ErrorKind::Internal,
                    format!("the call cannot be encoded: {error}"),
                )),
            })
        })?;
        Ok(ResponseStream::new(link.clone(), stream))
    }

    /// The state of the link.
    pub fn state(&self) -> LinkState {
        self.owner.restart_if_panicked();
        self.owner.link.with(|link| link.state)
    }

    /// Counts every later change of [`LinkHandle::state`] in `changes`.
    pub fn count_changes(&self, changes: StateChanges) {
        self.owner.link.with(|link| link.changes = changes);
    }

    /// The card from the worker's latest hello; `None` before the first hello.
    pub fn card(&self) -> Option<Arc<WorkerCard>> {
        self.owner.link.with(|link| link.card.clone())
    }

    /// Closes the link: it takes no new call and dials no more. Open streams run to their end, then the connection closes.
    /// Calls that still wait for a connection fail as unreachable.
    pub fn close(&self) {
        self.owner.close();
    }

    #[cfg(test)]
    pub(crate) fn panic_in_actor(&self) {
        self.owner.actor.borrow().try_send(link::Panic).unwrap();
    }
}

/// What the clones of a handle share. Closes the link when the last handle is dropped.
struct Owner {
    link: SharedLink,
    watcher: Option<Recipient<LinkEvent>>,
    actor: RefCell<Addr<WorkerLink>>,
}

impl Owner {
    /// Restarts the actor if its address is closed, because actix does not restart an actor that panicked.
    fn restart_if_panicked(&self) {
        if self.actor.borrow().connected() || self.link.with(|link| link.state == LinkState::Closed) {
            return;
        }
        self.link
            .with(|link| link.lost("the link's actor stopped unexpectedly"));
        self.actor
            .replace(WorkerLink::start(self.link.clone(), self.watcher.clone()));
    }

    fn close(&self) {
        self.link.with(state::Link::close);
        // A full mailbox holds earlier `Close` messages, because nothing else is sent there.
        let _ = self.actor.borrow().try_send(link::Close);
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.link.fmt(f)
    }
}
