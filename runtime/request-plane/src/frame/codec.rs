//! Encodes and decodes frames.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use signalbox_protocol::StreamSummary;
use tokio_util::codec::{Decoder, Encoder};

use super::{Frame, FrameError, HEAD_BYTES, MAX_PIECE_BYTES, PieceTokens, TokenIds};

const PREFIX_BYTES: usize = 4;

/// First payload bytes of a hello. They are missing when another kind of program dials a worker's port.
const MAGIC: [u8; 4] = *b"SGBX";

const HELLO: u8 = 1;
const HELLO_ACK: u8 = 2;
const OPEN: u8 = 3;
const DATA: u8 = 4;
const END: u8 = 5;
const FAIL: u8 = 6;
const CANCEL: u8 = 7;
const CREDIT: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const DRAIN: u8 = 11;
/// A Data frame with the ids of its tokens. Only for calls that ask for them, because older routers skip it.
const DATA_WITH_IDS: u8 = 12;

/// Payloads up to this size are copied out of the read buffer; larger payloads share its memory. Otherwise a slow reader
/// that keeps the 200 bytes of a token would keep a read buffer of 64 KiB.
const COPY_UP_TO_BYTES: usize = 4 << 10;

/// Reads and writes frames up to a limit. Unknown kinds, and unknown bytes at the end of a payload, are skipped, because a
/// newer peer may send them.
#[derive(Debug)]
pub(crate) struct FrameCodec {
    limit: usize,
}

impl FrameCodec {
    /// `limit` is the largest frame in bytes, kind and stream included.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit: limit.min(u32::MAX as usize),
        }
    }
}

impl Decoder for FrameCodec {
    type Item = Frame;
    type Error = FrameError;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        loop {
            let Some(prefix) = src.first_chunk::<PREFIX_BYTES>() else {
                return Ok(None);
            };
            let length = u32::from_le_bytes(*prefix) as usize;
            if length < HEAD_BYTES {
                return Err(FrameError::TooShort { length });
            }
            if length > self.limit {
                return Err(FrameError::TooLong {
                    length,
                    limit: self.limit,
                });
            }
            let total = PREFIX_BYTES + length;
            if src.len() < total {
                return Ok(None);
            }
            let (kind, stream) = (src[PREFIX_BYTES], (&src[PREFIX_BYTES + 1..]).get_u32_le());
            let payload_at = PREFIX_BYTES + HEAD_BYTES;
            let frame = match kind {
                HELLO | HELLO_ACK | OPEN | DATA | FAIL | DATA_WITH_IDS => {
                    let payload = take_payload(src, payload_at, total);
                    decode_variable(kind, stream, payload)?
                }
                END..=DRAIN => {
                    let frame = decode_fixed(kind, stream, &src[payload_at..total])?;
                    src.advance(total);
                    frame
                }
                unknown => {
                    tracing::debug!(kind = unknown, length, "skipped a frame of an unknown kind");
                    src.advance(total);
                    continue;
                }
            };
            return Ok(Some(frame));
        }
    }
}

fn take_payload(src: &mut BytesMut, payload_at: usize, total: usize) -> Bytes {
    if total - payload_at <= COPY_UP_TO_BYTES {
        let payload = Bytes::copy_from_slice(&src[payload_at..total]);
        src.advance(total);
        payload
    } else {
        let mut frame = src.split_to(total).freeze();
        frame.advance(payload_at);
        frame
    }
}

