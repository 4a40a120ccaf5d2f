//! Property tests: the index against a naive model.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A slow and simple index, which gives the expected results.
#[derive(Debug, Default)]
struct Model {
    workers: BTreeMap<u32, BTreeSet<(CacheTier, SequenceHash)>>,
}

impl Model {
    fn apply(&mut self, worker: u32, event: &KvEvent) {
        let held = self.workers.entry(worker).or_default();
        match event {
            KvEvent::Stored { tier, blocks, .. } => held.extend(blocks.iter().map(|&block| (*tier, block))),
            KvEvent::Removed { tier, blocks } => {
                blocks.iter().for_each(|&block| _ = held.remove(&(*tier, block)))
            }
            KvEvent::Cleared => held.clear(),
        }
    }

    fn overlap(&self, worker: u32, prompt: &[SequenceHash]) -> [u32; 3] {
        let held = |tiers: &[CacheTier], block| {
            let all = self.workers.get(&worker);
            tiers
                .iter()
                .any(|&tier| all.is_some_and(|all| all.contains(&(tier, block))))
        };
        let mut rest = prompt.iter().peekable();
        [1, 2, 3].map(|tiers| {
            let mut blocks = 0;
            while rest
                .next_if(|&&block| held(&CacheTier::ALL[..tiers], block))
                .is_some()
            {
                blocks += 1;
            }
            blocks
        })
    }

    fn digest(&self, worker: u32) -> KvDigest {
        let mut digest = KvDigest::default();
        for &(tier, block) in self.workers.get(&worker).into_iter().flatten() {
            digest.add(tier, block);
        }
        digest
    }
}

/// Block `i` of a branch. Branches 1 and 2 share the blocks of branch 0 up to where they leave it; branch 3 leaves
/// branch 2.
fn block(branch: usize, i: usize) -> u64 {
    let (leaves_at, from) = [(0, 0), (5, 0), (12, 0), (20, 2)][branch];
    let owner = if i >= leaves_at {
        branch
    } else if from == 2 && i >= 12 {
        2
    } else {
        0
    };
    ((owner as u64 + 1) << 32) + i as u64
}

const BRANCHES: usize = 4;
/// Longer than a strand, so that chains span several.
const LENGTH: usize = MAX_STRAND_BLOCKS + 40;

