//! The router's side: links to workers, each bound to one actix arbiter.
//!
//! A link is an actor (`link`, a thin mailbox: dialling, reconnecting, closing) around state that the handle and the
//! streams share on the same thread (`state`, with `mux` for the streams). Opening a call and reading a token touch
//! that state directly: no mailbox hop. While connected, one task (`pump`) moves bytes between state and socket.

mod backoff;
#[cfg(feature = "bench-support")]
pub mod bench_support;
mod dial;
mod error;
mod link;
mod link_events;
mod liveness;
mod mux;
mod pump;
mod response;
mod state;

use std::{
    borrow::Borrow,
    cell::{Cell, RefCell},
    fmt,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use actix::prelude::*;
use signalbox_protocol::{ErrorKind, WireError, WorkerCard};

use crate::{CallParts, nats::NatsTransport};
use link::WorkerLink;
use mux::OpenRefusal;
use state::SharedLink;

pub use error::LinkError;
pub use response::{ResponseEvent, ResponseStream};

/// How a link behaves. The defaults suit a data centre.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// For TCP to connect, or for the worker to answer over NATS, and again for its hello. 1 s: three SYNs' worth in
    /// one site.
    pub connect_timeout: Duration,
    /// Wait before the first reconnect, doubled for each failure after it; half of each wait is random.
    pub backoff_min: Duration,
    /// Longest wait before a reconnect. A connection that lasts this long starts over from `backoff_min`.
    pub backoff_max: Duration,
    /// A side that was silent for this long gets a ping. Workers drop a router silent for 30 s: keep it below 10 s.
    pub ping_interval: Duration,
    /// How long a ping may go unanswered, with nothing else arriving, before the connection counts as lost.
    pub ping_timeout: Duration,
    /// Bytes a stream may have received and not yet read: 1 KiB to 16 MiB. A stream may pass it by one piece.
    pub window_bytes: u32,
    /// Streams held at once, those still to be read to their end included.
    pub max_streams: usize,
    /// Largest frame in either direction. Prompts travel in one, so this bounds the request. The worker's own limit,
    /// told in its hello, counts too. As many bytes of calls may wait to be written.
    pub max_frame_bytes: usize,
    /// For workers whose address is `nats:<worker>`; without it they cannot be reached.
    pub nats: Option<NatsTransport>,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(1),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
            ping_interval: Duration::from_secs(2),
            ping_timeout: Duration::from_secs(3),
            // About 600 tokens' worth of chunks: a reader briefly away never stops its stream.
            window_bytes: 128 << 10,
            max_streams: 1024,
            max_frame_bytes: crate::server::DEFAULT_MAX_FRAME_BYTES,
            nats: None,
        }
    }
}

/// What became of a link; sent to whoever watches it, perhaps on another arbiter.
///
/// Events are not lost to a full mailbox: they are offered again until taken. What they say may be condensed: a
/// watcher that missed an `Up` before the next `Down` gets the `Down` alone.
#[derive(Debug, Clone)]
pub enum LinkEvent {
    /// The worker answered the hello.
    Up {
        /// As given to [`LinkHandle::start`].
        address: String,
        /// What the worker says of itself; may differ from its previous life's.
        card: Arc<WorkerCard>,
    },
    /// The worker takes nothing new; open streams go on.
    Draining {
        /// As given to [`LinkHandle::start`].
        address: String,
    },
    /// The connection is lost, or the first dial failed. Told once until the next `Up`.
    Down {
        /// As given to [`LinkHandle::start`].
        address: String,
        /// For a log.
        reason: String,
    },
}

impl Message for LinkEvent {
    type Result = ();
}

/// Where a link stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinkState {
    /// Dialling, or waiting for the worker's hello; calls are queued.
    Connecting,
    /// Calls are sent.
    Up,
    /// The worker takes nothing new; open streams go on.
    Draining,
    /// The last connection or dial failed and the next dial is due later; calls fail at once.
    Backoff,
    /// Closed by its owner.
    Closed,
}

/// Counts the changes of state of those links of one thread that are told to, so that who holds a thousand asks them
/// again only after one changed. Clone = handle.
#[derive(Debug, Clone, Default)]
pub struct StateChanges(Rc<Cell<u64>>);

impl StateChanges {
    /// So far, each change counted.
    pub fn count(&self) -> u64 {
        self.0.get()
    }

    /// One more.
    fn note(&self) {
        self.0.set(self.0.get() + 1);
    }
}

/// Cheap handle of one worker link (an actor on this arbiter).
///
/// When the last clone is dropped the link closes as by [`LinkHandle::close`].
#[derive(Debug, Clone)]
pub struct LinkHandle {
    owner: Rc<Owner>,
}

impl LinkHandle {
    /// Starts the link actor on the current arbiter; it dials at once and reconnects with jittered backoff until
    /// closed. `address` is `host:port`, or `nats:<worker>` where the config has a transport for it.
    pub fn start(address: String, config: LinkConfig, watcher: Option<Recipient<LinkEvent>>) -> Self {
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

    /// Opens a stream now; while connecting it is queued. Dropping the stream before its end cancels it at the
    /// worker.
    ///
    /// # Errors
    /// [`LinkError::Unreachable`] without a connection, or with too much waiting to be written;
    /// [`LinkError::Draining`]; [`LinkError::Full`]; [`LinkError::Refused`] for a call larger than a frame. None of
    /// them reached the worker.
    pub fn open(&self, parts: impl Borrow<CallParts>) -> Result<ResponseStream, LinkError> {
        self.owner.revive();
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
                    reason: format!("{bytes} bytes wait to be written to it already"),
                },
                OpenRefusal::TooLarge { bytes, limit } => mux::too_large(bytes, limit),
                OpenRefusal::Json(error) => LinkError::Refused(WireError::new(
                    ErrorKind::Internal,
                    format!("call not encoded: {error}"),
                )),
            })
        })?;
        Ok(ResponseStream::new(link.clone(), stream))
    }

    /// Where the link stands.
    pub fn state(&self) -> LinkState {
        self.owner.revive();
        self.owner.link.with(|link| link.state)
    }

    /// Has every later change of [`LinkHandle::state`] counted.
    pub fn count_changes(&self, changes: StateChanges) {
        self.owner.link.with(|link| link.changes = changes);
    }

    /// Card of the worker's latest hello; `None` before the first.
    pub fn card(&self) -> Option<Arc<WorkerCard>> {
        self.owner.link.with(|link| link.card.clone())
    }

    /// Takes no new call and dials no more. Open streams run to their end, then the connection closes; calls that
    /// still wait for a connection fail as unreachable.
    pub fn close(&self) {
        self.owner.close();
    }

    #[cfg(test)]
    pub(crate) fn panic_in_actor(&self) {
        self.owner.actor.borrow().try_send(link::Panic).unwrap();
    }
}

/// Closes the link when the last handle goes.
struct Owner {
    link: SharedLink,
    watcher: Option<Recipient<LinkEvent>>,
    actor: RefCell<Addr<WorkerLink>>,
}

impl Owner {
    /// actix does not restart an actor that panicked: whoever link_events its closed address starts it again.
    fn revive(&self) {
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
        // A full mailbox holds earlier closes: nothing else is ever sent there.
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
