//! A request among workers whose engine is the test: which worker gets it, when it moves, and how it ends.

mod continuation;
mod mixed_fleet;
mod sick;

use signalbox_kv_index::SharedKvIndex;
use signalbox_protocol::{ErrorKind, Parity, ParityState, StreamSummary};
use signalbox_request_plane::{LinkConfig, Responder};

use super::*;
use crate::{
    load::LoadTable,
    patience::TokenTimeouts,
    test_support::{
        PATIENCE, TestRecorder, TestWorker, entry, model, policies, request, silent_address, soon, summary,
        until,
    },
};

/// No process listens there, so a dial is refused at once.
const CLOSED_PORT: &str = "127.0.0.1:1";

/// A replica's state without its actor.
struct Rig {
    replica: Rc<ReplicaState>,
    index: SharedKvIndex,
    load: LoadTable,
    /// One request on each worker. They make worker 0 the one with the least load, worker 1 the next, and so on.
    _steering: Vec<Reservation>,
}

impl Rig {
    /// With one worker at each address, in the slots from 0 on. Each takes two requests; the reservation in `_steering`
    /// counts as one of them.
    fn new(addresses: &[&str], links: LinkConfig) -> Self {
        let workers = (0..).zip(addresses).map(|(slot, address)| entry(slot, address));
        Self::of(workers.collect(), links)
    }

    fn of(workers: Vec<WorkerEntry>, links: LinkConfig) -> Self {
        let model = Arc::new(model(workers.clone()));
        let slots = workers.len() as u32;
        let view = RosterView {
            models: [("m".to_owned(), model)].into(),
            adapters: Default::default(),
            workers,
            slots,
            conflicts: Vec::new(),
        };
        let (index, load) = (SharedKvIndex::new(1 << 20), LoadTable::default());
        Self {
            replica: Rc::new(ReplicaState {
                view: Arc::new(ArcSwap::from_pointee(view)),
                decider: RefCell::new(Decider::new(index.clone(), load.clone(), policies())),
                links: RefCell::new(Links::new(links)),
                learner: BlockLearnerHandle::start(index.clone(), load.clone()),
                parity: ParityTable::default(),
                latency: LatencyTable::default(),
                outcomes: Default::default(),
                kept_bytes: KeptBytes::default(),
                load: load.clone(),
                retries: Retries::default(),
                patience: Rc::new(Patience::new(
                    TokenTimeouts::default(),
                    load.clone(),
                    LatencyTable::default(),
                )),
            }),
            index,
            _steering: (0..slots)
                .map(|slot| load.reserve(WorkerSlot(slot), 0, 10 * slot))
                .collect(),
            load,
        }
    }

    fn with(workers: &[&TestWorker]) -> Self {
        let addresses: Vec<_> = workers.iter().map(|worker| worker.address.as_str()).collect();
        Self::new(&addresses, LinkConfig::default())
    }

    async fn route(&self) -> Result<RoutedAnswer, WireError> {
        soon(self.replica.clone().route(request(PATIENCE))).await
    }

    /// Requests in flight on a worker, without the one that steers.
    fn requests(&self, slot: u32) -> u32 {
        self.load.get(WorkerSlot(slot)).requests - 1
    }

    /// KV blocks that the index credits a worker with.
    fn blocks(&self, slot: u32) -> usize {
        self.index.read(|index| index.blocks_of(WorkerSlot(slot)))
    }

    fn prefill_tokens(&self, slot: u32) -> u32 {
        self.load.get(WorkerSlot(slot)).prefill_tokens
    }
}

fn no_room() -> WireError {
    WireError::new(ErrorKind::Overloaded, "the worker has no room")
}

fn answer(responder: Responder) {
    responder.queue(1, b"first").unwrap();
    responder.end(summary());
}

async fn bytes_of(answer: RoutedAnswer) -> Vec<Result<Bytes, WireError>> {
    soon(answer.stream.collect()).await
}

