use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
};

use futures_util::FutureExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::*;

/// The answer of a worker, played by the test.
#[derive(Debug)]
struct Played {
    pieces: mpsc::Receiver<Result<Bytes, WireError>>,
    prompt_tokens: u32,
    has_ended: bool,
}

impl Stream for Played {
    type Item = Result<Bytes, WireError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let piece = self.pieces.poll_recv(cx);
        self.has_ended |= matches!(piece, Poll::Ready(None));
        piece
    }
}

impl Answer for Played {
    fn summary(&self) -> Option<StreamSummary> {
        self.has_ended.then_some(StreamSummary {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: 1,
            completion_tokens: 2,
        })
    }

    fn tokens(&self) -> u32 {
        2
    }
}

type Worker = mpsc::Sender<Result<Bytes, WireError>>;

fn played(prompt_tokens: u32) -> (Worker, Played) {
    let (worker, pieces) = mpsc::channel(8);
    let answer = Played {
        pieces,
        prompt_tokens,
        has_ended: false,
    };
    (worker, answer)
}

/// Workers by the number of the prompt that was routed to them, in the order of routing.
#[derive(Clone, Default)]
struct Workers {
    routed: Rc<RefCell<VecDeque<(usize, Worker)>>>,
    /// How many prompts are refused for lack of room before one is taken.
    full: Rc<Cell<usize>>,
}

impl Workers {
    fn route(&self) -> Route<Played> {
        let workers = self.clone();
        Box::new(move |number| {
            let workers = workers.clone();
            Box::pin(async move {
                if let Some(full) = workers.full.get().checked_sub(1) {
                    workers.full.set(full);
                    return Err(WireError::new(ErrorKind::Overloaded, "full"));
                }
                let (worker, answer) = played(number as u32);
                workers.routed.borrow_mut().push_back((number, worker));
                Ok(answer)
            })
        })
    }

    fn numbers(&self) -> Vec<usize> {
        self.routed.borrow().iter().map(|(number, _)| *number).collect()
    }

    /// The worker of the longest-running answer, which ends when the result is dropped.
    fn take(&self) -> (usize, Worker) {
        self.routed.borrow_mut().pop_front().unwrap()
    }
}

/// Sends a piece, for which there is room.
fn send(worker: &Worker, piece: &str) {
    worker.try_send(Ok(Bytes::from(piece.to_owned()))).unwrap();
}

/// The next piece, `None` at the end. It must be ready.
fn next(answer: &mut JoinedAnswer<Played>) -> Option<Result<String, WireError>> {
    let piece = answer.next().now_or_never().expect("a piece or the end");
    piece.map(|piece| piece.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap()))
}

fn is_pending(answer: &mut JoinedAnswer<Played>) -> bool {
    answer.next().now_or_never().is_none()
}

fn event(index: usize) -> String {
    format!("data: {{\"id\":\"a \\\"choices\\\":[\",\"choices\":[{{\"index\":{index}}}],\"usage\":null}}\n\n")
}

