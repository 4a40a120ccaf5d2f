//! The metadata at the head of a GGUF file, read with every length checked against the file before it is believed.
//!
//! Layout, little-endian (ggml's `docs/gguf.md`, versions 2 and 3): `"GGUF"`, version `u32`, tensors `u64`, keys `u64`,
//! then for each key a string, a type `u32` and a value. A string is a `u64` length and UTF-8; an array is its
//! elements' type `u32`, their number `u64` and the elements. Tensors follow; they are not touched, so that reading takes
//! milliseconds whatever the model's size.

mod cursor;
pub(crate) mod pre_tokenizer;
mod tokenizer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::ArtifactError;
use cursor::Cursor;

/// Keys a file may hold. Real ones hold 20 to 60.
const MAX_KEYS: u64 = 65_536;
/// Bytes of all metadata together. A vocabulary of 256k tokens with its merges takes about 15 MiB.
const MAX_METADATA_BYTES: u64 = 256 << 20;

/// A metadata value. Integers of every width become `Int`, floats of both become `Float`.
#[derive(Debug, Clone, PartialEq)]
pub enum GgufValue {
    /// Any integer type.
    Int(i128),
    /// `f32` or `f64`.
    Float(f64),
    /// One byte, 0 or 1.
    Bool(bool),
    /// UTF-8.
    String(String),
    /// An array of any integer type.
    Ints(Vec<i64>),
    /// An array of either float type.
    Floats(Vec<f32>),
    /// An array of booleans.
    Bools(Vec<bool>),
    /// An array of strings.
    Strings(Vec<String>),
}

impl GgufValue {
    fn type_name(&self) -> &'static str {
        match self {
            Self::Int(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Bool(_) => "a boolean",
            Self::String(_) => "a string",
            Self::Ints(_) => "an array of integers",
            Self::Floats(_) => "an array of floats",
            Self::Bools(_) => "an array of booleans",
            Self::Strings(_) => "an array of strings",
        }
    }
}

/// Everything a GGUF says about its model, without the tensors.
#[derive(Debug, Clone)]
pub struct GgufMetadata {
    path: PathBuf,
    file_bytes: u64,
    version: u32,
    tensor_count: u64,
    values: BTreeMap<String, GgufValue>,
}

/// Reads the metadata of the GGUF file at `path`; the tensors behind it are not touched.
///
/// # Errors
/// A file that cannot be read, is no GGUF, is of another version, ends early, or whose lengths pass their bounds.
pub fn read_gguf_metadata(path: &Path) -> Result<GgufMetadata, ArtifactError> {
    let mut cursor = Cursor::open(path, MAX_METADATA_BYTES)?;
    let (version, tensor_count, keys) = read_head(&mut cursor, path)?;
    let mut values = BTreeMap::new();
    for index in 0..keys {
        let key = cursor.string(&format!("the name of key {index} of {keys}"))?;
        let value = cursor.value(&format!("the value of {key:?}"))?;
        if values.insert(key.clone(), value).is_some() {
            return Err(cursor.unsound(format!("key {key:?} occurs twice")));
        }
    }
    Ok(GgufMetadata {
        path: path.to_owned(),
        file_bytes: cursor.file_bytes(),
        version,
        tensor_count,
        values,
    })
}

fn read_head(cursor: &mut Cursor, path: &Path) -> Result<(u32, u64, u64), ArtifactError> {
    let found = cursor.prefix::<4>()?;
    if found.as_slice() != b"GGUF" {
        return Err(ArtifactError::NotGguf {
            path: path.to_owned(),
            found: found.escape_ascii().to_string(),
        });
    }
    let version = cursor.u32("the version")?;
    if !(2..=3).contains(&version) {
        return Err(ArtifactError::GgufVersion {
            path: path.to_owned(),
            version,
        });
    }
    let tensor_count = cursor.u64("the number of tensors")?;
    let keys = cursor.u64("the number of keys")?;
    if keys > MAX_KEYS {
        return Err(cursor.unsound(format!("it states {keys} keys; the limit is {MAX_KEYS}")));
    }
    Ok((version, tensor_count, keys))
}

impl GgufMetadata {
    /// The file the metadata was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file's length in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// The version of the format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Tensors the file states to hold.
    pub fn tensor_count(&self) -> u64 {
        self.tensor_count
    }

    /// The value under `key`, if there is one.
    pub fn value(&self, key: &str) -> Option<&GgufValue> {
        self.values.get(key)
    }

    /// `general.architecture`: `llama`, `qwen3`, …
    ///
    /// # Errors
    /// The key is absent or no string.
    pub fn architecture(&self) -> Result<&str, ArtifactError> {
        self.required("general.architecture", self.string("general.architecture")?)
    }

