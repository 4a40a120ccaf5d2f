//! Reads the metadata at the head of a GGUF file. Every length in the file is checked before it is used.
//!
//! Layout, little-endian (ggml's `docs/gguf.md`, versions 2 and 3): `"GGUF"`, version `u32`, number of tensors `u64`,
//! number of keys `u64`, then for each key a string, a type `u32` and a value. A string is a `u64` length and UTF-8. An
//! array is the type of its elements `u32`, their number `u64` and the elements. The tensors follow. They are not read,
//! so reading takes milliseconds for a model of any size.

mod cursor;
pub(crate) mod pre_tokenizer;
mod tokenizer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::ArtifactError;
use cursor::Cursor;

/// Most keys of a file. Published files have 20 to 60.
const MAX_KEYS: u64 = 65_536;
/// Most bytes of all metadata together. A vocabulary of 256k tokens with its merges takes about 15 MiB.
const MAX_METADATA_BYTES: u64 = 256 << 20;

/// A metadata value. Integers of every width become `Int`, floats of both widths become `Float`.
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

/// All metadata of a GGUF file, without the tensors.
#[derive(Debug, Clone)]
pub struct GgufMetadata {
    path: PathBuf,
    file_bytes: u64,
    version: u32,
    tensor_count: u64,
    values: BTreeMap<String, GgufValue>,
}

/// Reads the metadata of the GGUF file at `path`, without the tensors.
///
/// # Errors
/// The file cannot be read, is no GGUF file, has another version, ends early, or a length exceeds its bound.
pub fn read_gguf_metadata(path: &Path) -> Result<GgufMetadata, ArtifactError> {
    let mut cursor = Cursor::open(path, MAX_METADATA_BYTES)?;
    let (version, tensor_count, keys) = read_head(&mut cursor, path)?;
    let mut values = BTreeMap::new();
    for index in 0..keys {
        let key = cursor.string(&format!("the name of key {index} of {keys}"))?;
        let value = cursor.value(&format!("the value of {key:?}"))?;
        if values.insert(key.clone(), value).is_some() {
            return Err(cursor.invalid(format!("key {key:?} occurs twice")));
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
        return Err(cursor.invalid(format!("the file states {keys} keys; the limit is {MAX_KEYS}")));
    }
    Ok((version, tensor_count, keys))
}

impl GgufMetadata {
    /// The file the metadata was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The length of the whole file in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// The version of the GGUF format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The number of tensors that the file states.
    pub fn tensor_count(&self) -> u64 {
        self.tensor_count
    }

    /// The value of `key`, if the file has it.
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

    /// `general.name`, if the file has it.
    pub fn name(&self) -> Option<&str> {
        self.string("general.name").ok().flatten()
    }

    /// `{architecture}.context_length`: the context length that the model was trained for, in tokens.
    ///
    /// # Errors
    /// The key is absent or no integer of 0 or more.
    pub fn context_length(&self) -> Result<u64, ArtifactError> {
        self.architecture_integer("context_length")
    }

    /// `{architecture}.block_count`: the number of transformer layers.
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

    /// The number of tokens in the vocabulary: the length of `tokenizer.ggml.tokens`.
    ///
    /// # Errors
    /// The key is absent or no array of strings.
    pub fn vocabulary_size(&self) -> Result<usize, ArtifactError> {
        let key = "tokenizer.ggml.tokens";
        Ok(self.required(key, self.strings(key)?)?.len())
    }

    /// The integer of `{architecture}.{key}`.
    ///
    /// # Errors
    /// The key is absent or no integer of 0 or more.
    pub fn architecture_integer(&self, key: &str) -> Result<u64, ArtifactError> {
        let key = format!("{}.{key}", self.architecture()?);
        self.required(&key, self.integer(&key)?)
    }

    /// The integer of `key`; `None` if the key is absent.
    ///
    /// # Errors
    /// The value is no integer of 0 or more.
    pub fn integer(&self, key: &str) -> Result<Option<u64>, ArtifactError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(GgufValue::Int(value)) if u64::try_from(*value).is_ok() => Ok(u64::try_from(*value).ok()),
            Some(GgufValue::Int(_)) => Err(self.wrong_type(key, "0 or more", "negative")),
            Some(other) => Err(self.wrong_type(key, "an integer", other.type_name())),
        }
    }

    /// The float of `key`; `None` if the key is absent.
    ///
    /// # Errors
    /// The value is no float.
    pub fn float(&self, key: &str) -> Result<Option<f64>, ArtifactError> {
        self.typed(key, "a float", |value| match value {
            GgufValue::Float(float) => Some(*float),
            _ => None,
        })
    }

    /// The boolean of `key`; `None` if the key is absent.
    ///
    /// # Errors
    /// The value is no boolean.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>, ArtifactError> {
        self.typed(key, "a boolean", |value| match value {
            GgufValue::Bool(boolean) => Some(*boolean),
            _ => None,
        })
    }

    /// The string of `key`; `None` if the key is absent.
    ///
    /// # Errors
    /// The value is no string.
    pub fn string(&self, key: &str) -> Result<Option<&str>, ArtifactError> {
        self.typed(key, "a string", |value| match value {
            GgufValue::String(string) => Some(&**string),
            _ => None,
        })
    }

    /// The strings of `key`; `None` if the key is absent.
    ///
    /// # Errors
    /// The value is no array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>, ArtifactError> {
        self.typed(key, "an array of strings", |value| match value {
            GgufValue::Strings(strings) => Some(&**strings),
            _ => None,
        })
    }

    /// The integers of `key`; `None` if the key is absent.
    ///
    /// # Errors
    /// The value is no array of integers.
    pub fn integers(&self, key: &str) -> Result<Option<&[i64]>, ArtifactError> {
        self.typed(key, "an array of integers", |value| match value {
            GgufValue::Ints(integers) => Some(&**integers),
            _ => None,
        })
    }

    /// The floats of `key`; `None` if the key is absent.
    ///
    /// # Errors
    /// The value is no array of floats.
    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>, ArtifactError> {
        self.typed(key, "an array of floats", |value| match value {
            GgufValue::Floats(floats) => Some(&**floats),
            _ => None,
        })
    }

    /// The value of a required key, or an error that names the key.
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
