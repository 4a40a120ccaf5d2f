use hashbrown::HashMap;
use serde_json::{Value, json};

use super::{
    super::{corpus, payload},
    *,
};

mod engine_model;

const GPU: &str = "GPU";
const CPU: &str = "CPU";

/// A worker with blocks of two tokens.
fn blocks() -> Blocks {
    Blocks::new("m", 2, 0)
}

/// Applies events made of JSON. Returns what changes for routers.
fn apply(blocks: &mut Blocks, events: Value) -> Vec<KvEvent> {
    let payload = corpus::batch(&events);
    let mut changes = Vec::new();
    for event in &payload::decode(&payload).unwrap().events {
        blocks.apply(event, &mut changes);
    }
    changes
}

fn store(names: &[u64], parent: Option<u64>, tokens: &[u32]) -> Value {
    json!({
        "type": "BlockStored", "block_hashes": names, "parent_block_hash": parent, "token_ids": tokens,
        "block_size": 2, "lora_id": null, "medium": GPU, "lora_name": null,
    })
}

/// The event with more members.
fn with(mut event: Value, members: Value) -> Value {
    let members = members.as_object().unwrap().clone();
    event.as_object_mut().unwrap().extend(members);
    event
}

fn copy(names: &[u64]) -> Value {
    with(store(names, None, &[]), json!({"block_size": 0, "medium": CPU}))
}

fn remove(names: &[u64], medium: &str) -> Value {
    json!({"type": "BlockRemoved", "block_hashes": names, "medium": medium})
}

/// The hashes that a router computes.
fn router(lora: &str, salt: &str, tokens: &[u32]) -> Vec<SequenceHash> {
    BlockHasher::new("m", lora, salt, 2).hash(tokens)
}

fn stored(tier: CacheTier, parent: Option<SequenceHash>, blocks: &[SequenceHash]) -> KvEvent {
    KvEvent::Stored {
        tier,
        parent,
        blocks: blocks.to_vec(),
    }
}

fn removed(tier: CacheTier, blocks: &[SequenceHash]) -> KvEvent {
    KvEvent::Removed {
        tier,
        blocks: blocks.to_vec(),
    }
}

#[test]
fn blocks_get_the_hashes_that_routers_compute() {
    let (mut blocks, own) = (blocks(), router("", "", &[1, 2, 3, 4, 5, 6]));
    let changes = apply(
        &mut blocks,
        json!([
            store(&[91, 92], None, &[1, 2, 3, 4]),
            store(&[93], Some(92), &[5, 6])
        ]),
    );
    let expected = [
        stored(CacheTier::Device, None, &own[..2]),
        stored(CacheTier::Device, Some(own[1]), &own[2..]),
    ];
    assert_eq!(changes, expected);
    assert!(own.iter().all(|&block| blocks.holds(block)));
    assert_eq!(blocks.held(), 3);
    assert_eq!(
        apply(&mut blocks, json!([remove(&[93, 92], GPU)])),
        [removed(CacheTier::Device, &[own[2], own[1]])]
    );
    assert!(!blocks.holds(own[2]) && blocks.has_appeared(own[2]));
    assert!(blocks.dropped().iter().next().is_none(), "{:?}", blocks.dropped());
}

