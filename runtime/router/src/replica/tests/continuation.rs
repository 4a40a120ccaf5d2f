//! An answer whose worker is lost in its middle: which other worker writes the rest, and what the client reads.

use signalbox_protocol::{Continuation as Delivered, GenerateRequest};
use signalbox_request_plane::{CallParts, PieceTokens};

use super::*;

const CONTINUED: &str = "signalbox_requests_continued_total";

/// The request of a call.
fn generate(parts: &CallParts) -> &GenerateRequest {
    let Call::Generate(generate) = &parts.call else {
        panic!("another call")
    };
    generate
}

/// Sends a piece with one token.
fn piece(responder: &Responder, id: u32, text: &str) {
    responder
        .queue_piece(PieceTokens::Ids(&[id]), text.as_bytes())
        .unwrap();
    responder.flush();
}

/// What the client reads next of an answer.
async fn next(answer: &mut RoutedAnswer) -> String {
    let piece = soon(answer.stream.next()).await.expect("the answer has ended");
    String::from_utf8(piece.unwrap().to_vec()).unwrap()
}

/// An answer of `worker` that begins with the token 7 and the text `one`.
async fn begun(rig: &Rig, worker: &mut TestWorker) -> (RoutedAnswer, CallParts, Responder) {
    let engine = async {
        let (parts, responder) = worker.call().await;
        piece(&responder, 7, "one");
        (parts, responder)
    };
    let (routed, (parts, responder)) = tokio::join!(rig.route(), engine);
    let mut routed = routed.unwrap();
    assert_eq!(next(&mut routed).await, "one");
    (routed, parts, responder)
}

#[actix_rt::test]
async fn another_worker_continues_an_answer_from_the_delivered_tokens() {
    let recorder = TestRecorder::default();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let (mut first, mut second) = (TestWorker::start().await, TestWorker::start().await);
    let rig = Rig::with(&[&first, &second]);
    let (mut routed, parts, responder) = begun(&rig, &mut first).await;
    assert!(generate(&parts).wants_token_ids);
    assert_eq!(generate(&parts).continuation, None);
    piece(&responder, 8, "two");
    assert_eq!(next(&mut routed).await, "two");
    first.stop().await;

    let engine = async {
        let (parts, responder) = second.call().await;
        assert_eq!((rig.requests(0), rig.requests(1)), (0, 1));
        piece(&responder, 9, "three");
        responder.end(summary());
        parts
    };
    let (rest, parts) = tokio::join!(bytes_of(routed), engine);
    assert_eq!(rest, [Ok(Bytes::from("three"))]);
    let expected: Vec<u32> = request(PATIENCE).tokens.into_iter().chain([7, 8]).collect();
    assert_eq!(parts.tokens, expected);
    let delivered = Delivered {
        delivered_tokens: 2,
        first_piece: "one".into(),
    };
    assert_eq!(generate(&parts).continuation, Some(delivered));
    assert!(generate(&parts).deadline_ms <= PATIENCE.as_millis() as u64);
    assert_eq!((rig.requests(0), rig.requests(1)), (0, 0));
    assert_eq!(recorder.count(CONTINUED), 1);
    assert_eq!(recorder.count("signalbox_requests_moved_total"), 0);
}

#[actix_rt::test]
async fn an_answer_is_continued_more_than_once_and_its_summary_is_the_last_workers() {
    let mut workers = Vec::new();
    for _ in 0..3 {
        workers.push(TestWorker::start().await);
    }
    let rig = Rig::with(&workers.iter().collect::<Vec<_>>());
    let [first, second, third] = &mut workers[..] else {
        unreachable!()
    };
    let (mut routed, _, _first) = begun(&rig, first).await;
    first.stop().await;
    let engines = async {
        let (_, responder) = second.call().await;
        piece(&responder, 8, "two");
        // The engine fails, and its worker does not.
        responder.fail(WireError::new(ErrorKind::Unavailable, "the engine is gone"));
        let (parts, responder) = third.call().await;
        piece(&responder, 9, "three");
        responder.end(summary());
        parts
    };
    let client = async {
        assert_eq!(next(&mut routed).await, "two");
        assert_eq!(next(&mut routed).await, "three");
        assert_eq!(soon(routed.stream.next()).await, None);
        routed.stream.summary()
    };
    let (summed, parts) = tokio::join!(client, engines);
    assert_eq!(parts.tokens[40..], [7, 8]);
    let delivered = Delivered {
        delivered_tokens: 2,
        first_piece: "one".into(),
    };
    assert_eq!(generate(&parts).continuation, Some(delivered));
    assert_eq!(summed, Some(summary()));
}

