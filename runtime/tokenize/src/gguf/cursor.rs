//! Reads the values of a GGUF file. A length is used only after a check that the file is long enough for it.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::GgufValue;
use crate::ArtifactError;

/// The type numbers of the format.
mod kind {
    pub(super) const U8: u32 = 0;
    pub(super) const I8: u32 = 1;
    pub(super) const U16: u32 = 2;
    pub(super) const I16: u32 = 3;
    pub(super) const U32: u32 = 4;
    pub(super) const I32: u32 = 5;
    pub(super) const F32: u32 = 6;
    pub(super) const BOOL: u32 = 7;
    pub(super) const STRING: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
    pub(super) const U64: u32 = 10;
    pub(super) const I64: u32 = 11;
    pub(super) const F64: u32 = 12;
}

pub(super) struct Cursor {
    path: PathBuf,
    input: BufReader<File>,
    file_bytes: u64,
    /// Bytes left to read: the rest of the file, or of `bound` if that is less.
    left: u64,
    /// Most bytes of metadata.
    bound: u64,
}

impl Cursor {
    pub(super) fn open(path: &Path, bound: u64) -> Result<Self, ArtifactError> {
        let read = |source| ArtifactError::Read {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(read)?;
        let metadata = file.metadata().map_err(read)?;
        if !metadata.is_file() {
            let source = std::io::Error::other("not a regular file");
            return Err(ArtifactError::Read {
                path: path.to_owned(),
                source,
            });
        }
        let file_bytes = metadata.len();
        Ok(Self {
            path: path.to_owned(),
            input: BufReader::with_capacity(1 << 16, file),
            file_bytes,
            left: file_bytes.min(bound),
            bound,
        })
    }

    pub(super) fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// The error for invalid metadata.
    pub(super) fn invalid(&self, reason: String) -> ArtifactError {
        ArtifactError::Gguf {
            path: self.path.clone(),
            reason,
        }
    }

    /// The next `N` bytes, or fewer if the file is shorter.
    pub(super) fn prefix<const N: usize>(&mut self) -> Result<Vec<u8>, ArtifactError> {
        let length = self.left.min(N as u64);
        self.bytes(length, "the first bytes")
    }

    pub(super) fn u32(&mut self, part: &str) -> Result<u32, ArtifactError> {
        Ok(u32::from_le_bytes(self.array(part)?))
    }

    pub(super) fn u64(&mut self, part: &str) -> Result<u64, ArtifactError> {
        Ok(u64::from_le_bytes(self.array(part)?))
    }

    pub(super) fn string(&mut self, part: &str) -> Result<String, ArtifactError> {
        let length = self.u64(part)?;
        let bytes = self.bytes(length, part)?;
        String::from_utf8(bytes).map_err(|_| self.invalid(format!("{part} is not UTF-8")))
    }

    pub(super) fn value(&mut self, part: &str) -> Result<GgufValue, ArtifactError> {
        let kind = self.u32(part)?;
        Ok(match kind {
            kind::F32 => GgufValue::Float(f64::from(f32::from_le_bytes(self.array(part)?))),
            kind::F64 => GgufValue::Float(f64::from_le_bytes(self.array(part)?)),
            kind::BOOL => GgufValue::Bool(self.boolean(part)?),
            kind::STRING => GgufValue::String(self.string(part)?),
            kind::ARRAY => self.array_value(part)?,
            kind::U64 => GgufValue::Int(i128::from(self.u64(part)?)),
            _ => GgufValue::Int(i128::from(self.integer(kind, part)?)),
        })
    }

    fn array_value(&mut self, part: &str) -> Result<GgufValue, ArtifactError> {
        let kind = self.u32(part)?;
        let length = self.u64(part)?;
        let smallest = match kind {
            kind::U8 | kind::I8 | kind::BOOL => 1,
            kind::U16 | kind::I16 => 2,
            kind::U32 | kind::I32 | kind::F32 => 4,
            kind::U64 | kind::I64 | kind::F64 | kind::STRING => 8,
            _ => return Err(self.invalid(format!("{part} is an array of unknown type {kind}"))),
        };
        // Checks that the file has room for the elements, so the allocation below is at most a small multiple of it.
        self.take(length.saturating_mul(smallest), part)?;
        self.left += length * smallest;
        let elements = 0..length;
        Ok(match kind {
            kind::F32 => GgufValue::Floats(
                elements
                    .map(|_| Ok(f32::from_le_bytes(self.array(part)?)))
                    .collect::<Result<_, _>>()?,
            ),
            kind::F64 => GgufValue::Floats(
                // No registered key of the format needs 64 bits.
                elements
                    .map(|_| Ok(f64::from_le_bytes(self.array(part)?) as f32))
                    .collect::<Result<_, _>>()?,
            ),
            kind::BOOL => GgufValue::Bools(elements.map(|_| self.boolean(part)).collect::<Result<_, _>>()?),
            kind::STRING => {
                GgufValue::Strings(elements.map(|_| self.string(part)).collect::<Result<_, _>>()?)
            }
            _ => GgufValue::Ints(
                elements
                    .map(|_| self.integer(kind, part))
                    .collect::<Result<_, _>>()?,
            ),
        })
    }

    fn integer(&mut self, kind: u32, part: &str) -> Result<i64, ArtifactError> {
        Ok(match kind {
            kind::U8 => i64::from(u8::from_le_bytes(self.array(part)?)),
            kind::I8 => i64::from(i8::from_le_bytes(self.array(part)?)),
            kind::U16 => i64::from(u16::from_le_bytes(self.array(part)?)),
            kind::I16 => i64::from(i16::from_le_bytes(self.array(part)?)),
            kind::U32 => i64::from(self.u32(part)?),
            kind::I32 => i64::from(i32::from_le_bytes(self.array(part)?)),
            kind::I64 => i64::from_le_bytes(self.array(part)?),
            kind::U64 => i64::try_from(self.u64(part)?)
                .map_err(|_| self.invalid(format!("{part} has an integer of 2^63 or more")))?,
            _ => return Err(self.invalid(format!("{part} has the unknown type {kind}"))),
        })
    }

    fn boolean(&mut self, part: &str) -> Result<bool, ArtifactError> {
        Ok(self.array::<1>(part)? != [0])
    }

    fn array<const N: usize>(&mut self, part: &str) -> Result<[u8; N], ArtifactError> {
        self.take(N as u64, part)?;
        let mut bytes = [0; N];
        self.input
            .read_exact(&mut bytes)
            .map_err(|source| self.read_error(source))?;
        Ok(bytes)
    }

    fn bytes(&mut self, length: u64, part: &str) -> Result<Vec<u8>, ArtifactError> {
        self.take(length, part)?;
        let mut bytes = vec![0; length as usize];
        self.input
            .read_exact(&mut bytes)
            .map_err(|source| self.read_error(source))?;
        Ok(bytes)
    }

    /// Counts `length` bytes as read, or fails if fewer are left.
    fn take(&mut self, length: u64, part: &str) -> Result<(), ArtifactError> {
        match self.left.checked_sub(length) {
            Some(left) => self.left = left,
            None if self.file_bytes > self.bound => {
                return Err(self.invalid(format!(
                    "{part} exceeds the limit of {} bytes of metadata",
                    self.bound
                )));
            }
            None => {
                return Err(ArtifactError::Truncated {
                    path: self.path.clone(),
                    bytes: self.file_bytes,
                    part: part.to_owned(),
                });
            }
        }
        Ok(())
    }

    fn read_error(&self, source: std::io::Error) -> ArtifactError {
        ArtifactError::Read {
            path: self.path.clone(),
            source,
        }
    }
}
