use proptest::{collection::vec, prelude::*};
use tokio_util::codec::Decoder;

use super::*;
use crate::frame::TokenIds;

const WINDOW: u32 = 1000;

fn send_queue() -> SendQueue {
    SendQueue::new(WINDOW, 2000, 4)
}

/// The frames of one write.
fn write(send_queue: &mut SendQueue) -> Vec<Frame> {
    let mut out = BytesMut::new();
    send_queue.take(&mut out);
    std::iter::from_fn(|| FrameCodec::new(usize::MAX).decode(&mut out).unwrap()).collect()
}

/// A piece of `number` tokens if that is even, and else of the one token with that id.
fn piece(stream: u32, number: u32, len: usize) -> Frame {
    let (tokens, ids) = match number % 2 {
        0 => (number, TokenIds::default()),
        _ => (1, TokenIds::new(Bytes::copy_from_slice(&number.to_le_bytes()))),
    };
    Frame::Data {
        stream,
        tokens,
        ids,
        bytes: vec![b'x'; len].into(),
    }
}

/// Queues the frame of [`piece`].
fn queue(send_queue: &mut SendQueue, stream: u32, number: u32, len: usize) -> Result<(), CallerGone> {
    let tokens = match number % 2 {
        0 => PieceTokens::Count(number),
        _ => PieceTokens::Ids(&[number]),
    };
    send_queue.queue(stream, tokens, &vec![b'x'; len], false)
}

#[test]
fn a_step_of_all_streams_is_one_write() {
    let mut send_queue = send_queue();
    for stream in 1..=4 {
        send_queue.open(stream, None).unwrap();
        queue(&mut send_queue, stream, 1, 200).unwrap();
    }
    assert_eq!(
        write(&mut send_queue),
        (1..=4).map(|stream| piece(stream, 1, 200)).collect::<Vec<_>>()
    );
    assert_eq!(send_queue.take(&mut BytesMut::new()), Output::Wait);
}

#[test]
fn pieces_past_the_window_wait_for_credit_in_order_and_the_end_follows_them() {
    let mut send_queue = send_queue();
    send_queue.open(1, None).unwrap();
    for tokens in 0..4 {
        queue(&mut send_queue, 1, tokens, 596).unwrap();
    }
    send_queue.finish(1, Ending::End(StreamSummary::default()));
    assert_eq!(
        write(&mut send_queue),
        [piece(1, 0, 596), piece(1, 1, 596)],
        "one piece may pass the window"
    );
    send_queue.credit(1, 200);
    assert_eq!(write(&mut send_queue), [], "still below zero");
    send_queue.credit(1, 700);
    send_queue.credit(1, 700);
    let end = Frame::End {
        stream: 1,
        summary: StreamSummary::default(),
    };
    assert_eq!(write(&mut send_queue), [piece(1, 2, 596), piece(1, 3, 596), end]);
    assert_eq!(
        queue(&mut send_queue, 1, 1, 1),
        Err(CallerGone),
        "the stream is over"
    );
}

#[test]
fn a_stream_past_its_backlog_fails_as_overloaded_and_others_go_on() {
    let mut send_queue = send_queue();
    let signal = send_queue.open(1, None).unwrap();
    send_queue.open(2, None).unwrap();
    queue(&mut send_queue, 1, 1, 996).unwrap();
    queue(&mut send_queue, 1, 1, 1500).unwrap();
    assert_eq!(queue(&mut send_queue, 1, 1, 1500), Err(CallerGone));
    assert_eq!(send_queue.take_woken().len(), 1);
    assert!(Arc::strong_count(&signal) == 1, "the stream is removed");
    queue(&mut send_queue, 2, 1, 10).unwrap();
    let frames = write(&mut send_queue);
    let Frame::Fail { stream: 1, json } = &frames[1] else {
        panic!("{frames:?}")
    };
    let error: WireError = serde_json::from_slice(json).unwrap();
    assert_eq!(error.kind, ErrorKind::Overloaded);
    assert_eq!(frames[2], piece(2, 1, 10));
}

#[test]
fn a_blocked_socket_holds_one_full_buffer_and_then_serves_streams_in_turn() {
    let mut send_queue = SendQueue::new(*WINDOW_BYTES.end(), 8 << 20, 4);
    send_queue.open(1, None).unwrap();
    send_queue.open(2, None).unwrap();
    for _ in 0..12 {
        queue(&mut send_queue, 1, 1, 100 << 10).unwrap();
        queue(&mut send_queue, 2, 1, 100 << 10).unwrap();
    }
    assert!(send_queue.out.len() < FULL_BYTES + (101 << 10));
    assert_eq!(send_queue.offer(1, b"later"), Offer::NoRoom);
    let count = |frames: Vec<Frame>, id| {
        frames
            .iter()
            .filter(|frame| matches!(frame, Frame::Data { stream, .. } if *stream == id))
            .count()
    };
    let (mut first, mut second) = (0, 0);
    for _ in 0..4 {
        let frames = write(&mut send_queue);
        first += count(frames.clone(), 1);
        second += count(frames, 2);
    }
    assert_eq!((first, second), (12, 12), "all pieces are written");
    assert_eq!(send_queue.take_woken().len(), 1, "the waiting sender is woken");
    assert_eq!(send_queue.offer(1, b"later"), Offer::Taken);
}

