//! Workers that fail: which requests go elsewhere, and which are not sent again.

use signalbox_protocol::{LoadReport, WireError, WorkerReport};
use signalbox_request_plane::PieceTokens;

use super::*;
use crate::{breaker::Fault, patience::TokenTimeouts};

/// Makes the workers known to the breakers, as their sessions do.
fn with_breakers(workers: &[&TestWorker]) -> Rig {
    let rig = Rig::with(workers);
    for worker in &rig.replica.view.load().workers {
        rig.load.health().join(worker.slot, &worker.card);
    }
    rig
}

fn broken() -> WireError {
    WireError::new(ErrorKind::Unavailable, "the engine is broken")
}

fn eject(rig: &Rig, slot: u32) {
    for _ in 0..3 {
        let attempt = rig.load.health().attempt(WorkerSlot(slot), 1);
        attempt.failed(Fault::Error, "broken");
    }
    assert!(rig.load.health().mark(WorkerSlot(slot)).is_ejected);
}

#[actix_rt::test]
async fn a_failure_moves_the_request_and_counts_against_the_worker() {
    let (mut first, mut second) = (TestWorker::start().await, TestWorker::start().await);
    let rig = with_breakers(&[&first, &second]);
    let engines = async {
        first.call().await.1.fail(broken());
        answer(second.call().await.1);
    };
    let (routed, ()) = tokio::join!(rig.route(), engines);
    assert_eq!(bytes_of(routed.unwrap()).await, [Ok(Bytes::from("first"))]);
    let health = rig.load.health();
    assert_eq!([0, 1].map(|slot| health.mark(WorkerSlot(slot)).failures), [1, 0]);
    assert_eq!(health.view(WorkerSlot(0)).last_failure, "the engine is broken");

    // What is the client's fault, or a lack of room, does not count.
    for kind in [ErrorKind::InvalidRequest, ErrorKind::Overloaded] {
        let engines = async {
            let refuse = |responder: Responder| responder.fail(WireError::new(kind, "refused"));
            tokio::select! {
                (_, responder) = first.call() => refuse(responder),
                (_, responder) = second.call() => refuse(responder),
            }
            if kind == ErrorKind::Overloaded {
                tokio::select! {
                    (_, responder) = first.call() => refuse(responder),
                    (_, responder) = second.call() => refuse(responder),
                }
            }
        };
        let (routed, ()) = tokio::join!(rig.route(), engines);
        assert_eq!(routed.unwrap_err().kind, kind);
    }
    assert_eq!([0, 1].map(|slot| health.mark(WorkerSlot(slot)).failures), [1, 0]);
}

#[actix_rt::test]
async fn an_ejected_worker_gets_requests_only_where_no_other_is_left() {
    let (mut first, mut second) = (TestWorker::start().await, TestWorker::start().await);
    let rig = with_breakers(&[&first, &second]);
    eject(&rig, 0);
    let engine = async { answer(second.call().await.1) };
    let (routed, ()) = tokio::join!(rig.route(), engine);
    assert_eq!(routed.unwrap().worker.as_str(), "worker-1");
    assert!(first.has_no_call());
    let engines = async {
        second.call().await.1.fail(no_room());
        answer(first.call().await.1);
    };
    let (routed, ()) = tokio::join!(rig.route(), engines);
    assert_eq!(routed.unwrap().worker.as_str(), "worker-0");
}

#[actix_rt::test]
async fn a_request_that_loses_two_workers_gets_no_third_one_nor_does_the_same_prompt() {
    let mut workers = [
        TestWorker::start().await,
        TestWorker::start().await,
        TestWorker::start().await,
    ];
    let rig = Rig::with(&workers.each_ref());
    let [first, second, third] = &mut workers;
    let engines = async {
        let _first = first.call().await;
        first.stop().await;
        let _second = second.call().await;
        second.stop().await;
    };
    let (routed, ()) = tokio::join!(rig.route(), engines);
    assert_eq!(routed.unwrap_err(), client_errors::lost_twice());
    assert_eq!(rig.route().await.unwrap_err(), client_errors::lost_twice());
    assert!(third.has_no_call());

    let mut other = request(PATIENCE);
    other.tokens[39] += 1;
    let engine = async { answer(third.call().await.1) };
    let (routed, ()) = tokio::join!(rig.replica.clone().route(other), engine);
    assert_eq!(routed.unwrap().worker.as_str(), "worker-2", "another prompt");
}

