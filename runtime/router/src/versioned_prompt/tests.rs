//! Which workers of a mixed fleet suit a request, and what a policy reads of them.

use std::sync::Arc;

use proptest::prelude::*;
use signalbox_kv_index::WorkerSlot;
use signalbox_policy_host::ColumnGroups;
use signalbox_protocol::{CacheTier, KvEvent, WorkerCard};

use super::*;
use crate::test_support::{card, entry, model};

/// A ready worker with this block size and context length.
fn worker(slot: u32, block_size: u32, context_length: u32) -> WorkerEntry {
    let mut worker = entry(slot, "");
    let card = WorkerCard {
        block_size,
        context_length,
        ..(*card(&format!("worker-{slot}"), 1)).clone()
    };
    worker.version = VersionId::of(&card);
    worker.card = Arc::new(card);
    worker
}

fn version(block_size: u32) -> VersionId {
    worker(0, block_size, 1).version
}

fn prompt<'a>(block_size: u32, least: u32, wanted: u32, blocks: &'a [SequenceHash]) -> VersionedPrompt<'a> {
    VersionedPrompt {
        version: version(block_size),
        tokens: least,
        blocks,
        context: ContextNeed {
            least,
            wanted,
            is_limit_set: true,
        },
    }
}

/// The slots of the workers that suit, by their wanted and by their least context.
fn suitable(model: &ModelEntry, prompts: &[VersionedPrompt<'_>]) -> Result<[Vec<u32>; 2], NoCandidate> {
    let suitable = Suitable::new(prompts, model)?;
    let slots = |suits: &dyn Fn(&WorkerEntry) -> bool| {
        let workers = model.workers.iter().filter(|worker| suits(worker));
        workers.map(|worker| worker.slot.0).collect::<Vec<_>>()
    };
    Ok([
        slots(&|worker| suitable.has_wanted(worker)),
        slots(&|worker| suitable.has_least(worker)),
    ])
}

#[test]
fn a_prompt_goes_where_it_fits_with_its_answer_and_else_where_it_fits_alone() {
    let model = model(vec![worker(0, 16, 100), worker(1, 16, 200), worker(2, 16, 400)]);
    let check = |least, wanted| suitable(&model, &[prompt(16, least, wanted, &[])]);
    assert_eq!(check(50, 100), Ok([vec![0, 1, 2], vec![0, 1, 2]]));
    assert_eq!(check(50, 101), Ok([vec![1, 2], vec![0, 1, 2]]));
    // No worker has all that is wanted: the longest is next.
    assert_eq!(check(150, 1_000), Ok([vec![2], vec![1, 2]]));
    assert_eq!(check(400, 400), Ok([vec![2], vec![2]]));
    assert_eq!(check(401, 401), Err(NoCandidate::TooLong { context_length: 400 }));
    assert!(prompt(16, 50, 100, &[]).suits_all(&model));
    assert!(!prompt(16, 50, 101, &[]).suits_all(&model));
}

#[test]
fn a_prompt_that_fits_one_version_only_goes_to_that_one() {
    let model = model(vec![worker(0, 16, 100), worker(1, 32, 200)]);
    let both = [prompt(16, 101, 101, &[]), prompt(32, 120, 120, &[])];
    assert_eq!(suitable(&model, &both), Ok([vec![1], vec![1]]));
    // It was made ready for one version only.
    assert_eq!(suitable(&model, &both[1..]), Ok([vec![1], vec![1]]));
    assert_eq!(
        suitable(&model, &both[..1]),
        Err(NoCandidate::TooLong { context_length: 200 })
    );
    // It was made ready for a version that is gone.
    let gone = [prompt(8, 1, 1, &[])];
    assert_eq!(suitable(&model, &gone), Err(NoCandidate::Unavailable));
    assert!(!both[1].suits_all(&model));
}

#[test]
fn each_worker_has_the_overlap_with_the_prompt_of_its_own_version() {
    let model = model(vec![worker(0, 16, 100), worker(1, 32, 100), worker(2, 32, 100)]);
    let hashes = |from: u64| (from..from + 4).map(SequenceHash).collect::<Vec<_>>();
    let (small, large) = (hashes(10), hashes(20));
    let index = SharedKvIndex::new(1 << 20);
    for (slot, blocks) in [(0, &small[..3]), (1, &large[..2])] {
        let stored = KvEvent::Stored {
            tier: CacheTier::Device,
            parent: None,
            blocks: blocks.to_vec(),
        };
        index.apply_all(WorkerSlot(slot), &[stored]);
    }
    let prompts = [prompt(16, 1, 1, &small), prompt(32, 1, 1, &large)];
    let (mut scratch, mut scores) = (OverlapScores::default(), OverlapScores::default());
    index.read(|index| index.overlaps(prompts[0].blocks, &mut scores));
    look_up_others(&index, &prompts[1..], &model.workers, &mut scratch, &mut scores);
    assert_eq!([0, 1, 2].map(|slot| scores.device(WorkerSlot(slot))), [3, 2, 0]);
}

#[test]
fn columns_are_converted_into_blocks_of_one_size() {
    let model = model(vec![worker(0, 16, 100), worker(1, 32, 100), worker(2, 8, 100)]);
    let mut columns = Candidates::default();
    columns.resize(3);
    columns.worker = vec![0, 1, 2];
    for column in [
        &mut columns.overlap_device,
        &mut columns.decode_blocks,
        &mut columns.kv_blocks_total,
        &mut columns.kv_blocks_used,
    ] {
        *column = vec![10; 3];
    }
    columns.requests = vec![3; 3];
    let rows = [0, 1, 2];
    convert_blocks(&model.workers, &rows, 16, &mut columns);
    assert_eq!(columns.overlap_device, [10, 20, 5]);
    assert_eq!(columns.decode_blocks, [10, 20, 5]);
    assert_eq!(columns.kv_blocks_total, [10, 20, 5]);
    assert_eq!(columns.kv_blocks_used, [10, 20, 5]);
    assert_eq!(columns.requests, [3; 3], "requests are no blocks");
    columns.resize_groups(ColumnGroups::ALL);
    // Other routers have ten blocks there too, in the worker's own size.
    columns.decode_blocks_all = vec![20, 30, 15];
    columns.kv_blocks_active = vec![4; 3];
    convert_wanted_blocks(&model.workers, &rows, 16, &mut columns);
    assert_eq!(columns.decode_blocks_all, [20, 40, 10]);
    assert_eq!(columns.kv_blocks_active, [4, 8, 2]);
}

#[test]
fn the_key_of_a_beginning_covers_256_tokens_or_all_blocks_of_a_shorter_prompt() {
    let blocks: Vec<SequenceHash> = (1..=40).map(SequenceHash).collect();
    let key = |block_size, blocks| prompt(block_size, 1, 1, blocks).prefix_key();
    assert_eq!(key(16, &blocks), 16);
    assert_eq!(key(64, &blocks), 4);
    assert_eq!(key(512, &blocks), 1, "a block longer than that");
    assert_eq!(key(16, &blocks[..3]), 3);
    assert_eq!(key(16, &[]), 0);
}

proptest! {
    /// A prompt is refused only if it fits no worker, and a worker that suits can take it.
    #[test]
    fn a_prompt_that_fits_somewhere_is_never_refused(
        contexts in prop::collection::vec((0_usize..3, 1_u32..500), 1..8),
        needs in prop::collection::vec((1_u32..600, 0_u32..600), 3),
    ) {
        let sizes = [8, 16, 32];
        let workers = contexts.iter().enumerate().map(|(slot, (size, context))| {
            worker(u32::try_from(slot).unwrap(), sizes[*size], *context)
        });
        let model = model(workers.collect());
        let prompts: Vec<_> = sizes.iter().zip(&needs).map(|(size, (least, more))| {
            prompt(*size, *least, least + more, &[])
        }).collect();
        let fits = |(slot, (size, context)): (usize, &(usize, u32))| {
            (needs[*size].0 <= *context).then(|| u32::try_from(slot).unwrap())
        };
        let fitting: Vec<u32> = contexts.iter().enumerate().filter_map(fits).collect();
        match suitable(&model, &prompts) {
            Ok([wanted, least]) => {
                prop_assert_eq!(&least, &fitting);
                prop_assert!(!wanted.is_empty(), "the longest context always suits");
                prop_assert!(wanted.iter().all(|slot| least.contains(slot)));
            }
            Err(reason) => {
                prop_assert_eq!(fitting, Vec::<u32>::new());
                let is_too_long = matches!(reason, NoCandidate::TooLong { .. });
                prop_assert!(is_too_long, "{:?}", reason);
            }
        }
    }
}