#[test]
fn the_blocks_of_a_real_vllm_are_those_of_its_prompts() {
    let (mut blocks, mut changes) = (Blocks::new("m", 32, 400), Vec::new());
    let hasher = BlockHasher::new("m", "", "", 32);
    // The tokens of each sequence by the engine's hash of its last block.
    let mut sequences: HashMap<EngineHash, Vec<u32>> = HashMap::new();
    let mut stored = 0;
    for message in corpus::captured() {
        let batch = payload::decode(&message.payload).unwrap();
        let [RawEvent::Stored(event)] = &batch.events[..] else {
            panic!("{batch:?}")
        };
        blocks.apply(&batch.events[0], &mut changes);
        let RawTokens::Ids(tokens) = &event.tokens else {
            panic!("ids")
        };
        let mut sequence = event
            .parent
            .map_or_else(Vec::new, |parent| sequences[&parent].clone());
        for (&name, tokens) in event.hashes.iter().zip(tokens.chunks(32)) {
            sequence.extend(tokens);
            sequences.insert(name, sequence.clone());
            stored += 1;
        }
        let own = hasher.hash(&sequence);
        assert!(
            own.iter().all(|&block| blocks.holds(block)),
            "message {}",
            message.number
        );
    }
    assert_eq!(blocks.held(), stored, "no block is reported twice");
    assert!(blocks.dropped().iter().next().is_none(), "{:?}", blocks.dropped());
    assert_eq!(blocks.block_sizes().iter().copied().collect::<Vec<_>>(), [32]);
}

#[test]
fn a_salt_in_the_first_block_salts_the_whole_sequence() {
    let (mut blocks, own) = (blocks(), router("", "tenant", &[1, 2, 3, 4, 5, 6]));
    let first = with(
        store(&[91, 92], None, &[1, 2, 3, 4]),
        json!({"extra_keys": [["tenant"], null]}),
    );
    let second = with(store(&[93], Some(92), &[5, 6]), json!({"extra_keys": [null]}));
    let changes = apply(&mut blocks, json!([first, second]));
    assert_eq!(changes[0], stored(CacheTier::Device, None, &own[..2]));
    assert_eq!(changes[1], stored(CacheTier::Device, Some(own[1]), &own[2..]));
}

#[test]
fn a_salt_as_a_member_of_each_event_salts_as_well() {
    let (mut blocks, own) = (blocks(), router("", "tenant", &[1, 2, 3, 4]));
    let salt = json!({"cache_salt": "tenant"});
    let first = with(store(&[91], None, &[1, 2]), salt.clone());
    let second = with(store(&[92], Some(91), &[3, 4]), salt);
    apply(&mut blocks, json!([first, second]));
    assert!(own.iter().all(|&block| blocks.holds(block)));
}

#[test]
fn a_lora_adapter_has_blocks_of_its_own() {
    let mut blocks = blocks();
    let members = json!({"lora_name": "sql", "lora_id": 1, "extra_keys": [["sql", "tenant"], ["sql"]]});
    apply(
        &mut blocks,
        json!([with(store(&[91, 92], None, &[1, 2, 3, 4]), members)]),
    );
    let own = router("sql", "tenant", &[1, 2, 3, 4]);
    assert!(own.iter().all(|&block| blocks.holds(block)));
    // The salt may be the adapter's name.
    let members = json!({"lora_name": "sql", "lora_id": 1, "extra_keys": [["sql", "sql"]]});
    apply(&mut blocks, json!([with(store(&[95], None, &[1, 2]), members)]));
    assert!(blocks.holds(router("sql", "sql", &[1, 2])[0]));
    let unnamed = json!({"lora_id": 1});
    apply(&mut blocks, json!([with(store(&[99], None, &[1, 2]), unnamed)]));
    assert_eq!(blocks.dropped().count(DropCause::UnnamedLora), 1);
    assert!(!blocks.holds(router("", "", &[1, 2])[0]));
}

#[test]
fn the_blocks_of_an_adapter_are_those_that_routers_compute_and_not_the_base_models() {
    let tokens = [1, 2, 3, 4];
    let (base, adapter) = (router("", "", &tokens), router("sql", "", &tokens));
    assert!(base.iter().all(|block| !adapter.contains(block)));
    // vLLM has the name in each block's keys too, SGLang beside the event only. Later blocks follow a parent.
    for keys in [json!([["sql"]]), json!(null)] {
        let mut blocks = blocks();
        let members = json!({"lora_name": "sql", "extra_keys": keys});
        let first = with(store(&[91], None, &tokens[..2]), members.clone());
        let second = with(store(&[92], Some(91), &tokens[2..]), members);
        apply(&mut blocks, json!([first, second]));
        assert!(adapter.iter().all(|&block| blocks.holds(block)), "{keys}");
        assert!(!base.iter().any(|&block| blocks.holds(block)), "{keys}");
        // The base model's blocks of the same tokens join them.
        apply(&mut blocks, json!([store(&[81, 82], None, &tokens)]));
        assert!(adapter.iter().chain(&base).all(|&block| blocks.holds(block)));
    }
}

