//! The facts about a model that its GGUF metadata states.

use std::path::Path;

use llama_cpp_2::gguf::GgufContext;

use super::error::LlamaError;

/// What a model's file states about the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFacts {
    /// `general.architecture`: `llama`, `qwen2`, …
    pub architecture: String,
    /// `general.name`, if the file has it.
    pub name: Option<String>,
    /// The context length that the model was trained for, in tokens.
    pub trained_context: u32,
    /// Number of tokens in the vocabulary.
    pub vocab_size: u32,
    /// Number of weights.
    pub parameters: u64,
    /// Size of the file in bytes.
    pub file_bytes: u64,
    /// Size of one token's KV in bytes.
    pub kv_bytes_per_token: u64,
}

/// Whether the cells of a prefix can stay cached for other sequences. With a sliding window llama.cpp reuses all cells
/// that its window has left, cached ones too.
pub(super) fn cells_can_be_cached(path: &Path, facts: &ModelFacts) -> bool {
    let window = format!("{}.attention.sliding_window", facts.architecture);
    GgufContext::from_file(path).is_none_or(|gguf| gguf.find_key(&window) < 0)
}

/// Reads the facts from the file's metadata, without loading the model. `parameters` is 0.
pub(super) fn read_facts(path: &Path, file_bytes: u64) -> Result<ModelFacts, LlamaError> {
    let gguf = GgufContext::from_file(path).ok_or_else(|| LlamaError::NotGguf {
        path: path.to_owned(),
    })?;
    let Some(architecture) = text(&gguf, "general.architecture") else {
        return Err(LlamaError::Unsupported {
            path: path.to_owned(),
            architecture: "nameless".to_owned(),
            why: "the file has no general.architecture; this engine serves language models",
        });
    };
    let has = |key: &str| gguf.find_key(&format!("{architecture}.{key}")) >= 0;
    if has("attention.causal") || has("decoder_start_token_id") {
        return Err(LlamaError::Unsupported {
            path: path.to_owned(),
            architecture,
            why: "it encodes text and does not generate it; this engine serves decoder-only models",
        });
    }
    let number = |key: &str| number(&gguf, &format!("{architecture}.{key}"));
    let heads = number("attention.head_count").unwrap_or(1).max(1);
    // If the number differs by layer, the file has an array. `heads` is the upper bound.
    let kv_heads = number("attention.head_count_kv").unwrap_or(heads);
    let head_size = number("embedding_length").unwrap_or(0) / heads;
    let row = number("attention.key_length").unwrap_or(head_size)
        + number("attention.value_length").unwrap_or(head_size);
    const F16_BYTES: u64 = 2;
    Ok(ModelFacts {
        name: text(&gguf, "general.name"),
        trained_context: number("context_length")
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(0),
        vocab_size: number("vocab_size")
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(0),
        parameters: 0,
        file_bytes,
        kv_bytes_per_token: number("block_count").unwrap_or(0) * kv_heads * row * F16_BYTES,
        architecture,
    })
}

/// Type numbers of GGUF values: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>
const GGUF_UINT32: u32 = 4;
const GGUF_STRING: u32 = 8;
const GGUF_UINT64: u32 = 10;

fn number(gguf: &GgufContext, key: &str) -> Option<u64> {
    let index = gguf.find_key(key);
    if index < 0 {
        return None;
    }
    match gguf.kv_type(index) {
        GGUF_UINT32 => Some(u64::from(gguf.val_u32(index))),
        GGUF_UINT64 => Some(gguf.val_u64(index)),
        _ => None,
    }
}

fn text(gguf: &GgufContext, key: &str) -> Option<String> {
    let index = gguf.find_key(key);
    let is_text = index >= 0 && gguf.kv_type(index) == GGUF_STRING;
    is_text.then(|| gguf.val_str(index).map(str::to_owned)).flatten()
}
