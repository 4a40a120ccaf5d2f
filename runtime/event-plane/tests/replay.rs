//! A router's view of a worker equals the worker's cache, whatever the network loses or repeats.

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
    /// A new incarnation of the worker starts with an empty cache.
    Restart,
    /// At most this many of the batches in flight arrive.
    Deliver(usize),
    /// The next batch in flight is lost.
    Lose,
    /// A batch that has arrived arrives again.
    Repeat(prop::sample::Index),
}

/// A worker: its log, and the true contents of its cache.
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

    /// Publishes events, and returns the encoded batches.
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
    credited: Blocks,
}

impl Router {
    fn receive(&mut self, bytes: &[u8], worker: &Worker) {
        let batch = decode_batch(bytes).unwrap();
        match self.cursor.check(batch.epoch, batch.sequence) {
            BatchCheck::Apply => batch
                .events
                .iter()
                .for_each(|event| apply(&mut self.credited, event)),
            BatchCheck::Duplicate | BatchCheck::OldEpoch => {}
            BatchCheck::NewEpoch => {
                self.credited.clear();
                self.cursor.resume(batch.epoch, 0);
                self.receive(bytes, worker);
            }
            BatchCheck::Gap { .. } => {
                let snapshot = decode_snapshot(&encode_snapshot(&worker.log.snapshot())).unwrap();
                self.credited.clear();
                snapshot
                    .stored
                    .iter()
                    .for_each(|event| apply(&mut self.credited, event));
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

/// Events of few blocks, so that a block is stored, removed and stored again. The parent of block n is block n / 2.
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
    let removed = prop::collection::vec((1u64..100).prop_map(SequenceHash), 0..6);
    prop_oneof![
        10 => (tier(), chain).prop_map(|(tier, (parent, blocks))| KvEvent::Stored { tier, parent, blocks }),
        8 => (tier(), removed).prop_map(|(tier, blocks)| KvEvent::Removed { tier, blocks }),
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
    let mut in_flight = VecDeque::new();
    let mut arrived: Vec<Bytes> = Vec::new();
    for step in steps {
        match step {
            Step::Publish(events) => in_flight.extend(worker.publish(events).await),
            Step::Restart => {
                epoch += 1;
                worker = Worker::new(epoch);
            }
            Step::Deliver(count) => {
                for bytes in in_flight.drain(..count.min(in_flight.len())) {
                    router.receive(&bytes, &worker);
                    arrived.push(bytes);
                }
            }
            Step::Lose => _ = in_flight.pop_front(),
            Step::Repeat(which) if !arrived.is_empty() => {
                router.receive(&arrived[which.index(arrived.len())], &worker)
            }
            Step::Repeat(_) => {}
        }
    }
    // One last batch arrives, which shows whether an earlier one was lost.
    let last = KvEvent::Stored {
        tier: CacheTier::Device,
        parent: None,
        blocks: vec![SequenceHash(1)],
    };
    in_flight.extend(worker.publish(vec![last]).await);
    for bytes in in_flight {
        router.receive(&bytes, &worker);
    }
    let mut mirrored = Blocks::new();
    worker
        .log
        .snapshot()
        .stored
        .iter()
        .for_each(|event| apply(&mut mirrored, event));
    (worker.cache, mirrored, router.credited)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn the_router_ends_up_with_the_blocks_of_the_worker(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (cache, mirrored, credited) = runtime.block_on(play(steps));
        prop_assert_eq!(&mirrored, &cache, "the log mirrors the cache");
        prop_assert_eq!(&credited, &cache, "the router credits the cache");
    }
}
