//! The events of a link, and those that still wait for the link's watcher.

use std::{collections::VecDeque, sync::Arc};

use actix::Message;
use signalbox_protocol::WorkerCard;

/// A change of a link, sent to the link's watcher, which may be on another arbiter.
///
/// An event that meets a full mailbox is offered again until the watcher takes it. A `Down` replaces the events before it
/// that the watcher has not taken.
#[derive(Debug, Clone)]
pub enum LinkEvent {
    /// The worker answered the hello.
    Up {
        /// As given to [`LinkHandle::start`](super::LinkHandle::start).
        address: String,
        /// The worker's card, which may differ from the card of the worker's earlier incarnation.
        card: Arc<WorkerCard>,
    },
    /// The worker takes no new streams; open streams go on.
    Draining {
        /// As given to [`LinkHandle::start`](super::LinkHandle::start).
        address: String,
    },
    /// The connection is lost, or the first dial failed. Sent once until the next `Up`.
    Down {
        /// As given to [`LinkHandle::start`](super::LinkHandle::start).
        address: String,
        /// The reason, for a log.
        reason: String,
    },
}

impl Message for LinkEvent {
    type Result = ();
}

/// Events that wait for room in the watcher's mailbox: at most a `Down`, an `Up` and a `Draining`.
#[derive(Debug, Default)]
pub(super) struct LinkEvents {
    pending: VecDeque<LinkEvent>,
    last_was_down: bool,
}

impl LinkEvents {
    /// Adds an event. A `Down` drops all events before it, and a `Down` right after another one is skipped.
    pub(super) fn push(&mut self, event: LinkEvent) {
        let is_down = matches!(event, LinkEvent::Down { .. });
        if is_down {
            if self.last_was_down {
                return;
            }
            self.pending.clear();
        }
        self.last_was_down = is_down;
        self.pending.push_back(event);
    }

    /// The oldest event.
    pub(super) fn pop(&mut self) -> Option<LinkEvent> {
        self.pending.pop_front()
    }

    /// Puts back an event that the watcher's mailbox had no room for, unless a `Down` has made the event stale.
    pub(super) fn put_back(&mut self, event: LinkEvent) {
        if !matches!(self.pending.front(), Some(LinkEvent::Down { .. })) {
            self.pending.push_front(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn down(reason: &str) -> LinkEvent {
        LinkEvent::Down {
            address: "w".into(),
            reason: reason.into(),
        }
    }

    fn draining() -> LinkEvent {
        LinkEvent::Draining { address: "w".into() }
    }

    fn drained(link_events: &mut LinkEvents) -> Vec<String> {
        std::iter::from_fn(|| link_events.pop())
            .map(|event| format!("{event:?}"))
            .collect()
    }

    #[test]
    fn a_flapping_link_leaves_only_its_last_event() {
        let mut link_events = LinkEvents::default();
        for round in 0..1000 {
            link_events.push(down(&round.to_string()));
            link_events.push(draining());
        }
        link_events.push(down("last"));
        assert_eq!(drained(&mut link_events), [format!("{:?}", down("last"))]);
    }

    #[test]
    fn failed_dials_after_the_first_add_no_event() {
        let mut link_events = LinkEvents::default();
        link_events.push(down("first"));
        assert!(link_events.pop().is_some());
        link_events.push(down("second"));
        assert!(link_events.pop().is_none());
        link_events.push(draining());
        link_events.push(down("third"));
        assert_eq!(drained(&mut link_events).len(), 1);
    }

    #[test]
    fn an_event_put_back_comes_again_unless_it_is_stale() {
        let mut link_events = LinkEvents::default();
        link_events.push(draining());
        let event = link_events.pop().unwrap();
        link_events.put_back(event.clone());
        assert_eq!(drained(&mut link_events).len(), 1);
        link_events.push(down("now"));
        link_events.put_back(event);
        assert_eq!(drained(&mut link_events), [format!("{:?}", down("now"))]);
    }
}