#[actix_rt::test]
async fn an_answer_with_a_piece_without_ids_is_not_continued() {
    let (mut first, second) = (TestWorker::start().await, TestWorker::start().await);
    let rig = Rig::with(&[&first, &second]);
    let (mut routed, _, responder) = begun(&rig, &mut first).await;
    responder.queue(1, b"a tool call").unwrap();
    responder.flush();
    assert_eq!(next(&mut routed).await, "a tool call");
    piece(&responder, 8, "two");
    assert_eq!(next(&mut routed).await, "two");
    first.stop().await;
    let rest = bytes_of(routed).await;
    assert_eq!(rest[0].as_ref().unwrap_err().kind, ErrorKind::Unavailable);
    assert!(second.has_no_call());
}

#[actix_rt::test]
async fn a_piece_without_tokens_does_not_end_what_can_be_continued() {
    let (mut first, mut second) = (TestWorker::start().await, TestWorker::start().await);
    let rig = Rig::with(&[&first, &second]);
    let (mut routed, _, responder) = begun(&rig, &mut first).await;
    responder.queue(0, b": a comment").unwrap();
    responder.flush();
    assert_eq!(next(&mut routed).await, ": a comment");
    first.stop().await;
    let engine = async { answer(second.call().await.1) };
    let (rest, ()) = tokio::join!(bytes_of(routed), engine);
    assert_eq!(rest, [Ok(Bytes::from("first"))]);
}

#[actix_rt::test]
async fn errors_that_repeat_and_slow_readers_end_an_answer() {
    for kind in [
        ErrorKind::Overloaded,
        ErrorKind::Internal,
        ErrorKind::DeadlineExceeded,
    ] {
        let (mut first, second) = (TestWorker::start().await, TestWorker::start().await);
        let rig = Rig::with(&[&first, &second]);
        let (routed, _, responder) = begun(&rig, &mut first).await;
        let error = WireError::new(kind, "failed");
        responder.fail(error.clone());
        assert_eq!(bytes_of(routed).await, [Err(error)]);
        assert!(second.has_no_call());
    }
}

#[actix_rt::test]
async fn the_workers_error_ends_an_answer_that_no_worker_can_continue() {
    let mut worker = TestWorker::start().await;
    let rig = Rig::with(&[&worker]);
    let (routed, _, responder) = begun(&rig, &mut worker).await;
    let error = WireError::new(ErrorKind::Unavailable, "the engine is gone");
    responder.fail(error.clone());
    assert_eq!(bytes_of(routed).await, [Err(error)]);
}

#[actix_rt::test]
async fn requests_that_cannot_be_continued_ask_for_no_ids() {
    type Change = fn(&mut RouteRequest);
    let changes: [(&str, Change); 5] = [
        ("a document", |request| request.generate.format.stream = false),
        ("two choices", |request| request.generate.sampling.n = 2),
        ("log probabilities", |request| {
            request.generate.sampling.logprobs = Some(0);
        }),
        ("unknown tokens", |request| request.tokens.clear()),
        ("a partly known prompt", |request| request.unhashed_tokens = 9),
    ];
    for (name, change) in changes {
        let mut worker = TestWorker::start().await;
        let rig = Rig::with(&[&worker]);
        let mut request = request(PATIENCE);
        change(&mut request);
        let engine = async {
            let (parts, responder) = worker.call().await;
            answer(responder);
            generate(&parts).wants_token_ids
        };
        let (routed, asked) = tokio::join!(soon(rig.replica.clone().route(request)), engine);
        routed.unwrap();
        assert!(!asked, "{name}");
    }
}

#[actix_rt::test]
async fn a_client_that_leaves_while_another_worker_is_asked_cancels_that_too() {
    let (mut first, mut second) = (TestWorker::start().await, TestWorker::start().await);
    let rig = Rig::with(&[&first, &second]);
    let (mut routed, _, _first) = begun(&rig, &mut first).await;
    first.stop().await;
    let asked = async { second.call().await.1 };
    let responder = tokio::select! {
        _ = routed.stream.next() => panic!("nobody answers"),
        responder = asked => responder,
    };
    assert_eq!(rig.requests(1), 1);
    drop(routed);
    soon(responder.cancelled()).await;
    assert_eq!(rig.requests(1), 0);
}
