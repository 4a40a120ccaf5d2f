//! A worker that reports each state in turn, and what the index then holds of it.

use std::sync::Arc;

use signalbox_event_plane::{EventPlane, MemoryPlane, encode_snapshot};
use signalbox_kv_index::{SharedKvIndex, WorkerSlot};
use signalbox_protocol::{
    CacheTier, Call, KvEvent, KvEventBatch, KvSnapshot, SequenceHash, StreamSummary, WorkerCard, WorkerEpoch,
};
use signalbox_request_plane::{LinkConfig, LinkHandle, Responder};

use super::*;
use crate::{
    block_learner::BlockLearnerHandle,
    load::LoadTable,
    test_support::{TestRecorder, TestWorker, card, entry, until},
};

const WORKER: WorkerSlot = WorkerSlot(0);
const STATE: &str = "signalbox_worker_kv_state";
const CHANGES: &str = "signalbox_worker_kv_state_changes_total";

/// A worker's source, the worker, and what the source changes.
struct Rig {
    source: KvSource,
    worker: TestWorker,
    plane: Arc<MemoryPlane>,
    index: SharedKvIndex,
    load: LoadTable,
    table: ParityTable,
    learner: BlockLearnerHandle,
}

impl Rig {
    async fn start(kv_events: bool) -> Self {
        let worker = TestWorker::start().await;
        let (index, load) = (SharedKvIndex::new(1 << 20), LoadTable::default());
        let (plane, table) = (MemoryPlane::new(), ParityTable::default());
        let card = Arc::new(WorkerCard {
            kv_events,
            ..(*card("worker-0", 1)).clone()
        });
        let config = EventStreamConfig {
            card,
            slot: WORKER,
            link: LinkHandle::start(worker.address.clone(), LinkConfig::default(), None),
            plane: plane.clone(),
            index: index.clone(),
            load: load.clone(),
            stopped: Rc::default(),
        };
        Self {
            source: KvSource::start(config, table.clone()),
            worker,
            plane,
            learner: BlockLearnerHandle::start(index.clone(), load.clone()),
            index,
            load,
            table,
        }
    }

    /// The worker's next call, which must be for its snapshot.
    async fn snapshot_call(&mut self) -> Responder {
        let (parts, responder) = self.worker.call().await;
        assert!(matches!(parts.call, Call::FetchKvSnapshot), "{:?}", parts.call);
        responder
    }

    /// Answers the next call with a snapshot of this many blocks, and waits until it is followed.
    async fn send_snapshot(&mut self, blocks: u64, next_sequence: u64) {
        let responder = self.snapshot_call().await;
        answer_snapshot(responder, blocks, next_sequence).await;
        let load = self.load.clone();
        until(|| load.event_state(WORKER) == EventState::Following).await;
        assert_eq!(self.blocks(), blocks as usize);
    }

    fn publish(&self, sequence: u64, block: u64) {
        let batch = KvEventBatch {
            epoch: WorkerEpoch(1),
            sequence,
            events: stored(block..=block),
        };
        self.plane.publish(&"worker-0".parse().unwrap(), Arc::new(batch));
    }

    /// This router sends the worker a prompt of these blocks, and the answer ends.
    fn request(&self, blocks: std::ops::RangeInclusive<u64>) {
        let blocks: Vec<_> = blocks.map(SequenceHash).collect();
        let decision = self.learner.decided(&entry(WORKER.0, "127.0.0.1:1"), 16, 0);
        if let Some(answer) = decision.and_then(|decision| self.learner.begun(decision, &blocks)) {
            answer.ended(StreamSummary::default());
        }
    }

    fn report(&mut self, state: ParityState, cause: &str) {
        self.source.report(&Parity::impaired(state, cause));
        assert_eq!(self.table.state(WORKER), state);
        assert_eq!(self.table.get(WORKER).cause, cause);
    }

    fn blocks(&self) -> usize {
        self.index.read(|index| index.blocks_of(WORKER))
    }
}

async fn answer_snapshot(responder: Responder, blocks: u64, next_sequence: u64) {
    let snapshot = KvSnapshot {
        epoch: WorkerEpoch(1),
        next_sequence,
        stored: stored(101..=100 + blocks),
    };
    responder.send(&encode_snapshot(&snapshot)).await.unwrap();
    responder.end(StreamSummary::default());
}

fn stored(blocks: std::ops::RangeInclusive<u64>) -> Vec<KvEvent> {
    vec![KvEvent::Stored {
        tier: CacheTier::Device,
        parent: None,
        blocks: blocks.map(SequenceHash).collect(),
    }]
}