#[test]
fn images_and_what_follows_them_are_not_indexed() {
    let mut blocks = blocks();
    let image = json!({"extra_keys": [null, [["image", 0]], null]});
    let events = json!([
        with(store(&[91, 92, 93], None, &[1, 2, 3, 4, 5, 6]), image),
        store(&[94], Some(93), &[7, 8]),
        store(&[95], Some(94), &[7, 8]),
    ]);
    let changes = apply(&mut blocks, events);
    let own = router("", "", &[1, 2]);
    assert_eq!(changes, [stored(CacheTier::Device, None, &own)]);
    assert_eq!(blocks.dropped().count(DropCause::Media), 4);
    assert_eq!(blocks.dropped().count(DropCause::UnknownParent), 0);
    assert_eq!(apply(&mut blocks, json!([remove(&[95, 94, 93, 92], GPU)])), []);
    assert_eq!(blocks.recall.remembered(), 1, "removed images are not remembered");
}

#[test]
fn a_block_with_an_unknown_parent_is_dropped_and_counted() {
    let mut blocks = blocks();
    let changes = apply(
        &mut blocks,
        json!([
            store(&[91, 92], Some(7), &[1, 2, 3, 4]),
            store(&[93], Some(92), &[5, 6]),
            remove(&[91], GPU)
        ]),
    );
    assert_eq!(changes, []);
    assert_eq!(blocks.dropped().count(DropCause::UnknownParent), 3);
}

#[test]
fn a_second_copy_is_no_change_and_the_first_removal_ends_the_credit() {
    let (mut blocks, own) = (blocks(), router("", "", &[1, 2, 3, 4]));
    let first = store(&[91], None, &[1, 2]);
    assert_eq!(
        apply(&mut blocks, json!([first, first])),
        [stored(CacheTier::Device, None, &own[..1])]
    );
    assert_eq!(
        apply(&mut blocks, json!([remove(&[91], GPU)])),
        [removed(CacheTier::Device, &own[..1])]
    );
    assert!(!blocks.holds(own[0]));
    // A child shows that the other copy is still there.
    assert_eq!(
        apply(&mut blocks, json!([store(&[92], Some(91), &[3, 4])])),
        [
            stored(CacheTier::Device, None, &own[..1]),
            stored(CacheTier::Device, Some(own[0]), &own[1..]),
        ]
    );
    assert_eq!(
        apply(&mut blocks, json!([remove(&[91], GPU), remove(&[91], GPU)])),
        [removed(CacheTier::Device, &own[..1])]
    );
}

#[test]
fn after_a_loss_a_child_proves_the_blocks_before_it() {
    let (mut blocks, own) = (blocks(), router("", "", &[1, 2, 3, 4, 5, 6]));
    apply(&mut blocks, json!([store(&[91, 92], None, &[1, 2, 3, 4])]));
    let mut changes = Vec::new();
    blocks.forget(&mut changes);
    assert_eq!(changes, [KvEvent::Cleared]);
    assert!(!blocks.is_whole() && !blocks.holds(own[0]) && blocks.has_appeared(own[0]));
    blocks.forget(&mut changes);
    assert_eq!(changes.len(), 1, "nothing is held that could be cleared");
    assert_eq!(
        apply(&mut blocks, json!([store(&[93], Some(92), &[5, 6])])),
        [
            stored(CacheTier::Device, None, &own[..2]),
            stored(CacheTier::Device, Some(own[1]), &own[2..]),
        ]
    );
    assert!(!blocks.is_whole(), "other blocks may be held and unknown");
}