/// Decodes a frame whose payload has any length.
fn decode_variable(kind: u8, stream: u32, mut payload: Bytes) -> Result<Frame, FrameError> {
    let length = payload.len();
    let short = |name| {
        move |_| FrameError::Truncated {
            name,
            payload: length,
        }
    };
    match kind {
        HELLO => {
            if !payload.starts_with(&MAGIC) {
                return Err(FrameError::NoMagic);
            }
            payload.advance(MAGIC.len());
            let lowest = payload.try_get_u16_le().map_err(short("Hello"))?;
            let highest = payload.try_get_u16_le().map_err(short("Hello"))?;
            Ok(Frame::Hello {
                lowest,
                highest,
                json: payload,
            })
        }
        HELLO_ACK => {
            let version = payload.try_get_u16_le().map_err(short("HelloAck"))?;
            let max_frame_bytes = payload.try_get_u32_le().map_err(short("HelloAck"))?;
            Ok(Frame::HelloAck {
                version,
                max_frame_bytes,
                json: payload,
            })
        }
        OPEN => {
            let stream = checked_stream("Open", stream)?;
            let truncated = || FrameError::Truncated {
                name: "Open",
                payload: length,
            };
            let call_bytes = payload.try_get_u32_le().map_err(short("Open"))? as usize;
            if call_bytes > payload.len() {
                return Err(truncated());
            }
            let call = payload.split_to(call_bytes);
            let count = payload.try_get_u32_le().map_err(short("Open"))? as usize;
            if count > payload.len() / 4 {
                return Err(truncated());
            }
            let tokens = payload.split_to(count * 4);
            let tokens = tokens
                .as_chunks::<4>()
                .0
                .iter()
                .map(|token| u32::from_le_bytes(*token))
                .collect();
            Ok(Frame::Open {
                stream,
                call,
                tokens,
                body: payload,
            })
        }
        DATA | DATA_WITH_IDS => {
            let stream = checked_stream("Data", stream)?;
            let tokens = payload.try_get_u32_le().map_err(short("Data"))?;
            let ids = match kind {
                DATA => TokenIds::default(),
                _ if tokens as usize > payload.len() / 4 => {
                    return Err(FrameError::Truncated {
                        name: "Data",
                        payload: length,
                    });
                }
                _ => TokenIds::new(payload.split_to(tokens as usize * 4)),
            };
            if payload.len() > MAX_PIECE_BYTES {
                return Err(FrameError::TooLong {
                    length: payload.len(),
                    limit: MAX_PIECE_BYTES,
                });
            }
            Ok(Frame::Data {
                stream,
                tokens,
                ids,
                bytes: payload,
            })
        }
        _ => Ok(Frame::Fail {
            stream,
            json: payload,
        }),
    }
}

/// Decodes a frame of fixed size: a few integers.
fn decode_fixed(kind: u8, stream: u32, mut payload: &[u8]) -> Result<Frame, FrameError> {
    let length = payload.len();
    let short = |name| {
        move |_| FrameError::Truncated {
            name,
            payload: length,
        }
    };
    match kind {
        END => {
            let mut next = || payload.try_get_u32_le().map_err(short("End"));
            let summary = StreamSummary {
                prompt_tokens: next()?,
                cached_tokens: next()?,
                completion_tokens: next()?,
            };
            Ok(Frame::End {
                stream: checked_stream("End", stream)?,
                summary,
            })
        }
        CANCEL => Ok(Frame::Cancel {
            stream: checked_stream("Cancel", stream)?,
        }),
        CREDIT => {
            let bytes = payload.try_get_u32_le().map_err(short("Credit"))?;
            Ok(Frame::Credit {
                stream: checked_stream("Credit", stream)?,
                bytes,
            })
        }
        PING => Ok(Frame::Ping {
            nonce: payload.try_get_u64_le().map_err(short("Ping"))?,
        }),
        PONG => Ok(Frame::Pong {
            nonce: payload.try_get_u64_le().map_err(short("Pong"))?,
        }),
        _ => Ok(Frame::Drain),
    }
}

/// Checks that a frame that belongs to a stream is not on stream 0.
fn checked_stream(name: &'static str, stream: u32) -> Result<u32, FrameError> {
    if stream == 0 {
        Err(FrameError::NoStream { name })
    } else {
        Ok(stream)
    }
}

impl Encoder<Frame> for FrameCodec {
    type Error = FrameError;

    fn encode(&mut self, frame: Frame, out: &mut BytesMut) -> Result<(), FrameError> {
        let start = out.len();
        put(&frame, out);
        let length = out.len() - start - PREFIX_BYTES;
        if length > self.limit {
            out.truncate(start);
            return Err(FrameError::TooLong {
                length,
                limit: self.limit,
            });
        }
        Ok(())
    }
}

