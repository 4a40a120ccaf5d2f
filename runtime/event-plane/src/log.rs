//! The worker side: numbers what the engine tells, keeps the newest for those who come late, and mirrors the cache
//! for those who come too late for that.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use parking_lot::Mutex;
use signalbox_protocol::{KvEvent, KvEventBatch, KvSnapshot, WorkerEpoch};
use tokio::sync::watch;

use crate::{
    encode_batch,
    retained::{At, RetainedLog, Retention},
};

mod batch;
mod mirror;
#[cfg(test)]
mod tests;

use mirror::Mirror;

/// Numbers a worker's events, keeps the newest batches for replay and a mirror of the cache for snapshots. Cloning
/// makes another handle to the same log.
///
/// A snapshot and the numbering agree: it contains exactly what the batches before its `next_sequence` said.
#[derive(Debug, Clone)]
pub struct EventLog {
    shared: Arc<LogCell>,
}

#[derive(Debug)]
struct LogCell {
    epoch: WorkerEpoch,
    state: Mutex<State>,
    /// The next sequence, to wake readers.
    published: watch::Sender<u64>,
    reported_full: AtomicBool,
}

#[derive(Debug)]
struct State {
    /// A batch's sequence is its position.
    batches: RetainedLog<Bytes>,
    mirror: Mirror,
}

/// A batch that a reader wants and the log no longer has, or never had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("batch {wanted} of epoch {epoch} is no longer kept: the oldest is {oldest}")]
pub struct NotRetained {
    /// The epoch asked for.
    pub epoch: WorkerEpoch,
    /// The batch asked for.
    pub wanted: u64,
    /// The oldest batch kept, of the log's own epoch.
    pub oldest: u64,
}

/// Reads a log's batches one after the other.
#[derive(Debug)]
pub struct LogReader {
    shared: Arc<LogCell>,
    position: u64,
    published: watch::Receiver<u64>,
}

impl EventLog {
    /// An empty log of one worker life.
    pub fn new(epoch: WorkerEpoch) -> Self {
        Self::with_retention(epoch, Retention::default())
    }

    /// An empty log that keeps more or less than by default.
    pub fn with_retention(epoch: WorkerEpoch, retention: Retention) -> Self {
        let state = State {
            batches: RetainedLog::new(retention),
            mirror: Mirror::default(),
        };
        let published = watch::Sender::new(0);
        let reported_full = AtomicBool::new(false);
        Self {
            shared: Arc::new(LogCell {
                epoch,
                state: Mutex::new(state),
                published,
                reported_full,
            }),
        }
    }

    /// Appends one batch (nothing for no events; several where one would be too large) and wakes the readers. Never
    /// waits.
    ///
    /// Neighbouring events that say one thing are joined. Events must come in the order they happened, so callers
    /// on several threads agree on it before they call.
    pub fn publish(&self, events: Vec<KvEvent>) {
        let LogCell {
            epoch,
            state,
            published,
            reported_full,
        } = &*self.shared;
        let mut state = state.lock();
        let (events, refused) = state.mirror.apply_all(events);
        for events in batch::split(batch::coalesce(events)) {
            let sequence = state.batches.next();
            let bytes = encode_batch(&KvEventBatch {
                epoch: *epoch,
                sequence,
                events,
            });
            let len = bytes.len();
            state.batches.push(bytes, len);
        }
        // Under the lock, so that the number never goes back.
        published.send_replace(state.batches.next());
        drop(state);
        if refused > 0 && !reported_full.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                refused,
                "more KV blocks than the event log holds: the rest is not told to routers"
            );
        }
    }

    /// Everything the cache holds now, parents before children.
    pub fn snapshot(&self) -> KvSnapshot {
        let (next_sequence, mirror) = {
            let state = self.shared.state.lock();
            (state.batches.next(), state.mirror.clone())
        };
        // Chains are put together outside the lock: that takes longer than copying.
        KvSnapshot {
            epoch: self.shared.epoch,
            next_sequence,
            stored: mirror.chains(),
        }
    }

    /// The number the next batch will have.
    pub fn next_sequence(&self) -> u64 {
        self.shared.state.lock().batches.next()
    }

    /// The worker life this log is of.
    pub fn epoch(&self) -> WorkerEpoch {
        self.shared.epoch
    }

    /// Reads from batch `after.1` of epoch `after.0` on; `None`: from the next batch on.
    ///
    /// Fails where that batch is no longer kept, is of another epoch, or lies beyond the next one (then whoever
    /// asks has not read this log): a snapshot helps.
    pub fn read(&self, after: Option<(WorkerEpoch, u64)>) -> Result<LogReader, NotRetained> {
        let state = self.shared.state.lock();
        let (oldest, next) = (state.batches.oldest(), state.batches.next());
        drop(state);
        let position = match after {
            None => next,
            Some((epoch, wanted)) if epoch == self.epoch() && (oldest..=next).contains(&wanted) => wanted,
            Some((epoch, wanted)) => {
                return Err(NotRetained {
                    epoch,
                    wanted,
                    oldest,
                });
            }
        };
        Ok(LogReader {
            shared: self.shared.clone(),
            position,
            published: self.shared.published.subscribe(),
        })
    }
}

impl LogReader {
    /// The next encoded batch; waits for one. An error when the reader fell behind what is kept: a snapshot and a
    /// new reader from its `next_sequence` help.
    ///
    /// Loses nothing when cancelled.
    pub async fn next(&mut self) -> Result<Bytes, NotRetained> {
        loop {
            // Marked as seen before looking, so that what comes in between wakes us.
            self.published.borrow_and_update();
            let found = self.shared.state.lock().batches.at(self.position);
            match found {
                At::Entry(batch) => {
                    self.position += 1;
                    return Ok(batch);
                }
                At::Gone { oldest } => {
                    return Err(NotRetained {
                        epoch: self.shared.epoch,
                        wanted: self.position,
                        oldest,
                    });
                }
                // The sender lives as long as we hold `shared`, so this only ever waits.
                At::Ahead => _ = self.published.changed().await,
            }
        }
    }
}
