use std::collections::BTreeSet;

use signalbox_protocol::CacheTier;

use super::{accounting::set_bytes, *};
use crate::{OverlapScores, strand::MAX_STRAND_BLOCKS};

mod full;
mod model;

const ROOMY: usize = 64 << 20;
const DEVICE: CacheTier = CacheTier::Device;
const HOST: CacheTier = CacheTier::Host;
const DISK: CacheTier = CacheTier::Disk;

fn chain(hashes: impl IntoIterator<Item = u64>) -> Vec<SequenceHash> {
    hashes.into_iter().map(SequenceHash).collect()
}

fn stored(tier: CacheTier, parent: Option<u64>, hashes: impl IntoIterator<Item = u64>) -> KvEvent {
    KvEvent::Stored {
        tier,
        parent: parent.map(SequenceHash),
        blocks: chain(hashes),
    }
}

fn removed(tier: CacheTier, hashes: impl IntoIterator<Item = u64>) -> KvEvent {
    KvEvent::Removed {
        tier,
        blocks: chain(hashes),
    }
}

/// The overlap with the prompt of blocks 1 to 10, by tier.
fn overlap(index: &KvIndex, worker: u32) -> [u32; 3] {
    let mut scores = OverlapScores::default();
    index.overlaps(&chain(1..=10), &mut scores);
    let worker = WorkerSlot(worker);
    [scores.device(worker), scores.host(worker), scores.disk(worker)]
}

#[test]
fn a_worker_is_credited_with_its_leading_blocks() {
    let mut index = KvIndex::new(ROOMY);
    index.apply(WorkerSlot(0), &stored(DEVICE, None, 1..=6));
    index.apply(WorkerSlot(3), &stored(DEVICE, None, 1..=4));
    index.apply(WorkerSlot(3), &stored(DEVICE, Some(4), 5..=10));
    assert_eq!([0, 1, 3].map(|worker| overlap(&index, worker)[0]), [6, 0, 10]);
}

#[test]
fn a_hole_ends_the_credit_and_filling_it_restores_it() {
    let mut index = KvIndex::new(ROOMY);
    index.apply(WorkerSlot(0), &stored(DEVICE, None, 1..=10));
    index.apply(WorkerSlot(0), &removed(DEVICE, [4, 7]));
    assert_eq!(overlap(&index, 0), [3, 0, 0]);
    index.apply(WorkerSlot(0), &stored(DEVICE, Some(3), [4]));
    assert_eq!(overlap(&index, 0), [6, 0, 0]);
    index.apply(WorkerSlot(0), &stored(DEVICE, Some(6), [7]));
    assert_eq!(overlap(&index, 0), [10, 0, 0]);
}

#[test]
fn blocks_of_an_unknown_parent_count_once_the_prefix_arrives() {
    let mut index = KvIndex::new(ROOMY);
    index.apply(WorkerSlot(0), &stored(DEVICE, Some(4), 5..=9));
    assert_eq!((overlap(&index, 0), index.blocks_of(WorkerSlot(0))), ([0; 3], 5));
    index.apply(WorkerSlot(0), &stored(DEVICE, None, 1..=4));
    assert_eq!(overlap(&index, 0), [9, 0, 0]);
}

#[test]
fn lower_tiers_continue_what_the_device_holds() {
    let mut index = KvIndex::new(ROOMY);
    index.apply(WorkerSlot(0), &stored(DEVICE, None, 1..=3));
    index.apply(WorkerSlot(0), &stored(HOST, Some(3), 4..=5));
    index.apply(WorkerSlot(0), &stored(DEVICE, Some(5), [6]));
    index.apply(WorkerSlot(0), &stored(DISK, Some(6), 7..=8));
    index.apply(WorkerSlot(1), &stored(DISK, None, 1..=2));
    assert_eq!(overlap(&index, 0), [3, 3, 2]);
    assert_eq!(overlap(&index, 1), [0, 0, 2]);
    index.apply(WorkerSlot(0), &removed(HOST, [4]));
    assert_eq!(overlap(&index, 0), [3, 0, 0]);
}

