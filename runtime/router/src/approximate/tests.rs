//! What the router credits a worker with while it learns, block by block.

use std::collections::BTreeSet;

use proptest::prelude::*;
use signalbox_kv_index::{KvIndex, WorkerSlot};

use super::*;

const WORKER: WorkerSlot = WorkerSlot(0);
const BLOCK_SIZE: u32 = 16;

/// The state, and an index that its events were applied to.
struct Rig {
    state: ApproximateBlocks,
    index: KvIndex,
    now: Instant,
}

impl Rig {
    fn new(kv_blocks: u32) -> Self {
        Self {
            state: ApproximateBlocks::new(kv_blocks),
            index: KvIndex::new(1 << 24),
            now: Instant::now(),
        }
    }

    fn apply(&mut self, events: Vec<KvEvent>) {
        self.index.apply_all(WORKER, &events);
    }

    fn learn(&mut self, prompt: &[SequenceHash]) {
        let events = self.state.learn(prompt, self.now);
        self.apply(events);
    }

    /// Learns the prompt and ends its answer. The engine took this many blocks from its cache.
    fn answer(&mut self, prompt: &[SequenceHash], cached_blocks: u32) {
        let credited = self.overlap(prompt);
        self.learn(prompt);
        let events = self
            .state
            .correct(prompt, credited, cached_blocks * BLOCK_SIZE, BLOCK_SIZE);
        self.apply(events);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        let events = self.state.expire(self.now);
        self.apply(events);
    }

    /// Leading blocks of the prompt that the index credits.
    fn overlap(&self, prompt: &[SequenceHash]) -> u32 {
        let mut scores = Default::default();
        self.index.overlaps(prompt, &mut scores);
        scores.device(WORKER)
    }

    fn blocks(&self) -> usize {
        self.index.blocks_of(WORKER)
    }
}

/// Chains of different prompts: `prompt(1, 3)` is three blocks of prompt 1.
fn prompt(number: u64, blocks: u64) -> Vec<SequenceHash> {
    (1..=blocks)
        .map(|block| SequenceHash(number << 32 | block))
        .collect()
}

#[test]
fn a_prompt_counts_until_its_time_is_over_since_its_last_use() {
    let mut rig = Rig::new(100);
    rig.learn(&prompt(1, 10));
    assert_eq!(rig.overlap(&prompt(1, 10)), 10);
    rig.pass(TTL - Duration::from_secs(1));
    rig.learn(&prompt(1, 4));
    rig.pass(Duration::from_secs(1));
    assert_eq!(
        (rig.overlap(&prompt(1, 10)), rig.blocks()),
        (4, 4),
        "the blocks that were used again"
    );
    rig.pass(TTL - Duration::from_secs(1));
    assert_eq!(rig.blocks(), 0);
}

#[test]
fn a_full_worker_loses_the_blocks_used_longest_ago_last_block_first() {
    let mut rig = Rig::new(12);
    rig.learn(&prompt(1, 6));
    rig.learn(&prompt(2, 6));
    rig.learn(&prompt(1, 6));
    rig.learn(&prompt(3, 2));
    assert_eq!([1, 2, 3].map(|number| rig.overlap(&prompt(number, 6))), [6, 4, 2]);
    assert_eq!(rig.blocks(), 12);
    rig.learn(&prompt(4, 40));
    assert_eq!((rig.overlap(&prompt(4, 40)), rig.blocks()), (12, 12));
}

#[test]
fn a_worker_of_unknown_capacity_has_a_bound() {
    let mut rig = Rig::new(0);
    rig.learn(&prompt(1, u64::from(DEFAULT_BLOCKS) + 1_000));
    assert_eq!(rig.blocks(), DEFAULT_BLOCKS as usize);
    assert_eq!(ApproximateBlocks::new(u32::MAX).most_blocks, MAX_BLOCKS as usize);
}

#[test]
fn missing_credit_is_removed_once_the_engine_reports_its_cache() {
    let mut rig = Rig::new(100);
    rig.answer(&prompt(1, 20), 0);
    rig.answer(&prompt(1, 20), 0);
    assert_eq!(
        rig.overlap(&prompt(1, 20)),
        20,
        "an engine that has never reported cached tokens may not report them"
    );
    rig.answer(&prompt(2, 4), 1);
    rig.answer(&prompt(1, 20), 5);
    assert_eq!(rig.overlap(&prompt(1, 20)), 5);
}

#[test]
fn removed_credit_returns_when_the_engine_reports_it_as_cached_or_its_time_is_over() {
    let mut rig = Rig::new(100);
    rig.answer(&prompt(1, 20), 0);
    rig.answer(&prompt(1, 20), 5);
    rig.answer(&prompt(1, 20), 5);
    assert_eq!(
        rig.overlap(&prompt(1, 20)),
        5,
        "another answer alone does not credit it again"
    );
    rig.answer(&prompt(1, 20), 19);
    assert_eq!(rig.overlap(&prompt(1, 20)), 20);

    rig.answer(&prompt(1, 20), 0);
    assert_eq!(rig.overlap(&prompt(1, 20)), 0);
    rig.pass(TTL);
    assert_eq!(rig.blocks(), 0);
    rig.learn(&prompt(1, 20));
    assert_eq!(rig.overlap(&prompt(1, 20)), 20);
}