#[actix_rt::test]
async fn an_answer_that_loses_its_second_worker_in_its_middle_is_not_continued() {
    let (mut first, mut second) = (TestWorker::start().await, TestWorker::start().await);
    let third = TestWorker::start().await;
    let rig = Rig::with(&[&first, &second, &third]);
    let begin = async {
        let (_, responder) = first.call().await;
        responder.queue_piece(PieceTokens::Ids(&[7]), b"one").unwrap();
        responder.flush();
        responder
    };
    let (routed, _responder) = tokio::join!(rig.route(), begin);
    let engines = async {
        first.stop().await;
        let _second = second.call().await;
        second.stop().await;
    };
    let (received, ()) = tokio::join!(bytes_of(routed.unwrap()), engines);
    assert_eq!(received[0], Ok(Bytes::from("one")));
    assert_eq!(received[1], Err(client_errors::lost_twice()));
    assert!(third.has_no_call());
}

#[actix_rt::test]
async fn a_whole_answer_clears_the_request() {
    let (mut first, mut second) = (TestWorker::start().await, TestWorker::start().await);
    let rig = Rig::with(&[&first, &second]);
    let engines = async {
        let _first = first.call().await;
        first.stop().await;
        answer(second.call().await.1);
    };
    let (routed, ()) = tokio::join!(rig.route(), engines);
    bytes_of(routed.unwrap()).await;
    let engine = async {
        let _call = second.call().await;
        second.stop().await;
    };
    let (routed, ()) = tokio::join!(rig.route(), engine);
    assert_ne!(routed.unwrap_err(), client_errors::lost_twice(), "the first loss");
}

#[actix_rt::test]
async fn without_a_place_in_the_budget_a_refused_request_does_not_move() {
    let (mut first, second) = (TestWorker::start().await, TestWorker::start().await);
    let rig = Rig::with(&[&first, &second]);
    rig.replica.retries.exhaust();
    let engine = async { first.call().await.1.fail(no_room()) };
    let (routed, ()) = tokio::join!(rig.route(), engine);
    assert_eq!(routed.unwrap_err(), no_room());
    assert!(second.has_no_call());
}

/// Workers that compute fast, whose tokens are waited for 60 ms, and 20 steps of 1 ms. All links are up.
async fn impatient(workers: &[&TestWorker]) -> Rig {
    let mut rig = with_breakers(workers);
    let least = Some(Duration::from_millis(60));
    let timeouts = TokenTimeouts {
        first: least,
        next: least,
    };
    let patience = Patience::new(timeouts, rig.load.clone(), LatencyTable::default());
    Rc::get_mut(&mut rig.replica).unwrap().patience = Rc::new(patience);
    (0..workers.len() as u32).for_each(|slot| report(&rig, slot, 1));
    rig.replica.update_links();
    let view = rig.replica.view.load_full();
    until(|| {
        let links = rig.replica.links.borrow();
        view.workers.iter().all(|worker| links.is_up(worker))
    })
    .await;
    rig
}

/// A worker has done this many steps now.
fn report(rig: &Rig, slot: u32, steps_done: u64) {
    let report = WorkerReport {
        load: LoadReport {
            prefill_tokens_per_s: 1_000_000,
            decode_step_us: 1_000,
            steps_done,
            ..LoadReport::default()
        },
        ..WorkerReport::default()
    };
    let now = rig.load.clock_ms(std::time::Instant::now());
    rig.load.report(WorkerSlot(slot), &report, now);
}

