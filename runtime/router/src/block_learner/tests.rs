//! From the facts about requests to the KV index, and what ends their effect.

use tokio::sync::oneshot;

use super::*;
use crate::{
    approximate::TTL,
    supervisor::Panic,
    test_support::{TestRecorder, entry, soon},
};

const WORKER: WorkerSlot = WorkerSlot(0);

struct Rig {
    index: SharedKvIndex,
    load: LoadTable,
    learner: BlockLearnerHandle,
}

impl Rig {
    /// A learner, and worker 0, which is learned.
    fn start() -> Self {
        let (index, load) = (SharedKvIndex::new(1 << 20), LoadTable::default());
        load.begin_learning(WORKER);
        Self {
            learner: BlockLearnerHandle::start(index.clone(), load.clone()),
            index,
            load,
        }
    }

    fn decided(&self, credited: u32) -> Option<LearnedDecision> {
        self.learner
            .decided(&entry(WORKER.0, "127.0.0.1:1"), 16, credited)
    }

    /// An answer to a prompt of these blocks begins.
    fn begin(&self, blocks: impl Iterator<Item = u64>) -> LearnedAnswer {
        let blocks: Vec<_> = blocks.map(SequenceHash).collect();
        self.learner.begun(self.decided(0).unwrap(), &blocks).unwrap()
    }

    fn blocks(&self) -> usize {
        self.index.read(|index| index.blocks_of(WORKER))
    }
}

impl BlockLearnerHandle {
    /// Waits until the learner has handled every fact so far.
    pub(crate) async fn settled(&self) {
        let (sender, settled) = oneshot::channel();
        assert!(
            self.facts.try_send(Fact::Settle(sender)).is_ok(),
            "too many facts wait"
        );
        soon(settled).await.unwrap();
    }
}

#[actix_rt::test]
async fn blocks_are_credited_when_an_answer_begins_and_forgotten_after_their_time() {
    tokio::time::pause();
    let rig = Rig::start();
    let _answer = rig.begin(1..=4);
    rig.learner.settled().await;
    assert_eq!(rig.blocks(), 4);
    let used_blocks = |rig: &Rig| rig.load.own(WORKER).unwrap().1;
    assert_eq!(used_blocks(&rig), 4);
    tokio::time::sleep(TTL - EXPIRY_CHECK).await;
    assert_eq!(rig.blocks(), 4);
    tokio::time::sleep(2 * EXPIRY_CHECK).await;
    assert_eq!((rig.blocks(), used_blocks(&rig)), (0, 0));
}

#[actix_rt::test]
async fn a_fact_of_an_earlier_period_changes_nothing() {
    let rig = Rig::start();
    let earlier = rig.begin(1..=4);
    rig.learner.settled().await;
    rig.index.remove_worker(WORKER);
    rig.load
        .set_event_state(WORKER, crate::load::EventState::Resyncing);
    assert!(rig.decided(0).is_none(), "the worker's events are followed");
    earlier.ended(StreamSummary::default());
    let late = LearnedDecision {
        period: earlier_period(&rig),
        ..decision()
    };
    rig.learner.begun(late, &[SequenceHash(9)]);
    rig.learner.settled().await;
    assert_eq!(rig.blocks(), 0);

    rig.load.begin_learning(WORKER);
    let _answer = rig.begin(1..=3);
    rig.learner.settled().await;
    assert_eq!(rig.blocks(), 3, "the new period starts with nothing");
}

/// The period that ended last.
fn earlier_period(rig: &Rig) -> LearningPeriod {
    let state = rig.load.event_state(WORKER);
    rig.load
        .set_event_state(WORKER, crate::load::EventState::Approximate);
    let period = rig.load.learning_period(WORKER).unwrap();
    rig.load.set_event_state(WORKER, state);
    period
}

fn decision() -> LearnedDecision {
    let load = LoadTable::default();
    load.begin_learning(WORKER);
    LearnedDecision {
        worker: WORKER,
        period: load.learning_period(WORKER).unwrap(),
        kv_blocks: 64,
        block_size: 16,
        credited: 0,
    }
}

#[actix_rt::test]
async fn a_prompt_without_whole_blocks_is_not_reported() {
    let rig = Rig::start();
    assert!(rig.learner.begun(rig.decided(0).unwrap(), &[]).is_none());
}

#[actix_rt::test]
async fn after_a_panic_nothing_is_credited_that_nobody_would_remove() {
    let rig = Rig::start();
    let _answer = rig.begin(1..=4);
    rig.learner.settled().await;
    assert_eq!(rig.blocks(), 4);
    assert!(rig.learner._actor.address().send(Panic).await.is_err());
    rig.learner.settled().await;
    assert_eq!(rig.blocks(), 0);
    let _answer = rig.begin(1..=2);
    rig.learner.settled().await;
    assert_eq!(rig.blocks(), 2);
}

#[actix_rt::test]
async fn facts_that_find_no_room_are_dropped_and_counted() {
    let recorder = TestRecorder::default();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let rig = Rig::start();
    rig.learner.settled().await;
    // The learner runs on this thread, so it handles nothing until the test waits.
    for block in 0..MAX_FACTS as u64 + 7 {
        rig.begin([block].into_iter());
    }
    assert_eq!(recorder.count("signalbox_kv_learning_dropped_total"), 7);
    soon(async {
        while rig.learner.facts.capacity() < MAX_FACTS {
            tokio::task::yield_now().await;
        }
    })
    .await;
    rig.learner.settled().await;
    assert_eq!(
        rig.blocks(),
        64,
        "the worker's capacity, of the facts that found room"
    );
}
