use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;

use super::*;

/// A simple model of llama.cpp's cells. Each cell has the tokens of its sequence up to its own, and its owners. Panics
/// if llama.cpp would fail, or if a token would attend to the KV of another text.
#[derive(Debug, Default)]
struct Cells {
    cells: Vec<(Vec<u32>, BTreeSet<CellOwner>)>,
    capacity: usize,
}

impl Cells {
    fn apply(&mut self, ops: &mut Vec<CellOp>) {
        for op in ops.drain(..) {
            match op {
                CellOp::Share { from, to, positions } => {
                    for (_, owners) in self.at(from, positions) {
                        assert!(owners.insert(to), "a cell is shared with an owner once");
                    }
                }
                CellOp::Release { owner, positions } => {
                    self.at(owner, positions)
                        .for_each(|(_, owners)| assert!(owners.remove(&owner)));
                }
                CellOp::ReleaseAll { owner } => {
                    self.at(owner, 0..u32::MAX)
                        .for_each(|(_, owners)| assert!(owners.remove(&owner)));
                }
            }
            self.cells.retain(|(_, owners)| !owners.is_empty());
        }
    }

    fn at(
        &mut self,
        owner: CellOwner,
        positions: std::ops::Range<u32>,
    ) -> impl Iterator<Item = &mut (Vec<u32>, BTreeSet<CellOwner>)> {
        self.cells.iter_mut().filter(move |(tokens, owners)| {
            owners.contains(&owner) && positions.contains(&(tokens.len() as u32 - 1))
        })
    }

    fn compute(&mut self, owner: CellOwner, text: &[u32]) {
        let mut seen: Vec<_> = self
            .at(owner, 0..u32::MAX)
            .map(|(tokens, _)| tokens.clone())
            .collect();
        seen.sort_by_key(Vec::len);
        assert_eq!(
            seen.len() + 1,
            text.len(),
            "a sequence has one cell for each of its tokens"
        );
        assert!(
            seen.iter().all(|tokens| text.starts_with(tokens)),
            "the cells have the sequence's own text"
        );
        assert!(self.cells.len() < self.capacity, "a cell is free");
        self.cells.push((text.to_vec(), [owner].into()));
    }

    /// The texts whose last block is owned by a lane.
    fn cached(&self, first_lane: CellOwner, block: usize) -> BTreeMap<Vec<u32>, usize> {
        let mut cached = BTreeMap::new();
        for (tokens, owners) in &self.cells {
            let lanes = owners.iter().filter(|&&owner| owner >= first_lane).count();
            assert!(lanes <= 1, "a cell has at most one lane");
            if lanes == 1 && tokens.len().is_multiple_of(block) {
                *cached.entry(tokens.clone()).or_default() += 1;
            }
        }
        cached
    }
}

/// The next token of a model that depends on all tokens of the text.
fn next_token(text: &[u32]) -> u32 {
    text.iter()
        .fold(7_u32, |sum, token| sum.wrapping_mul(31).wrapping_add(*token + 1))
        / 7
        % 2
}

/// A schedule with its cells, and the record of all results.
struct Rig {
    schedule: Schedule<()>,
    cells: Cells,
    ops: Vec<CellOp>,
    texts: HashMap<SequenceId, Vec<u32>>,
    /// Prompt tokens computed for each sequence whose prefill is not reported yet.
    computed: HashMap<SequenceId, u32>,
    prefilled: Vec<(SequenceId, u32)>,
    finished: Vec<(SequenceId, FinishReason)>,
    /// The cached blocks according to the events.
    replayed: BTreeSet<SequenceHash>,
    /// All texts that had a hash.
    texts_of_hash: HashMap<SequenceHash, BTreeSet<Vec<u32>>>,
    submitted: u64,
}

