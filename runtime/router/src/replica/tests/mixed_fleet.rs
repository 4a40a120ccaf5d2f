//! Requests among workers that differ: in the length of their context, and in the version of the model.

use signalbox_protocol::{AnswerPart, ErrorKind, GenerateRequest, WorkerCard};
use signalbox_request_plane::{CallParts, PieceTokens};

use super::*;
use crate::roster::VersionId;

/// A worker in this slot whose card is changed like this.
fn worker(slot: u32, at: &TestWorker, change: impl FnOnce(&mut WorkerCard)) -> WorkerEntry {
    let mut worker = entry(slot, &at.address);
    let mut card = (*worker.card).clone();
    change(&mut card);
    worker.version = VersionId::of(&card);
    worker.card = Arc::new(card);
    worker
}

/// Two workers, of which the first has the shorter context and the lesser load.
fn two_contexts(short: &TestWorker, long: &TestWorker) -> Rig {
    let workers = vec![
        worker(0, short, |card| card.context_length = 64),
        worker(1, long, |card| card.context_length = 4_096),
    ];
    Rig::of(workers, LinkConfig::default())
}

fn limited(max_tokens: u32) -> RouteRequest {
    let mut request = request(PATIENCE);
    request.generate.sampling.max_tokens = max_tokens;
    request
}

fn generate(parts: &CallParts) -> &GenerateRequest {
    let Call::Generate(generate) = &parts.call else {
        panic!("another call")
    };
    generate
}

/// Routes a request to `worker`, which answers it. Returns what the worker received.
async fn routed(rig: &Rig, request: RouteRequest, worker: &mut TestWorker) -> CallParts {
    let engine = async {
        let (parts, responder) = worker.call().await;
        answer(responder);
        parts
    };
    let (routed, parts) = tokio::join!(soon(rig.replica.clone().route(request)), engine);
    routed.unwrap();
    parts
}

#[actix_rt::test]
async fn a_request_goes_to_a_worker_that_has_room_for_its_prompt_and_its_answer() {
    let (mut short, mut long) = (TestWorker::start().await, TestWorker::start().await);
    let rig = two_contexts(&short, &long);
    // 40 tokens and an answer: up to 64 in all they fit into the shorter context.
    let parts = routed(&rig, limited(24), &mut short).await;
    assert_eq!(generate(&parts).sampling.max_tokens, 24);
    let parts = routed(&rig, limited(25), &mut long).await;
    assert_eq!(generate(&parts).sampling.max_tokens, 25);
    // No worker has as much room as this asks for: the longest context is used whole.
    let parts = routed(&rig, limited(30_000), &mut long).await;
    assert_eq!(generate(&parts).sampling.max_tokens, 4_096 - 40);
}

#[actix_rt::test]
async fn an_answer_is_rather_short_than_none_while_the_longer_context_cannot_be_reached() {
    let (mut short, long) = (TestWorker::start().await, TestWorker::start().await);
    let rig = two_contexts(&short, &long);
    long.stop().await;
    let mut unlimited = limited(4_000);
    unlimited.max_output_tokens = None;
    for request in [limited(100), unlimited] {
        let parts = routed(&rig, request, &mut short).await;
        assert_eq!(generate(&parts).sampling.max_tokens, 64 - 40);
    }
}

#[actix_rt::test]
async fn a_client_that_asks_for_a_long_answer_waits_for_a_worker_that_can_give_it() {
    let (mut short, long) = (TestWorker::start().await, TestWorker::start().await);
    let rig = two_contexts(&short, &long);
    let _busy = rig.load.reserve(WorkerSlot(1), 1, 1);
    let error = rig.replica.clone().route(limited(100)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Overloaded);
    assert!(short.has_no_call());
    // One that sets no limit takes what there is.
    let mut unlimited = limited(4_000);
    unlimited.max_output_tokens = None;
    routed(&rig, unlimited, &mut short).await;
}

#[actix_rt::test]
async fn a_prompt_that_one_context_is_too_short_for_moves_to_a_longer_one() {
    let (mut short, mut long) = (TestWorker::start().await, TestWorker::start().await);
    let rig = two_contexts(&short, &long);
    // Its tokens are unknown, so only the engine can say that it is too long.
    let unknown = || {
        let mut request = limited(4);
        request.tokens.clear();
        request.unhashed_tokens = 10;
        request
    };
    let too_long = || WireError::new(ErrorKind::ContextLengthExceeded, "too long for this engine");
    let engines = async {
        short.call().await.1.fail(too_long());
        answer(long.call().await.1);
    };
    let (routed, ()) = tokio::join!(soon(rig.replica.clone().route(unknown())), engines);
    assert_eq!(routed.unwrap().worker.as_str(), "worker-1");
    // Too long for both: the client gets the error of the engine, and no worker is asked twice.
    let engines = async {
        short.call().await.1.fail(too_long());
        long.call().await.1.fail(too_long());
    };
    let (routed, ()) = tokio::join!(soon(rig.replica.clone().route(unknown())), engines);
    assert_eq!(routed.unwrap_err(), too_long());
    assert!(short.has_no_call() && long.has_no_call());
}

#[actix_rt::test]
async fn a_prompt_that_fits_no_context_is_refused() {
    let (short, long) = (TestWorker::start().await, TestWorker::start().await);
    let rig = two_contexts(&short, &long);
    let mut request = limited(1);
    request.tokens = vec![7; 4_096];
    let error = rig.replica.clone().route(request).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::ContextLengthExceeded);
    assert!(error.message.contains("4096 tokens"), "{error}");
}

