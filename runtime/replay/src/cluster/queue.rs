//! The events of virtual time, in the order in which they happen.

use std::{cmp::Reverse, collections::BinaryHeap, rc::Rc, time::Duration};

use signalbox_kv_index::WorkerSlot;
use signalbox_protocol::{KvEvent, LoadReport, ReplicaLoad};

/// Something that happens at one moment.
#[derive(Debug)]
pub(super) enum Event {
    /// The step of a worker's engine ends.
    StepEnds(WorkerSlot),
    /// The change of membership with this number takes place.
    Membership(usize),
    /// KV events of a worker arrive at all routers.
    KvEvents(WorkerSlot, Rc<[KvEvent]>),
    /// A worker's report of its load arrives at all routers.
    Report(WorkerSlot, LoadReport),
    /// What a router has in flight arrives at the other routers.
    Loads {
        from: usize,
        loads: Vec<(WorkerSlot, ReplicaLoad)>,
    },
    /// The request with this number arrives at its router.
    Arrival(usize),
}

impl Event {
    /// The place of the event among others of the same moment: a request that arrives when a step ends finds the
    /// worker as that step left it.
    fn rank(&self) -> u8 {
        match self {
            Self::StepEnds(_) => 0,
            Self::Membership(_) => 1,
            Self::KvEvents(..) => 2,
            Self::Report(..) => 3,
            Self::Loads { .. } => 4,
            Self::Arrival(_) => 5,
        }
    }
}

/// Events to come. Those of one moment leave it by rank, those of one rank in the order in which they were added.
#[derive(Debug, Default)]
pub(super) struct EventQueue {
    heap: BinaryHeap<Reverse<Scheduled>>,
    added: u64,
}

#[derive(Debug)]
struct Scheduled {
    place: (Duration, u8, u64),
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.place == other.place
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.place.cmp(&other.place)
    }
}

impl EventQueue {
    pub(super) fn add(&mut self, at: Duration, event: Event) {
        let place = (at, event.rank(), self.added);
        self.added += 1;
        self.heap.push(Reverse(Scheduled { place, event }));
    }

    /// The moment of the next event.
    pub(super) fn next_at(&self) -> Option<Duration> {
        self.heap.peek().map(|Reverse(next)| next.place.0)
    }

    /// Takes the next event if it happens at `now` or before.
    pub(super) fn take(&mut self, now: Duration) -> Option<Event> {
        if self.next_at()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(next)| next.event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_leave_by_time_then_rank_then_the_order_of_their_addition() {
        let mut queue = EventQueue::default();
        let at = Duration::from_secs;
        queue.add(at(2), Event::StepEnds(WorkerSlot(0)));
        queue.add(at(1), Event::Arrival(7));
        queue.add(at(1), Event::Arrival(3));
        queue.add(at(1), Event::StepEnds(WorkerSlot(1)));
        assert_eq!(queue.next_at(), Some(at(1)));
        let mut taken = Vec::new();
        while let Some(event) = queue.take(at(1)) {
            taken.push(format!("{event:?}"));
        }
        assert_eq!(taken, ["StepEnds(WorkerSlot(1))", "Arrival(7)", "Arrival(3)"]);
        assert_eq!(queue.next_at(), Some(at(2)));
    }
}
