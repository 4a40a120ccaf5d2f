//! The state of one link, shared on its thread by the actor, the handle, the pump and the streams.

use std::{
    cell::RefCell,
    fmt, mem,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use metrics::{counter, gauge};
use signalbox_protocol::WorkerCard;

use super::{
    config::LinkConfig,
    error::LinkError,
    link_events::{LinkEvent, LinkEvents},
    link_state::{LinkState, StateChanges},
    liveness::Liveness,
    mux::{FrameEffect, Mux, Violation},
};
use crate::{frame::Frame, hello::WINDOW_BYTES};

/// The state of one link.
pub(super) struct Link {
    pub(super) address: String,
    pub(super) config: Rc<LinkConfig>,
    pub(super) state: LinkState,
    pub(super) changes: StateChanges,
    pub(super) card: Option<Arc<WorkerCard>>,
    /// Whether the worker of the last connection drained.
    pub(super) has_drained: bool,
    pub(super) mux: Mux,
    pub(super) liveness: Liveness,
    /// Why the link is not up.
    pub(super) down_reason: String,
    /// Whether the link has a watcher.
    watched: bool,
    link_events: LinkEvents,
    /// Wakes the task that sends events to the watcher.
    notifier: Option<Waker>,
}

impl Link {
    fn new(address: String, mut config: LinkConfig, watched: bool) -> Self {
        // Workers refuse a window out of range, so a setting out of range is clamped.
        config.window_bytes = config
            .window_bytes
            .clamp(*WINDOW_BYTES.start(), *WINDOW_BYTES.end());
        let liveness = Liveness::new(config.ping_interval, config.ping_timeout, Instant::now());
        let link = Self {
            mux: Mux::new(config.window_bytes, config.max_streams, config.max_frame_bytes),
            address,
            config: Rc::new(config),
            state: LinkState::Connecting,
            changes: StateChanges::default(),
            card: None,
            has_drained: false,
            liveness,
            down_reason: String::new(),
            watched,
            link_events: LinkEvents::default(),
            notifier: None,
        };
        link.count_state(1.0);
        link
    }

    /// Notes that a dial begins. Calls are queued from now on.
    pub(super) fn dialling(&mut self) {
        self.enter(LinkState::Connecting);
    }

    /// Notes that the worker answered the hello.
    pub(super) fn connected(&mut self, card: Arc<WorkerCard>, worker_max_frame: usize, now: Instant) {
        self.mux.connected(worker_max_frame);
        self.liveness = Liveness::new(self.config.ping_interval, self.config.ping_timeout, now);
        self.card = Some(card.clone());
        self.has_drained = false;
        if self.state != LinkState::Closed {
            self.enter(LinkState::Up);
            self.notify(LinkEvent::Up {
                address: self.address.clone(),
                card,
            });
        }
    }

    /// Takes a frame that arrived.
    pub(super) fn on_frame(&mut self, frame: Frame) -> Result<(), Violation> {
        if self.mux.on_frame(frame)? == FrameEffect::Drain && self.state == LinkState::Up {
            self.has_drained = true;
            self.enter(LinkState::Draining);
            self.notify(LinkEvent::Draining {
                address: self.address.clone(),
            });
        }
        Ok(())
    }

    /// Notes that the connection is lost, or that a dial failed. Open streams fail. A second call changes nothing.
    pub(super) fn lost(&mut self, reason: &str) {
        let address = &self.address;
        let was_up = matches!(self.state, LinkState::Up | LinkState::Draining);
        // During a dial nothing is written, so each call still counts as unwritten.
        self.mux.lost(|written| {
            let (address, reason) = (address.clone(), reason.to_owned());
            if written {
                LinkError::Lost { address, reason }
            } else {
                LinkError::Unreachable { address, reason }
            }
        });
        if matches!(self.state, LinkState::Backoff | LinkState::Closed) {
            return;
        }
        if was_up {
            counter!("signalbox_link_reconnects_total", "worker" => self.address.clone()).increment(1);
        }
        self.down_reason = reason.to_owned();
        self.enter(LinkState::Backoff);
        self.notify(LinkEvent::Down {
            address: self.address.clone(),
            reason: reason.to_owned(),
        });
    }

    /// Closes the link for new calls. Streams without a connection fail, and other streams go on.
    pub(super) fn close(&mut self) {
        let connecting = self.state == LinkState::Connecting;
        if self.state != LinkState::Closed {
            "the link is closed".clone_into(&mut self.down_reason);
            self.enter(LinkState::Closed);
        }
        if connecting {
            self.lost("the link was closed before it was connected");
        }
        self.mux.wake_writer();
    }

    /// Whether the link is closed, no stream is open and nothing is to be written.
    pub(super) fn is_finished(&self) -> bool {
        self.state == LinkState::Closed && self.mux.is_idle()
    }

    /// Queues an event for the watcher.
    fn notify(&mut self, event: LinkEvent) {
        if self.watched {
            self.link_events.push(event);
            let notifier = self.notifier.take();
            self.mux.wake(notifier);
        }
    }

    /// The next event for the watcher.
    pub(super) fn poll_event(&mut self, cx: &Context<'_>) -> Poll<LinkEvent> {
        if let Some(event) = self.link_events.pop() {
            return Poll::Ready(event);
        }
        self.notifier = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Puts back an event that the watcher's mailbox had no room for.
    pub(super) fn put_back(&mut self, event: LinkEvent) {
        self.link_events.put_back(event);
    }

    fn enter(&mut self, state: LinkState) {
        if self.state != state && self.state != LinkState::Closed {
            self.count_state(-1.0);
            self.state = state;
            self.count_state(1.0);
            self.changes.increment();
        }
    }

    /// Adds to the gauge of the link's state. The gauge counts links, because several threads have a link to each worker.
    fn count_state(&self, change: f64) {
        let state = match self.state {
            LinkState::Connecting => "connecting",
            LinkState::Up => "up",
            LinkState::Draining => "draining",
            LinkState::Backoff => "backoff",
            LinkState::Closed => return,
        };
        gauge!("signalbox_link_state", "worker" => self.address.clone(), "state" => state).increment(change);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.count_state(-1.0);
    }
}

/// A link's state, shared on its thread. Every access borrows the state, changes it, releases it, and then wakes the tasks
/// that the change concerns.
#[derive(Clone)]
pub(super) struct SharedLink(Rc<RefCell<Link>>);

impl SharedLink {
    pub(super) fn new(address: String, config: LinkConfig, watched: bool) -> Self {
        Self(Rc::new(RefCell::new(Link::new(address, config, watched))))
    }

    /// Applies `change` to the state. `change` must not wake a task or use a handle of this link.
    pub(super) fn with<R>(&self, change: impl FnOnce(&mut Link) -> R) -> R {
        let mut link = self.0.borrow_mut();
        let result = change(&mut link);
        let mut woken = link.mux.take_woken();
        drop(link);
        if woken.capacity() > 0 {
            woken.drain(..).for_each(Waker::wake);
            // A woken task may run here and borrow the link. Then the vector is not kept.
            if let Ok(mut link) = self.0.try_borrow_mut() {
                link.mux.recycle(mem::take(&mut woken));
            }
        }
        result
    }
}

impl fmt::Debug for SharedLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok(link) = self.0.try_borrow() else {
            return f.write_str("Link(busy)");
        };
        f.debug_struct("Link")
            .field("address", &link.address)
            .field("state", &link.state)
            .finish_non_exhaustive()
    }
}
