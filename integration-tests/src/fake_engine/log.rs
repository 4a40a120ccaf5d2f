//! The numbered batches of KV events of one rank, as vLLM's publisher thread keeps them: the last ones can be asked for
//! again, and numbers start at 0 with each start of the engine.

use std::collections::VecDeque;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::faults::Faults;

/// One batch.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    pub(super) number: u64,
    pub(super) payload: Bytes,
    /// How often it is sent to subscribers.
    pub(super) sends: u32,
}

/// The batches of one rank. Writers append; the publisher waits for batches and sends them.
#[derive(Debug)]
pub(super) struct EventLog {
    state: Mutex<State>,
    /// The number of the next batch.
    appended: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    next: u64,
    kept: VecDeque<Batch>,
    /// Most batches that are kept.
    bound: usize,
}

impl EventLog {
    pub(super) fn new(bound: usize) -> Self {
        Self {
            state: Mutex::new(State {
                next: 0,
                kept: VecDeque::new(),
                bound,
            }),
            appended: watch::Sender::new(0),
        }
    }

    /// Appends a batch. `faults` may prevent that, or that it is sent.
    pub(super) fn append(&self, payload: Vec<u8>, faults: &Mutex<Faults>) {
        let mut state = self.state.lock();
        let sends = {
            let mut faults = faults.lock();
            if faults.events_stopped {
                return;
            }
            if faults.batches_lost > 0 {
                faults.batches_lost -= 1;
                state.next += 1;
                return;
            }
            if faults.batches_not_sent > 0 {
                faults.batches_not_sent -= 1;
                0
            } else if faults.events_doubled {
                2
            } else {
                1
            }
        };
        let number = state.next;
        state.next += 1;
        state.kept.push_back(Batch {
            number,
            payload: payload.into(),
            sends,
        });
        // A bound of 0 keeps one batch, which the publisher has yet to send.
        if state.kept.len() > state.bound.max(1) {
            state.kept.pop_front();
        }
        self.appended.send_replace(state.next);
    }

    /// The batches from `number` on that are kept.
    pub(super) fn since(&self, number: u64) -> Vec<Batch> {
        let state = self.state.lock();
        state
            .kept
            .iter()
            .filter(|batch| batch.number >= number)
            .cloned()
            .collect()
    }

    /// The batches that a subscriber may ask for again.
    pub(super) fn replay(&self, number: u64) -> Vec<Batch> {
        if self.state.lock().bound == 0 {
            return Vec::new();
        }
        self.since(number)
    }

    /// The number of the next batch, and a watch of it.
    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.appended.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(batches: &[Batch]) -> Vec<u64> {
        batches.iter().map(|batch| batch.number).collect()
    }

    #[test]
    fn the_last_batches_are_kept() {
        let (log, faults) = (EventLog::new(2), Mutex::default());
        for payload in 0..4 {
            log.append(vec![payload], &faults);
        }
        assert_eq!(numbers(&log.replay(0)), [2, 3]);
        assert_eq!(numbers(&log.replay(3)), [3]);
        assert_eq!(*log.watch().borrow(), 4);
    }

    #[test]
    fn a_lost_batch_has_a_number_and_a_stopped_publisher_gives_none() {
        let (log, faults) = (EventLog::new(10), Mutex::new(Faults::default()));
        faults.lock().batches_lost = 1;
        faults.lock().batches_not_sent = 1;
        for payload in 0..3 {
            log.append(vec![payload], &faults);
        }
        faults.lock().events_stopped = true;
        log.append(vec![3], &faults);
        let kept = log.replay(0);
        assert_eq!(numbers(&kept), [1, 2]);
        assert_eq!((kept[0].sends, kept[1].sends), (0, 1));
    }
}
