use std::{
    collections::HashSet,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use signalbox_protocol::{CacheTier, SequenceHash};

use super::{batch::MAX_BATCH_LEN, *};
use crate::codec::decode_batch;

const EPOCH: WorkerEpoch = WorkerEpoch(1000);
const DEVICE: CacheTier = CacheTier::Device;
const HOST: CacheTier = CacheTier::Host;

fn hashes(hashes: impl IntoIterator<Item = u64>) -> Vec<SequenceHash> {
    hashes.into_iter().map(SequenceHash).collect()
}

fn stored(tier: CacheTier, parent: Option<u64>, blocks: impl IntoIterator<Item = u64>) -> KvEvent {
    KvEvent::Stored {
        tier,
        parent: parent.map(SequenceHash),
        blocks: hashes(blocks),
    }
}

fn removed(tier: CacheTier, blocks: impl IntoIterator<Item = u64>) -> KvEvent {
    KvEvent::Removed {
        tier,
        blocks: hashes(blocks),
    }
}

async fn next(reader: &mut LogReader) -> KvEventBatch {
    decode_batch(&reader.next().await.unwrap()).unwrap()
}

#[tokio::test]
async fn a_reader_receives_earlier_and_later_batches() {
    let log = EventLog::new(EPOCH);
    log.publish(vec![stored(DEVICE, None, [1])]);
    log.publish(vec![]);
    let mut reader = log.read(Some((EPOCH, 0))).unwrap();
    let mut later = log.read(None).unwrap();
    assert_eq!(next(&mut reader).await.sequence, 0);
    let waiting = tokio::spawn(async move { next(&mut reader).await });
    tokio::task::yield_now().await;
    log.publish(vec![removed(DEVICE, [1])]);
    let batch = waiting.await.unwrap();
    assert_eq!((batch.sequence, batch.events.len()), (1, 1));
    assert_eq!(next(&mut later).await, batch);
}

#[tokio::test]
async fn a_reader_that_falls_behind_gets_an_error() {
    let log = EventLog::with_retention(
        EPOCH,
        Retention {
            batches: 2,
            bytes: 1 << 20,
        },
    );
    let mut slow = log.read(Some((EPOCH, 0))).unwrap();
    for block in 0..5 {
        log.publish(vec![stored(DEVICE, None, [block])]);
    }
    let behind = NotRetained {
        epoch: EPOCH,
        wanted: 0,
        oldest: 3,
    };
    assert_eq!(slow.next().await, Err(behind.clone()));
    assert_eq!(
        behind.to_string(),
        "batch 0 of epoch 1000 is not retained; the oldest retained batch is 3"
    );
    assert!(log.read(Some((EPOCH, 2))).is_err());
    assert!(log.read(Some((EPOCH, 3))).is_ok());
    assert!(log.read(Some((EPOCH, 5))).is_ok(), "the next batch");
    assert!(log.read(Some((EPOCH, 6))).is_err(), "beyond the next batch");
    assert!(log.read(Some((WorkerEpoch(999), 4))).is_err(), "another epoch");
}

#[test]
fn adjacent_events_of_a_tier_are_merged() {
    let merged = batch::merge(vec![
        stored(DEVICE, None, [1, 2]),
        stored(DEVICE, Some(2), [3]),
        stored(DEVICE, Some(2), [4]),
        stored(HOST, Some(4), [5]),
        stored(DEVICE, None, []),
        removed(DEVICE, [1]),
        removed(DEVICE, [2]),
        removed(HOST, [5]),
    ]);
    let expected = [
        stored(DEVICE, None, [1, 2, 3]),
        stored(DEVICE, Some(2), [4]),
        stored(HOST, Some(4), [5]),
        removed(DEVICE, [1, 2]),
        removed(HOST, [5]),
    ];
    assert_eq!(merged, expected);
    let cleared = batch::merge(vec![
        stored(DEVICE, None, [1]),
        KvEvent::Cleared,
        stored(DEVICE, None, [2]),
    ]);
    assert_eq!(cleared, [KvEvent::Cleared, stored(DEVICE, None, [2])]);
}

#[tokio::test]
async fn a_large_batch_is_split() {
    let log = EventLog::new(EPOCH);
    let mut reader = log.read(None).unwrap();
    let blocks = 200_000;
    log.publish(vec![stored(DEVICE, None, 0..blocks), removed(DEVICE, 0..blocks)]);
    let (mut chain, mut gone) = (Vec::new(), Vec::new());
    while gone.len() < blocks as usize {
        let bytes = reader.next().await.unwrap();
        assert!(bytes.len() <= MAX_BATCH_LEN);
        for event in decode_batch(&bytes).unwrap().events {
            match event {
                KvEvent::Stored { parent, blocks, .. } => {
                    assert_eq!(parent, chain.last().copied());
                    chain.extend(blocks);
                }
                KvEvent::Removed { blocks, .. } => gone.extend(blocks),
                KvEvent::Cleared => panic!("nothing was cleared"),
            }
        }
    }
    assert_eq!((chain, gone), (hashes(0..blocks), hashes(0..blocks)));
    assert_eq!(
        log.snapshot().next_sequence,
        log.cell.contents.lock().batches.next()
    );
}

#[test]
fn a_snapshot_has_parents_before_children() {
    let log = EventLog::new(EPOCH);
    log.publish(vec![
        stored(DEVICE, None, 1..=10),
        stored(HOST, Some(2), [3, 4]),
        stored(DEVICE, Some(5), [50, 51]),
        stored(DEVICE, Some(900), [901]),
        removed(DEVICE, [8]),
    ]);
    let snapshot = log.snapshot();
    assert_eq!((snapshot.epoch, snapshot.next_sequence), (EPOCH, 1));
    let mut seen = HashSet::new();
    let mut held = HashSet::new();
    for event in &snapshot.stored {
        let KvEvent::Stored { tier, parent, blocks } = event else {
            panic!("{event:?}")
        };
        let unknown = [None, Some(SequenceHash(8)), Some(SequenceHash(900))];
        assert!(
            unknown.contains(parent) || parent.is_some_and(|parent| seen.contains(&parent)),
            "{event:?}"
        );
        seen.extend(blocks.iter().copied());
        held.extend(blocks.iter().map(|block| (*tier, block.0)));
    }
    let device = [1, 2, 3, 4, 5, 6, 7, 9, 10, 50, 51, 901].map(|block| (DEVICE, block));
    assert_eq!(held, device.into_iter().chain([(HOST, 3), (HOST, 4)]).collect());
    // 1-2, 3-4 twice, 5, 6-7, 9-10, 50-51, 901: or 5 with either of its branches.
    assert!(
        snapshot.stored.len() <= 8,
        "chains are long: {:?}",
        snapshot.stored
    );
}

#[test]
fn a_cycle_of_parents_loses_no_block() {
    let mut mirror = Mirror::default();
    mirror.apply_all(vec![
        stored(DEVICE, Some(2), [1]),
        stored(DEVICE, Some(1), [2]),
        stored(DEVICE, Some(3), [3]),
    ]);
    let blocks: Vec<u64> = mirror
        .chains()
        .into_iter()
        .flat_map(|event| match event {
            KvEvent::Stored { blocks, .. } => blocks,
            other => panic!("{other:?}"),
        })
        .map(|block| block.0)
        .collect();
    assert_eq!(
        (blocks.len(), blocks.into_iter().collect::<HashSet<_>>()),
        (3, HashSet::from([1, 2, 3]))
    );
}

#[test]
fn blocks_beyond_the_bound_are_not_published() {
    let mut mirror = Mirror::with_max_blocks(3);
    let (accepted, refused) = mirror.apply_all(vec![
        stored(DEVICE, None, 1..=5),
        stored(HOST, None, 1..=3),
        stored(DEVICE, None, [9]),
    ]);
    assert_eq!(
        accepted,
        [
            stored(DEVICE, None, 1..=3),
            stored(HOST, None, 1..=3),
            stored(DEVICE, None, [])
        ]
    );
    assert_eq!(refused, 3);
    let (accepted, refused) = mirror.apply_all(vec![KvEvent::Cleared, stored(DEVICE, None, [9])]);
    assert_eq!((accepted.len(), refused), (2, 0));
}

/// The (tier, block) pairs that events leave.
fn held<'a>(events: impl IntoIterator<Item = &'a KvEvent>) -> HashSet<(CacheTier, SequenceHash)> {
    let mut held = HashSet::new();
    for event in events {
        match event {
            KvEvent::Stored { tier, blocks, .. } => held.extend(blocks.iter().map(|block| (*tier, *block))),
            KvEvent::Removed { tier, blocks } => {
                blocks.iter().for_each(|block| _ = held.remove(&(*tier, *block)))
            }
            KvEvent::Cleared => held.clear(),
        }
    }
    held
}

