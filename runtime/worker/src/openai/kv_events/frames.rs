//! The frames of ZeroMQ messages that carry batches: live, and as answers to a replay request.
//!
//! | message | frames |
//! |---|---|
//! | live, PUB to SUB | topic, number, payload |
//! | replay request, DEALER to ROUTER | empty, number of the first batch wanted |
//! | replay answer | empty, topic, number, payload; without the topic from engines before 2026 |
//! | end of a replay | as an answer, with an empty payload and the number −1 |
//!
//! A number is eight bytes, big-endian. It starts at 0 with the engine's process and counts batches. The number is always
//! the last frame but one, so both kinds of answers are read alike.
//! Source: `ZmqEventPublisher` in vLLM's `vllm/distributed/kv_events.py` and SGLang's
//! `sglang/srt/disaggregation/kv_events.py`.

use bytes::Bytes;

/// One batch of the engine, not decoded yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Numbered {
    /// Number of the batch since the engine's start.
    pub(super) number: u64,
    /// The batch in MessagePack.
    pub(super) payload: Bytes,
}

/// One answer to a replay request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ReplayAnswer {
    /// A batch that the engine retains.
    Batch(Numbered),
    /// There are no more batches.
    End,
}

/// A message that is none of those of the table above.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidFrames {
    #[error("a message of {0} frames carries no batch of KV events")]
    Count(usize),
    #[error("the number of a batch has 8 bytes, not {0}")]
    Number(usize),
}

/// Reads a live message.
pub(super) fn read_live(frames: &[Bytes]) -> Result<Numbered, InvalidFrames> {
    match frames {
        [_topic, number, payload] => Ok(Numbered {
            number: read_number(number)?,
            payload: payload.clone(),
        }),
        _ => Err(InvalidFrames::Count(frames.len())),
    }
}

/// Reads an answer to a replay request.
pub(super) fn read_replay(frames: &[Bytes]) -> Result<ReplayAnswer, InvalidFrames> {
    let ([_, number, payload] | [_, _, number, payload]) = frames else {
        return Err(InvalidFrames::Count(frames.len()));
    };
    match read_number(number)? {
        u64::MAX => Ok(ReplayAnswer::End),
        _ if payload.is_empty() => Ok(ReplayAnswer::End),
        number => Ok(ReplayAnswer::Batch(Numbered {
            number,
            payload: payload.clone(),
        })),
    }
}

/// The request for all retained batches from number `from` on.
pub(super) fn replay_request(from: u64) -> [Bytes; 2] {
    [Bytes::new(), Bytes::copy_from_slice(&from.to_be_bytes())]
}

fn read_number(frame: &Bytes) -> Result<u64, InvalidFrames> {
    let bytes = frame[..]
        .try_into()
        .map_err(|_| InvalidFrames::Number(frame.len()))?;
    Ok(u64::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(frames: &[&[u8]]) -> Vec<Bytes> {
        frames.iter().map(|frame| Bytes::copy_from_slice(frame)).collect()
    }

    #[test]
    fn a_live_message_has_three_frames() {
        let number = 258_u64.to_be_bytes();
        let live = read_live(&frames(&[b"kv", &number, b"x"])).unwrap();
        assert_eq!((live.number, &live.payload[..]), (258, &b"x"[..]));
        assert_eq!(
            read_live(&frames(&[b"kv", &number])),
            Err(InvalidFrames::Count(2))
        );
        assert_eq!(
            read_live(&frames(&[b"kv", b"1", b"x"])),
            Err(InvalidFrames::Number(1))
        );
        assert_eq!(read_live(&[]), Err(InvalidFrames::Count(0)));
    }

    #[test]
    fn answers_with_and_without_a_topic_are_read_alike() {
        let (number, end) = (7_u64.to_be_bytes(), (-1_i64).to_be_bytes());
        let batch = ReplayAnswer::Batch(Numbered {
            number: 7,
            payload: Bytes::from_static(b"x"),
        });
        let cases: [(&[&[u8]], _); 6] = [
            (&[b"", b"kv", &number, b"x"], Ok(batch.clone())),
            (&[b"", &number, b"x"], Ok(batch)),
            (&[b"", b"", &end, b""], Ok(ReplayAnswer::End)),
            (&[b"", &end, b""], Ok(ReplayAnswer::End)),
            (&[b"", b"kv", &number, b""], Ok(ReplayAnswer::End)),
            (&[b"", &number], Err(InvalidFrames::Count(2))),
        ];
        for (sent, read) in cases {
            assert_eq!(read_replay(&frames(sent)), read, "{sent:?}");
        }
    }

    #[test]
    fn a_request_asks_for_all_batches_from_a_number_on() {
        let [empty, number] = replay_request(3);
        assert!(empty.is_empty());
        assert_eq!(&number[..], [0, 0, 0, 0, 0, 0, 0, 3]);
    }
}