#[test]
fn a_removed_or_cleared_worker_holds_no_block() {
    let mut index = KvIndex::new(ROOMY);
    for tier in CacheTier::ALL {
        index.apply(WorkerSlot(0), &stored(tier, None, 1..=10));
        index.apply(WorkerSlot(1), &stored(tier, None, 1..=5));
    }
    index.remove_worker(WorkerSlot(0));
    assert_eq!(
        (
            overlap(&index, 0),
            index.blocks_of(WorkerSlot(0)),
            index.digest(WorkerSlot(0))
        ),
        ([0; 3], 0, KvDigest::default())
    );
    assert_eq!((overlap(&index, 1), index.stats().blocks), ([5, 0, 0], 5));
    index.apply(WorkerSlot(1), &KvEvent::Cleared);
    let stats = index.stats();
    assert_eq!((stats.workers, stats.memberships, stats.blocks), (0, 0, 0));
}

#[test]
fn thousands_of_workers_share_a_prefix() {
    let mut index = KvIndex::new(ROOMY);
    for worker in 0..5000 {
        index.apply(
            WorkerSlot(worker),
            &stored(DEVICE, None, 1..=u64::from(worker % 10) + 1),
        );
    }
    let mut scores = OverlapScores::default();
    index.overlaps(&chain(1..=10), &mut scores);
    assert!((0..5000).all(|worker| scores.device(WorkerSlot(worker)) == worker % 10 + 1));
    assert_eq!(scores.device(WorkerSlot(5000)), 0);
    for worker in 0..4999 {
        index.remove_worker(WorkerSlot(worker));
    }
    assert_eq!(
        (overlap(&index, 4999), index.stats().memberships),
        ([10, 0, 0], 10)
    );
}

#[test]
fn a_slot_past_the_limit_is_refused_and_counted() {
    let mut index = KvIndex::new(ROOMY);
    index.apply(WorkerSlot(u32::MAX), &stored(DEVICE, None, 1..=3));
    index.apply(WorkerSlot(u32::MAX), &removed(DEVICE, 1..=3));
    index.remove_worker(WorkerSlot(u32::MAX));
    assert_eq!((index.stats().refused_stores, index.stats().memberships), (3, 0));
}

#[test]
fn memory_comes_back_when_blocks_go() {
    let mut index = KvIndex::new(ROOMY);
    let empty = index.stats().bytes;
    let sequences: Vec<Vec<u64>> = (0..2000)
        .map(|s| (0..100).map(|i| (s * 1000 + i) * 0x1234_5677 + 1).collect())
        .collect();
    for sequence in &sequences {
        index.apply(WorkerSlot(1), &stored(DEVICE, None, sequence.iter().copied()));
    }
    let full = index.stats().bytes;
    for (round, sequence) in sequences.iter().enumerate() {
        // From the start, from the end, and one by one.
        let blocks: Box<dyn Iterator<Item = u64>> = if round % 2 == 0 {
            Box::new(sequence.iter().rev().copied())
        } else {
            Box::new(sequence.iter().copied())
        };
        match round % 3 {
            0 => blocks.for_each(|block| index.apply(WorkerSlot(1), &removed(DEVICE, [block]))),
            _ => index.apply(WorkerSlot(1), &removed(DEVICE, blocks)),
        }
    }
    let left = index.stats().bytes;
    assert_eq!(index.stats().blocks, 0);
    assert!(
        left - empty < (full - empty) / 10,
        "{empty} bytes empty, {full} full, {left} after"
    );
}

