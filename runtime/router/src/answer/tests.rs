//! How an answer ends, and what its end releases.

use std::time::Duration;

use futures_util::StreamExt;
use signalbox_kv_index::WorkerSlot;
use signalbox_protocol::ErrorKind;
use signalbox_request_plane::{LinkConfig, LinkHandle, Responder};

use super::*;
use crate::{
    load::LoadTable,
    test_support::{TestWorker, call_parts, silent_address, soon, summary},
};

const WORKER: WorkerSlot = WorkerSlot(0);

fn in_an_hour() -> Instant {
    Instant::now() + Duration::from_secs(3_600)
}

/// An answer that began with the bytes `first`, and that nothing observes.
fn answer(response: ResponseStream, reservation: Reservation, deadline: Instant) -> AnswerStream {
    AnswerStream::new(
        "first".into(),
        response,
        reservation,
        AnswerObservers::default(),
        deadline,
    )
}

/// An answer from a worker whose engine is the test. Its first bytes are `first`.
struct Rig {
    load: LoadTable,
    stream: AnswerStream,
    worker: TestWorker,
    responder: Responder,
    _link: LinkHandle,
}

impl Rig {
    async fn start() -> Self {
        let mut worker = TestWorker::start().await;
        let link = LinkHandle::start(worker.address.clone(), LinkConfig::default(), None);
        let response = link.open(call_parts()).unwrap();
        let (_, responder) = worker.call().await;
        let load = LoadTable::default();
        let reservation = load.reserve(WORKER, 8, 3);
        Self {
            stream: answer(response, reservation, in_an_hour()),
            load,
            worker,
            responder,
            _link: link,
        }
    }

    async fn next(&mut self) -> Option<Result<Bytes, WireError>> {
        soon(self.stream.next()).await
    }
}

#[actix_rt::test]
async fn an_answer_delivers_its_bytes_in_order_and_then_has_its_summary() {
    let mut rig = Rig::start().await;
    rig.responder.queue(1, b"second").unwrap();
    rig.responder.queue(1, b"third").unwrap();
    rig.responder.end(summary());
    for expected in ["first", "second", "third"] {
        assert_eq!(soon(rig.stream.next()).await, Some(Ok(Bytes::from(expected))));
        assert_eq!(rig.stream.summary(), None);
        assert_eq!(rig.load.get(WORKER).requests, 1);
    }
    assert_eq!(soon(rig.stream.next()).await, None);
    assert_eq!(rig.stream.summary(), Some(summary()));
    assert_eq!(
        rig.load.get(WORKER),
        Default::default(),
        "the end releases the load"
    );
    assert_eq!(soon(rig.stream.next()).await, None);
}

#[actix_rt::test]
async fn a_dropped_answer_cancels_the_work_and_releases_its_load_once() {
    let mut rig = Rig::start().await;
    let _other = rig.load.reserve(WORKER, 5, 2);
    assert_eq!(rig.next().await, Some(Ok(Bytes::from("first"))));
    assert!(!rig.responder.is_cancelled());
    drop(rig.stream);
    let left = rig.load.get(WORKER);
    assert_eq!(
        (left.requests, left.prefill_tokens, left.decode_blocks),
        (1, 5, 2),
        "R-1: the other request still counts"
    );
    soon(rig.responder.cancelled()).await;
}

#[actix_rt::test]
async fn an_answer_whose_worker_is_lost_ends_with_an_error_and_is_not_repeated() {
    let mut rig = Rig::start().await;
    assert_eq!(rig.next().await, Some(Ok(Bytes::from("first"))));
    rig.responder.queue(1, b"second").unwrap();
    rig.responder.flush();
    assert_eq!(rig.next().await, Some(Ok(Bytes::from("second"))));
    rig.worker.stop().await;
    let error = rig.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert_eq!(rig.load.get(WORKER), Default::default());
    assert_eq!(rig.next().await, None);
    assert_eq!(rig.stream.summary(), None);
}

#[actix_rt::test]
async fn an_error_of_the_worker_passes_unchanged() {
    let mut rig = Rig::start().await;
    assert_eq!(rig.next().await, Some(Ok(Bytes::from("first"))));
    let error = WireError::new(ErrorKind::Internal, "the engine failed");
    rig.responder.fail(error.clone());
    assert_eq!(soon(rig.stream.next()).await, Some(Err(error)));
    assert_eq!(rig.load.get(WORKER), Default::default());
}

#[actix_rt::test]
async fn an_answer_past_its_deadline_ends_with_an_error_and_releases_its_load() {
    let (_silent, address) = silent_address();
    tokio::time::pause();
    let config = LinkConfig {
        // The link dials for the whole test, so its stream stays open without a byte.
        connect_timeout: Duration::from_secs(3_600),
        ..LinkConfig::default()
    };
    let link = LinkHandle::start(address, config, None);
    let response = link.open(call_parts()).unwrap();
    let load = LoadTable::default();
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut stream = answer(response, load.reserve(WORKER, 8, 3), deadline);
    assert_eq!(stream.next().await, Some(Ok(Bytes::from("first"))));
    assert_eq!(load.get(WORKER).requests, 1);
    let error = stream.next().await.unwrap().unwrap_err();
    assert_eq!(error, client_errors::not_whole_in_time());
    assert!(Instant::now() >= deadline && Instant::now() < deadline + Duration::from_secs(1));
    assert_eq!(load.get(WORKER), Default::default());
    assert_eq!(stream.next().await, None);
    assert_eq!(stream.summary(), None);
}

#[actix_rt::test]
async fn a_stream_without_an_end_is_reported_as_a_defect() {
    let mut worker = TestWorker::start().await;
    let link = LinkHandle::start(worker.address.clone(), LinkConfig::default(), None);
    let mut response = link.open(call_parts()).unwrap();
    worker.call().await.1.end(summary());
    // The test takes the end, so that the answer finds a stream that is over.
    assert_eq!(
        soon(response.next()).await.unwrap().unwrap(),
        ResponseEvent::End(summary())
    );
    let reservation = LoadTable::default().reserve(WORKER, 1, 1);
    let mut stream = answer(response, reservation, in_an_hour());
    assert_eq!(soon(stream.next()).await, Some(Ok(Bytes::from("first"))));
    assert_eq!(soon(stream.next()).await, Some(Err(client_errors::no_end())));
    assert_eq!(soon(stream.next()).await, None);
}

#[actix_rt::test]
async fn an_answer_counts_the_tokens_in_its_bytes() {
    let mut rig = Rig::start().await;
    rig.stream = rig.stream.begun_with(1);
    rig.responder.queue(3, b"second").unwrap();
    rig.responder.queue(2, b"third").unwrap();
    rig.responder.flush();
    for expected in [1, 4, 6] {
        assert!(soon(rig.stream.next()).await.unwrap().is_ok());
        assert_eq!(rig.stream.tokens(), expected);
    }
}