impl Rig {
    fn new(limits: Limits) -> Self {
        let capacity = (limits.capacity.kv_blocks * limits.block_size) as usize;
        Self {
            schedule: Schedule::new(limits),
            cells: Cells {
                cells: Vec::new(),
                capacity,
            },
            ops: Vec::new(),
            texts: HashMap::new(),
            computed: HashMap::new(),
            prefilled: Vec::new(),
            finished: Vec::new(),
            replayed: BTreeSet::new(),
            texts_of_hash: HashMap::new(),
            submitted: 0,
        }
    }

    fn hasher(&self, salt: &str) -> BlockHasher {
        BlockHasher::new("m", "", salt, self.schedule.limits.block_size as usize)
    }

    /// Submits a prompt with the hashes of the tokens `hashed`. Other tokens than those of the prompt simulate two
    /// prompts with the same hash.
    fn submit_as(&mut self, prompt: &[u32], hashed: &[u32], salt: &str, max_tokens: u32) -> SequenceId {
        let hasher = self.hasher(salt);
        self.submit_hashed(prompt, hasher.hash(hashed), hasher, max_tokens)
    }

    fn submit_hashed(
        &mut self,
        prompt: &[u32],
        hashes: Vec<SequenceHash>,
        hasher: BlockHasher,
        max_tokens: u32,
    ) -> SequenceId {
        let id = SequenceId(self.submitted);
        self.submitted += 1;
        let sequence = Sequence::new(id, prompt.to_vec(), hashes, hasher, max_tokens, ());
        self.schedule.submit(sequence).unwrap();
        self.texts.insert(id, prompt.to_vec());
        id
    }

    fn submit(&mut self, prompt: &[u32], max_tokens: u32) -> SequenceId {
        self.submit_as(prompt, prompt, "", max_tokens)
    }

    fn step(&mut self) {
        self.schedule.plan(&mut self.ops);
        self.cells.apply(&mut self.ops);
        let limits = self.schedule.limits;
        let chunks = self.schedule.chunks().to_vec();
        assert!(
            !chunks.is_empty() || self.schedule.is_idle(),
            "a step has a chunk if there is a sequence"
        );
        assert!(chunks.iter().map(|chunk| chunk.count).sum::<u32>() <= limits.batch_tokens);
        for chunk in &chunks {
            let (sequence, _) = &self.schedule.running[chunk.index];
            assert_eq!(sequence.tokens, self.texts[&sequence.id]);
            let computed = &sequence.tokens[chunk.start as usize..][..chunk.count as usize];
            assert_eq!(self.schedule.tokens(chunk), computed);
            for end in chunk.start..chunk.start + chunk.count {
                self.cells.compute(chunk.owner, &sequence.tokens[..=end as usize]);
            }
            if !sequence.prefill_reported {
                *self.computed.entry(sequence.id).or_default() += chunk.count;
            }
            for (block, hash) in (1..).zip(&sequence.hashes) {
                let text = sequence.tokens[..block * limits.block_size as usize].to_vec();
                self.texts_of_hash.entry(*hash).or_default().insert(text);
            }
        }
        let before = self.prefilled.len();
        self.schedule.computed(&mut self.ops, &mut self.prefilled);
        for (id, cached) in &self.prefilled[before..] {
            let prompt = self.texts[id].len() as u32;
            assert_eq!(
                *cached,
                prompt.saturating_sub(self.computed[id]),
                "the prompt tokens that were not computed count as cached"
            );
            assert!(*cached < prompt);
        }
        for (index, chunk) in chunks.iter().enumerate() {
            let text = self.schedule.running[chunk.index].0.tokens.clone();
            if let (id, Some(())) = self.schedule.sampler(index)
                && chunk.is_last
            {
                let token = next_token(&text);
                self.schedule.push(index, token);
                self.texts.get_mut(&id).unwrap().push(token);
            }
        }
        self.schedule.finish(&mut self.ops, &mut self.finished);
        self.check();
    }

