use bytes::{BufMut, Bytes, BytesMut};
use proptest::{collection::vec, prelude::*};
use signalbox_protocol::StreamSummary;
use tokio_util::codec::{Decoder, Encoder};

use super::{Frame, FrameCodec, FrameError, MAX_PIECE_BYTES, PieceTokens, TokenIds, put_data};

const LIMIT: usize = 64 << 10;

fn encoded(frames: &[Frame]) -> BytesMut {
    let mut out = BytesMut::new();
    for frame in frames {
        FrameCodec::new(LIMIT).encode(frame.clone(), &mut out).unwrap();
    }
    out
}

/// Decodes `bytes` that arrive in chunks of these sizes. The last size repeats.
fn decoded(bytes: &[u8], chunks: &[usize]) -> Result<Vec<Frame>, FrameError> {
    let (mut codec, mut buffer, mut frames) = (FrameCodec::new(LIMIT), BytesMut::new(), Vec::new());
    let mut sizes = chunks
        .iter()
        .copied()
        .chain(std::iter::repeat(*chunks.last().unwrap_or(&1)));
    let mut rest = bytes;
    while !rest.is_empty() {
        let (chunk, later) = rest.split_at(sizes.next().unwrap().clamp(1, rest.len()));
        buffer.extend_from_slice(chunk);
        while let Some(frame) = codec.decode(&mut buffer)? {
            frames.push(frame);
        }
        rest = later;
    }
    Ok(frames)
}

/// Payloads of both kinds: short ones, which are copied, and long ones, which share the read buffer.
fn bytes() -> impl Strategy<Value = Bytes> {
    prop_oneof![vec(any::<u8>(), 0..300), vec(any::<u8>(), 4000..6000)].prop_map(Bytes::from)
}

fn summary() -> impl Strategy<Value = StreamSummary> {
    any::<(u32, u32, u32)>().prop_map(
        |(prompt_tokens, cached_tokens, completion_tokens)| StreamSummary {
            prompt_tokens,
            cached_tokens,
            completion_tokens,
        },
    )
}

pub(crate) fn frame() -> impl Strategy<Value = Frame> {
    let stream = || 1..=u32::MAX;
    prop_oneof![
        (any::<u16>(), any::<u16>(), bytes()).prop_map(|(lowest, highest, json)| Frame::Hello {
            lowest,
            highest,
            json
        }),
        (any::<u16>(), any::<u32>(), bytes()).prop_map(|(version, max_frame_bytes, json)| Frame::HelloAck {
            version,
            max_frame_bytes,
            json
        }),
        (stream(), bytes(), vec(any::<u32>(), 0..200), bytes()).prop_map(|(stream, call, tokens, body)| {
            Frame::Open {
                stream,
                call,
                tokens,
                body,
            }
        }),
        (stream(), any::<u32>(), bytes()).prop_map(|(stream, tokens, bytes)| Frame::Data {
            stream,
            tokens,
            ids: TokenIds::default(),
            bytes
        }),
        (stream(), vec(any::<u32>(), 1..20), bytes()).prop_map(|(stream, ids, bytes)| Frame::Data {
            stream,
            tokens: ids.len() as u32,
            ids: TokenIds::new(ids.iter().flat_map(|id| id.to_le_bytes()).collect()),
            bytes
        }),
        (stream(), summary()).prop_map(|(stream, summary)| Frame::End { stream, summary }),
        (any::<u32>(), bytes()).prop_map(|(stream, json)| Frame::Fail { stream, json }),
        stream().prop_map(|stream| Frame::Cancel { stream }),
        (stream(), any::<u32>()).prop_map(|(stream, bytes)| Frame::Credit { stream, bytes }),
        any::<u64>().prop_map(|nonce| Frame::Ping { nonce }),
        any::<u64>().prop_map(|nonce| Frame::Pong { nonce }),
        Just(Frame::Drain),
    ]
}

