//! What an engine's hashes cover beside tokens, told apart.
//!
//! The keys of a block come in the order: the LoRA adapter's name, images, the salt, prompt embeddings. The adapter is in
//! each block, the salt in the first block of a sequence only. An older vLLM sends an image as a text, its hash; in a
//! first block that looks like a salt, and gives hashes that no prompt has.
//! Source: `generate_block_hash_extra_keys` in vLLM's `vllm/v1/core/kv_cache_utils.py`.

use super::super::{
    facts::DropCause,
    payload::{ExtraKey, RawLora, RawStored},
};

/// What the hashes of an event cover beside tokens.
pub(super) struct Keys<'a> {
    /// The LoRA adapter's name; empty for none.
    pub(super) lora: &'a str,
    /// The salt; empty for none, and in events whose first block does not begin a sequence.
    pub(super) salt: &'a str,
    /// The first block that holds something which is no token of a prompt; beyond the last block if none does.
    pub(super) opaque_from: usize,
}

impl<'a> Keys<'a> {
    /// # Errors
    /// The adapter has no name.
    pub(super) fn of(stored: &RawStored<'a>) -> Result<Self, DropCause> {
        let lora = match stored.lora {
            RawLora::None => "",
            RawLora::Named(name) => name,
            RawLora::Unnamed => return Err(DropCause::UnnamedLora),
        };
        let mut keys = Self {
            lora,
            salt: stored.cache_salt.unwrap_or_default(),
            opaque_from: usize::MAX,
        };
        let mut lora_named_in = None;
        for &(block, key) in &stored.extra_keys {
            match key {
                // The adapter's name comes first in each block. A salt may have the same text.
                ExtraKey::Text(text) if text == lora && lora_named_in != Some(block) => {
                    lora_named_in = Some(block)
                }
                ExtraKey::Text(salt) if block == 0 && stored.parent.is_none() && keys.salt.is_empty() => {
                    keys.salt = salt;
                }
                ExtraKey::Text(_) | ExtraKey::Opaque => {
                    keys.opaque_from = block;
                    break;
                }
            }
        }
        Ok(keys)
    }
}