/// Also when the sweep is near the end of its round.
#[test]
fn slots_of_removed_workers_are_swept_at_once() {
    let mut index = KvIndex::new(ROOMY);
    for worker in 0..3u32 {
        let hashes =
            (0..30_000u64).map(|i| ((u64::from(worker) << 32) + i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        index.apply(WorkerSlot(worker), &stored(DEVICE, None, hashes));
    }
    assert_eq!(index.places.places().count(), 90_000);
    for (worker, left) in [(0, 60_000), (1, 30_000)] {
        index.remove_worker(WorkerSlot(worker));
        let (slots, blocks) = (index.places.places().count(), index.stats().blocks);
        assert_eq!(blocks, left);
        assert!(slots < left + left / 4, "{slots} slots for {blocks} blocks");
    }
}

/// A block that is stored and removed again and again leaves one stale slot, not one each time.
#[test]
fn the_slot_of_a_removed_block_is_reused() {
    let mut index = KvIndex::new(ROOMY);
    // Enough blocks that a sweep takes long.
    index.apply(WorkerSlot(0), &stored(DEVICE, None, 1000..41_000));
    for _ in 0..50 {
        index.apply(WorkerSlot(1), &stored(DEVICE, None, 1..=200));
        index.apply(WorkerSlot(1), &KvEvent::Cleared);
    }
    check_state(&index);
    let slots = index.places.places().count();
    assert!((40_000..=40_200).contains(&slots), "{slots} slots");
}

/// Memory does not grow as workers are removed and added.
#[test]
fn slots_of_retired_strands_are_swept() {
    let mut index = KvIndex::new(ROOMY);
    let mut full = 0;
    for round in 0..8u64 {
        for worker in 0..4 {
            index.remove_worker(WorkerSlot(worker));
            for sequence in 0..300 {
                let owner = (round * 4 + u64::from(worker)) * 300 + sequence;
                let hashes = (0..30).map(|i| (owner * 100 + i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                index.apply(WorkerSlot(worker), &stored(DEVICE, None, hashes));
            }
        }
        check_state(&index);
        let (slots, live) = (index.places.places().count(), index.stats().blocks);
        assert!(slots < 2 * live, "{slots} slots for {live} blocks");
        if round == 1 {
            full = index.stats().bytes;
        }
        let now = index.stats().bytes;
        assert!(
            round < 2 || now < full + full / 4,
            "{now} bytes in round {round}, {full} at first"
        );
    }
}

/// Checks the invariants of the structure.
fn check_state(index: &KvIndex) {
    let mut blocks = 0;
    for (id, strand) in index.strands.iter().enumerate() {
        assert!(strand.len() <= MAX_STRAND_BLOCKS);
        assert!(
            2 * strand.unheld() <= strand.len(),
            "unheld blocks never outnumber the others"
        );
        blocks += strand.len() - strand.unheld();
        let holders: Vec<_> = strand
            .holders(0..strand.len())
            .map(|(_, holders)| holders)
            .collect();
        assert!(
            holders.windows(2).all(|pair| pair[0] != pair[1]),
            "neighbouring segments differ"
        );
        for offset in 0..strand.len() {
            assert_eq!(
                index.find(strand.hash(offset).unwrap()),
                Some(Place::new(id, offset))
            );
        }
        for (slot, holdings) in index.workers.iter().enumerate() {
            let listed = holdings.strands.contains(&(id as u32));
            assert_eq!(
                listed,
                strand.holds(WorkerSlot(slot as u32)),
                "worker {slot}, strand {id}"
            );
        }
    }
    assert_eq!(blocks, index.stats().blocks);
    for (slot, holdings) in index.workers.iter().enumerate() {
        let mut held = KvDigest::default();
        for &id in &holdings.strands {
            for tier in CacheTier::ALL {
                let blocks = index.strands[id as usize].blocks_of(WorkerSlot(slot as u32), tier);
                blocks.for_each(|block| held.add(tier, block));
            }
        }
        assert_eq!(held, holdings.held, "worker {slot}");
    }
    let holding = index
        .workers
        .iter()
        .filter(|holdings| !holdings.strands.is_empty());
    assert_eq!(index.holding, holding.count());
    index.strands.check();
    let places: BTreeSet<_> = index.places.places().map(Place::strand).collect();
    assert!(places.iter().all(|&id| id < index.strands.len()));
    assert!(
        index.strands.reusable().all(|id| !places.contains(&id)),
        "no reusable strand is one that the map still leads to"
    );
    assert_eq!(
        index.strand_bytes,
        index.strands.iter().map(Strand::heap_bytes).sum::<usize>()
    );
    assert_eq!(
        index.worker_bytes,
        index
            .workers
            .iter()
            .map(|holdings| set_bytes(&holdings.strands))
            .sum::<usize>()
    );
}