#[actix_rt::test]
async fn a_request_leaves_a_worker_that_is_silent_and_makes_no_steps() {
    let (mut first, mut second) = (TestWorker::start().await, TestWorker::start().await);
    let rig = impatient(&[&first, &second]).await;
    let engines = async {
        let (_, silent) = first.call().await;
        answer(second.call().await.1);
        soon(silent.cancelled()).await;
    };
    let (routed, ()) = tokio::join!(rig.route(), engines);
    assert_eq!(routed.unwrap().worker.as_str(), "worker-1");
    assert_eq!(rig.load.health().mark(WorkerSlot(0)).failures, 1);
    assert_eq!(rig.requests(0), 0);
}

#[actix_rt::test]
async fn a_request_stays_at_a_silent_worker_that_makes_steps() {
    let (mut first, second) = (TestWorker::start().await, TestWorker::start().await);
    let rig = impatient(&[&first, &second]).await;
    let engine = async {
        let (_, responder) = first.call().await;
        // Ten times as long as a worker without progress may take.
        for step in 2..42 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            report(&rig, 0, step);
        }
        answer(responder);
    };
    let (routed, ()) = tokio::join!(rig.route(), engine);
    assert_eq!(routed.unwrap().worker.as_str(), "worker-0");
    assert!(second.has_no_call());
    assert_eq!(rig.load.health().mark(WorkerSlot(0)).failures, 0);
}

#[actix_rt::test]
async fn a_request_stays_at_a_silent_worker_where_no_other_is_left() {
    let mut alone = TestWorker::start().await;
    let rig = impatient(&[&alone]).await;
    let engine = async {
        let (_, responder) = alone.call().await;
        tokio::time::sleep(Duration::from_millis(600)).await;
        answer(responder);
    };
    let (routed, ()) = tokio::join!(rig.route(), engine);
    assert_eq!(bytes_of(routed.unwrap()).await, [Ok(Bytes::from("first"))]);
}

#[actix_rt::test]
async fn an_answer_whose_worker_is_silent_behind_a_token_is_continued_by_another() {
    let (mut first, mut second) = (TestWorker::start().await, TestWorker::start().await);
    let rig = impatient(&[&first, &second]).await;
    let begin = async {
        let (_, responder) = first.call().await;
        responder.queue_piece(PieceTokens::Ids(&[7]), b"one").unwrap();
        responder.flush();
        responder
    };
    let (routed, silent) = tokio::join!(rig.route(), begin);
    let engine = async {
        let (parts, responder) = second.call().await;
        responder.queue_piece(PieceTokens::Ids(&[8]), b"two").unwrap();
        responder.end(summary());
        parts.tokens
    };
    let (received, tokens) = tokio::join!(bytes_of(routed.unwrap()), engine);
    assert_eq!(received, [Ok(Bytes::from("one")), Ok(Bytes::from("two"))]);
    assert_eq!(tokens.last(), Some(&7));
    soon(silent.cancelled()).await;
    assert_eq!(rig.load.health().mark(WorkerSlot(0)).failures, 1);
}

#[actix_rt::test]
async fn an_answer_that_nobody_can_continue_ends_with_an_error_after_ten_times_as_long() {
    let mut alone = TestWorker::start().await;
    let rig = impatient(&[&alone]).await;
    let began = std::time::Instant::now();
    let begin = async {
        let (_, responder) = alone.call().await;
        responder.queue(1, b"one").unwrap();
        responder.flush();
        responder
    };
    let (routed, _silent) = tokio::join!(rig.route(), begin);
    let received = bytes_of(routed.unwrap()).await;
    assert_eq!(received[0], Ok(Bytes::from("one")));
    assert_eq!(received[1].as_ref().unwrap_err().kind, ErrorKind::Unavailable);
    assert!(began.elapsed() >= Duration::from_millis(600));
}