#[actix_rt::test]
async fn a_request_goes_to_a_worker_that_honours_all_of_it() {
    let (old, mut new) = (TestWorker::start().await, TestWorker::start().await);
    let workers = vec![
        worker(0, &old, |_| ()),
        worker(1, &new, |card| card.abilities = vec![Ability::AnswerParts]),
    ];
    let rig = Rig::of(workers, LinkConfig::default());
    let mut part = request(PATIENCE);
    part.generate.format.part = Some(AnswerPart { first_choice: 1 });
    routed(&rig, part, &mut new).await;
    let mut scored = request(PATIENCE);
    scored.generate.sampling.prompt_logprobs = true;
    let error = rig.replica.clone().route(scored).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidRequest);
    assert!(error.message.contains("log probabilities of a prompt"), "{error}");
    assert!(old.has_no_call() && new.has_no_call());
}

#[actix_rt::test]
async fn choices_go_to_a_worker_that_takes_as_many_and_are_refused_if_none_does() {
    let (small, mut large) = (TestWorker::start().await, TestWorker::start().await);
    let workers = vec![
        worker(0, &small, |card| card.capacity.max_sequences = 4),
        worker(1, &large, |card| card.capacity.max_sequences = 100),
    ];
    let most = workers[1].card.capacity.most_requests();
    let rig = Rig::of(workers, LinkConfig::default());
    let asking = |n| {
        let mut request = request(PATIENCE);
        request.generate.sampling.n = n;
        request
    };
    routed(&rig, asking(most), &mut large).await;
    let error = rig.replica.clone().route(asking(most + 1)).await.unwrap_err();
    assert_eq!(
        (error.kind, error.param.as_deref()),
        (ErrorKind::InvalidRequest, Some("n"))
    );
    assert!(error.message.contains(&format!("at most {most}")), "{error}");
    assert!(small.has_no_call() && large.has_no_call());
}

/// Two workers of two versions, whose tokenizers differ. The first has the lesser load.
fn two_versions(old: &TestWorker, new: &TestWorker) -> Rig {
    let workers = vec![
        worker(0, old, |_| ()),
        worker(1, new, |card| {
            card.artifacts_digest = "new".into();
            card.block_size = 8;
        }),
    ];
    Rig::of(workers, LinkConfig::default())
}

/// A request that is ready for both versions. The new one has 50 tokens.
fn for_both(rig: &Rig) -> RouteRequest {
    let view = rig.replica.view.load();
    let mut new = request(PATIENCE);
    (new.form, new.tokens) = (view.workers[1].version.form, vec![9; 50]);
    let mut both = request(PATIENCE);
    both.other_forms.push(new);
    both
}

#[actix_rt::test]
async fn each_worker_gets_the_tokens_of_its_own_version() {
    let (mut old, mut new) = (TestWorker::start().await, TestWorker::start().await);
    let rig = two_versions(&old, &new);
    let parts = routed(&rig, for_both(&rig), &mut old).await;
    assert_eq!(parts.tokens.len(), 40);
    // A request moves from one version to the other.
    let engines = async {
        old.call().await.1.fail(no_room());
        let (parts, responder) = new.call().await;
        answer(responder);
        parts
    };
    let (routed, parts) = tokio::join!(soon(rig.replica.clone().route(for_both(&rig))), engines);
    assert_eq!(routed.unwrap().worker.as_str(), "worker-1");
    assert_eq!(parts.tokens.len(), 50);
    // One that is ready for the old version only stays there.
    let engine = async { old.call().await.1.fail(no_room()) };
    let (routed, ()) = tokio::join!(rig.route(), engine);
    assert_eq!(routed.unwrap_err(), no_room());
    assert!(new.has_no_call());
}

#[actix_rt::test]
async fn an_answer_is_continued_by_a_worker_that_reads_the_same_tokens_only() {
    for (digest, continues) in [("d", true), ("new", false)] {
        let (mut first, mut second) = (TestWorker::start().await, TestWorker::start().await);
        let workers = vec![
            worker(0, &first, |_| ()),
            worker(1, &second, |card| {
                card.artifacts_digest = digest.into();
                card.block_size = 8;
            }),
        ];
        let rig = Rig::of(workers, LinkConfig::default());
        let engine = async {
            let (_, responder) = first.call().await;
            responder.queue_piece(PieceTokens::Ids(&[5]), b"one").unwrap();
            responder.flush();
            responder
        };
        let (routed, _responder) = tokio::join!(soon(rig.replica.clone().route(for_both(&rig))), engine);
        let mut routed = routed.unwrap();
        assert_eq!(soon(routed.stream.next()).await, Some(Ok(Bytes::from("one"))));
        first.stop().await;
        if continues {
            let engine = async {
                let (parts, responder) = second.call().await;
                assert_eq!(parts.tokens.len(), 41);
                responder.queue_piece(PieceTokens::Ids(&[6]), b"two").unwrap();
                responder.end(summary());
            };
            let (rest, ()) = tokio::join!(bytes_of(routed), engine);
            assert_eq!(rest, [Ok(Bytes::from("two"))]);
        } else {
            let rest = bytes_of(routed).await;
            assert_eq!(rest[0].as_ref().unwrap_err().kind, ErrorKind::Unavailable);
            assert!(second.has_no_call());
        }
    }
}
