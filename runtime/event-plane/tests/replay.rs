//! What a router believes equals what the worker holds, whatever the network loses or repeats.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use proptest::prelude::*;
use signalbox_event_plane::{
    BatchCheck, EventLog, LogReader, Retention, StreamCursor, decode_batch, decode_snapshot, encode_snapshot,
};
use signalbox_protocol::{CacheTier, KvEvent, SequenceHash, WorkerEpoch};

type Blocks = BTreeSet<(CacheTier, SequenceHash)>;

#[derive(Debug, Clone)]
enum Step {
    Publish(Vec<KvEvent>),
    /// The worker starts a new life with an empty cache.
    Restart,
    /// What is under way arrives, up to so many batches.
    Deliver(usize),
    /// The next batch under way is lost.
    Lose,
    /// A batch that arrived before arrives again.
    Repeat(prop::sample::Index),
}

/// A worker, its log, and what its cache really holds.
struct Worker {
    log: EventLog,
    reader: LogReader,
    cache: Blocks,
}

impl Worker {
    fn new(epoch: u64) -> Self {
        let log = EventLog::with_retention(
            WorkerEpoch(epoch),
            Retention {
                batches: 64,
                bytes: 1 << 20,
            },
        );
        let reader = log.read(None).unwrap();
        Self {
            log,
            reader,
            cache: Blocks::new(),
        }
    }

    /// Publishes, and gives what goes on the wire.
    async fn publish(&mut self, events: Vec<KvEvent>) -> Vec<Bytes> {
        let before = self.log.snapshot().next_sequence;
        events.iter().for_each(|event| apply(&mut self.cache, event));
        self.log.publish(events);
        let mut batches = Vec::new();
        for _ in before..self.log.snapshot().next_sequence {
            batches.push(self.reader.next().await.unwrap());
        }
        batches
    }
}

/// A router's view of the worker.
#[derive(Default)]
struct Router {
    cursor: StreamCursor,
    believed: Blocks,
}

impl Router {
    fn receive(&mut self, bytes: &[u8], worker: &Worker) {
        let batch = decode_batch(bytes).unwrap();
        match self.cursor.check(batch.epoch, batch.sequence) {
            BatchCheck::Apply => batch
                .events
                .iter()
                .for_each(|event| apply(&mut self.believed, event)),
            BatchCheck::Duplicate | BatchCheck::OldEpoch => {}
            BatchCheck::NewEpoch => {
                self.believed.clear();
                self.cursor.resume(batch.epoch, 0);
                self.receive(bytes, worker);
            }
            BatchCheck::Gap { .. } => {
                let snapshot = decode_snapshot(&encode_snapshot(&worker.log.snapshot())).unwrap();
                self.believed.clear();
                snapshot
                    .stored
                    .iter()
                    .for_each(|event| apply(&mut self.believed, event));
                self.cursor.resume(snapshot.epoch, snapshot.next_sequence);
            }
        }
    }
}

fn apply(held: &mut Blocks, event: &KvEvent) {
    match event {
        KvEvent::Stored { tier, blocks, .. } => held.extend(blocks.iter().map(|&block| (*tier, block))),
        KvEvent::Removed { tier, blocks } => {
            blocks.iter().for_each(|&block| _ = held.remove(&(*tier, block)))
        }
        KvEvent::Cleared => held.clear(),
    }
}

/// Few blocks, so that they are stored, removed and stored again; block n follows block n / 2, which branches.
fn event() -> impl Strategy<Value = KvEvent> {
    let tier =
        || prop_oneof![4 => Just(CacheTier::Device), 1 => Just(CacheTier::Host), 1 => Just(CacheTier::Disk)];
    let chain = (1u64..24, 1usize..5).prop_map(|(first, len)| {
        let blocks: Vec<_> = std::iter::successors(Some(first), |block| Some(2 * block + 1))
            .take(len)
            .collect();
        (
            Some(first / 2).filter(|parent| *parent > 0).map(SequenceHash),
            blocks.into_iter().map(SequenceHash).collect(),
        )
    });
    let some = prop::collection::vec((1u64..100).prop_map(SequenceHash), 0..6);
    prop_oneof![
        10 => (tier(), chain).prop_map(|(tier, (parent, blocks))| KvEvent::Stored { tier, parent, blocks }),
        8 => (tier(), some).prop_map(|(tier, blocks)| KvEvent::Removed { tier, blocks }),
        1 => Just(KvEvent::Cleared),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        10 => prop::collection::vec(event(), 0..5).prop_map(Step::Publish),
        1 => Just(Step::Restart),
        6 => (0usize..4).prop_map(Step::Deliver),
        2 => Just(Step::Lose),
        3 => any::<prop::sample::Index>().prop_map(Step::Repeat),
    ];
    prop::collection::vec(step, 0..80)
}

async fn play(steps: Vec<Step>) -> (Blocks, Blocks, Blocks) {
    let mut epoch = 1;
    let mut worker = Worker::new(epoch);
    let mut router = Router::default();
    let mut under_way = VecDeque::new();
    let mut arrived: Vec<Bytes> = Vec::new();
    for step in steps {
        match step {
            Step::Publish(events) => under_way.extend(worker.publish(events).await),
            Step::Restart => {
                epoch += 1;
                worker = Worker::new(epoch);
            }
            Step::Deliver(count) => {
                for bytes in under_way.drain(..count.min(under_way.len())) {
                    router.receive(&bytes, &worker);
                    arrived.push(bytes);
                }
            }
            Step::Lose => _ = under_way.pop_front(),
            Step::Repeat(which) if !arrived.is_empty() => {
                router.receive(&arrived[which.index(arrived.len())], &worker)
            }
            Step::Repeat(_) => {}
        }
    }
    // One last batch arrives: if anything went missing before it, now it is noticed.
    let last = KvEvent::Stored {
        tier: CacheTier::Device,
        parent: None,
        blocks: vec![SequenceHash(1)],
    };
    under_way.extend(worker.publish(vec![last]).await);
    for bytes in under_way {
        router.receive(&bytes, &worker);
    }
    let mut mirrored = Blocks::new();
    worker
        .log
        .snapshot()
        .stored
        .iter()
        .for_each(|event| apply(&mut mirrored, event));
    (worker.cache, mirrored, router.believed)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn a_router_ends_up_with_what_the_worker_holds(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (cache, mirrored, believed) = runtime.block_on(play(steps));
        prop_assert_eq!(&mirrored, &cache, "the log mirrors the cache");
        prop_assert_eq!(&believed, &cache, "the router believes it");
    }
}
