use std::collections::{HashMap as Map, HashSet};

use proptest::prelude::*;
use signalbox_protocol::BlockHasher;

use super::*;

/// A sequence as an engine runs it. Blocks have one token, so that hashes are chains over a small alphabet.
#[derive(Debug, Default)]
struct Sequence {
    table: BlockTable,
    hashes: Vec<SequenceHash>,
}

#[derive(Debug, Clone)]
enum Action {
    Start { sequence: usize, tokens: Vec<u32> },
    Grow { sequence: usize, count: u32 },
    Seal { sequence: usize },
    ShareMore { sequence: usize },
    Release { sequence: usize },
}

const SEQUENCES: usize = 4;

fn action() -> impl Strategy<Value = Action> {
    let sequence = 0..SEQUENCES;
    prop_oneof![
        (sequence.clone(), prop::collection::vec(0..2u32, 1..8))
            .prop_map(|(sequence, tokens)| Action::Start { sequence, tokens }),
        (sequence.clone(), 0..5u32).prop_map(|(sequence, count)| Action::Grow { sequence, count }),
        sequence.clone().prop_map(|sequence| Action::Seal { sequence }),
        sequence.clone().prop_map(|sequence| Action::Seal { sequence }),
        sequence
            .clone()
            .prop_map(|sequence| Action::ShareMore { sequence }),
        sequence.prop_map(|sequence| Action::Release { sequence }),
    ]
}

fn hasher() -> BlockHasher {
    BlockHasher::new("m", "", "", 1)
}

/// The content of the cache according to the events: the hash of each block, and the hash of its parent.
#[derive(Debug, Default)]
struct Replay(Map<SequenceHash, Option<SequenceHash>>);

impl Replay {
    fn apply(&mut self, pool: &mut BlockPool) {
        let mut events = Vec::new();
        pool.drain_events(&mut events);
        for event in events {
            match event {
                KvEvent::Stored { parent, blocks, .. } => {
                    let mut follows = parent;
                    for block in blocks {
                        assert!(
                            follows.is_none_or(|p| self.0.contains_key(&p)),
                            "the parent of a stored block is not cached"
                        );
                        assert!(self.0.insert(block, follows).is_none(), "stored twice");
                        follows = Some(block);
                    }
                }
                KvEvent::Removed { blocks, .. } => {
                    for block in blocks {
                        assert!(self.0.remove(&block).is_some(), "a removed block is not cached");
                        assert!(
                            self.0.values().all(|parent| *parent != Some(block)),
                            "a block was removed before its follower"
                        );
                    }
                }
                KvEvent::Cleared => panic!("the pool never clears"),
            }
        }
    }
}

fn check(pool: &BlockPool, sequences: &[Sequence], replay: &Replay) {
    let mut references = Map::new();
    for sequence in sequences {
        let held: HashSet<_> = sequence.table.blocks().iter().collect();
        assert_eq!(
            held.len(),
            sequence.table.blocks().len(),
            "a table has a block once"
        );
        for (index, id) in sequence.table.blocks().iter().enumerate() {
            *references.entry(*id).or_insert(0) += 1;
            let hash = (index < sequence.table.sealed()).then(|| sequence.hashes[index]);
            assert_eq!(pool.block(*id).hash, hash);
        }
    }
    let free: HashSet<_> = pool.free.iter().copied().collect();
    assert_eq!(free.len(), pool.free.len());
    for id in (0..pool.capacity()).map(BlockId) {
        let count = references.get(&id).copied().unwrap_or(0);
        assert_eq!(pool.block(id).references, count);
        let cached = pool.block(id).hash.is_some();
        assert_eq!(
            free.contains(&id),
            count == 0 && !cached,
            "a block is free if it has no reference and no hash: none is leaked"
        );
    }
    assert_eq!(pool.active() as usize, references.len());
    assert_eq!(pool.used() as usize + free.len(), pool.capacity() as usize);
    assert_eq!(
        replay.0.keys().collect::<HashSet<_>>(),
        pool.by_hash.keys().collect::<HashSet<_>>()
    );
    assert!(replay.0.len() <= pool.capacity() as usize);
}