#[derive(Debug, Clone)]
enum Step {
    Apply(u32, KvEvent),
    RemoveWorker(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let worker = || prop_oneof![4 => 0u32..3, 1 => 62u32..67, 1 => Just(300u32)];
    let tier = || prop_oneof![5 => Just(DEVICE), 1 => Just(HOST), 1 => Just(DISK)];
    let start = || prop_oneof![3 => 0usize..24, 1 => 0..LENGTH];
    let len = || prop_oneof![3 => 1usize..8, 1 => 8usize..40, 1 => Just(LENGTH)];
    let range = (0..BRANCHES, start(), len()).prop_map(|(branch, start, len)| {
        (start..(start + len).min(LENGTH))
            .map(|i| (branch, i))
            .collect::<Vec<_>>()
    });
    let step = (worker(), tier(), range, 0u32..100).prop_map(|(worker, tier, range, kind)| {
        let mut hashes: Vec<u64> = range.iter().map(|&(branch, i)| block(branch, i)).collect();
        let parent = range
            .first()
            .filter(|(_, i)| *i > 0)
            .map(|&(branch, i)| block(branch, i - 1));
        match kind {
            0..55 => Step::Apply(worker, stored(tier, parent, hashes)),
            // Events with invalid chains: a block twice, a wrong parent.
            55..58 => {
                hashes.extend(hashes.clone());
                Step::Apply(worker, stored(tier, parent.map(|parent| parent + 7), hashes))
            }
            58..72 => Step::Apply(worker, removed(tier, hashes)),
            72..84 => Step::Apply(worker, removed(tier, hashes.into_iter().rev())),
            84..94 => Step::Apply(worker, removed(tier, hashes.into_iter().step_by(2))),
            94..97 => Step::Apply(worker, KvEvent::Cleared),
            _ => Step::RemoveWorker(worker),
        }
    });
    prop::collection::vec(step, 1..60)
}

fn play(index: &mut KvIndex, model: &mut Model, step: &Step) {
    match step {
        Step::Apply(worker, event) => {
            index.apply(WorkerSlot(*worker), event);
            model.apply(*worker, event);
        }
        Step::RemoveWorker(worker) => {
            index.remove_worker(WorkerSlot(*worker));
            model.workers.remove(worker);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_index_agrees_with_the_naive_model(steps in steps()) {
        let (mut index, mut model) = (KvIndex::new(ROOMY), Model::default());
        let mut scores = OverlapScores::default();
        for step in &steps {
            play(&mut index, &mut model, step);
            for branch in 0..BRANCHES {
                let prompt = chain((0..LENGTH).map(|i| block(branch, i)));
                index.overlaps(&prompt, &mut scores);
                for worker in [0, 1, 2, 62, 63, 64, 65, 66, 300, 5000] {
                    let slot = WorkerSlot(worker);
                    let found = [scores.device(slot), scores.host(slot), scores.disk(slot)];
                    prop_assert_eq!(found, model.overlap(worker, &prompt), "worker {}, branch {}", worker, branch);
                }
            }
            check_state(&index);
        }
        for (&worker, held) in &model.workers {
            prop_assert_eq!(index.blocks_of(WorkerSlot(worker)), held.len());
            prop_assert_eq!(index.digest(WorkerSlot(worker)), model.digest(worker));
        }
        let stats = index.stats();
        let blocks: BTreeSet<_> = model.workers.values().flatten().map(|(_, block)| block).collect();
        prop_assert_eq!(stats.blocks, blocks.len());
        prop_assert_eq!(stats.memberships, model.workers.values().map(BTreeSet::len).sum::<usize>());
        prop_assert_eq!(stats.workers, model.workers.values().filter(|held| !held.is_empty()).count());
        prop_assert_eq!(stats.refused_stores, 0);
    }

    /// K-3: at any memory bound, the bound holds and no worker is credited with a block that it does not hold.
    #[test]
    fn a_full_index_credits_too_little_and_never_too_much(steps in steps(), room in 0usize..40_000) {
        let max_bytes = KvIndex::new(0).stats().bytes + room;
        let (mut index, mut model) = (KvIndex::new(max_bytes), Model::default());
        let mut scores = OverlapScores::default();
        let mut missing = false;
        for step in &steps {
            play(&mut index, &mut model, step);
            prop_assert!(index.stats().bytes <= max_bytes, "{} of {}", index.stats().bytes, max_bytes);
            check_state(&index);
            for branch in 0..BRANCHES {
                let prompt = chain((0..LENGTH).map(|i| block(branch, i)));
                index.overlaps(&prompt, &mut scores);
                for &worker in model.workers.keys() {
                    let slot = WorkerSlot(worker);
                    let found = [scores.device(slot), scores.host(slot), scores.disk(slot)];
                    let most = model.overlap(worker, &prompt);
                    prop_assert!(found[0] <= most[0]);
                    prop_assert!(found[0] + found[1] <= most[0] + most[1]);
                    prop_assert!(found.iter().sum::<u32>() <= most.iter().sum());
                    missing |= found != most;
                }
            }
        }
        let stats = index.stats();
        prop_assert!(!missing || stats.refused_stores + stats.evicted > 0, "what is missing was counted");
        for (&worker, held) in &model.workers {
            let (credited, is_partial) = (index.blocks_of(WorkerSlot(worker)), index.is_partial(WorkerSlot(worker)));
            prop_assert!(credited == held.len() || is_partial, "worker {} lacks blocks and is marked so", worker);
        }
    }
}