proptest! {
    #[test]
    fn frames_survive_any_chunking(frames in vec(frame(), 0..8), chunks in vec(1usize..5000, 0..20)) {
        let bytes = encoded(&frames);
        prop_assert_eq!(decoded(&bytes, &chunks).unwrap(), frames);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..2000)) {
        let _ = decoded(&bytes, &[7]);
    }

    /// Random payloads behind a valid length and kind, which random bytes rarely have.
    #[test]
    fn arbitrary_payloads_never_panic(kind in 0u8..16, stream in any::<u32>(), payload in vec(any::<u8>(), 0..64)) {
        let mut bytes = BytesMut::new();
        bytes.put_u32_le(5 + payload.len() as u32);
        bytes.put_u8(kind);
        bytes.put_u32_le(stream);
        bytes.put_slice(&payload);
        let _ = decoded(&bytes, &[1000]);
    }
}

#[test]
fn unknown_kinds_and_longer_payloads_are_skipped() {
    let mut bytes = BytesMut::new();
    bytes.put_slice(&[8, 0, 0, 0, 200, 1, 0, 0, 0, 9, 9, 9]);
    // A Credit with two bytes more than this version knows.
    bytes.put_slice(&[11, 0, 0, 0, 8, 3, 0, 0, 0, 5, 0, 0, 0, 7, 7]);
    bytes.extend_from_slice(&encoded(&[Frame::Drain]));
    assert_eq!(
        decoded(&bytes, &[3]).unwrap(),
        [Frame::Credit { stream: 3, bytes: 5 }, Frame::Drain]
    );
}

#[test]
fn a_frame_over_the_limit_is_refused_before_it_arrives() {
    let mut start = BytesMut::from(&[0xff, 0xff, 0xff, 0x7f][..]);
    let error = FrameCodec::new(LIMIT).decode(&mut start).unwrap_err().to_string();
    assert_eq!(error, "a frame of 2147483647 bytes; at most 65536 are allowed");

    let large = Frame::Fail {
        stream: 1,
        json: vec![0; LIMIT].into(),
    };
    let mut out = BytesMut::from("before");
    assert!(FrameCodec::new(LIMIT).encode(large, &mut out).is_err());
    assert_eq!(out, "before", "no byte of the frame is left in the output");
}

#[test]
fn a_piece_over_its_own_limit_is_refused() {
    let mut out = BytesMut::new();
    put_data(&mut out, 1, PieceTokens::Count(0), &vec![0; MAX_PIECE_BYTES]);
    assert!(
        FrameCodec::new(usize::MAX)
            .decode(&mut out.clone())
            .unwrap()
            .is_some()
    );
    let length = (out.len() - 4 + 1) as u32;
    out[..4].copy_from_slice(&length.to_le_bytes());
    out.put_u8(0);
    assert!(matches!(
        FrameCodec::new(usize::MAX).decode(&mut out),
        Err(FrameError::TooLong { .. })
    ));
}

#[test]
fn errors_name_what_is_broken() {
    let error = |bytes: &[u8]| decoded(bytes, &[100]).unwrap_err().to_string();
    assert!(
        error(&[4, 0, 0, 0, 11, 0, 0, 0]).contains("4 bytes"),
        "shorter than a head"
    );
    assert!(error(&[5, 0, 0, 0, 4, 0, 0, 0, 0]).contains("Data frame on stream 0"));
    assert!(error(&[6, 0, 0, 0, 4, 1, 0, 0, 0, 1]).contains("Data frame whose payload of 1 bytes"));
    assert!(error(b"\x09\0\0\0\x01\0\0\0\0HTTP").contains("magic"));
    // Two tokens announced and one present; a call longer than the frame.
    assert!(error(&[17, 0, 0, 0, 3, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0]).contains("Open"));
    assert!(error(&[9, 0, 0, 0, 3, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]).contains("Open"));
}