#[actix_rt::test]
async fn an_unknown_model_is_not_found() {
    let rig = Rig::new(&[], LinkConfig::default());
    let mut request = request(PATIENCE);
    request.generate.model = "other".into();
    let error = rig.replica.clone().route(request).await.unwrap_err();
    assert_eq!(
        (error.kind, error.param.as_deref()),
        (ErrorKind::ModelNotFound, Some("model"))
    );
}

#[actix_rt::test]
async fn a_model_without_workers_is_unavailable_and_one_with_full_workers_overloaded() {
    let none = Rig::new(&[], LinkConfig::default());
    assert_eq!(none.route().await.unwrap_err().kind, ErrorKind::Unavailable);
    let worker = TestWorker::start().await;
    let full = Rig::with(&[&worker]);
    let _second = full.load.reserve(WorkerSlot(0), 1, 1);
    assert_eq!(full.route().await.unwrap_err().kind, ErrorKind::Overloaded);
    assert!(worker.has_no_call());
}

#[actix_rt::test]
async fn a_prompt_with_unknown_tokens_is_routed_and_its_estimate_counts_as_load() {
    let mut worker = TestWorker::start().await;
    let rig = Rig::with(&[&worker]);
    let mut request = request(PATIENCE);
    request.tokens.clear();
    request.unhashed_tokens = 100;
    let routing = soon(rig.replica.clone().route(request));
    let working = async {
        let (parts, responder) = worker.call().await;
        assert!(parts.tokens.is_empty());
        assert_eq!(rig.prefill_tokens(0), 100);
        answer(responder);
    };
    let (routed, ()) = tokio::join!(routing, working);
    assert_eq!(routed.unwrap().overlap_blocks, 0);
}

#[actix_rt::test]
async fn the_first_bytes_release_the_prefill_load_and_the_end_releases_the_rest() {
    let mut worker = TestWorker::start().await;
    let rig = Rig::with(&[&worker]);
    let engine = async {
        let (parts, responder) = worker.call().await;
        assert_eq!(parts.tokens, request(PATIENCE).tokens);
        assert_eq!((rig.requests(0), rig.prefill_tokens(0)), (1, 40));
        responder.queue(1, b"first").unwrap();
        responder.flush();
        responder
    };
    let (answer, responder) = tokio::join!(rig.route(), engine);
    let mut answer = answer.unwrap();
    assert_eq!(answer.worker.as_str(), "worker-0");
    assert_eq!((rig.requests(0), rig.prefill_tokens(0)), (1, 0));
    responder.end(summary());
    assert_eq!(soon(answer.stream.next()).await, Some(Ok(Bytes::from("first"))));
    assert_eq!(soon(answer.stream.next()).await, None);
    assert_eq!(rig.requests(0), 0);
}

/// Pieces without bytes, which come before those of a whole answer, are not the beginning of the answer.
#[actix_rt::test]
async fn reported_tokens_change_the_load_and_the_request_may_still_move() {
    let (mut first, mut second) = (TestWorker::start().await, TestWorker::start().await);
    let rig = Rig::with(&[&first, &second]);
    let decode_blocks = |slot| rig.load.get(WorkerSlot(slot)).decode_blocks;
    let before = [0, 1].map(decode_blocks);
    let engines = async {
        let (_, responder) = first.call().await;
        assert_eq!((rig.prefill_tokens(0), decode_blocks(0) - before[0]), (40, 3));
        responder.queue(1, b"").unwrap();
        responder.flush();
        until(|| rig.prefill_tokens(0) == 0).await;
        responder.queue(31, b"").unwrap();
        responder.flush();
        until(|| decode_blocks(0) - before[0] == 5).await;
        responder.fail(no_room());
        let (_, responder) = second.call().await;
        assert_eq!((rig.requests(0), decode_blocks(0)), (0, before[0]));
        responder.queue(16, b"").unwrap();
        responder.queue(1, b"whole").unwrap();
        responder.end(summary());
    };
    let (routed, ()) = tokio::join!(rig.route(), engines);
    assert_eq!(decode_blocks(1) - before[1], 4, "a block more than the prompt's");
    assert_eq!(bytes_of(routed.unwrap()).await, [Ok(Bytes::from("whole"))]);
    assert_eq!([0, 1].map(decode_blocks), before);
}

