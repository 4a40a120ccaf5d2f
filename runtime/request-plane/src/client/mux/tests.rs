use std::task::Waker;

use proptest::{collection::vec, prelude::*};
use signalbox_protocol::{Call, ErrorKind};
use tokio_util::codec::Decoder;

use super::*;
use crate::frame::tests::frame as any_frame;

const WINDOW: u32 = 1000;
const MAX_FRAME: usize = 4096;

fn mux() -> Mux {
    Mux::new(WINDOW, 8, MAX_FRAME)
}

fn call(body: usize) -> CallParts {
    CallParts {
        call: Call::FetchKvSnapshot,
        tokens: vec![],
        body: vec![0; body].into(),
    }
}

fn data(stream: u32, bytes: usize) -> Frame {
    Frame::Data {
        stream,
        tokens: 1,
        ids: TokenIds::default(),
        bytes: vec![b'x'; bytes].into(),
    }
}

fn next(mux: &mut Mux, stream: u32) -> Poll<Option<Result<ResponseEvent, LinkError>>> {
    mux.poll_next(stream, &Context::from_waker(Waker::noop()))
}

fn written(mux: &mut Mux) -> Vec<Frame> {
    let mut out = BytesMut::new();
    mux.take_output(&mut out);
    std::iter::from_fn(|| FrameCodec::new(usize::MAX).decode(&mut out).unwrap()).collect()
}

fn lost(mux: &mut Mux) {
    mux.lost(|written| {
        let (address, reason) = (String::new(), String::new());
        if written {
            LinkError::Lost { address, reason }
        } else {
            LinkError::Unreachable { address, reason }
        }
    });
}

#[test]
fn credit_returns_at_half_the_window_and_never_after_the_end() {
    let mut mux = mux();
    let id = mux.open(&call(0)).unwrap();
    written(&mut mux);
    for _ in 0..4 {
        mux.on_frame(data(id, 196)).unwrap();
    }
    assert!(next(&mut mux, id).is_ready() && next(&mut mux, id).is_ready());
    assert_eq!(written(&mut mux), [], "400 of 1,000 are read");
    assert!(next(&mut mux, id).is_ready());
    assert_eq!(
        written(&mut mux),
        [Frame::Credit {
            stream: id,
            bytes: 600
        }]
    );
    mux.on_frame(data(id, 196)).unwrap();
    mux.on_frame(data(id, 196)).unwrap();
    mux.on_frame(Frame::End {
        stream: id,
        summary: StreamSummary::default(),
    })
    .unwrap();
    for _ in 0..3 {
        assert!(matches!(
            next(&mut mux, id),
            Poll::Ready(Some(Ok(ResponseEvent::Data { .. })))
        ));
    }
    assert!(matches!(
        next(&mut mux, id),
        Poll::Ready(Some(Ok(ResponseEvent::End(_))))
    ));
    assert!(matches!(next(&mut mux, id), Poll::Ready(None)));
    assert_eq!(written(&mut mux), []);
    assert!(mux.is_idle());
}

#[test]
fn a_worker_may_pass_the_window_by_one_piece_only() {
    let mut mux = mux();
    let id = mux.open(&call(0)).unwrap();
    mux.on_frame(data(id, 990)).unwrap();
    mux.on_frame(data(id, 5000)).unwrap();
    assert!(matches!(mux.on_frame(data(id, 0)), Err(Violation::Overrun { stream }) if stream == id));
}

#[test]
fn a_cancelled_stream_sends_one_cancel_and_late_frames_are_ignored() {
    let mut mux = mux();
    let id = mux.open(&call(0)).unwrap();
    written(&mut mux);
    mux.cancel(id);
    mux.cancel(id);
    assert_eq!(written(&mut mux), [Frame::Cancel { stream: id }]);
    for _ in 0..1000 {
        mux.on_frame(data(id, 900)).unwrap();
    }
    mux.on_frame(Frame::End {
        stream: id,
        summary: StreamSummary::default(),
    })
    .unwrap();
    assert_ne!(mux.open(&call(0)).unwrap(), id, "ids are not reused");
}

#[test]
fn a_loss_fails_written_and_unwritten_calls_differently_and_once() {
    let mut mux = mux();
    let sent = mux.open(&call(0)).unwrap();
    written(&mut mux);
    let queued = mux.open(&call(0)).unwrap();
    mux.on_frame(data(sent, 10)).unwrap();
    lost(&mut mux);
    lost(&mut mux);
    assert!(matches!(
        next(&mut mux, sent),
        Poll::Ready(Some(Ok(ResponseEvent::Data { .. })))
    ));
    assert!(matches!(
        next(&mut mux, sent),
        Poll::Ready(Some(Err(LinkError::Lost { .. })))
    ));
    assert!(matches!(next(&mut mux, sent), Poll::Ready(None)));
    assert!(matches!(
        next(&mut mux, queued),
        Poll::Ready(Some(Err(LinkError::Unreachable { .. })))
    ));
    assert_eq!(
        written(&mut mux),
        [],
        "nothing of the lost connection is written to the next one"
    );
}

