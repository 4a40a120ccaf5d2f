//! The place of a block in a strand.

/// A block's strand and its offset there. Five bytes, because a slot holds a place beside a tag.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(super) strand: u32,
    pub(super) offset: u8,
}

impl Place {
    pub(crate) fn new(strand: usize, offset: usize) -> Self {
        debug_assert!(u32::try_from(strand).is_ok() && u8::try_from(offset).is_ok());
        Self {
            strand: strand as u32,
            offset: offset as u8,
        }
    }

    pub(crate) fn strand(self) -> usize {
        self.strand as usize
    }

    pub(crate) fn offset(self) -> usize {
        self.offset as usize
    }
}
