//! The index, shared between threads.
//!
//! Every decision reads it and every event writes it, so the writers hold it most of the time under load. A plain
//! lock would let the next write in before a reader that waits, and puts that reader to sleep, which costs it more
//! than many writes. So a reader says that it waits, and writers let it pass first: it waits for the write under way
//! and no further one, without going to sleep unless that write is a long one.

use std::{
    hint::spin_loop,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use signalbox_protocol::KvEvent;

use crate::{KvIndex, WorkerSlot, index::FETCHED_AT_ONCE};

/// Slots of the place map swept at a time: half a microsecond.
const SWEPT_AT_ONCE: usize = 512;

/// How often a reader looks again before it goes to sleep: some microseconds, a few events' time.
const READER_LOOKS: usize = 128;
/// How often a writer looks whether the readers are through before it goes to sleep: as long as a lookup takes. Readers
/// that wait but do not run must not stop the events for longer.
const WRITER_LOOKS: usize = 32;

/// An index shared between threads: readers wait for one write at most, writers for the readers that came first.
/// Cloning makes another handle to the same index.
#[derive(Debug, Clone)]
pub struct SharedKvIndex {
    shared: Arc<IndexLock>,
}

#[derive(Debug)]
struct IndexLock {
    index: RwLock<KvIndex>,
    /// Readers that wait for a write to end.
    waiting: AtomicUsize,
}

impl SharedKvIndex {
    /// See [`KvIndex::new`].
    pub fn new(max_bytes: usize) -> Self {
        Self {
            shared: Arc::new(IndexLock {
                index: RwLock::new(KvIndex::new(max_bytes)),
                waiting: AtomicUsize::new(0),
            }),
        }
    }

    /// See [`KvIndex::apply_all`]. Each event is applied by itself, so that lookups go on in between, and what its first
    /// blocks are about is fetched from memory before, beside them: mostly they do not wait for memory, but some ten
    /// nanoseconds a block.
    pub fn apply_all(&self, worker: WorkerSlot, events: &[KvEvent]) {
        for some in events.chunks(FETCHED_AT_ONCE) {
            self.read(|index| index.fetch(worker, some));
            for event in some {
                match event {
                    KvEvent::Cleared => self.remove_worker(worker),
                    _ => self.write(|index| index.apply(worker, event)),
                }
            }
        }
    }

    /// See [`KvIndex::remove_worker`]. Strand by strand, which takes about as long as an event, so that lookups go on in
    /// between.
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

    /// Looks at the index, beside other readers. `f` must not call back into this handle.
    pub fn read<R>(&self, f: impl FnOnce(&KvIndex) -> R) -> R {
        let index = self.shared.index.try_read();
        f(&index.unwrap_or_else(|| self.shared.wait_for_write()))
    }

    /// Changes the index, alone. Keep it to one event or a few, since every decision waits for it; `f` must not call
    /// back into this handle.
    fn write<R>(&self, f: impl FnOnce(&mut KvIndex) -> R) -> R {
        f(&mut self.shared.wait_for_readers())
    }
}

impl IndexLock {
    /// The index for a reader, after the write under way.
    fn wait_for_write(&self) -> RwLockReadGuard<'_, KvIndex> {
        // Only a hint for writers, so nothing has to be ordered by it.
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let looked = (0..READER_LOOKS).find_map(|_| {
            spin_loop();
            self.index.try_read()
        });
        let index = looked.unwrap_or_else(|| self.index.read());
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        index
    }

    /// The index for a writer, after the readers that wait or look at it.
    fn wait_for_readers(&self) -> RwLockWriteGuard<'_, KvIndex> {
        let looked = (0..WRITER_LOOKS).find_map(|_| {
            let nobody_waits = self.waiting.load(Ordering::Relaxed) == 0;
            let index = nobody_waits.then(|| self.index.try_write()).flatten();
            if index.is_none() {
                spin_loop();
            }
            index
        });
        looked.unwrap_or_else(|| self.index.write())
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
            shared.shared.waiting.load(Ordering::Relaxed),
            0,
            "nobody waits any more"
        );
        assert_eq!(shared.read(|index| index.stats().memberships), 0);
    }

    /// Many strands each, so that both are taken out step by step, and the map is swept in between.
    #[test]
    fn workers_that_leave_at_once_leave_nothing_and_take_nothing_from_others() {
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
