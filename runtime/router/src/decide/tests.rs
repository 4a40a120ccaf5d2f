//! Which worker a decision chooses, and what it reserves.

use signalbox_kv_index::WorkerSlot;
use signalbox_protocol::{CacheTier, KvEvent, SequenceHash};

use super::*;
use crate::{
    roster::VersionId,
    test_support::{entry, model, policies, prompt, version},
};

/// A decider, and the tables it reads.
struct Rig {
    decider: Decider,
    index: SharedKvIndex,
    load: LoadTable,
    model: ModelEntry,
}

impl Rig {
    /// With this number of idle workers, in the slots from 0 on. Each takes two requests.
    fn new(workers: u32) -> Self {
        let index = SharedKvIndex::new(1 << 20);
        let load = LoadTable::default();
        Self {
            decider: Decider::new(index.clone(), load.clone(), policies()),
            index,
            load,
            model: model((0..workers).map(|slot| entry(slot, "127.0.0.1:1")).collect()),
        }
    }

    fn seeded(workers: u32, seed: u64) -> Self {
        let mut rig = Self::new(workers);
        rig.decider.seeds = StdRng::seed_from_u64(seed);
        rig
    }

    fn blocks(&self) -> Vec<SequenceHash> {
        self.model.hasher(16, "", "").hash(&PROMPT.map(u32::from))
    }

    fn decide(&mut self) -> Result<Placement, NoCandidate> {
        self.decide_with(None::<fn(&WorkerEntry) -> bool>)
    }

    fn decide_with(
        &mut self,
        may_use: Option<impl Fn(&WorkerEntry) -> bool>,
    ) -> Result<Placement, NoCandidate> {
        let blocks = self.blocks();
        let demand = Demand {
            request: None,
            prompts: &[prompt(version(), PROMPT.len() as u32, &blocks)],
            expected_output_tokens: 16,
            choices: 1,
            max_output_tokens: None,
            priority: 0,
            attempt: 0,
            deadline_ms: 1_000.0,
            keys: &RequestKeys::default(),
            explained: false,
        };
        self.decider.decide(&self.model, demand, may_use)
    }

    /// The workers of this many decisions, each of whose load is released before the next.
    fn choices(&mut self, decisions: usize) -> Vec<u32> {
        (0..decisions)
            .map(|_| self.decide().unwrap().worker.slot.0)
            .collect()
    }
}

/// 40 tokens: two blocks of 16 and a rest.
const PROMPT: [u8; 40] = [7; 40];

#[test]
fn the_worker_with_less_load_is_chosen_and_its_load_reserved_until_the_placement_is_dropped() {
    let mut rig = Rig::new(2);
    let _busy = rig.load.reserve(WorkerSlot(0), 500, 30);
    let placement = rig.decide().unwrap();
    assert_eq!(placement.worker.slot, WorkerSlot(1));
    let reserved = rig.load.get(WorkerSlot(1));
    assert_eq!(
        (reserved.requests, reserved.prefill_tokens, reserved.decode_blocks),
        (1, 40, 3)
    );
    drop(placement);
    assert_eq!(rig.load.get(WorkerSlot(1)), Default::default());
}

#[test]
fn blocks_that_the_worker_holds_are_not_reserved_as_prefill() {
    let mut rig = Rig::new(2);
    let stored = KvEvent::Stored {
        tier: CacheTier::Device,
        parent: None,
        blocks: rig.blocks(),
    };
    rig.index.apply_all(WorkerSlot(1), &[stored]);
    let placement = rig.decide().unwrap();
    assert_eq!(
        (placement.worker.slot, placement.overlap_blocks),
        (WorkerSlot(1), 2)
    );
    assert_eq!(rig.load.get(WorkerSlot(1)).prefill_tokens, 40 - 2 * 16);
}

#[test]
fn an_excluded_worker_is_not_chosen() {
    let mut rig = Rig::new(3);
    let _busy = [1, 2].map(|slot| rig.load.reserve(WorkerSlot(slot), 500, 30));
    for _ in 0..20 {
        let placement = rig.decide_with(Some(|worker: &WorkerEntry| worker.slot != WorkerSlot(0)));
        assert_ne!(placement.unwrap().worker.slot, WorkerSlot(0));
    }
}

#[test]
fn a_model_without_a_usable_worker_is_unavailable() {
    let mut none = Rig::new(0);
    assert_eq!(none.decide().unwrap_err(), NoCandidate::Unavailable);
    let mut excluded = Rig::new(2);
    let outcome = excluded.decide_with(Some(|_: &WorkerEntry| false));
    assert_eq!(outcome.unwrap_err(), NoCandidate::Unavailable);
}