#[test]
fn a_block_on_the_device_and_in_host_memory_is_held_twice() {
    let (mut blocks, own) = (blocks(), router("", "", &[1, 2, 3, 4]));
    apply(&mut blocks, json!([store(&[91, 92], None, &[1, 2, 3, 4])]));
    assert_eq!(
        apply(&mut blocks, json!([copy(&[91, 92, 99])])),
        [stored(CacheTier::Host, None, &own)]
    );
    assert_eq!(blocks.dropped().count(DropCause::UnknownParent), 1, "no block 99");
    apply(&mut blocks, json!([remove(&[92, 91], GPU)]));
    assert!(own.iter().all(|&block| blocks.holds(block)));
    assert_eq!(
        apply(&mut blocks, json!([remove(&[91], CPU)])),
        [removed(CacheTier::Host, &own[..1])]
    );
    assert!(!blocks.holds(own[0]) && blocks.holds(own[1]));
    // A copy of a block that left the device before it was reported.
    apply(&mut blocks, json!([remove(&[92], CPU), copy(&[92])]));
    assert!(blocks.holds(own[1]));
}

#[test]
fn only_groups_with_full_attention_are_followed() {
    let (mut blocks, own) = (blocks(), router("", "", &[1, 2]));
    let event = store(&[91], None, &[1, 2]);
    let sliding = with(
        event.clone(),
        json!({"group_idx": 0, "kv_cache_spec_kind": "sliding_window"}),
    );
    let full = with(
        event,
        json!({"group_idx": 1, "kv_cache_spec_kind": "full_attention"}),
    );
    assert_eq!(apply(&mut blocks, json!([sliding])), []);
    assert_eq!(blocks.dropped().count(DropCause::AttentionGroup), 1);
    apply(&mut blocks, json!([full]));
    let of_group = |group| with(remove(&[91], GPU), json!({"group_idx": group}));
    assert_eq!(
        apply(&mut blocks, json!([of_group(0)])),
        [],
        "the window moved on"
    );
    assert!(blocks.holds(own[0]));
    assert_eq!(apply(&mut blocks, json!([of_group(1)])).len(), 1);
}

#[test]
fn what_cannot_be_placed_is_counted_by_its_cause() {
    let mut blocks = blocks();
    let event = || store(&[91, 92], None, &[1, 2, 3, 4]);
    let cases = [
        (with(event(), json!({"block_size": 4})), DropCause::BlockSize, 2),
        (with(event(), json!({"medium": "TAPE"})), DropCause::Medium, 2),
        (with(event(), json!({"locality": "REMOTE"})), DropCause::Remote, 2),
        (
            with(event(), json!({"token_ids": [[1, 2], [2, 3]]})),
            DropCause::TokenPairs,
            2,
        ),
        (
            with(event(), json!({"token_ids": [1, 2, 3]})),
            DropCause::Malformed,
            2,
        ),
        (
            with(event(), json!({"token_ids": [-1, 2, 3, 4]})),
            DropCause::Malformed,
            2,
        ),
        (
            with(event(), json!({"block_hashes": []})),
            DropCause::Malformed,
            1,
        ),
        (json!({"type": "BlockStored"}), DropCause::Malformed, 1),
        (json!({"type": "Other"}), DropCause::UnknownEvent, 1),
    ];
    for (event, cause, count) in cases {
        let before = blocks.dropped().count(cause);
        assert_eq!(apply(&mut blocks, json!([event])), [], "{event}");
        assert_eq!(blocks.dropped().count(cause) - before, count, "{event}");
    }
    assert_eq!(blocks.block_sizes().iter().copied().collect::<Vec<_>>(), [2, 4]);
    assert_eq!((blocks.held(), blocks.is_whole()), (0, true));
}