#[actix_rt::test]
async fn a_worker_whose_link_is_up_is_preferred_to_one_that_is_dialled() {
    let (_silent, address) = silent_address();
    let mut worker = TestWorker::start().await;
    let rig = Rig::new(&[&address, &worker.address], LinkConfig::default());
    rig.replica.update_links();
    let view = rig.replica.view.load_full();
    until(|| rig.replica.links.borrow().is_up(&view.workers[1])).await;
    let engine = async { answer(worker.call().await.1) };
    let (routed, ()) = tokio::join!(rig.route(), engine);
    assert_eq!(routed.unwrap().worker.as_str(), "worker-1");
}

#[actix_rt::test]
async fn a_request_moves_with_its_prompt_when_the_worker_has_no_room() {
    let (mut first, mut second) = (TestWorker::start().await, TestWorker::start().await);
    let rig = Rig::with(&[&first, &second]);
    let engines = async {
        first.call().await.1.fail(no_room());
        let (parts, responder) = second.call().await;
        assert_eq!((rig.requests(0), rig.requests(1)), (0, 1));
        answer(responder);
        parts
    };
    let (routed, parts) = tokio::join!(rig.route(), engines);
    let routed = routed.unwrap();
    assert_eq!(routed.worker.as_str(), "worker-1");
    let sent = request(PATIENCE);
    assert_eq!((parts.tokens, parts.body), (sent.tokens, sent.body));
    assert_eq!(bytes_of(routed).await, [Ok(Bytes::from("first"))]);
    assert_eq!((rig.requests(0), rig.requests(1)), (0, 0));
}

#[actix_rt::test]
async fn a_request_moves_when_its_worker_is_lost_before_the_first_bytes() {
    let (mut first, mut second) = (TestWorker::start().await, TestWorker::start().await);
    let rig = Rig::with(&[&first, &second]);
    let engines = async {
        let (_, responder) = first.call().await;
        first.stop().await;
        answer(second.call().await.1);
        drop(responder);
    };
    let (routed, ()) = tokio::join!(rig.route(), engines);
    assert_eq!(routed.unwrap().worker.as_str(), "worker-1");
}

#[actix_rt::test]
async fn an_answer_without_ids_ends_with_an_error_when_its_worker_is_lost() {
    let (mut first, second) = (TestWorker::start().await, TestWorker::start().await);
    let rig = Rig::with(&[&first, &second]);
    let engine = async {
        let (_, responder) = first.call().await;
        responder.queue(1, b"first").unwrap();
        responder.flush();
        responder
    };
    let (routed, _responder) = tokio::join!(rig.route(), engine);
    first.stop().await;
    let received = bytes_of(routed.unwrap()).await;
    assert_eq!(received[0], Ok(Bytes::from("first")));
    assert_eq!(received[1].as_ref().unwrap_err().kind, ErrorKind::Unavailable);
    assert_eq!(received.len(), 2);
    assert!(second.has_no_call());
}

#[actix_rt::test]
async fn an_error_in_the_request_is_not_tried_on_another_worker() {
    let (mut first, second) = (TestWorker::start().await, TestWorker::start().await);
    let rig = Rig::with(&[&first, &second]);
    let error = WireError::invalid_param("max_tokens", "max_tokens is 0; give 1 or more");
    let engine = async { first.call().await.1.fail(error.clone()) };
    let (routed, ()) = tokio::join!(rig.route(), engine);
    assert_eq!(routed.unwrap_err(), error);
    assert!(second.has_no_call());
    assert_eq!(rig.requests(0), 0);
}