fn put(frame: &Frame, out: &mut BytesMut) {
    match frame {
        Frame::Hello {
            lowest,
            highest,
            json,
        } => {
            put_head(out, HELLO, 0, MAGIC.len() + 4 + json.len());
            out.put_slice(&MAGIC);
            out.put_u16_le(*lowest);
            out.put_u16_le(*highest);
            out.put_slice(json);
        }
        Frame::HelloAck {
            version,
            max_frame_bytes,
            json,
        } => {
            put_head(out, HELLO_ACK, 0, 6 + json.len());
            out.put_u16_le(*version);
            out.put_u32_le(*max_frame_bytes);
            out.put_slice(json);
        }
        Frame::Open {
            stream,
            call,
            tokens,
            body,
        } => put_open(out, *stream, call, tokens, body),
        Frame::Data {
            stream,
            tokens,
            ids,
            bytes,
        } => {
            let ids: Vec<u32> = ids.iter().collect();
            let tokens = match ids.is_empty() {
                true => PieceTokens::Count(*tokens),
                false => PieceTokens::Ids(&ids),
            };
            put_data(out, *stream, tokens, bytes);
        }
        Frame::End { stream, summary } => {
            put_head(out, END, *stream, 12);
            out.put_u32_le(summary.prompt_tokens);
            out.put_u32_le(summary.cached_tokens);
            out.put_u32_le(summary.completion_tokens);
        }
        Frame::Fail { stream, json } => {
            put_head(out, FAIL, *stream, json.len());
            out.put_slice(json);
        }
        Frame::Cancel { stream } => put_head(out, CANCEL, *stream, 0),
        Frame::Credit { stream, bytes } => put_credit(out, *stream, *bytes),
        Frame::Ping { nonce } => {
            put_head(out, PING, 0, 8);
            out.put_u64_le(*nonce);
        }
        Frame::Pong { nonce } => {
            put_head(out, PONG, 0, 8);
            out.put_u64_le(*nonce);
        }
        Frame::Drain => put_head(out, DRAIN, 0, 0),
    }
}

/// Appends an Open frame. The caller has checked its size.
pub(crate) fn put_open(out: &mut BytesMut, stream: u32, call: &[u8], tokens: &[u32], body: &[u8]) {
    put_head(out, OPEN, stream, 8 + call.len() + tokens.len() * 4 + body.len());
    out.put_u32_le(call.len() as u32);
    out.put_slice(call);
    out.put_u32_le(tokens.len() as u32);
    put_tokens(out, tokens);
    out.put_slice(body);
}

fn put_tokens(out: &mut BytesMut, tokens: &[u32]) {
    let start = out.len();
    out.resize(start + size_of_val(tokens), 0);
    for (bytes, token) in out[start..].as_chunks_mut::<4>().0.iter_mut().zip(tokens) {
        *bytes = token.to_le_bytes();
    }
}

/// Appends a Data frame; `bytes` is at most [`MAX_PIECE_BYTES`] long.
pub(crate) fn put_data(out: &mut BytesMut, stream: u32, tokens: PieceTokens<'_>, bytes: &[u8]) {
    debug_assert!(
        bytes.len() <= MAX_PIECE_BYTES,
        "pieces are cut before they are framed"
    );
    match tokens {
        PieceTokens::Count(count) => {
            put_head(out, DATA, stream, 4 + bytes.len());
            out.put_u32_le(count);
        }
        PieceTokens::Ids(ids) => {
            put_head(out, DATA_WITH_IDS, stream, 4 + tokens.id_bytes() + bytes.len());
            out.put_u32_le(ids.len() as u32);
            put_tokens(out, ids);
        }
    }
    out.put_slice(bytes);
}

/// Appends a Credit frame.
pub(crate) fn put_credit(out: &mut BytesMut, stream: u32, bytes: u32) {
    put_head(out, CREDIT, stream, 4);
    out.put_u32_le(bytes);
}

fn put_head(out: &mut BytesMut, kind: u8, stream: u32, payload_bytes: usize) {
    let length = HEAD_BYTES + payload_bytes;
    out.reserve(PREFIX_BYTES + length);
    out.put_u32_le(length as u32);
    out.put_u8(kind);
    out.put_u32_le(stream);
}