#[test]
fn the_sender_of_a_refused_offer_is_woken_when_there_is_window() {
    let mut send_queue = send_queue();
    send_queue.open(1, None).unwrap();
    assert_eq!(send_queue.offer(1, &[0; 996]), Offer::Taken);
    assert_eq!(send_queue.offer(1, &[0; 10]), Offer::NoRoom);
    assert!(send_queue.take_woken().is_empty());
    send_queue.credit(1, 500);
    assert_eq!(send_queue.take_woken().len(), 1);
    assert_eq!(send_queue.offer(1, &[0; 10]), Offer::Taken);
}

#[test]
fn a_finishing_connection_writes_its_queued_frames_and_nothing_new() {
    let mut send_queue = send_queue();
    send_queue.open(1, None).unwrap();
    queue(&mut send_queue, 1, 1, 10).unwrap();
    send_queue.finish_all(Some(&WireError::new(ErrorKind::InvalidRequest, "why")));
    assert_eq!(queue(&mut send_queue, 1, 1, 10), Err(CallerGone));
    send_queue.put(Frame::Drain);
    let frames = write(&mut send_queue);
    assert!(
        matches!(frames[..], [Frame::Data { .. }, Frame::Fail { stream: 0, .. }]),
        "{frames:?}"
    );
    assert_eq!(send_queue.take(&mut BytesMut::new()), Output::Finished);
}

#[derive(Debug, Clone)]
enum Step {
    Open(u32),
    Queue(u32, usize),
    Offer(u32, usize),
    Finish(u32),
    Credit(u32, u32),
    Cancel(u32),
    Write,
}

fn step() -> impl Strategy<Value = Step> {
    let id = || 1u32..6;
    prop_oneof![
        1 => id().prop_map(Step::Open),
        6 => (id(), 0usize..800).prop_map(|(id, len)| Step::Queue(id, len)),
        2 => (id(), 0usize..800).prop_map(|(id, len)| Step::Offer(id, len)),
        1 => id().prop_map(Step::Finish),
        4 => (id(), prop_oneof![4 => 0u32..2000, 1 => Just(u32::MAX)]).prop_map(|(id, n)| Step::Credit(id, n)),
        1 => id().prop_map(Step::Cancel),
        3 => Just(Step::Write),
    ]
}

proptest! {
    /// For any actions of a router and the handlers: accepted pieces are delivered once and in order, a stream's end comes
    /// last and once, and no stream sends more than its credit and one piece.
    #[test]
    fn accepted_pieces_arrive_once_in_order(steps in vec(step(), 0..300)) {
        let mut send_queue = send_queue();
        let mut expected: HashMap<u32, VecDeque<Frame>> = HashMap::new();
        let mut allowance: HashMap<u32, i64> = HashMap::new();
        let mut serial = 0;
        for step in steps.into_iter().chain((1..6).map(|id| Step::Credit(id, 1 << 20))).chain([Step::Write]) {
            serial += 1;
            match step {
                // A number is not reused while frames of its last stream are in flight.
                Step::Open(id) => if expected.get(&id).is_none_or(VecDeque::is_empty) && send_queue.open(id, None).is_ok() {
                    expected.insert(id, VecDeque::new());
                    allowance.insert(id, WINDOW.into());
                },
                Step::Queue(id, len) => if queue(&mut send_queue, id, serial, len).is_ok() {
                    expected.entry(id).or_default().push_back(piece(id, serial, len));
                },
                Step::Offer(id, len) => if send_queue.offer(id, &vec![b'x'; len]) == Offer::Taken {
                    expected.entry(id).or_default().push_back(piece(id, 0, len));
                },
                Step::Finish(id) => {
                    let open = send_queue.streams.get(&id).is_some_and(|slot| slot.ending.is_none());
                    send_queue.finish(id, Ending::End(StreamSummary::default()));
                    if open {
                        let end = Frame::End { stream: id, summary: StreamSummary::default() };
                        expected.entry(id).or_default().push_back(end);
                    }
                }
                Step::Credit(id, bytes) => if send_queue.streams.contains_key(&id) {
                    send_queue.credit(id, bytes);
                    let allowed = allowance.entry(id).or_default();
                    *allowed += i64::from(bytes);
                },
                // Queued frames of a cancelled stream may still be written, so a cancel waits until they are.
                Step::Cancel(id) => if !send_queue.has_output() {
                    send_queue.cancel(id);
                    expected.remove(&id);
                },
                Step::Write => for frame in write(&mut send_queue) {
                    let id = match &frame {
                        Frame::Data { stream, ids, bytes, .. } => {
                            let allowed = allowance.entry(*stream).or_default();
                            prop_assert!(*allowed > 0, "more than the window");
                            *allowed -= i64::from(piece_cost(ids.as_bytes().len(), bytes.len()));
                            *stream
                        }
                        Frame::End { stream, .. } => *stream,
                        // The stream failed for its backlog, which is dropped.
                        Frame::Fail { stream, .. } => { expected.remove(stream); continue }
                        other => panic!("{other:?}"),
                    };
                    prop_assert_eq!(expected.get_mut(&id).and_then(VecDeque::pop_front), Some(frame));
                },
            }
        }
        prop_assert!(expected.values().all(VecDeque::is_empty), "with credit everything is delivered");
    }
}