    /// `general.name`, where the file states one.
    pub fn name(&self) -> Option<&str> {
        self.string("general.name").ok().flatten()
    }

    /// `{architecture}.context_length`: the tokens the model was trained to attend over.
    ///
    /// # Errors
    /// The key is absent or no integer; likewise for the next ones.
    pub fn context_length(&self) -> Result<u64, ArtifactError> {
        self.architecture_integer("context_length")
    }

    /// `{architecture}.block_count`: transformer layers.
    ///
    /// # Errors
    /// As for [`Self::context_length`].
    pub fn block_count(&self) -> Result<u64, ArtifactError> {
        self.architecture_integer("block_count")
    }

    /// `{architecture}.embedding_length`: the width of the residual stream.
    ///
    /// # Errors
    /// As for [`Self::context_length`].
    pub fn embedding_length(&self) -> Result<u64, ArtifactError> {
        self.architecture_integer("embedding_length")
    }

    /// Tokens in the vocabulary: the length of `tokenizer.ggml.tokens`.
    ///
    /// # Errors
    /// The key is absent or no array of strings.
    pub fn vocabulary_size(&self) -> Result<usize, ArtifactError> {
        let key = "tokenizer.ggml.tokens";
        Ok(self.required(key, self.strings(key)?)?.len())
    }

    /// The integer under `{architecture}.{key}`.
    ///
    /// # Errors
    /// The key is absent or no integer of 0 or more.
    pub fn architecture_integer(&self, key: &str) -> Result<u64, ArtifactError> {
        let key = format!("{}.{key}", self.architecture()?);
        self.required(&key, self.integer(&key)?)
    }

    /// The integer under `key`; `None` where it is absent.
    ///
    /// # Errors
    /// It is no integer of 0 or more.
    pub fn integer(&self, key: &str) -> Result<Option<u64>, ArtifactError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(GgufValue::Int(value)) if u64::try_from(*value).is_ok() => Ok(u64::try_from(*value).ok()),
            Some(GgufValue::Int(_)) => Err(self.wrong_type(key, "0 or more", "negative")),
            Some(other) => Err(self.wrong_type(key, "an integer", other.type_name())),
        }
    }

    /// The float under `key`; `None` where it is absent.
    ///
    /// # Errors
    /// It is no float.
    pub fn float(&self, key: &str) -> Result<Option<f64>, ArtifactError> {
        self.typed(key, "a float", |value| {
            if let GgufValue::Float(it) = value {
                Some(*it)
            } else {
                None
            }
        })
    }

    /// The boolean under `key`; `None` where it is absent.
    ///
    /// # Errors
    /// It is no boolean.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>, ArtifactError> {
        self.typed(key, "a boolean", |value| {
            if let GgufValue::Bool(it) = value {
                Some(*it)
            } else {
                None
            }
        })
    }

    /// The string under `key`; `None` where it is absent.
    ///
    /// # Errors
    /// It is no string.
    pub fn string(&self, key: &str) -> Result<Option<&str>, ArtifactError> {
        self.typed(key, "a string", |value| {
            if let GgufValue::String(it) = value {
                Some(&**it)
            } else {
                None
            }
        })
    }

    /// The strings under `key`; `None` where it is absent.
    ///
    /// # Errors
    /// It is no array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>, ArtifactError> {
        self.typed(key, "an array of strings", |value| match value {
            GgufValue::Strings(it) => Some(&**it),
            _ => None,
        })
    }

    /// The integers under `key`; `None` where it is absent.
    ///
    /// # Errors
    /// It is no array of integers.
    pub fn integers(&self, key: &str) -> Result<Option<&[i64]>, ArtifactError> {
        self.typed(key, "an array of integers", |value| match value {
            GgufValue::Ints(it) => Some(&**it),
            _ => None,
        })
    }

    /// The floats under `key`; `None` where it is absent.
    ///
    /// # Errors
    /// It is no array of floats.
    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>, ArtifactError> {
        self.typed(key, "an array of floats", |value| match value {
            GgufValue::Floats(it) => Some(&**it),
            _ => None,
        })
    }

    /// Turns an optional value into a needed one.
    pub(crate) fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, ArtifactError> {
        value.ok_or_else(|| ArtifactError::MissingKey {
            path: self.path.clone(),
            key: key.to_owned(),
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        pick: impl Fn(&'a GgufValue) -> Option<T>,
    ) -> Result<Option<T>, ArtifactError> {
        let Some(value) = self.values.get(key) else {
            return Ok(None);
        };
        pick(value)
            .map(Some)
            .ok_or_else(|| self.wrong_type(key, expected, value.type_name()))
    }

    fn wrong_type(&self, key: &str, expected: &'static str, found: &'static str) -> ArtifactError {
        ArtifactError::WrongType {
            path: self.path.clone(),
            key: key.to_owned(),
            expected,
            found,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