#[test]
fn a_name_that_named_another_block_is_refused() {
    let (mut blocks, own) = (blocks(), router("", "", &[1, 2, 3, 4]));
    apply(&mut blocks, json!([store(&[91], None, &[1, 2])]));
    // The second block has the first one's name, and the third hangs on it.
    let changes = apply(
        &mut blocks,
        json!([store(&[92, 91, 93], None, &[7, 8, 3, 4, 5, 6])]),
    );
    assert_eq!(
        changes,
        [stored(CacheTier::Device, None, &router("", "", &[7, 8]))]
    );
    assert_eq!(apply(&mut blocks, json!([store(&[91], Some(91), &[3, 4])])), []);
    assert_eq!(blocks.dropped().count(DropCause::Conflict), 3);
    assert!(blocks.holds(own[0]) && !blocks.holds(own[1]));
}

#[test]
fn a_cleared_cache_and_a_restart_forget_all() {
    let (mut blocks, own) = (blocks(), router("", "", &[1, 2, 3, 4]));
    apply(&mut blocks, json!([store(&[91], None, &[1, 2])]));
    blocks.forget(&mut Vec::new());
    apply(&mut blocks, json!([store(&[91], None, &[1, 2])]));
    let changes = apply(
        &mut blocks,
        json!([{"type": "AllBlocksCleared"}, {"type": "AllBlocksCleared"}]),
    );
    assert_eq!(changes, [KvEvent::Cleared]);
    assert!(blocks.is_whole(), "an empty cache is known");
    assert!(!blocks.has_appeared(own[0]));
    apply(&mut blocks, json!([store(&[92], Some(91), &[3, 4])]));
    assert_eq!(blocks.dropped().count(DropCause::UnknownParent), 1);
}

#[test]
fn a_removal_that_cannot_be_read_forgets_all() {
    let mut blocks = blocks();
    apply(&mut blocks, json!([store(&[91], None, &[1, 2])]));
    let changes = apply(
        &mut blocks,
        json!([{"type": "BlockRemoved", "block_hashes": "x"}]),
    );
    assert_eq!(changes, [KvEvent::Cleared]);
    assert!(!blocks.is_whole());
}

#[test]
fn what_is_held_is_bounded() {
    let mut blocks = blocks();
    blocks.recall = Recall::with_max_held(3);
    let changes = apply(
        &mut blocks,
        json!([store(&[1, 2, 3, 4, 5], None, &[1, 1, 2, 2, 3, 3, 4, 4, 5, 5])]),
    );
    let own = router("", "", &[1, 1, 2, 2, 3, 3]);
    assert_eq!(changes, [stored(CacheTier::Device, None, &own)]);
    assert_eq!(blocks.dropped().count(DropCause::Full), 2);
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut blocks = blocks();
    blocks.recall = Recall::with_max_held(10);
    for name in 0..1000_u32 {
        let name_at_engine = u64::from(name);
        apply(
            &mut blocks,
            json!([
                store(&[name_at_engine], None, &[name, name]),
                remove(&[name_at_engine], GPU)
            ]),
        );
        assert!(blocks.recall.remembered() <= 20, "{}", blocks.recall.remembered());
    }
    assert!(
        blocks.has_appeared(router("", "", &[999, 999])[0]),
        "the newest is remembered"
    );
    // Images, and many names for one block.
    let image = json!({"extra_keys": [["image"], ["image"]]});
    for name in 0..1000_u64 {
        let names = [2 * name + 5000, 2 * name + 5001];
        apply(
            &mut blocks,
            json!([
                with(store(&names, Some(0), &[1, 2, 3, 4]), image.clone()),
                store(&[name + 9000], None, &[1, 1])
            ]),
        );
        assert!(blocks.recall.remembered() <= 21, "{}", blocks.recall.remembered());
    }
    assert!(
        !blocks.is_whole(),
        "an engine with many names for a block is not followed exactly"
    );
}
