//! The memory that the index reports is the memory it really allocates.

use std::alloc::System;

use signalbox_kv_index::{KvIndex, WorkerSlot};
use signalbox_protocol::{CacheTier, KvEvent, SequenceHash};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// One test only: the allocator counts for the whole process.
#[test]
fn reported_memory_is_allocated_memory_and_the_allocators_overhead() {
    for (workers, sequences, length, shared, event) in [
        (4, 200, 256, 64, 16),
        (4, 200, 256, 64, 1),
        (200, 20, 40, 30, 8),
        (2, 20_000, 3, 0, 3),
    ] {
        let region = Region::new(ALLOCATOR);
        let mut index = KvIndex::new(1 << 30);
        for worker in 0..workers {
            for sequence in 0..sequences {
                let hash = |i: u64| {
                    let owner = if i < shared {
                        sequence % 4
                    } else {
                        1000 + worker * sequences + sequence
                    };
                    SequenceHash((owner << 20 | i).wrapping_mul(0x9e37_79b9_7f4a_7c15))
                };
                for start in (0..length).step_by(event as usize) {
                    let blocks = (start..length.min(start + event)).map(hash).collect();
                    let parent = (start > 0).then(|| hash(start - 1));
                    let stored = KvEvent::Stored {
                        tier: CacheTier::Device,
                        parent,
                        blocks,
                    };
                    index.apply(WorkerSlot(worker as u32), &stored);
                }
            }
        }
        let change = region.change();
        let allocated = (change.bytes_allocated - change.bytes_deallocated) as f64;
        let reported = index.stats().bytes as f64;
        // stats_alloc counts the requested bytes, without the allocator's headers.
        assert!(
            (0.99..1.35).contains(&(reported / allocated)),
            "{workers} workers, {sequences} sequences of {length} in events of {event}: reported {reported}, allocated {allocated}"
        );
    }
}