#[actix_rt::test]
async fn an_answer_that_ends_without_data_is_an_error() {
    let mut worker = TestWorker::start().await;
    let rig = Rig::with(&[&worker]);
    let ending = async { worker.call().await.1.end(summary()) };
    let (answer, ()) = tokio::join!(rig.route(), ending);
    assert_eq!(answer.unwrap_err(), client_errors::no_data());
    assert_eq!(rig.requests(0), 0, "its load is released");
}

#[actix_rt::test]
async fn the_error_of_the_last_worker_is_returned_when_every_worker_refuses() {
    let (mut first, mut second) = (TestWorker::start().await, TestWorker::start().await);
    let rig = Rig::with(&[&first, &second]);
    let last = WireError::new(ErrorKind::Overloaded, "the last worker has no room");
    let engines = async {
        first.call().await.1.fail(no_room());
        second.call().await.1.fail(last.clone());
    };
    let (routed, ()) = tokio::join!(rig.route(), engines);
    assert_eq!(routed.unwrap_err(), last);
    assert!(
        first.has_no_call() && second.has_no_call(),
        "no worker is tried twice"
    );
    assert_eq!((rig.requests(0), rig.requests(1)), (0, 0));
}

#[actix_rt::test]
async fn a_request_that_is_dropped_before_its_first_bytes_is_cancelled_and_released() {
    let mut worker = TestWorker::start().await;
    let rig = Rig::with(&[&worker]);
    let mut routing = Box::pin(rig.route());
    let (_, responder) = tokio::select! {
        _ = &mut routing => panic!("no bytes were sent"),
        call = worker.call() => call,
    };
    assert_eq!(rig.requests(0), 1);
    drop(routing);
    assert_eq!((rig.requests(0), rig.prefill_tokens(0)), (0, 0));
    soon(responder.cancelled()).await;
}

#[actix_rt::test]
async fn a_request_ends_at_its_deadline_when_its_worker_sends_nothing() {
    let (_silent, address) = silent_address();
    tokio::time::pause();
    let links = LinkConfig {
        // The link dials for the whole test, so the request waits on it.
        connect_timeout: Duration::from_secs(3_600),
        ..LinkConfig::default()
    };
    let rig = Rig::new(&[&address], links);
    let began = Instant::now();
    let error = rig
        .replica
        .clone()
        .route(request(Duration::from_secs(5)))
        .await
        .unwrap_err();
    assert_eq!(error, client_errors::no_answer_in_time());
    let waited = began.elapsed();
    assert!((5..6).contains(&waited.as_secs()), "{waited:?}");
    assert_eq!((rig.requests(0), rig.prefill_tokens(0)), (0, 0));
}

#[actix_rt::test]
async fn a_request_moves_from_a_worker_that_cannot_be_reached() {
    let mut second = TestWorker::start().await;
    let rig = Rig::new(&[CLOSED_PORT, &second.address], LinkConfig::default());
    let engine = async { answer(second.call().await.1) };
    let (routed, ()) = tokio::join!(rig.route(), engine);
    assert_eq!(routed.unwrap().worker.as_str(), "worker-1");
}

#[actix_rt::test]
async fn a_failure_counts_as_moved_only_if_the_request_goes_to_another_worker() {
    const MOVED: &str = "signalbox_requests_moved_total";
    let recorder = TestRecorder::default();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let (mut first, mut second) = (TestWorker::start().await, TestWorker::start().await);
    let alone = Rig::with(&[&first]);
    let engine = async { first.call().await.1.fail(no_room()) };
    let (routed, ()) = tokio::join!(alone.route(), engine);
    assert_eq!(routed.unwrap_err().kind, ErrorKind::Overloaded);
    assert_eq!(recorder.count(MOVED), 0, "no other worker was left");

    let both = Rig::with(&[&first, &second]);
    let engines = async {
        first.call().await.1.fail(no_room());
        second.call().await.1.fail(no_room());
    };
    let (routed, ()) = tokio::join!(both.route(), engines);
    assert_eq!(routed.unwrap_err().kind, ErrorKind::Overloaded);
    assert_eq!(
        recorder.count(MOVED),
        1,
        "the failure of the last worker does not count"
    );
}