#[test]
fn workers_that_are_all_full_are_busy_until_a_request_ends() {
    let mut rig = Rig::new(2);
    let mut placements: Vec<_> = (0..4).map(|_| rig.decide().unwrap()).collect();
    assert_eq!(rig.decide().unwrap_err(), NoCandidate::Busy);
    let freed = placements.pop().unwrap().worker.slot;
    assert_eq!(rig.decide().unwrap().worker.slot, freed);
}

#[test]
fn equal_seeds_lead_to_equal_choices_among_equal_workers() {
    let choices = |seed| Rig::seeded(5, seed).choices(200);
    assert_eq!(choices(7), choices(7));
    assert_ne!(choices(7), choices(8));
    let mut chosen = choices(7);
    chosen.sort_unstable();
    chosen.dedup();
    assert_eq!(chosen, [0, 1, 2, 3, 4], "every equal worker has its turn");
}

#[test]
fn the_fallback_decides_by_the_request_alone_when_a_policy_excludes_every_candidate() {
    let mut rig = Rig::new(4);
    let _busy = [0, 2].map(|slot| rig.load.reserve(WorkerSlot(slot), 500, 30));
    drop(rig.decide());
    let mut select = |seed| {
        let request = RequestFeatures {
            prompt_tokens: 40,
            prompt_blocks: 2,
            block_size: 16,
            seed,
            ..RequestFeatures::default()
        };
        rig.decider.decision.pick = None;
        rig.decider.decision.costs = vec![f32::INFINITY; 4];
        rig.decider.selected_row(&request)
    };
    let rows: Vec<_> = (0..50).map(&mut select).collect();
    assert_eq!(rows, (0..50).map(select).collect::<Vec<_>>());
    assert!(
        rows.contains(&1) && rows.contains(&3),
        "both idle workers have their turn: {rows:?}"
    );
    assert!(rows.iter().all(|row| [1, 3].contains(row)), "{rows:?}");
}

#[test]
fn every_decision_counts_for_its_model() {
    let mut rig = Rig::new(1);
    rig.choices(3);
    assert_eq!(rig.model.decisions.load(Relaxed), 3);
}

/// A worker of another version: its blocks have `block_size` tokens.
fn other_version(slot: u32, block_size: u32) -> WorkerEntry {
    let mut worker = entry(slot, "127.0.0.1:1");
    let mut card = (*worker.card).clone();
    card.block_size = block_size;
    worker.version = VersionId::of(&card);
    worker.card = Arc::new(card);
    worker
}

#[test]
fn a_decision_among_two_versions_credits_each_with_its_own_blocks() {
    let mut rig = Rig::new(1);
    rig.model = model(vec![entry(0, ""), other_version(1, 8)]);
    let tokens = PROMPT.map(u32::from);
    let [large, small] = [16, 8].map(|size| rig.model.hasher(size, "", "").hash(&tokens));
    let other = rig.model.workers[1].version;
    for (slot, blocks) in [(0, &large[..1]), (1, &small[..4])] {
        let stored = KvEvent::Stored {
            tier: CacheTier::Device,
            parent: None,
            blocks: blocks.to_vec(),
        };
        rig.index.apply_all(WorkerSlot(slot), &[stored]);
    }
    let prompts = [prompt(version(), 40, &large), prompt(other, 40, &small)];
    let mut decide = |prompts: &[VersionedPrompt<'_>]| {
        let demand = Demand {
            request: None,
            prompts,
            expected_output_tokens: 16,
            choices: 1,
            max_output_tokens: None,
            priority: 0,
            attempt: 0,
            deadline_ms: 1_000.0,
            keys: &RequestKeys::default(),
            explained: false,
        };
        rig.decider
            .decide(&rig.model, demand, None::<fn(&WorkerEntry) -> bool>)
            .unwrap()
    };
    // 32 tokens of the prompt are at the worker with the small blocks, 16 at the other one.
    for prompts in [[prompts[0], prompts[1]], [prompts[1], prompts[0]]] {
        let placement = decide(&prompts);
        assert_eq!(
            (placement.worker.slot, placement.overlap_blocks),
            (WorkerSlot(1), 4)
        );
        assert_eq!(placement.uncached_tokens, 8);
        let reserved = rig.load.get(WorkerSlot(1));
        assert_eq!((reserved.prefill_tokens, reserved.decode_blocks), (8, 5));
    }
    // A request that was made ready for one version goes nowhere else.
    let placement = decide(&prompts[..1]);
    assert_eq!(
        (placement.worker.slot, placement.overlap_blocks),
        (WorkerSlot(0), 1)
    );
}
