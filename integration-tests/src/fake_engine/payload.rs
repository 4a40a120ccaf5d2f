//! Batches of KV events in msgpack, as `vllm/distributed/kv_events.py` and SGLang's `disaggregation/kv_events.py` encode
//! them: an array `[time, events, rank]` of maps with a `type`.

use serde::Serialize;

use super::{
    cache::{CacheEvent, StoredBlocks},
    options::Flavour,
};

/// The message of one batch. `at` is in seconds of the Unix epoch.
pub(super) fn encode(
    flavour: Flavour,
    at: f64,
    events: &[CacheEvent],
    rank: u32,
    block_size: u32,
) -> Result<Vec<u8>, rmp_serde::encode::Error> {
    let batch: (f64, Vec<Event<'_>>, u32) = (
        at,
        events
            .iter()
            .map(|event| Event::of(flavour, event, block_size))
            .collect(),
        rank,
    );
    let mut bytes = Vec::new();
    batch.serialize(&mut rmp_serde::Serializer::new(&mut bytes).with_struct_map())?;
    Ok(bytes)
}

#[derive(Serialize)]
#[serde(tag = "type")]
enum Event<'a> {
    #[serde(rename = "BlockStored")]
    VllmStored {
        block_hashes: &'a [u64],
        parent_block_hash: Option<u64>,
        token_ids: &'a [u32],
        block_size: u32,
        lora_id: Option<u32>,
        medium: &'static str,
        lora_name: Option<&'a str>,
        extra_keys: Vec<Option<Vec<&'a str>>>,
        group_idx: u32,
        kv_cache_spec_kind: &'static str,
    },
    #[serde(rename = "BlockStored")]
    SglangStored {
        block_hashes: Vec<i64>,
        parent_block_hash: Option<i64>,
        token_ids: &'a [u32],
        block_size: u32,
        lora_id: Option<u32>,
        medium: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        cache_salt: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        lora_name: Option<&'a str>,
    },
    #[serde(rename = "BlockRemoved")]
    VllmRemoved {
        block_hashes: [u64; 1],
        medium: &'static str,
        group_idx: u32,
    },
    #[serde(rename = "BlockRemoved")]
    SglangRemoved {
        block_hashes: [i64; 1],
        medium: &'static str,
    },
    AllBlocksCleared,
}

impl<'a> Event<'a> {
    fn of(flavour: Flavour, event: &'a CacheEvent, block_size: u32) -> Self {
        match (flavour, event) {
            (_, CacheEvent::Cleared) => Self::AllBlocksCleared,
            (Flavour::Vllm, CacheEvent::Removed(hash)) => Self::VllmRemoved {
                block_hashes: [*hash],
                medium: "GPU",
                group_idx: 0,
            },
            (Flavour::Sglang, CacheEvent::Removed(hash)) => Self::SglangRemoved {
                block_hashes: [hash.cast_signed()],
                medium: "GPU",
            },
            (Flavour::Vllm, CacheEvent::Stored(blocks)) => Self::VllmStored {
                block_hashes: &blocks.hashes,
                parent_block_hash: blocks.parent,
                token_ids: &blocks.tokens,
                block_size,
                lora_id: blocks.key.adapter.as_ref().map(|_| 1),
                medium: "GPU",
                lora_name: blocks.key.adapter.as_deref(),
                extra_keys: extra_keys(blocks),
                group_idx: 0,
                kv_cache_spec_kind: "full_attention",
            },
            (Flavour::Sglang, CacheEvent::Stored(blocks)) => Self::SglangStored {
                block_hashes: blocks.hashes.iter().map(|hash| hash.cast_signed()).collect(),
                parent_block_hash: blocks.parent.map(u64::cast_signed),
                token_ids: &blocks.tokens,
                block_size,
                lora_id: None,
                medium: "GPU",
                cache_salt: blocks.key.salt.as_deref(),
                lora_name: blocks.key.adapter.as_deref(),
            },
        }
    }
}

/// One entry a block: the adapter's name in all, the salt in the first block of a sequence only.
fn extra_keys(blocks: &StoredBlocks) -> Vec<Option<Vec<&str>>> {
    let of_block = |number: usize| {
        let is_first = number == 0 && blocks.parent.is_none();
        let salt = blocks.key.salt.as_deref().filter(|_| is_first);
        let keys: Vec<&str> = blocks.key.adapter.as_deref().into_iter().chain(salt).collect();
        (!keys.is_empty()).then_some(keys)
    };
    (0..blocks.hashes.len()).map(of_block).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::cache::CacheKey, *};

    /// The first message of a real vLLM 0.32 (SmolLM2, block size 32).
    const CAPTURED: &str = "93cb41dac260581d666c918ba474797065ab426c6f636b53746f726564ac626c6f636b5f68617368657391cf49\
        4110e08dae69f5b1706172656e745f626c6f636b5f68617368c0a9746f6b656e5f696473dc002001cd25daccc6cd0a7bcd0167ccfdcd14\
        eccd2ba51e02ccc601cd0ffdccc6cd1322cd013acd0104cd18e8cd116d2f02ccc601cd0208cd253bccc6cd01f8cd18e8cd116dcd013acc\
        fdcd03c6aa626c6f636b5f73697a6520a76c6f72615f6964c0a66d656469756da3475055a96c6f72615f6e616d65c0aa65787472615f6b\
        65797391c0a967726f75705f69647800b26b765f63616368655f737065635f6b696e64ae66756c6c5f617474656e74696f6e00";

    #[test]
    fn a_batch_is_encoded_as_vllm_encodes_it() {
        let stored = CacheEvent::Stored(StoredBlocks {
            hashes: vec![5_278_518_794_890_668_533],
            parent: None,
            tokens: vec![
                1, 9690, 198, 2683, 359, 253, 5356, 11173, 30, 2, 198, 1, 4093, 198, 4898, 314, 260, 6376,
                4461, 47, 2, 198, 1, 520, 9531, 198, 504, 6376, 4461, 314, 253, 966,
            ],
            key: CacheKey::default(),
        });
        let bytes = encode(Flavour::Vllm, 1_795_785_056.459_376_3, &[stored], 0, 32).unwrap();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, CAPTURED.replace([' ', '\n'], ""));
    }

    #[test]
    fn a_salt_is_in_the_first_block_of_a_sequence_and_an_adapter_in_all() {
        let mut blocks = StoredBlocks {
            hashes: vec![1, 2],
            parent: None,
            tokens: vec![1, 2],
            key: CacheKey {
                adapter: Some("lora".into()),
                salt: Some("tenant".into()),
            },
        };
        assert_eq!(
            extra_keys(&blocks),
            [Some(vec!["lora", "tenant"]), Some(vec!["lora"])]
        );
        blocks.parent = Some(7);
        blocks.key.adapter = None;
        assert_eq!(extra_keys(&blocks), [None, None]);
    }
}