#[actix_rt::test]
async fn the_blocks_of_a_worker_without_events_are_learned_when_its_answer_begins() {
    let mut worker = TestWorker::start().await;
    let rig = Rig::with(&[&worker]);
    rig.load.begin_learning(WorkerSlot(0));
    let fallback = Parity::impaired(ParityState::Fallback, "the worker publishes no KV events");
    rig.replica.parity.set(WorkerSlot(0), &fallback);

    let engine = async {
        let (_, responder) = worker.call().await;
        assert_eq!(rig.blocks(0), 0, "the prompt is not computed yet");
        answer(responder);
    };
    let (routed, ()) = tokio::join!(rig.route(), engine);
    let routed = routed.unwrap();
    assert_eq!((routed.overlap_blocks, routed.kv), (0, ParityState::Fallback));
    rig.replica.learner.settled().await;
    assert_eq!(rig.blocks(0), 2);
    assert_eq!(bytes_of(routed).await, [Ok(Bytes::from("first"))]);

    // The engine reports 32 tokens from its cache, and then none.
    let engine = async {
        let (parts, responder) = worker.call().await;
        responder.queue(1, b"first").unwrap();
        responder.end(StreamSummary {
            cached_tokens: 0,
            ..summary()
        });
        parts
    };
    let (routed, parts) = tokio::join!(rig.route(), engine);
    let Call::Generate(generate) = parts.call else {
        panic!("{:?}", parts.call);
    };
    let routed = routed.unwrap();
    assert_eq!((routed.overlap_blocks, generate.overlap_blocks), (2, 2));
    assert_eq!(bytes_of(routed).await, [Ok(Bytes::from("first"))]);
    rig.replica.learner.settled().await;
    assert_eq!(rig.blocks(0), 0, "credit that the engine's report contradicts");
}

#[actix_rt::test]
async fn nothing_is_learned_of_a_worker_with_events_or_of_a_request_that_failed() {
    let (mut first, mut second) = (TestWorker::start().await, TestWorker::start().await);
    let rig = Rig::with(&[&first, &second]);
    rig.load.begin_learning(WorkerSlot(0));
    let engines = async {
        first.call().await.1.fail(no_room());
        answer(second.call().await.1);
    };
    let (routed, ()) = tokio::join!(rig.route(), engines);
    let routed = routed.unwrap();
    assert_eq!(
        (routed.worker.as_str(), routed.kv),
        ("worker-1", ParityState::Exact)
    );
    bytes_of(routed).await;
    rig.replica.learner.settled().await;
    assert_eq!((rig.blocks(0), rig.blocks(1)), (0, 0));
}

#[actix_rt::test]
async fn a_stream_is_measured_at_its_first_bytes_and_at_its_end() {
    let mut worker = TestWorker::start().await;
    let rig = Rig::with(&[&worker]);
    let engine = async { answer(worker.call().await.1) };
    let (routed, ()) = tokio::join!(rig.route(), engine);
    let measured = || rig.replica.latency.get(WorkerSlot(0));
    assert!(measured().ttft_ms.is_some_and(|ttft| ttft > 0.0));
    assert_eq!(measured().uncached_prompt_tokens, Some(40.0));
    assert_eq!(measured().itl_ms, None);
    bytes_of(routed.unwrap()).await;
    assert!(measured().itl_ms.is_some_and(|itl| itl > 0.0));

    rig.replica.latency.forget(WorkerSlot(0));
    let mut whole = request(PATIENCE);
    whole.generate.format.stream = false;
    let engine = async { answer(worker.call().await.1) };
    let (routed, ()) = tokio::join!(rig.replica.clone().route(whole), engine);
    bytes_of(routed.unwrap()).await;
    assert_eq!(
        measured(),
        Default::default(),
        "a whole answer has no first token"
    );
}
