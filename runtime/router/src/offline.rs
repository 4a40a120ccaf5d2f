//! A router without actors, network or clock, for replay: the same index, load table and decisions as behind the API.
//!
//! Its caller states what happens and when: which workers are present, which KV events and reports arrive, what
//! other routers have in flight. It makes each decision as a replica does (`decide.rs`) and reserves the load. Equal
//! calls on a router with an equal seed give equal decisions.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use signalbox_kv_index::{SharedKvIndex, WorkerSlot};
use signalbox_policy_host::{PolicyRegistry, RequestKeys};
use signalbox_protocol::{BlockHasher, KvEvent, ReplicaLoad, SequenceHash, WorkerCard, WorkerReport};
use signalbox_tokenize::{ArtifactError, ModelArtifacts, ModelText};

use crate::{
    affinity::AffinityTable,
    candidates::NoCandidate,
    context_need::ContextNeed,
    decide::{Decider, Demand},
    latency::LatencyTable,
    load::{EventState, LoadTable, Reservation},
    roster::{ModelEntry, VersionId, WorkerEntry, WorkerPhase, versions_of},
    versioned_prompt::VersionedPrompt,
};

/// The deadline of every request: what a router gives one by default.
const DEADLINE_MS: f32 = 600_000.0;

/// One router, and the one model that it serves.
#[derive(Debug)]
pub struct OfflineRouter {
    decider: Decider,
    index: SharedKvIndex,
    load: LoadTable,
    latency: LatencyTable,
    affinity: AffinityTable,
    model: ModelEntry,
    block_size: u32,
    text: Arc<ModelText>,
}

/// What a decision reads of a request.
#[derive(Debug, Clone, Copy)]
pub struct OfflineRequest<'a> {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// The whole KV blocks of the prompt.
    pub blocks: &'a [SequenceHash],
    /// Most tokens of the answer.
    pub expected_output_tokens: u32,
    /// Hash of the client's session; 0 for none.
    pub session: u64,
    /// Workers that failed the request before.
    pub attempt: u32,
    /// The time of the decision, in virtual milliseconds.
    pub now_ms: u64,
}

/// The chosen worker and the load reserved there. Dropped at the end of the request.
#[derive(Debug)]
pub struct OfflinePlacement {
    /// The chosen worker.
    pub worker: WorkerSlot,
    /// `name@version` of the policy that decided; `fallback@…` if the policy failed.
    pub policy: Arc<str>,
    /// Leading KV blocks of the prompt that the router credits the worker with.
    pub overlap_blocks: u32,
    /// Prompt tokens beyond those blocks.
    pub uncached_tokens: u32,
    reservation: Reservation,
}

impl OfflinePlacement {
    /// The prompt is computed: its prefill tokens no longer count. Later calls change nothing.
    pub fn first_token(&mut self) {
        self.reservation.first_token();
    }
}

impl OfflineRouter {
    /// A router without workers for `model`, whose KV blocks have `block_size` tokens. `policies` has the policy that
    /// decides. `seed` determines the seeds of all decisions.
    ///
    /// # Errors
    /// None: the built-in tokenizer, which decisions do not use, loads.
    pub fn new(
        model: &str,
        block_size: u32,
        policies: PolicyRegistry,
        seed: u64,
    ) -> Result<Self, ArtifactError> {
        let text = Arc::new(ModelText::load(&ModelArtifacts::byte_level())?);
        let (index, load) = (SharedKvIndex::new(usize::MAX), LoadTable::default());
        let (latency, affinity) = (LatencyTable::default(), AffinityTable::default());
        let decider = Decider::with_seed(index.clone(), load.clone(), policies, seed)
            .with_tables(latency.clone(), affinity.clone());
        Ok(Self {
            decider,
            index,
            load,
            latency,
            affinity,
            model: ModelEntry {
                name: model.to_owned(),
                adapter: None,
                created: 0,
                versions: Vec::new(),
                decisions: Arc::new(AtomicU64::new(0)),
                workers: std::iter::empty().collect(),
            },
            block_size,
            text,
        })
    }

    /// The hasher for prompts of the model.
    pub fn hasher(&self) -> BlockHasher {
        self.model.hasher(self.block_size, "", "")
    }

    /// From now on these workers may be given requests, and no others.
    pub fn set_ready(&mut self, workers: impl IntoIterator<Item = (WorkerSlot, Arc<WorkerCard>)>) {
        let entry = |(slot, card): (WorkerSlot, Arc<WorkerCard>)| WorkerEntry {
            slot,
            version: VersionId::of(&card),
            card,
            phase: WorkerPhase::Ready,
            listed: true,
            adapters: None,
            text: Some(self.text.clone()),
        };
        self.model.workers = workers.into_iter().map(entry).collect();
        self.model.versions = versions_of(self.model.workers.served());
        for worker in self.model.workers.iter() {
            self.load.set_event_state(worker.slot, EventState::Following);
        }
    }

    /// The worker has left: the index holds nothing of it any more (K-1), and its reports do not count.
    pub fn forget(&self, worker: WorkerSlot) {
        self.index.remove_worker(worker);
        self.load.forget_reports(worker);
        self.latency.forget(worker);
        self.affinity.forget(worker);
    }

    /// KV events of a worker arrive.
    pub fn apply(&self, worker: WorkerSlot, events: &[KvEvent]) {
        self.index.apply_all(worker, events);
        self.load.refresh_indexed_blocks(worker, &self.index);
    }

    /// A worker's report arrives, at `now_ms` of virtual time.
    pub fn report(&self, worker: WorkerSlot, report: &WorkerReport, now_ms: u64) {
        self.load.report(worker, report, now_ms.saturating_add(1));
    }