proptest! {
    #[test]
    fn no_block_is_lost_shared_wrongly_or_misreported(
        capacity in 1..12u32,
        actions in prop::collection::vec(action(), 1..120),
    ) {
        let mut pool = BlockPool::new(capacity);
        let mut sequences: Vec<Sequence> = (0..SEQUENCES).map(|_| Sequence::default()).collect();
        let mut replay = Replay::default();
        for action in actions {
            match action {
                Action::Start { sequence, tokens } => {
                    let sequence = &mut sequences[sequence];
                    pool.release(&mut sequence.table);
                    sequence.hashes = hasher().hash(&tokens);
                    let total = sequence.hashes.len() as u32;
                    let admitted = pool.admits(&sequence.hashes, total);
                    let matched = pool.matched(&sequence.hashes).blocks;
                    prop_assert_eq!(pool.share(&mut sequence.table, &sequence.hashes), matched);
                    let grown = pool.grow(&mut sequence.table, total - matched as u32);
                    prop_assert_eq!(grown.is_ok(), admitted, "growing succeeds exactly if the sequence is admitted");
                }
                Action::Grow { sequence, count } => {
                    let before = pool.available();
                    let grown = pool.grow(&mut sequences[sequence].table, count);
                    prop_assert_eq!(grown.is_ok(), count <= before);
                }
                Action::Seal { sequence } => {
                    let Sequence { table, hashes } = &mut sequences[sequence];
                    if table.sealed() < table.blocks().len() {
                        // Beyond the prompt come generated blocks, the same in every sequence.
                        if table.sealed() == hashes.len() {
                            hashes.push(hasher().next(hashes.last().copied(), &[9]));
                        }
                        prop_assert!(pool.seal(table, hashes[table.sealed()]).is_some());
                    } else {
                        prop_assert_eq!(pool.seal(table, SequenceHash(1)), None);
                    }
                }
                Action::ShareMore { sequence } => {
                    let Sequence { table, hashes } = &mut sequences[sequence];
                    pool.share(table, hashes);
                }
                Action::Release { sequence } => pool.release(&mut sequences[sequence].table),
            }
            replay.apply(&mut pool);
            check(&pool, &sequences, &replay);
        }
        for sequence in &mut sequences {
            pool.release(&mut sequence.table);
        }
        prop_assert_eq!(pool.active(), 0);
        prop_assert_eq!(pool.available(), capacity);
    }
}

/// Runs a sequence over `tokens` to its end: shares the cached blocks, computes and seals the others.
fn run(pool: &mut BlockPool, tokens: &[u32]) -> usize {
    let hashes = hasher().hash(tokens);
    let mut table = BlockTable::default();
    let shared = pool.share(&mut table, &hashes);
    pool.grow(&mut table, (hashes.len() - shared) as u32).unwrap();
    for hash in &hashes[shared..] {
        pool.seal(&mut table, *hash).unwrap();
    }
    pool.release(&mut table);
    shared
}

#[test]
fn the_last_block_of_the_least_recently_used_prefix_is_evicted_first() {
    let mut pool = BlockPool::new(6);
    run(&mut pool, &[1, 2, 3]);
    run(&mut pool, &[4, 5, 6]);
    assert_eq!(run(&mut pool, &[1, 2]), 2, "using a prefix makes it recent");
    let mut events = Vec::new();
    pool.drain_events(&mut events);
    events.clear();
    run(&mut pool, &[7, 8]);
    pool.drain_events(&mut events);
    let (old, new) = (hasher().hash(&[1, 2, 3]), hasher().hash(&[4, 5, 6]));
    assert_eq!(
        events[0],
        KvEvent::Removed {
            tier: CacheTier::Device,
            blocks: vec![old[2], new[2]]
        }
    );
    assert_eq!(pool.matched(&old).blocks, 2);
    assert_eq!(pool.matched(&new).blocks, 2);
}

#[test]
fn a_shared_prefix_counts_once_and_stays_while_a_table_holds_it() {
    let mut pool = BlockPool::new(4);
    run(&mut pool, &[1, 2]);
    let prefix = hasher().hash(&[1, 2]);
    let (mut a, mut b) = (BlockTable::default(), BlockTable::default());
    assert_eq!((pool.share(&mut a, &prefix), pool.share(&mut b, &prefix)), (2, 2));
    assert_eq!(a.blocks(), b.blocks());
    assert_eq!((pool.active(), pool.used(), pool.available()), (2, 2, 2));
    pool.release(&mut a);
    assert_eq!(
        pool.grow(&mut a, 3),
        Err(OutOfBlocks {
            needed: 3,
            available: 2
        })
    );
    assert!(a.blocks().is_empty(), "a failed grow takes no block");
    pool.release(&mut b);
    pool.grow(&mut a, 3).unwrap();
    assert_eq!(pool.matched(&prefix), PrefixMatch { blocks: 1, idle: 1 });
}

#[test]
fn computing_the_same_block_twice_leaves_one() {
    let mut pool = BlockPool::new(4);
    let hash = hasher().hash(&[1])[0];
    let (mut a, mut b) = (BlockTable::default(), BlockTable::default());
    pool.grow(&mut a, 1).unwrap();
    pool.grow(&mut b, 1).unwrap();
    let freed = b.blocks()[0];
    assert_eq!(pool.seal(&mut a, hash), Some(SealOutcome::Stored));
    assert_eq!(
        pool.seal(&mut b, hash),
        Some(SealOutcome::Duplicate {
            existing: a.blocks()[0],
            freed
        })
    );
    assert_eq!((a.blocks(), pool.active()), (b.blocks(), 1));
}

#[test]
fn blocks_sealed_in_a_row_share_one_event() {
    let mut pool = BlockPool::new(4);
    run(&mut pool, &[1, 2, 3]);
    let mut events = Vec::new();
    pool.drain_events(&mut events);
    let blocks = hasher().hash(&[1, 2, 3]);
    assert_eq!(
        events,
        [KvEvent::Stored {
            tier: CacheTier::Device,
            parent: None,
            blocks
        }]
    );
}
