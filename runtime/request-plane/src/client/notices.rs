//! What a link's watcher has still to be told.

use std::collections::VecDeque;

use super::LinkEvent;

/// Events waiting for room in the watcher's mailbox: at most a `Down`, an `Up` and a `Draining`.
#[derive(Debug, Default)]
pub(super) struct Notices {
    pending: VecDeque<LinkEvent>,
    told_down: bool,
}

impl Notices {
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

    fn drained(notices: &mut Notices) -> Vec<String> {
        std::iter::from_fn(|| notices.pop())
            .map(|event| format!("{event:?}"))
            .collect()
    }

    #[test]
    fn a_flapping_link_leaves_only_what_is_true_now() {
        let mut notices = Notices::default();
        for round in 0..1000 {
            notices.push(down(&round.to_string()));
            notices.push(draining());
        }
        notices.push(down("last"));
        assert_eq!(drained(&mut notices), [format!("{:?}", down("last"))]);
    }

    #[test]
    fn failed_dials_after_the_first_say_nothing_new() {
        let mut notices = Notices::default();
        notices.push(down("first"));
        assert!(notices.pop().is_some());
        notices.push(down("second"));
        assert!(notices.pop().is_none());
        notices.push(draining());
        notices.push(down("third"));
        assert_eq!(drained(&mut notices).len(), 1);
    }

    #[test]
    fn an_event_without_room_comes_again_unless_stale() {
        let mut notices = Notices::default();
        notices.push(draining());
        let event = notices.pop().unwrap();
        notices.put_back(event.clone());
        assert_eq!(drained(&mut notices).len(), 1);
        notices.push(down("now"));
        notices.put_back(event);
        assert_eq!(drained(&mut notices), [format!("{:?}", down("now"))]);
    }
}