    /// The first token of an answer has arrived, so long after its request was sent. `uncached_tokens` of the prompt were
    /// computed, as far as the router knew.
    pub fn measure_ttft(&self, worker: WorkerSlot, ttft: Duration, uncached_tokens: u32) {
        self.latency.add_ttft(worker, ttft.as_secs_f32(), uncached_tokens);
    }

    /// An answer has ended whose tokens came this far apart.
    pub fn measure_itl(&self, worker: WorkerSlot, itl: Duration) {
        self.latency.add_itl(worker, itl.as_secs_f32());
    }

    /// What this router has in flight on a worker.
    pub fn in_flight(&self, worker: WorkerSlot) -> ReplicaLoad {
        self.load.own(worker).map(|(own, _)| own).unwrap_or_default()
    }

    /// Stores what all other routers together have in flight on a worker.
    pub fn set_others(&self, worker: WorkerSlot, others: ReplicaLoad) {
        self.load.set_others(worker, others);
    }

    /// Chooses a ready worker and reserves the request's load there.
    ///
    /// # Errors
    /// No worker can take the request.
    pub fn decide(&mut self, request: OfflineRequest<'_>) -> Result<OfflinePlacement, NoCandidate> {
        let version = self.model.versions.first().ok_or(NoCandidate::Unavailable)?;
        let prompt = VersionedPrompt {
            version: version.id,
            tokens: request.prompt_tokens,
            blocks: request.blocks,
            context: ContextNeed::default(),
        };
        let keys = RequestKeys {
            session: request.session,
            ..RequestKeys::default()
        };
        let demand = Demand {
            request: None,
            prompts: &[prompt],
            expected_output_tokens: request.expected_output_tokens,
            choices: 1,
            max_output_tokens: Some(request.expected_output_tokens),
            priority: 0,
            attempt: request.attempt,
            deadline_ms: DEADLINE_MS,
            keys: &keys,
            explained: false,
        };
        let anyone = None::<fn(&WorkerEntry) -> bool>;
        // The time that counts is the virtual one, which begins at 1 as a router's clock does.
        let now_ms = request.now_ms.saturating_add(1);
        let placement = self
            .decider
            .decide_at(&self.model, demand, anyone, Instant::now(), now_ms)?;
        Ok(OfflinePlacement {
            worker: placement.worker.slot,
            policy: placement.policy,
            overlap_blocks: placement.overlap_blocks,
            uncached_tokens: placement.uncached_tokens,
            reservation: placement.reservation,
        })
    }
}

#[cfg(test)]
mod tests {
    use signalbox_policy_host::{PolicyEngine, PolicyLimits};
    use signalbox_protocol::CacheTier;

    use super::*;
    use crate::test_support;

    fn card(number: u32) -> Arc<WorkerCard> {
        Arc::new(WorkerCard {
            block_size: 4,
            ..(*test_support::card(&format!("worker-{number}"), 1)).clone()
        })
    }

    fn router(seed: u64) -> OfflineRouter {
        let engine = PolicyEngine::new(PolicyLimits::default()).unwrap();
        let policies = PolicyRegistry::new(engine, "kv-aware").unwrap();
        let mut router = OfflineRouter::new("m", 4, policies, seed).unwrap();
        router.set_ready((0..4).map(|slot| (WorkerSlot(slot), card(slot))));
        router
    }

    fn place(router: &mut OfflineRouter, blocks: &[SequenceHash]) -> Result<OfflinePlacement, NoCandidate> {
        router.decide(OfflineRequest {
            prompt_tokens: 4 * blocks.len() as u32,
            blocks,
            expected_output_tokens: 0,
            session: 0,
            attempt: 0,
            now_ms: 0,
        })
    }

    #[test]
    fn an_equal_seed_gives_equal_decisions() {
        let decisions = |seed| {
            let mut router = router(seed);
            let blocks = [SequenceHash(1)];
            let choose = |_| place(&mut router, &blocks).unwrap().worker.0;
            (0..32).map(choose).collect::<Vec<_>>()
        };
        assert_eq!(decisions(1), decisions(1));
        assert_ne!(decisions(1), decisions(2), "32 ties among four workers");
    }

    #[test]
    fn events_load_and_membership_decide_as_in_a_router() {
        let mut router = router(0);
        let blocks = [1, 2, 3].map(SequenceHash);
        let stored = KvEvent::Stored {
            tier: CacheTier::Device,
            parent: None,
            blocks: blocks.to_vec(),
        };
        router.apply(WorkerSlot(2), std::slice::from_ref(&stored));
        let mut placed = place(&mut router, &blocks).unwrap();
        assert_eq!((placed.worker, placed.overlap_blocks), (WorkerSlot(2), 3));
        let reserved = router.in_flight(WorkerSlot(2));
        assert_eq!((reserved.prefill_tokens, reserved.requests), (0, 1));
        placed.first_token();
        drop(placed);
        assert!(router.in_flight(WorkerSlot(2)).is_idle());
        router.forget(WorkerSlot(2));
        router.set_ready([0, 1].map(|slot| (WorkerSlot(slot), card(slot))));
        let placed: Vec<_> = (0..4).map(|_| place(&mut router, &blocks).unwrap()).collect();
        assert!(placed.iter().all(|placed| placed.overlap_blocks == 0));
        assert_eq!(place(&mut router, &blocks).unwrap_err(), NoCandidate::Busy);
        router.set_ready([]);
        assert_eq!(place(&mut router, &blocks).unwrap_err(), NoCandidate::Unavailable);
    }
}
