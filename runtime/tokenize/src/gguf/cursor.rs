//! Bounded reading: no length in the file is believed before the file is known to be long enough for it.

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
    /// What is left of the file, or of the metadata's bound where that is smaller.
    left: u64,
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
            let source = std::io::Error::other("it is not a file");
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

    pub(super) fn unsound(&self, what: String) -> ArtifactError {
        ArtifactError::Gguf {
            path: self.path.clone(),
            what,
        }
    }

    /// Up to `N` bytes: fewer where the file is shorter.
    pub(super) fn prefix<const N: usize>(&mut self) -> Result<Vec<u8>, ArtifactError> {
        let length = self.left.min(N as u64);
        self.bytes(length, "the first bytes")
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, ArtifactError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, ArtifactError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    pub(super) fn string(&mut self, what: &str) -> Result<String, ArtifactError> {
        let length = self.u64(what)?;
        let bytes = self.bytes(length, what)?;
        String::from_utf8(bytes).map_err(|_| self.unsound(format!("{what} is not UTF-8")))
    }

    pub(super) fn value(&mut self, what: &str) -> Result<GgufValue, ArtifactError> {
        let kind = self.u32(what)?;
        Ok(match kind {
            kind::F32 => GgufValue::Float(f64::from(f32::from_le_bytes(self.array(what)?))),
            kind::F64 => GgufValue::Float(f64::from_le_bytes(self.array(what)?)),
            kind::BOOL => GgufValue::Bool(self.boolean(what)?),
            kind::STRING => GgufValue::String(self.string(what)?),
            kind::ARRAY => self.array_value(what)?,
            kind::U64 => GgufValue::Int(i128::from(self.u64(what)?)),
            _ => GgufValue::Int(i128::from(self.integer(kind, what)?)),
        })
    }

    fn array_value(&mut self, what: &str) -> Result<GgufValue, ArtifactError> {
        let kind = self.u32(what)?;
        let length = self.u64(what)?;
        let smallest = match kind {
            kind::U8 | kind::I8 | kind::BOOL => 1,
            kind::U16 | kind::I16 => 2,
            kind::U32 | kind::I32 | kind::F32 => 4,
            kind::U64 | kind::I64 | kind::F64 | kind::STRING => 8,
            _ => return Err(self.unsound(format!("{what} is an array of unknown type {kind}"))),
        };
        // With this, the capacity asked for below is never more than a small multiple of the file.
        self.take(length.saturating_mul(smallest), what)?;
        self.left += length * smallest;
        let elements = 0..length;
        Ok(match kind {
            kind::F32 => GgufValue::Floats(
                elements
                    .map(|_| Ok(f32::from_le_bytes(self.array(what)?)))
                    .collect::<Result<_, _>>()?,
            ),
            kind::F64 => GgufValue::Floats(
                // Nothing in the format's registered keys needs the width.
                elements
                    .map(|_| Ok(f64::from_le_bytes(self.array(what)?) as f32))
                    .collect::<Result<_, _>>()?,
            ),
            kind::BOOL => GgufValue::Bools(elements.map(|_| self.boolean(what)).collect::<Result<_, _>>()?),
            kind::STRING => {
                GgufValue::Strings(elements.map(|_| self.string(what)).collect::<Result<_, _>>()?)
            }
            _ => GgufValue::Ints(
                elements
                    .map(|_| self.integer(kind, what))
                    .collect::<Result<_, _>>()?,
            ),
        })
    }

    fn integer(&mut self, kind: u32, what: &str) -> Result<i64, ArtifactError> {
        Ok(match kind {
            kind::U8 => i64::from(u8::from_le_bytes(self.array(what)?)),
            kind::I8 => i64::from(i8::from_le_bytes(self.array(what)?)),
            kind::U16 => i64::from(u16::from_le_bytes(self.array(what)?)),
            kind::I16 => i64::from(i16::from_le_bytes(self.array(what)?)),
            kind::U32 => i64::from(self.u32(what)?),
            kind::I32 => i64::from(i32::from_le_bytes(self.array(what)?)),
            kind::I64 => i64::from_le_bytes(self.array(what)?),
            kind::U64 => i64::try_from(self.u64(what)?)
                .map_err(|_| self.unsound(format!("{what} holds an integer past 2^63")))?,
            _ => return Err(self.unsound(format!("{what} is of unknown type {kind}"))),
        })
    }

    fn boolean(&mut self, what: &str) -> Result<bool, ArtifactError> {
        Ok(self.array::<1>(what)? != [0])
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], ArtifactError> {
        self.take(N as u64, what)?;
        let mut bytes = [0; N];
        self.input
            .read_exact(&mut bytes)
            .map_err(|source| self.read(source))?;
        Ok(bytes)
    }

    fn bytes(&mut self, length: u64, what: &str) -> Result<Vec<u8>, ArtifactError> {
        self.take(length, what)?;
        let mut bytes = vec![0; length as usize];
        self.input
            .read_exact(&mut bytes)
            .map_err(|source| self.read(source))?;
        Ok(bytes)
    }

    /// Counts `length` bytes as read, if there are so many.
    fn take(&mut self, length: u64, what: &str) -> Result<(), ArtifactError> {
        match self.left.checked_sub(length) {
            Some(left) => self.left = left,
            None if self.file_bytes > self.bound => {
                return Err(self.unsound(format!(
                    "{what} passes the {} bytes metadata may have",
                    self.bound
                )));
            }
            None => {
                return Err(ArtifactError::Truncated {
                    path: self.path.clone(),
                    bytes: self.file_bytes,
                    what: what.to_owned(),
                });
            }
        }
        Ok(())
    }

    fn read(&self, source: std::io::Error) -> ArtifactError {
        ArtifactError::Read {
            path: self.path.clone(),
            source,
        }
    }
}