#[test]
fn a_stream_has_the_events_of_all_prompts_as_they_come_and_one_end() {
    let workers = Workers::default();
    let (first_worker, first) = played(10);
    let mut answer = JoinedAnswer::stream(first, 3, true, workers.route());
    assert!(is_pending(&mut answer));
    assert_eq!(workers.numbers(), [1, 2]);
    let ((_, second), (_, third)) = (workers.take(), workers.take());
    for (worker, index) in [(&third, 2), (&first_worker, 0), (&second, 1)] {
        send(worker, &event(index));
        assert_eq!(next(&mut answer), Some(Ok(event(index))));
    }
    drop((first_worker, third));
    assert!(is_pending(&mut answer), "the second prompt's answer goes on");
    send(&second, &event(1));
    assert_eq!(next(&mut answer), Some(Ok(event(1))));
    drop(second);
    let end = next(&mut answer).unwrap().unwrap();
    let (usage, done) = end.split_once("\n\n").unwrap();
    assert_eq!(done, "data: [DONE]\n\n");
    let usage: Value = serde_json::from_str(usage.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(
        usage,
        json!({"id": "a \"choices\":[", "choices": [], "usage": {
            "prompt_tokens": 13, "completion_tokens": 6, "total_tokens": 19,
            "prompt_tokens_details": {"cached_tokens": 3},
        }})
    );
    assert_eq!(next(&mut answer), None);
    assert_eq!(answer.summary().unwrap().prompt_tokens, 13);
    assert_eq!(answer.tokens(), 6);
}

#[test]
fn a_stream_without_usage_ends_with_done_alone() {
    let (worker, first) = played(1);
    let mut answer = JoinedAnswer::stream(first, 1, false, Workers::default().route());
    send(&worker, &event(0));
    drop(worker);
    assert_eq!(next(&mut answer), Some(Ok(event(0))));
    assert_eq!(next(&mut answer), Some(Ok("data: [DONE]\n\n".into())));
    assert_eq!(next(&mut answer), None);
}

#[test]
fn a_document_has_the_choices_in_the_order_of_the_prompts() {
    let workers = Workers::default();
    let (first_worker, first) = played(10);
    let mut answer = JoinedAnswer::document(first, 3, workers.route());
    assert!(is_pending(&mut answer));
    let ((_, second), (_, third)) = (workers.take(), workers.take());
    // The third prompt's answer is ready first, and in two pieces.
    send(&third, "{\"id\":\"c\",\"choices\":[{\"index\":2,");
    send(&third, "\"text\":\"],\"}");
    drop(third);
    assert!(is_pending(&mut answer));
    for (worker, index) in [(second, 1), (first_worker, 0)] {
        send(
            &worker,
            &format!("{{\"id\":\"a\",\"choices\":[{{\"index\":{index}}}"),
        );
    }
    let mut document = String::new();
    while let Some(piece) = next(&mut answer) {
        document += &piece.unwrap();
    }
    let document: Value = serde_json::from_str(&document).unwrap();
    assert_eq!(document["id"], "a");
    assert_eq!(
        document["choices"],
        json!([{"index": 0}, {"index": 1}, {"index": 2, "text": "],"}])
    );
    assert_eq!(document["usage"]["prompt_tokens"], 13);
}

#[test]
fn a_bounded_number_of_prompts_is_routed_at_the_same_time() {
    let workers = Workers::default();
    let (first_worker, first) = played(1);
    let mut answer = JoinedAnswer::document(first, 40, workers.route());
    assert!(is_pending(&mut answer));
    assert_eq!(workers.numbers(), (1..MAX_AT_ONCE).collect::<Vec<_>>());
    send(&first_worker, "{\"choices\":[{\"index\":0}");
    drop(first_worker);
    assert!(is_pending(&mut answer));
    assert_eq!(workers.numbers().last(), Some(&MAX_AT_ONCE), "one more");
    let mut most = 0;
    while !workers.numbers().is_empty() {
        let (number, worker) = workers.take();
        send(&worker, &format!("{{\"choices\":[{{\"index\":{number}}}"));
        drop(worker);
        most = number;
        let mut cx = Context::from_waker(std::task::Waker::noop());
        if answer.poll_next_unpin(&mut cx).is_ready() {
            break;
        }
    }
    assert_eq!(most, 39);
}

#[test]
fn a_prompt_without_room_waits_for_the_end_of_another_answer() {
    let workers = Workers::default();
    let (first_worker, first) = played(1);
    workers.full.set(1);
    let mut answer = JoinedAnswer::stream(first, 3, false, workers.route());
    assert!(is_pending(&mut answer));
    assert_eq!(workers.numbers(), [2], "the second prompt found no room");
    drop(first_worker);
    assert!(is_pending(&mut answer));
    assert_eq!(workers.numbers(), [2, 1]);
}

#[test]
fn the_error_of_one_prompt_is_the_answers() {
    let workers = Workers::default();
    let (_first_worker, first) = played(1);
    let mut answer = JoinedAnswer::document(first, 2, workers.route());
    assert!(is_pending(&mut answer));
    let (_, second) = workers.take();
    second
        .try_send(Err(WireError::new(ErrorKind::Internal, "broken")))
        .unwrap();
    assert_eq!(next(&mut answer).unwrap().unwrap_err().message, "broken");
}