    fn check(&mut self) {
        self.cells.apply(&mut self.ops);
        let mut events = Vec::new();
        self.schedule.drain_events(&mut events);
        for event in events {
            match event {
                KvEvent::Stored { parent, blocks, .. } => {
                    assert!(
                        parent.is_none_or(|hash| self.replayed.contains(&hash)),
                        "the parent of a stored block is cached"
                    );
                    blocks
                        .into_iter()
                        .for_each(|hash| assert!(self.replayed.insert(hash), "a block is stored once"));
                }
                KvEvent::Removed { blocks, .. } => {
                    blocks
                        .iter()
                        .for_each(|hash| assert!(self.replayed.remove(hash), "a removed block is cached"));
                }
                KvEvent::Cleared => self.replayed.clear(),
            }
        }
        let Limits {
            block_size, capacity, ..
        } = self.schedule.limits;
        let cached = self
            .cells
            .cached(capacity.max_sequences as CellOwner, block_size as usize);
        assert_eq!(
            cached.values().sum::<usize>(),
            self.replayed.len(),
            "the events give the blocks of the lanes"
        );
        for hash in &self.replayed {
            let mut texts = self.texts_of_hash[hash].iter();
            assert!(
                texts.any(|text| cached.contains_key(text)),
                "block {hash:?} is not cached"
            );
        }
        let load = self.schedule.load();
        assert!(load.used_kv_blocks <= load.total_kv_blocks && load.active_kv_blocks <= load.used_kv_blocks);
        assert!(self.cells.cells.len() <= (load.used_kv_blocks * block_size) as usize);
    }

    fn run(&mut self) {
        for _ in 0..10_000 {
            if self.schedule.is_idle() {
                return;
            }
            self.step();
        }
        panic!("the sequences do not end");
    }

    fn cached(&self, id: SequenceId) -> u32 {
        self.prefilled.iter().find(|(other, _)| *other == id).unwrap().1
    }
}

fn limits(kv_blocks: u32, max_sequences: u32, batch_tokens: u32) -> Limits {
    let capacity = WorkerCapacity {
        kv_blocks,
        max_sequences,
        max_waiting: 100,
    };
    Limits {
        block_size: 4,
        context_length: kv_blocks * 4,
        batch_tokens,
        capacity,
        reuse: true,
    }
}

fn text(seed: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|place| seed * 1_000 + place).collect()
}

#[test]
fn a_cached_prompt_is_computed_from_its_last_block_on() {
    let mut rig = Rig::new(limits(32, 4, 64));
    let first = rig.submit(&text(1, 20), 5);
    rig.run();
    let again = rig.submit(&text(1, 20), 5);
    let longer = rig.submit(&[text(1, 20), text(2, 10)].concat(), 1);
    rig.run();
    assert_eq!([first, again, longer].map(|id| rig.cached(id)), [0, 16, 20]);
    assert_eq!(rig.texts[&first], rig.texts[&again]);
}

#[test]
fn an_answer_is_cached_for_the_next_turn() {
    let mut rig = Rig::new(limits(32, 4, 64));
    let first = rig.submit(&text(1, 10), 10);
    rig.run();
    let turn = [rig.texts[&first].clone(), text(2, 3)].concat();
    let second = rig.submit(&turn, 1);
    rig.run();
    assert_eq!(
        rig.cached(second),
        16,
        "the text has 20 tokens, and the last one was never computed"
    );
}

#[test]
fn one_of_several_equal_prompts_is_computed() {
    let mut rig = Rig::new(limits(64, 8, 200));
    let all: Vec<_> = (0..8).map(|_| rig.submit(&text(1, 18), 20)).collect();
    rig.run();
    assert_eq!(
        all.iter().map(|&id| rig.cached(id)).collect::<Vec<_>>(),
        [0, 16, 16, 16, 16, 16, 16, 16]
    );
    assert!(all.iter().all(|id| rig.texts[id] == rig.texts[&all[0]]));
}

#[test]
fn running_answers_continue_beside_a_long_prompt() {
    let mut rig = Rig::new(limits(64, 4, 12));
    let running = rig.submit(&text(1, 3), 50);
    rig.step();
    rig.submit(&text(2, 100), 1);
    for tokens in 5..15 {
        rig.step();
        assert_eq!(rig.texts[&running].len(), tokens, "one token in each step");
    }
}

