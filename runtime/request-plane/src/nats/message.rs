//! The bytes of the transport's NATS messages.
//!
//! A u8 version, a u8 kind, the connection as u64, the message's number as u64, then a payload by kind. Integers are
//! little-endian, as in the frames that these messages carry.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The version of the transport this build speaks.
pub(super) const VERSION: u8 = 1;

/// What comes before the payload.
pub(super) const HEADER_BYTES: usize = 18;

const CONNECT: u8 = 1;
const ACCEPT: u8 = 2;
const DATA: u8 = 3;
const CREDIT: u8 = 4;
const CLOSE: u8 = 5;
const RESET: u8 = 6;

/// One message as it arrived.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Message {
    /// Chosen by the worker in its Accept; 0 in a Connect.
    pub(super) connection: u64,
    /// Counts a direction's messages from 1; Connect and Accept are 0.
    pub(super) number: u64,
    pub(super) content: Content<Bytes>,
}

/// What a message says. `B` holds the bytes: borrowed to be sent, owned when they arrived.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Content<B> {
    /// A router asks for a connection; what it sends may be answered at the message's reply subject.
    Connect { window: u32 },
    /// The worker agrees, and reads at the message's reply subject.
    Accept { window: u32 },
    /// The next bytes.
    Data(B),
    /// So much was read: as much more may be sent.
    Credit(u32),
    /// Nothing follows.
    Close,
    /// The connection is broken, or refused, for this reason.
    Reset(String),
    /// Of a later version, which says it can be skipped.
    Unknown,
}

/// A message of another shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotUnderstood {
    #[error("it has {0} bytes, where the header has {HEADER_BYTES}")]
    Header(usize),
    #[error("it is of version {0} of the NATS transport, where this side speaks {VERSION}")]
    Version(u8),
    #[error("its kind {kind} has no payload of {bytes} bytes")]
    Payload { kind: u8, bytes: usize },
}

/// The message's bytes.
pub(super) fn encode<B: AsRef<[u8]>>(connection: u64, number: u64, content: &Content<B>) -> Bytes {
    let payload: &[u8] = match content {
        Content::Data(bytes) => bytes.as_ref(),
        Content::Reset(reason) => reason.as_bytes(),
        _ => &[],
    };
    // A number at most, where it is not bytes.
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

/// Reads a message. Bytes behind a number are skipped, as a later version's.
pub(super) fn decode(mut bytes: Bytes) -> Result<Message, NotUnderstood> {
    if bytes.len() < HEADER_BYTES {
        return Err(NotUnderstood::Header(bytes.len()));
    }
    let version = bytes.get_u8();
    if version != VERSION {
        return Err(NotUnderstood::Version(version));
    }
    let kind = bytes.get_u8();
    let (connection, number) = (bytes.get_u64_le(), bytes.get_u64_le());
    let one_number = |mut bytes: Bytes| {
        let wrong = NotUnderstood::Payload {
            kind,
            bytes: bytes.len(),
        };
        bytes.try_get_u32_le().map_err(|_| wrong)
    };
    let content = match kind {
        CONNECT => Content::Connect {
            window: one_number(bytes)?,
        },
        ACCEPT => Content::Accept {
            window: one_number(bytes)?,
        },
        DATA => Content::Data(bytes),
        CREDIT => Content::Credit(one_number(bytes)?),
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
        fn what_is_sent_is_what_arrives(connection: u64, number: u64, content in content()) {
            let message = Message { connection, number, content };
            prop_assert_eq!(decode(encode(connection, number, &message.content)).unwrap(), message);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = decode(bytes.into());
        }
    }

    #[test]
    fn each_byte_is_where_the_readme_says() {
        let data = encode(0x0102, 3, &Content::Data(b"hi"));
        assert_eq!(data[..], *b"\x01\x03\x02\x01\0\0\0\0\0\0\x03\0\0\0\0\0\0\0hi");
        let credit = encode(1, 2, &Content::<Bytes>::Credit(256));
        assert_eq!(credit[18..], [0, 1, 0, 0]);
    }

    #[test]
    fn other_versions_and_short_messages_are_named() {
        let mut bytes = encode(1, 1, &Content::<Bytes>::Credit(1)).to_vec();
        bytes.truncate(20);
        let refused = decode(bytes.clone().into()).unwrap_err().to_string();
        assert!(
            refused.contains("kind 4") && refused.contains("2 bytes"),
            "{refused}"
        );
        bytes[0] = 9;
        assert_eq!(decode(bytes.clone().into()), Err(NotUnderstood::Version(9)));
        bytes.truncate(17);
        assert_eq!(decode(bytes.into()), Err(NotUnderstood::Header(17)));
    }
}
