//! What a link's watcher has still to be told.

use std::collections::VecDeque;

use super::LinkEvent;

/// Events waiting for room in the watcher's mailbox: at most a `Down`, an `Up` and a `Draining`.
#[derive(Debug, Default)]
pub(super) struct LinkEvents {
    pending: VecDeque<LinkEvent>,
    told_down: bool,
}

impl LinkEvents {
    /// A `Down` makes everything before it stale and follows no other `Down`.
    pub(super) fn push(&mut self, event: LinkEvent) {
        let down = matches!(event, LinkEvent::Down { .. });
        if down {
            if self.told_down {
                return;
            }
            self.pending.clear();
        }
        self.told_down = down;
        self.pending.push_back(event);
    }

    /// The oldest one.
    pub(super) fn pop(&mut self) -> Option<LinkEvent> {
        self.pending.pop_front()
    }

    /// Puts one back that found no room, unless a `Down` has made it stale since.
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
    fn a_flapping_link_leaves_only_what_is_true_now() {
        let mut link_events = LinkEvents::default();
        for round in 0..1000 {
            link_events.push(down(&round.to_string()));
            link_events.push(draining());
        }
        link_events.push(down("last"));
        assert_eq!(drained(&mut link_events), [format!("{:?}", down("last"))]);
    }

    #[test]
    fn failed_dials_after_the_first_say_nothing_new() {
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
    fn an_event_without_room_comes_again_unless_stale() {
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