fn digest_of(held: &HashSet<(CacheTier, SequenceHash)>) -> KvDigest {
    let mut digest = KvDigest::default();
    held.iter().for_each(|&(tier, block)| digest.add(tier, block));
    digest
}

#[test]
fn the_position_has_the_digest_of_what_is_held() {
    let log = EventLog::new(EPOCH);
    let steps = [
        vec![stored(DEVICE, None, 1..=9), stored(HOST, None, 3..=5)],
        // Again, and removals of what is not held.
        vec![
            stored(DEVICE, None, 4..=12),
            removed(HOST, 1..=4),
            removed(DEVICE, [77]),
        ],
        vec![KvEvent::Cleared, stored(HOST, None, [5])],
    ];
    let mut events = Vec::new();
    for step in steps {
        events.extend(step.clone());
        log.publish(step);
        assert_eq!(log.position().held, digest_of(&held(&events)));
    }
}

/// Snapshots that are taken beside an engine hold exactly the batches before their next one.
#[test]
fn a_snapshot_beside_an_engine_is_of_one_moment() {
    const STEPS: u64 = 3_000;
    let log = EventLog::new(EPOCH);
    let spread = |block: u64| block.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    log.publish(vec![stored(DEVICE, None, (0..20_000).map(spread))]);
    let mut reader = log.read(Some((EPOCH, 0))).unwrap();
    let count = AtomicU64::new(0);
    let snapshots: Vec<_> = std::thread::scope(|scope| {
        let taking = [0, 1].map(|_| {
            scope.spawn(|| {
                let mut taken = Vec::new();
                while log.position().next_sequence < STEPS {
                    taken.push(log.snapshot());
                    count.fetch_add(1, Relaxed);
                }
                taken
            })
        });
        for step in 0..STEPS {
            // Each thread may be in the middle of one snapshot: the third from now on is begun and taken between two steps.
            let wanted = count.load(Relaxed) + 3;
            while step == STEPS / 2 && count.load(Relaxed) < wanted {
                std::thread::yield_now();
            }
            let place = step * 37 % 20_000;
            let mut events = vec![
                removed(DEVICE, (place..place + 5).map(spread)),
                stored(HOST, None, (step..step + 3).map(spread)),
            ];
            if step % 3 == 0 {
                events.push(stored(DEVICE, None, (place..place + 2).map(spread)));
            }
            log.publish(events);
        }
        taking
            .into_iter()
            .flat_map(|taking| taking.join().unwrap())
            .collect()
    });
    let mut batches = Vec::new();
    while let Some(Ok(bytes)) = futures_util::FutureExt::now_or_never(reader.next()) {
        batches.push(decode_batch(&bytes).unwrap().events);
    }
    for snapshot in snapshots.iter().step_by((snapshots.len() / 50).max(1)) {
        let before = &batches[..snapshot.next_sequence as usize];
        assert_eq!(held(&snapshot.stored), held(before.iter().flatten()));
    }
    let is_beside = |snapshot: &KvSnapshot| (2..STEPS).contains(&snapshot.next_sequence);
    assert!(
        snapshots.iter().any(is_beside),
        "some snapshots were taken between two steps"
    );
}
