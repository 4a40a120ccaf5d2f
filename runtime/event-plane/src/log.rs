//! The worker side: numbers the events of the engine, retains the newest batches for replay, and mirrors the cache for
//! snapshots.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use signalbox_protocol::{KvDigest, KvEvent, KvEventBatch, KvSnapshot, WorkerEpoch};
use tokio::sync::watch;

use crate::{
    codec::encode_batch,
    retained::{Lookup, RetainedLog, Retention},
};

mod batch;
mod mirror;
#[cfg(test)]
mod tests;

use mirror::{Mirror, SHARDS};

/// The log of one incarnation of a worker: numbered batches, the newest retained for replay, and a mirror of the cache
/// for snapshots. Clone = handle.
///
/// A snapshot contains exactly the effect of the batches before its `next_sequence`.
#[derive(Debug, Clone)]
pub struct EventLog {
    cell: Arc<LogCell>,
}

#[derive(Debug)]
struct LogCell {
    epoch: WorkerEpoch,
    contents: Mutex<Contents>,
    /// Held while a snapshot copies the mirror: one at a time, because they share the journal.
    copying: Mutex<()>,
    /// The next sequence; wakes the readers.
    published: watch::Sender<u64>,
    /// Whether the warning about too many blocks was logged.
    warned_full: AtomicBool,
}

#[derive(Debug)]
struct Contents {
    /// The position of a batch is its sequence.
    batches: RetainedLog<Bytes>,
    mirror: Mirror,
    /// The events since a copy of the mirror began; `None` while none is made. A copy takes some ten milliseconds for a
    /// million blocks, in which an engine has some steps.
    journal: Option<Vec<KvEvent>>,
}

/// Where a log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPosition {
    /// The sequence of the next batch.
    pub next_sequence: u64,
    /// What the cache holds by the batches before it.
    pub held: KvDigest,
}

/// The log does not have the batch that a reader needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("batch {wanted} of epoch {epoch} is not retained; the oldest retained batch is {oldest}")]
pub struct NotRetained {
    /// The epoch of the batch.
    pub epoch: WorkerEpoch,
    /// The sequence of the batch.
    pub wanted: u64,
    /// The oldest retained batch, of the log's own epoch.
    pub oldest: u64,
}

/// Reads the batches of a log one after the other.
#[derive(Debug)]
pub struct LogReader {
    log: Arc<LogCell>,
    position: u64,
    published: watch::Receiver<u64>,
}

impl EventLog {
    /// An empty log of the incarnation with this epoch.
    pub fn new(epoch: WorkerEpoch) -> Self {
        Self::with_retention(epoch, Retention::default())
    }

    /// An empty log with another retention than the default.
    pub fn with_retention(epoch: WorkerEpoch, retention: Retention) -> Self {
        let contents = Contents {
            batches: RetainedLog::new(retention),
            mirror: Mirror::default(),
            journal: None,
        };
        let published = watch::Sender::new(0);
        let warned_full = AtomicBool::new(false);
        Self {
            cell: Arc::new(LogCell {
                epoch,
                contents: Mutex::new(contents),
                copying: Mutex::default(),
                published,
                warned_full,
            }),
        }
    }

    /// Appends events as one batch and wakes the readers. No events make no batch, too many for one make several. Never
    /// waits.
    ///
    /// Adjacent events of the same kind are merged. Callers pass events in the order in which they happened; several
    /// threads must agree on that order.
    pub fn publish(&self, events: Vec<KvEvent>) {
        let LogCell {
            epoch,
            contents,
            published,
            warned_full,
            copying: _,
        } = &*self.cell;
        let mut contents = contents.lock();
        let (events, refused) = contents.mirror.apply_all(events);
        if let Some(journal) = &mut contents.journal {
            journal.extend_from_slice(&events);
        }
        for events in batch::split(batch::merge(events)) {
            let sequence = contents.batches.next();
            let bytes = encode_batch(&KvEventBatch {
                epoch: *epoch,
                sequence,
                events,
            });
            let len = bytes.len();
            contents.batches.push(bytes, len);
        }
        // Sent under the lock, so that the number never decreases.
        published.send_replace(contents.batches.next());
        drop(contents);
        if refused > 0 && !warned_full.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                refused,
                "the engine stored more KV blocks than the event log holds; routers do not receive the rest"
            );
        }
    }

    /// Everything that the cache holds now, parents before children.
    ///
    /// Takes some time for a large cache, during which [`publish`](Self::publish) waits for small parts of it only.
    pub fn snapshot(&self) -> KvSnapshot {
        let LogCell {
            contents, copying, ..
        } = &*self.cell;
        let one_at_a_time = copying.lock();
        contents.lock().journal = Some(Vec::new());
        let mut mirror = Mirror::with_max_blocks(usize::MAX);
        for shard in 0..SHARDS {
            let contents = contents.lock();
            mirror.copy_shard(&contents.mirror, shard);
            // The engine's thread takes its turn, if it waits.
            MutexGuard::unlock_fair(contents);
        }
        let (next_sequence, journal) = {
            let mut contents = contents.lock();
            (contents.batches.next(), contents.journal.take())
        };
        drop(one_at_a_time);
        mirror.apply_all(journal.unwrap_or_default());
        KvSnapshot {
            epoch: self.cell.epoch,
            next_sequence,
            stored: mirror.chains(),
        }
    }

    /// The next batch, and what the cache holds by the batches before it.
    pub fn position(&self) -> LogPosition {
        let contents = self.cell.contents.lock();
        LogPosition {
            next_sequence: contents.batches.next(),
            held: contents.mirror.digest(),
        }
    }

    /// The sequence of the next batch, and every change of it.
    pub fn published(&self) -> watch::Receiver<u64> {
        self.cell.published.subscribe()
    }

    /// The epoch of the worker's incarnation.
    pub fn epoch(&self) -> WorkerEpoch {
        self.cell.epoch
    }

    /// Reads from batch `from.1` of epoch `from.0` on, that batch included; `None` means from the next batch on.
    ///
    /// # Errors
    /// The batch is not retained any more, is of another epoch, or lies beyond the next one. Then the caller takes a
    /// snapshot.
    pub fn read(&self, from: Option<(WorkerEpoch, u64)>) -> Result<LogReader, NotRetained> {
        let contents = self.cell.contents.lock();
        let (oldest, next) = (contents.batches.oldest(), contents.batches.next());
        drop(contents);
        let position = match from {
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
            log: self.cell.clone(),
            position,
            published: self.cell.published.subscribe(),
        })
    }
}

impl LogReader {
    /// Waits for the next encoded batch. Dropping the future loses nothing.
    ///
    /// # Errors
    /// The batch is not retained any more, because the reader is too slow. Then the caller takes a snapshot and reads
    /// from its `next_sequence` on.
    pub async fn next(&mut self) -> Result<Bytes, NotRetained> {
        loop {
            // Marked as seen before the lookup, so that a batch published in between wakes the reader.
            self.published.borrow_and_update();
            let found = self.log.contents.lock().batches.get(self.position);
            match found {
                Lookup::Entry(batch) => {
                    self.position += 1;
                    return Ok(batch);
                }
                Lookup::Dropped { oldest } => {
                    return Err(NotRetained {
                        epoch: self.log.epoch,
                        wanted: self.position,
                        oldest,
                    });
                }
                // An error would mean that the log is gone, but this reader keeps it.
                Lookup::NotWritten => _ = self.published.changed().await,
            }
        }
    }
}
