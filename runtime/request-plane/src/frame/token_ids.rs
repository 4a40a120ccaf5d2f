//! The tokens of a piece: their number, or their ids for calls that ask for them.

use bytes::Bytes;

/// The tokens of a piece that a worker queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PieceTokens<'a> {
    /// Their number.
    Count(u32),
    /// Their ids.
    Ids(&'a [u32]),
}

impl PieceTokens<'_> {
    /// Bytes that the ids take in a frame.
    pub(crate) fn id_bytes(self) -> usize {
        match self {
            Self::Count(_) => 0,
            Self::Ids(ids) => size_of_val(ids),
        }
    }
}

/// The ids of the tokens in a piece that arrived. A clone shares their memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenIds(Bytes);

impl TokenIds {
    /// Ids of four bytes each, little-endian. Bytes beyond the last whole id are ignored.
    pub(crate) fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Number of ids.
    pub fn len(&self) -> usize {
        self.0.len() / 4
    }

    /// Whether there is no id.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The ids in their order.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        let (ids, _) = self.0.as_chunks::<4>();
        ids.iter().map(|id| u32::from_le_bytes(*id))
    }
}