#[test]
fn a_difference_of_one_block_or_a_quarter_is_no_contradiction() {
    let table = [
        (0, 0, false),
        (1, 0, false),
        (2, 1, false),
        (2, 0, true),
        (4, 3, false),
        (4, 2, true),
        (100, 75, false),
        (100, 74, true),
        (10, 12, false),
    ];
    for (credited, cached, contradicted) in table {
        assert_eq!(
            is_contradicted(credited, cached),
            contradicted,
            "{cached} of {credited}"
        );
    }
}

#[test]
fn events_are_short_so_that_decisions_do_not_wait() {
    let mut state = ApproximateBlocks::new(10_000);
    let now = Instant::now();
    let long = prompt(1, 5_000);
    let stored = state.learn(&long, now);
    let removed = state.expire(now + TTL);
    for event in stored.iter().chain(&removed) {
        let (KvEvent::Stored { blocks, .. } | KvEvent::Removed { blocks, .. }) = event else {
            panic!("{event:?}");
        };
        assert!(blocks.len() <= MAX_EVENT_BLOCKS);
    }
    assert_eq!((stored.len(), removed.len()), (20, 20));
}

/// What may happen to a worker. A path names a prompt: two paths share the blocks of their common beginning.
#[derive(Debug, Clone)]
enum Step {
    Learn(Vec<u8>),
    Correct {
        path: Vec<u8>,
        credited: u32,
        cached: u32,
    },
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let path = || proptest::collection::vec(0_u8..2, 0..7);
    let step = prop_oneof![
        3 => path().prop_map(Step::Learn),
        2 => (path(), 0_u32..8, 0_u32..8)
            .prop_map(|(path, credited, cached)| Step::Correct { path, credited, cached }),
        1 => (1_u64..100).prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 0..80)
}

/// The block at the end of each beginning of the path.
fn blocks_of(path: &[u8]) -> Vec<SequenceHash> {
    let child = |parent: &mut u64, turn: &u8| {
        *parent = *parent * 2 + u64::from(*turn);
        Some(SequenceHash(*parent))
    };
    path.iter().scan(1, child).collect()
}

/// The plain description of the state: blocks with their last use and whether they are withheld, the oldest first.
#[derive(Debug, Default)]
struct Model {
    blocks: Vec<(SequenceHash, Instant, bool)>,
    reports_cache: bool,
}

impl Model {
    fn learn(&mut self, prompt: &[SequenceHash], now: Instant, most: usize) {
        self.expire(now);
        for &block in prompt[..prompt.len().min(most)].iter().rev() {
            match self.blocks.iter().position(|held| held.0 == block) {
                Some(place) if self.blocks[place].2 => {}
                Some(place) => {
                    self.blocks.remove(place);
                    self.blocks.push((block, now, false));
                }
                None => self.blocks.push((block, now, false)),
            }
        }
        self.blocks.drain(..self.blocks.len().saturating_sub(most));
    }

    fn correct(&mut self, prompt: &[SequenceHash], credited: u32, cached: u32) {
        self.reports_cache |= cached > 0;
        if !self.reports_cache {
            return;
        }
        let cached = prompt.len().min(cached as usize);
        let credited = prompt.len().min(credited as usize);
        let whole = !is_contradicted(prompt.len(), cached);
        for held in &mut self.blocks {
            let place = prompt.iter().position(|block| *block == held.0);
            if place.is_some_and(|place| whole || place < cached) {
                held.2 = false;
            }
            let is_missing = place.is_some_and(|place| (cached..credited).contains(&place));
            held.2 |= is_missing && is_contradicted(credited, cached);
        }
    }

    fn expire(&mut self, now: Instant) {
        self.blocks.retain(|held| held.1 + TTL > now);
    }

    fn credited(&self) -> BTreeSet<SequenceHash> {
        let credited = self.blocks.iter().filter(|held| !held.2);
        credited.map(|held| held.0).collect()
    }
}

proptest! {
    #[test]
    fn the_index_equals_the_model(steps in steps(), most in 1_u32..40) {
        let (mut rig, mut model) = (Rig::new(most), Model::default());
        for step in steps {
            match step {
                Step::Learn(path) => {
                    let prompt = blocks_of(&path);
                    rig.learn(&prompt);
                    model.learn(&prompt, rig.now, most as usize);
                }
                Step::Correct { path, credited, cached } => {
                    let prompt = blocks_of(&path);
                    let events = rig.state.correct(&prompt, credited, cached * BLOCK_SIZE, BLOCK_SIZE);
                    rig.apply(events);
                    model.correct(&prompt, credited, cached);
                }
                Step::Pass(seconds) => {
                    rig.pass(Duration::from_secs(seconds));
                    model.expire(rig.now);
                }
            }
            let expected = model.credited();
            prop_assert_eq!(rig.blocks(), expected.len());
            let mut index = KvIndex::new(1 << 24);
            for block in expected {
                let blocks = vec![block];
                index.apply(WORKER, &KvEvent::Stored { tier: CacheTier::Device, parent: None, blocks });
            }
            prop_assert_eq!(rig.index.digest(WORKER), index.digest(WORKER));
            prop_assert!(rig.state.uses.len() <= most as usize, "the bound holds");
        }
    }
}