#[test]
fn bounds_hold_for_streams_bytes_and_one_call() {
    let mut mux = mux();
    assert!(matches!(
        mux.open(&call(MAX_FRAME)),
        Err(OpenRefusal::TooLarge { .. })
    ));
    let ids: Vec<_> = (0..8).map(|_| mux.open(&call(0)).unwrap()).collect();
    assert!(matches!(mux.open(&call(0)), Err(OpenRefusal::Full { limit: 8 })));
    mux.cancel(ids[0]);
    mux.open(&call(4000)).unwrap();
    mux.cancel(ids[1]);
    assert!(matches!(mux.open(&call(0)), Err(OpenRefusal::Congested { .. })));
}

#[test]
fn calls_queued_before_the_workers_limit_is_known_fail_alone() {
    let mut mux = mux();
    let (small, large, other) = (
        mux.open(&call(10)).unwrap(),
        mux.open(&call(2000)).unwrap(),
        mux.open(&call(20)).unwrap(),
    );
    mux.connected(1000);
    let streams: Vec<_> = written(&mut mux)
        .into_iter()
        .map(|frame| {
            if let Frame::Open { stream, .. } = frame {
                stream
            } else {
                0
            }
        })
        .collect();
    assert_eq!(streams, [small, other]);
    let Poll::Ready(Some(Err(LinkError::Refused(error)))) = next(&mut mux, large) else {
        panic!("not refused")
    };
    assert_eq!(error.kind, ErrorKind::TooLarge);
}

#[test]
fn an_error_of_an_unknown_kind_is_still_an_error() {
    let mut mux = mux();
    let id = mux.open(&call(0)).unwrap();
    mux.on_frame(Frame::Fail {
        stream: id,
        json: Bytes::from_static(b"{\"kind\":\"melted\"}"),
    })
    .unwrap();
    let Poll::Ready(Some(Err(LinkError::Refused(error)))) = next(&mut mux, id) else {
        panic!("not refused")
    };
    assert!(
        error.kind == ErrorKind::Internal && error.message.contains("melted"),
        "{error:?}"
    );
}

#[test]
fn a_worker_that_pings_and_does_not_read_is_dropped() {
    let mut mux = mux();
    let violation = (0..1_000_000).find_map(|nonce| mux.on_frame(Frame::Ping { nonce }).err());
    assert!(matches!(violation, Some(Violation::NotReading { .. })));
}

/// An event at a mux, from any side.
#[derive(Debug, Clone)]
enum Step {
    Open(usize),
    Frame(Frame),
    /// A frame for a stream that may exist.
    Data(u32, usize),
    End(u32),
    Poll(u32),
    Cancel(u32),
    Write,
    Lost,
    Connected(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let id = || 1u32..20;
    prop_oneof![
        (0usize..5000).prop_map(Step::Open),
        any_frame().prop_map(Step::Frame),
        (id(), 0usize..1500).prop_map(|(id, bytes)| Step::Data(id, bytes)),
        id().prop_map(Step::End),
        id().prop_map(Step::Poll),
        id().prop_map(Step::Cancel),
        Just(Step::Write),
        Just(Step::Lost),
        (0usize..8000).prop_map(Step::Connected),
    ]
}

proptest! {
    /// For any events: no panic, bounded output, and each stream ends at most once and yields nothing after its end.
    #[test]
    fn any_sequence_of_events_keeps_the_bounds(steps in vec(step(), 0..200)) {
        let mut mux = mux();
        let mut ended = std::collections::HashSet::new();
        for step in steps {
            match step {
                Step::Open(body) => { let _ = mux.open(&call(body)); }
                Step::Frame(frame) => { let _ = mux.on_frame(frame); }
                Step::Data(id, bytes) => { let _ = mux.on_frame(data(id, bytes)); }
                Step::End(id) => {
                    let _ = mux.on_frame(Frame::End { stream: id, summary: StreamSummary::default() });
                }
                Step::Poll(id) => match next(&mut mux, id) {
                    Poll::Ready(Some(event)) => {
                        prop_assert!(!ended.contains(&id), "an event after the end");
                        if !matches!(event, Ok(ResponseEvent::Data { .. })) {
                            ended.insert(id);
                        }
                    }
                    Poll::Pending => prop_assert!(!ended.contains(&id)),
                    Poll::Ready(None) => {}
                },
                Step::Cancel(id) => mux.cancel(id),
                Step::Write => { written(&mut mux); }
                Step::Lost => lost(&mut mux),
                Step::Connected(limit) => mux.connected(limit),
            }
            prop_assert!(mux.streams.len() <= 8);
            prop_assert!(mux.out.len() <= 2 * MAX_FRAME + CONTROL_BYTES);
        }
        lost(&mut mux);
        prop_assert!(mux.is_idle(), "a loss ends every stream");
    }
}
