//! For benches: a whole decision among any number of workers that exist only in the tables. No bench could start a
//! thousand workers.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use signalbox_kv_index::{SharedKvIndex, WorkerSlot};
use signalbox_policy_host::{PolicyRegistry, RequestKeys};
use signalbox_protocol::{
    CacheTier, KvEvent, RequestId, SequenceHash, WorkerCapacity, WorkerCard, WorkerEpoch, WorkerRole,
};
use signalbox_request_plane::ResponseStream;
use signalbox_tokenize::ModelText;
use tokio::time::Instant;

use crate::{
    AnswerStream,
    answer::AnswerObservers,
    context_need::ContextNeed,
    decide::{Decider, Demand},
    decision_log::DecisionLogs,
    load::{LoadTable, Reservation},
    roster::{ModelEntry, VersionId, WorkerEntry, WorkerPhase, versions_of},
    versioned_prompt::VersionedPrompt,
};

const BLOCK_SIZE: u32 = 16;

/// An answer that began with the bytes `first`, as [`ReplicaHandle`](crate::ReplicaHandle) returns it. Its deadline
/// is an hour away. Needs a tokio runtime.
pub fn answer(first: Bytes, response: ResponseStream) -> AnswerStream {
    let reservation = LoadTable::default().reserve(WorkerSlot(0), 1, 1);
    AnswerStream::new(
        first,
        response,
        reservation,
        AnswerObservers::default(),
        Instant::now() + Duration::from_secs(3_600),
    )
}

/// One thread's decider, and the model, the index and the load table it reads.
#[derive(Debug)]
pub struct BenchRouter {
    decider: Decider,
    index: SharedKvIndex,
    load: LoadTable,
    model: ModelEntry,
    /// The reservations of the latest requests, which keep workers busy. The next decision ends the oldest one.
    reservations: Vec<Option<Reservation>>,
    oldest: usize,
    request: RequestId,
    keys: RequestKeys,
}

impl BenchRouter {
    /// A model with this number of workers. The default policy of `policies` decides, and `in_flight` requests stay
    /// reserved. Nothing records the decisions.
    ///
    /// # Errors
    /// None: the names `worker-0`, `worker-1`, … are valid.
    pub fn new(
        workers: u32,
        in_flight: usize,
        text: Arc<ModelText>,
        policies: PolicyRegistry,
    ) -> Result<Self, signalbox_protocol::InvalidWorkerId> {
        let index = SharedKvIndex::new(usize::MAX);
        let workers = (0..workers).map(|slot| {
            let id = format!("worker-{slot}").parse()?;
            let card = WorkerCard {
                id,
                epoch: WorkerEpoch(1),
                model: "m".into(),
                address: String::new(),
                engine: "sim".into(),
                block_size: BLOCK_SIZE,
                context_length: 32_768,
                artifacts_digest: String::new(),
                role: WorkerRole::Aggregated,
                capacity: WorkerCapacity {
                    kv_blocks: 16_384,
                    max_sequences: 256,
                    max_waiting: 1_024,
                },
                engine_version: String::new(),
                reads_body: false,
                continues_answers: true,
                abilities: Vec::new(),
                kv_events: true,
                labels: Default::default(),
            };
            let version = VersionId::of(&card);
            Ok::<_, signalbox_protocol::InvalidWorkerId>(WorkerEntry {
                slot: WorkerSlot(slot),
                card: Arc::new(card),
                phase: WorkerPhase::Ready,
                listed: true,
                adapters: None,
                version,
                text: Some(text.clone()),
            })
        });
        let workers = workers.collect::<Result<Vec<_>, _>>()?;
        let model = ModelEntry {
            name: "m".into(),
            adapter: None,
            created: 0,
            versions: versions_of(workers.iter().filter_map(WorkerEntry::served)),
            decisions: Arc::default(),
            workers: workers.into_iter().collect(),
        };
        let load = LoadTable::default();
        Ok(Self {
            decider: Decider::new(index.clone(), load.clone(), policies),
            index,
            load,
            model,
            reservations: (0..in_flight.max(1)).map(|_| None).collect(),
            oldest: 0,
            request: RequestId::from_random(1),
            keys: RequestKeys::default(),
        })
    }

    /// The same router, which records its decisions as a router process does.
    #[must_use]
    pub fn recording(self) -> Self {
        Self {
            decider: self.decider.with_log(DecisionLogs::default().add()),
            ..self
        }
    }

    /// Credits a worker with a chain of blocks on its device.
    pub fn store(&self, worker: u32, blocks: Vec<SequenceHash>) {
        let stored = KvEvent::Stored {
            tier: CacheTier::Device,
            parent: None,
            blocks,
        };
        let slot = WorkerSlot(worker);
        self.index.apply_all(slot, std::slice::from_ref(&stored));
        self.load.refresh_indexed_blocks(slot, &self.index);
    }

    /// Size of the index: bytes, and pairs of a worker and a block it holds.
    pub fn index_size(&self) -> (usize, usize) {
        let stats = self.index.read(|index| index.stats());
        (stats.bytes, stats.memberships)
    }

    /// Decides on a prompt of these blocks. Returns the chosen worker's number and its overlap in blocks, or `None`
    /// if no worker can take the request.
    pub fn decide(&mut self, blocks: &[SequenceHash]) -> Option<(u32, u32)> {
        let version = self.model.versions.first()?;
        let prompt = VersionedPrompt {
            version: version.id,
            tokens: blocks.len() as u32 * BLOCK_SIZE + 3,
            blocks,
            context: ContextNeed::default(),
        };
        let demand = Demand {
            request: Some(&self.request),
            prompts: &[prompt],
            expected_output_tokens: 64,
            choices: 1,
            max_output_tokens: Some(64),
            priority: 0,
            attempt: 0,
            deadline_ms: 1_000.0,
            keys: &self.keys,
            explained: false,
        };
        let placement = self
            .decider
            .decide(&self.model, demand, None::<fn(&WorkerEntry) -> bool>)
            .ok()?;
        let oldest = self.oldest;
        self.oldest = (oldest + 1) % self.reservations.len();
        self.reservations[oldest] = Some(placement.reservation);
        Some((placement.worker.slot.0, placement.overlap_blocks))
    }
}
