//! The index, shared between threads.
//!
//! Every decision reads the index and every event writes it, so under load writers hold the lock most of the time. A
//! plain lock would admit the next write before a waiting reader, and would put the reader to sleep, which costs more
//! than many writes. So waiting readers are counted, and writers let them pass first. A reader waits for the write in
//! progress and for no other one, and sleeps only if that write is long.

use std::{
    hint::spin_loop,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use signalbox_protocol::KvEvent;

use crate::{KvIndex, WorkerSlot, index::PREFETCHED_AT_ONCE};

/// Slots of the place map swept in one write: half a microsecond.
const SWEPT_AT_ONCE: usize = 512;

/// How often a reader tries the lock before it sleeps: some microseconds, the time of a few events.
const READER_SPINS: usize = 128;
/// How often a writer checks for waiting readers before it sleeps: the time of a lookup. Readers that wait and are not
/// scheduled must not delay events for longer.
const WRITER_SPINS: usize = 32;

/// A KV index shared between threads. A reader waits for at most one write, and a writer for the readers that came
/// first. A clone is another handle of the same index.
#[derive(Debug, Clone)]
pub struct SharedKvIndex {
    lock: Arc<IndexLock>,
}

#[derive(Debug)]
struct IndexLock {
    index: RwLock<KvIndex>,
    /// Number of readers that wait for a write to end.
    waiting_readers: AtomicUsize,
}

impl SharedKvIndex {
    /// See [`KvIndex::new`].
    pub fn new(max_bytes: usize) -> Self {
        Self {
            lock: Arc::new(IndexLock {
                index: RwLock::new(KvIndex::new(max_bytes)),
                waiting_readers: AtomicUsize::new(0),
            }),
        }
    }

    /// See [`KvIndex::apply_all`]. Each event is a write of its own, so that lookups run in between. Before the writes, a
    /// read prefetches the slots of the events' first blocks, beside other readers. So a write mostly does not wait for
    /// memory, and lookups wait some ten nanoseconds for each block.
    pub fn apply_all(&self, worker: WorkerSlot, events: &[KvEvent]) {
        for group in events.chunks(PREFETCHED_AT_ONCE) {
            self.read(|index| index.prefetch(worker, group));
            for event in group {
                match event {
                    KvEvent::Cleared => self.remove_worker(worker),
                    _ => self.write(|index| index.apply(worker, event)),
                }
            }
        }
    }

    /// See [`KvIndex::remove_worker`]. Each strand is a write of its own, about as long as an event, so that lookups run
    /// in between.
    pub fn remove_worker(&self, worker: WorkerSlot) {
        let strands = self.read(|index| index.strands_of(worker));
        for strand in strands {
            let mut is_sweep_due = self.write(|index| index.remove_from(worker, &[strand]));
            while is_sweep_due {
                is_sweep_due = self.write(|index| index.sweep(SWEPT_AT_ONCE));
            }
        }
        self.write(|index| index.remove_worker(worker));
    }

    /// Reads the index, beside other readers. `f` must not use this handle.
    pub fn read<R>(&self, f: impl FnOnce(&KvIndex) -> R) -> R {
        let index = self.lock.index.try_read();
        f(&index.unwrap_or_else(|| self.lock.wait_for_write()))
    }

    /// Changes the index, alone. Every decision waits for `f`, so `f` should be short: one event or a few. `f` must not
    /// use this handle.
    fn write<R>(&self, f: impl FnOnce(&mut KvIndex) -> R) -> R {
        f(&mut self.lock.wait_for_readers())
    }
}

impl IndexLock {
    /// Locks the index for a reader, after the write in progress.
    fn wait_for_write(&self) -> RwLockReadGuard<'_, KvIndex> {
        // The count is only a hint for writers and orders nothing.
        self.waiting_readers.fetch_add(1, Ordering::Relaxed);
        let acquired = (0..READER_SPINS).find_map(|_| {
            spin_loop();
            self.index.try_read()
        });
        let index = acquired.unwrap_or_else(|| self.index.read());
        self.waiting_readers.fetch_sub(1, Ordering::Relaxed);
        index
    }

    /// Locks the index for a writer, after the readers that wait or read.
    fn wait_for_readers(&self) -> RwLockWriteGuard<'_, KvIndex> {
        let acquired = (0..WRITER_SPINS).find_map(|_| {
            let nobody_waits = self.waiting_readers.load(Ordering::Relaxed) == 0;
            let index = nobody_waits.then(|| self.index.try_write()).flatten();
            if index.is_none() {
                spin_loop();
            }
            index
        });
        acquired.unwrap_or_else(|| self.index.write())
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use signalbox_protocol::{CacheTier, KvEvent, SequenceHash};

    use super::*;
    use crate::WorkerSlot;

    #[test]
    fn readers_beside_a_writer_see_whole_events() {
        const ROUNDS: usize = 2000;
        let shared = SharedKvIndex::new(1 << 20);
        let stored = KvEvent::Stored {
            tier: CacheTier::Device,
            parent: None,
            blocks: (1..=10).map(SequenceHash).collect(),
        };
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        let held = shared.read(|index| index.blocks_of(WorkerSlot(0)));
                        assert!(held == 0 || held == 10, "{held} of 10 blocks");
                    }
                });
            }
            for _ in 0..ROUNDS {
                shared.apply_all(WorkerSlot(0), std::slice::from_ref(&stored));
                shared.apply_all(WorkerSlot(0), &[KvEvent::Cleared]);
            }
        });
        assert_eq!(
            shared.lock.waiting_readers.load(Ordering::Relaxed),
            0,
            "no reader waits any more"
        );
        assert_eq!(shared.read(|index| index.stats().memberships), 0);
    }

    /// Each worker has many strands, so both are removed step by step, with sweeps of the map in between.
    #[test]
    fn workers_removed_at_the_same_time_leave_other_workers_unchanged() {
        let shared = SharedKvIndex::new(1 << 24);
        let stored = |worker: u32, chain: u64| KvEvent::Stored {
            tier: CacheTier::Device,
            parent: None,
            blocks: (0..100)
                .map(|block| SequenceHash(u64::from(worker) << 40 | chain << 20 | block))
                .collect(),
        };
        for worker in 0..3 {
            let events: Vec<_> = (0..200).map(|chain| stored(worker, chain)).collect();
            shared.apply_all(WorkerSlot(worker), &events);
        }
        let digest = shared.read(|index| index.digest(WorkerSlot(2)));
        thread::scope(|scope| {
            for worker in 0..2 {
                let shared = &shared;
                scope.spawn(move || shared.remove_worker(WorkerSlot(worker)));
            }
        });
        let stats = shared.read(|index| index.stats());
        assert_eq!(
            (stats.workers, stats.memberships, stats.blocks),
            (1, 20_000, 20_000)
        );
        assert_eq!(shared.read(|index| index.digest(WorkerSlot(2))), digest);
    }
}