#[actix_rt::test]
async fn a_worker_that_reports_each_state_in_turn_is_followed_learned_and_followed_again() {
    let recorder = TestRecorder::default();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let mut rig = Rig::start(true).await;
    assert_eq!(recorder.raised(STATE, "state"), ["exact"]);
    rig.send_snapshot(3, 0).await;

    rig.report(ParityState::Degraded, "2 of 20 prompts have other tokens");
    assert_eq!(recorder.raised(STATE, "state"), ["degraded"]);
    rig.publish(0, 7);
    let index = rig.index.clone();
    until(|| index.read(|index| index.blocks_of(WORKER)) == 4).await;
    rig.request(1..=9);

    rig.report(ParityState::Fallback, "no events for 30 s");
    assert_eq!(recorder.raised(STATE, "state"), ["fallback"]);
    assert_eq!(rig.blocks(), 0, "what the events gave is dropped at once");
    assert_eq!(rig.load.event_state(WORKER), EventState::Approximate);
    rig.publish(1, 8);
    rig.request(1..=2);
    until(|| index.read(|index| index.blocks_of(WORKER)) == 2).await;
    rig.report(ParityState::Fallback, "no events for 60 s");
    assert_eq!(rig.blocks(), 2, "another cause changes nothing else");

    rig.source.report(&Parity::default());
    assert_eq!(rig.blocks(), 0, "what was learned is dropped at once");
    assert_eq!(rig.load.event_state(WORKER), EventState::Resyncing);
    rig.request(1..=9);
    rig.send_snapshot(5, 2).await;
    rig.publish(2, 9);
    until(|| index.read(|index| index.blocks_of(WORKER)) == 6).await;
    assert_eq!(recorder.raised(STATE, "state"), ["exact"]);
    assert_eq!(recorder.count(CHANGES), 3);

    rig.source.end();
    assert_eq!(rig.blocks(), 0, "K-1: no block of a worker that left");
    assert_eq!(rig.table.get(WORKER), Parity::default());
    assert!(recorder.raised(STATE, "state").is_empty());
}

#[actix_rt::test]
async fn a_snapshot_that_arrives_in_fallback_is_ignored() {
    let mut rig = Rig::start(true).await;
    let responder = rig.snapshot_call().await;
    rig.report(ParityState::Fallback, "no events for 30 s");
    answer_snapshot(responder, 3, 0).await;
    rig.request(1..=2);
    let index = rig.index.clone();
    until(|| index.read(|index| index.blocks_of(WORKER)) == 2).await;
    // Back and forth while nothing is handled in between: the last state counts.
    rig.source.report(&Parity::default());
    rig.report(ParityState::Fallback, "no events for 30 s");
    rig.source.report(&Parity::default());
    let responder = rig.snapshot_call().await;
    answer_snapshot(responder, 4, 0).await;
    let load = rig.load.clone();
    until(|| load.event_state(WORKER) == EventState::Following).await;
    assert_eq!(rig.blocks(), 4);
}

#[actix_rt::test]
async fn a_worker_without_events_is_learned_from_the_start_and_asked_for_nothing() {
    let mut rig = Rig::start(false).await;
    assert_eq!(rig.table.get(WORKER).cause, "the worker publishes no KV events");
    rig.request(1..=2);
    let index = rig.index.clone();
    until(|| index.read(|index| index.blocks_of(WORKER)) == 2).await;
    rig.source.report(&Parity::default());
    assert_eq!(rig.table.state(WORKER), ParityState::Fallback);
    assert_eq!(rig.blocks(), 2);
    assert!(rig.worker.has_no_call());
    rig.source.end();
    assert_eq!(rig.blocks(), 0);
}

/// Batches that the worker never published are credited until it reports what it holds.
#[actix_rt::test]
async fn phantom_blocks_are_gone_after_the_next_report() {
    let mut rig = Rig::start(true).await;
    rig.send_snapshot(2, 1).await;
    rig.publish(1, 50);
    rig.publish(2, 51);
    until(|| rig.blocks() == 4).await;
    let mut held = KvDigest::default();
    (101..=103).for_each(|block| held.add(CacheTier::Device, SequenceHash(block)));
    rig.source.report_held(3, held);
    let responder = rig.snapshot_call().await;
    assert_eq!(
        (rig.blocks(), rig.load.event_state(WORKER)),
        (0, EventState::Resyncing)
    );
    answer_snapshot(responder, 3, 3).await;
    until(|| rig.blocks() == 3).await;
    rig.source.report_held(3, held);
    rig.publish(3, 4);
    until(|| rig.blocks() == 4).await;
}
