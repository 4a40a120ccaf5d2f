//! The bytes of the transport's NATS messages.
//!
//! A message is a u8 version, a u8 kind, the connection as u64, the message's number as u64, then a payload that depends
//! on the kind. Integers are little-endian, as in the frames that the messages carry.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The version of the transport that this build supports.
pub(super) const VERSION: u8 = 1;

/// Bytes before the payload.
pub(super) const HEADER_BYTES: usize = 18;

const CONNECT: u8 = 1;
const ACCEPT: u8 = 2;
const DATA: u8 = 3;
const CREDIT: u8 = 4;
const CLOSE: u8 = 5;
const RESET: u8 = 6;

/// A message that arrived.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Message {
    /// The connection's number, chosen by the worker in its Accept; 0 in a Connect.
    pub(super) connection: u64,
    /// The message's number within its direction, from 1; 0 in Connect and Accept.
    pub(super) number: u64,
    pub(super) content: Content<Bytes>,
}

/// The content of a message. `B` is the type of its bytes: borrowed in a message to send, owned in one that arrived.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Content<B> {
    /// A router requests a connection. It reads the message's reply subject.
    Connect { window: u32 },
    /// The worker accepts the connection. It reads the message's reply subject.
    Accept { window: u32 },
    /// The next bytes of the stream.
    Data(B),
    /// The receiver may send this many more bytes.
    Credit(u32),
    /// The sender sends no more data.
    Close,
    /// Why the connection is broken or refused.
    Reset(String),
    /// A kind of a later version, which receivers may skip.
    Unknown,
}

/// Why a message is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidMessage {
    #[error("it has {0} bytes; the header alone takes {HEADER_BYTES}")]
    Header(usize),
    #[error("it has version {0} of the NATS transport; this side supports version {VERSION}")]
    Version(u8),
    #[error("its kind {kind} cannot have a payload of {bytes} bytes")]
    Payload { kind: u8, bytes: usize },
}

/// Encodes a message.
pub(super) fn encode<B: AsRef<[u8]>>(connection: u64, number: u64, content: &Content<B>) -> Bytes {
    let payload: &[u8] = match content {
        Content::Data(bytes) => bytes.as_ref(),
        Content::Reset(reason) => reason.as_bytes(),
        _ => &[],
    };
    // A payload that is not bytes is at most one u32.
    let mut message = BytesMut::with_capacity(HEADER_BYTES + payload.len().max(4));
    message.put_u8(VERSION);
    message.put_u8(match content {
        Content::Connect { .. } => CONNECT,
        Content::Accept { .. } => ACCEPT,
        Content::Data(_) => DATA,
        Content::Credit(_) => CREDIT,
        Content::Close => CLOSE,
        Content::Reset(_) => RESET,
        Content::Unknown => 0,
    });
    message.put_u64_le(connection);
    message.put_u64_le(number);
    match content {
        Content::Connect { window } | Content::Accept { window } => message.put_u32_le(*window),
        Content::Credit(bytes) => message.put_u32_le(*bytes),
        _ => message.put_slice(payload),
    }
    message.freeze()
}

/// Decodes a message. Bytes behind the number of a payload are skipped: a later version may send them.
pub(super) fn decode(mut bytes: Bytes) -> Result<Message, InvalidMessage> {
    if bytes.len() < HEADER_BYTES {
        return Err(InvalidMessage::Header(bytes.len()));
    }
    let version = bytes.get_u8();
    if version != VERSION {
        return Err(InvalidMessage::Version(version));
    }
    let kind = bytes.get_u8();
    let (connection, number) = (bytes.get_u64_le(), bytes.get_u64_le());
    let read_u32 = |mut bytes: Bytes| {
        let error = InvalidMessage::Payload {
            kind,
            bytes: bytes.len(),
        };
        bytes.try_get_u32_le().map_err(|_| error)
    };
    let content = match kind {
        CONNECT => Content::Connect {
            window: read_u32(bytes)?,
        },
        ACCEPT => Content::Accept {
            window: read_u32(bytes)?,
        },
        DATA => Content::Data(bytes),
        CREDIT => Content::Credit(read_u32(bytes)?),
        CLOSE => Content::Close,
        RESET => Content::Reset(String::from_utf8_lossy(&bytes).into_owned()),
        _ => Content::Unknown,
    };
    Ok(Message {
        connection,
        number,
        content,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn content() -> impl Strategy<Value = Content<Bytes>> {
        prop_oneof![
            any::<u32>().prop_map(|window| Content::Connect { window }),
            any::<u32>().prop_map(|window| Content::Accept { window }),
            prop::collection::vec(any::<u8>(), 0..100).prop_map(|bytes| Content::Data(bytes.into())),
            any::<u32>().prop_map(Content::Credit),
            Just(Content::Close),
            ".{0,20}".prop_map(Content::Reset),
            Just(Content::Unknown),
        ]
    }

    proptest! {
        #[test]
        fn an_encoded_message_decodes_to_itself(connection: u64, number: u64, content in content()) {
            let message = Message { connection, number, content };
            prop_assert_eq!(decode(encode(connection, number, &message.content)).unwrap(), message);
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes: Vec<u8>) {
            let _ = decode(bytes.into());
        }
    }

    #[test]
    fn the_layout_is_that_of_the_readme() {
        let data = encode(0x0102, 3, &Content::Data(b"hi"));
        assert_eq!(data[..], *b"\x01\x03\x02\x01\0\0\0\0\0\0\x03\0\0\0\0\0\0\0hi");
        let credit = encode(1, 2, &Content::<Bytes>::Credit(256));
        assert_eq!(credit[18..], [0, 1, 0, 0]);
    }

    #[test]
    fn errors_name_other_versions_and_short_messages() {
        let mut bytes = encode(1, 1, &Content::<Bytes>::Credit(1)).to_vec();
        bytes.truncate(20);
        let refused = decode(bytes.clone().into()).unwrap_err().to_string();
        assert!(
            refused.contains("kind 4") && refused.contains("2 bytes"),
            "{refused}"
        );
        bytes[0] = 9;
        assert_eq!(decode(bytes.clone().into()), Err(InvalidMessage::Version(9)));
        bytes.truncate(17);
        assert_eq!(decode(bytes.into()), Err(InvalidMessage::Header(17)));
    }
}