#[test]
fn when_blocks_run_out_the_newest_sequence_is_preempted_and_finishes_later() {
    let mut rig = Rig::new(limits(10, 2, 64));
    let old = rig.submit(&text(1, 10), 25);
    let new = rig.submit(&text(2, 10), 25);
    rig.run();
    assert_eq!(
        rig.finished,
        [(old, FinishReason::Length), (new, FinishReason::Length)]
    );
    assert_eq!([old, new].map(|id| rig.texts[&id].len()), [35, 35]);
    assert_eq!(
        [old, new].map(|id| rig.prefilled.iter().filter(|prefill| prefill.0 == id).count()),
        [1, 1]
    );
}

#[test]
fn an_answer_ends_at_the_context_length() {
    let mut rig = Rig::new(Limits {
        context_length: 18,
        ..limits(8, 2, 64)
    });
    let long = rig.submit(&text(1, 15), 100);
    let none = rig.submit(&text(2, 15), 0);
    rig.run();
    assert_eq!(rig.texts[&long].len(), 18);
    assert_eq!(rig.texts[&none].len(), 15);
    assert_eq!(rig.finished.len(), 2);
}

#[test]
fn a_prompt_with_a_forged_hash_gets_no_kv_of_another_prompt() {
    let mut rig = Rig::new(limits(32, 4, 64));
    rig.submit(&text(1, 20), 4);
    rig.run();
    let forged = rig.submit_as(&text(2, 20), &text(1, 20), "", 12);
    rig.run();
    assert_eq!(rig.cached(forged), 0);
    let honest = rig.submit(&text(1, 20), 1);
    rig.run();
    assert_eq!(rig.cached(honest), 16, "the cached prompt is unaffected");

    // A block with the same tokens and another parent is another block.
    let hasher = rig.hasher("");
    let crossed = [text(3, 4), text(1, 20)[4..].to_vec()].concat();
    let hashes = [hasher.hash(&text(3, 4)), hasher.hash(&text(1, 20))[1..].to_vec()].concat();
    for cached in [0, 4] {
        let crossed = rig.submit_hashed(&crossed, hashes.clone(), hasher, 12);
        rig.run();
        assert_eq!(rig.cached(crossed), cached);
    }
}

#[test]
fn without_reuse_no_block_stays_cached() {
    let mut rig = Rig::new(Limits {
        reuse: false,
        ..limits(32, 4, 64)
    });
    for _ in 0..2 {
        let id = rig.submit(&text(1, 20), 8);
        rig.run();
        assert_eq!((rig.cached(id), rig.schedule.load().used_kv_blocks), (0, 0));
    }
    assert!(rig.replayed.is_empty());
}

/// There are fewer lanes than cached first blocks.
#[test]
fn more_prompts_than_lanes_evict_the_least_recently_used_blocks() {
    let mut rig = Rig::new(limits(400, 128, 200));
    let prompt = |seed| text(seed, 5);
    for seed in 0..150 {
        rig.submit(&prompt(seed), 1);
        rig.run();
    }
    assert_eq!(rig.replayed.len(), 128);
    let [oldest, newest] = [0, 149].map(|seed| rig.submit(&prompt(seed), 1));
    rig.run();
    assert_eq!([oldest, newest].map(|id| rig.cached(id)), [0, 4]);
}

#[test]
fn a_sequence_that_can_never_run_is_refused_with_the_reason() {
    let mut rig = Rig::new(limits(8, 1, 8));
    let hasher = rig.hasher("");
    let submit = |rig: &mut Rig, prompt: Vec<u32>, hashes: Vec<SequenceHash>| {
        rig.schedule
            .submit(Sequence::new(SequenceId(9), prompt, hashes, hasher, 1, ()))
            .map_err(|error| error.kind)
    };
    assert_eq!(submit(&mut rig, vec![], vec![]), Err(ErrorKind::InvalidRequest));
    assert_eq!(
        submit(&mut rig, text(1, 32), hasher.hash(&text(1, 32))),
        Err(ErrorKind::ContextLengthExceeded)
    );
    assert_eq!(submit(&mut rig, text(1, 31), vec![]), Err(ErrorKind::Internal));
    for _ in 0..101 {
        assert_eq!(submit(&mut rig, text(1, 3), vec![]), Ok(()));
    }
    assert_eq!(submit(&mut rig, text(1, 3), vec![]), Err(ErrorKind::Overloaded));
}

#[test]
fn a_reset_empties_the_cache_and_keeps_the_waiting_sequences() {
    let mut rig = Rig::new(limits(32, 1, 64));
    let running = rig.submit(&text(1, 20), 9);
    let waiting = rig.submit(&text(2, 20), 9);
    rig.step();
    assert_eq!(rig.schedule.reset(), [running]);
    (rig.cells.cells, rig.replayed) = Default::default();
    rig.run();
    assert_eq!(rig.finished, [(waiting, FinishReason::Length)]);
}

#[derive(Debug, Clone)]
enum Action {
    Submit {
        prompt: Vec<u32>,
        forged: bool,
        salted: bool,
        max_tokens: u32,
    },
    Cancel {
        nth: u64,
    },
    Step,
}

fn action() -> impl Strategy<Value = Action> {
    let submit = (
        prop::collection::vec(0..2_u32, 1..20),
        prop::bool::weighted(0.1),
        any::<bool>(),
        0..12_u32,
    );
    prop_oneof![
        2 => submit.prop_map(|(prompt, forged, salted, max_tokens)| Action::Submit { prompt, forged, salted, max_tokens }),
        1 => (0..40_u64).prop_map(|nth| Action::Cancel { nth }),
        6 => Just(Action::Step),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Every token attends to the KV of its own text only. The cells do not exceed the capacity. The events give the
    /// cached blocks. The numbers of cached tokens are right. Every sequence ends, with the answer of a model without a
    /// cache.
    #[test]
    fn every_history_keeps_the_promises(
        block_size in 1..5_u32,
        kv_blocks in 8..24_u32,
        max_sequences in 1..5_u32,
        extra in 0..9_u32,
        actions in prop::collection::vec(action(), 1..80),
    ) {
        let capacity = WorkerCapacity { kv_blocks, max_sequences, max_waiting: 100 };
        let context_length = (kv_blocks * block_size).min(24);
        let batch_tokens = max_sequences + block_size + extra;
        let mut rig = Rig::new(Limits { block_size, context_length, batch_tokens, capacity, reuse: true });
        let mut submitted = Vec::new();
        for action in actions {
            match action {
                Action::Submit { mut prompt, forged, salted, max_tokens } => {
                    prompt.truncate(context_length as usize - 1);
                    let hashed: Vec<_> = prompt.iter().map(|token| token ^ u32::from(forged)).collect();
                    let id = rig.submit_as(&prompt, &hashed, if salted { "s" } else { "" }, max_tokens);
                    submitted.push((id, prompt.clone(), max_tokens));
                }
                Action::Cancel { nth } => {
                    submitted.retain(|(id, ..)| id.0 != nth || rig.finished.iter().any(|(other, _)| other == id));
                    rig.schedule.cancel(SequenceId(nth), &mut rig.ops);
                    rig.check();
                }
                Action::Step => rig.step(),
            }
        }
        rig.run();
        prop_assert_eq!(rig.schedule.load().active_kv_blocks, 0);
        prop_assert_eq!(rig.cells.cells.len(), rig.replayed.len() * block_size as usize);
        prop_assert_eq!(rig.finished.len(), submitted.len());
        for (id, mut expected, max_tokens) in submitted {
            for _ in 0..max_tokens.min(context_length - expected.len() as u32) {
                expected.push(next_token(&expected));
            }
            prop_assert_eq!(&rig.texts[&id], &expected);
        }
    }
}
