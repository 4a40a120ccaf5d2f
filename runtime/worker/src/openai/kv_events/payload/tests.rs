use serde_json::json;

use super::{super::corpus, *};

fn stored<'a>(batch: &'a Batch<'_>) -> Vec<&'a RawStored<'a>> {
    batch
        .events
        .iter()
        .filter_map(|event| match event {
            RawEvent::Stored(stored) => Some(stored),
            _ => None,
        })
        .collect()
}

/// Decodes one event made of JSON and passes it on.
fn check(event: &serde_json::Value, check: impl FnOnce(&RawEvent<'_>)) {
    let payload = corpus::batch(&json!([event]));
    let batch = decode(&payload).unwrap();
    assert_eq!(batch.events.len(), 1);
    check(&batch.events[0]);
}

fn store_event() -> serde_json::Value {
    json!({
        "type": "BlockStored", "block_hashes": [5, 6], "parent_block_hash": 4, "token_ids": [1, 2, 3, 4],
        "block_size": 2, "lora_id": null, "medium": "GPU", "lora_name": null,
    })
}

#[test]
fn the_messages_of_a_real_vllm_decode_as_another_reader_decodes_them() {
    let expected = include_str!("../corpus/vllm-0.32-frames.expected")
        .lines()
        .filter(|line| !line.starts_with('#'));
    let captured = corpus::captured();
    assert_eq!(captured.len(), 48);
    for (message, expected) in captured.iter().zip(expected) {
        let batch = decode(&message.payload).unwrap();
        assert_eq!(batch.rank, Some(0));
        let [stored] = stored(&batch)[..] else {
            panic!("one event")
        };
        let RawTokens::Ids(tokens) = &stored.tokens else {
            panic!("ids")
        };
        assert_eq!(
            (stored.block_size, stored.medium, stored.group),
            (32, RawMedium::Tier(CacheTier::Device), Some(0))
        );
        assert!(stored.full_attention && stored.extra_keys.is_empty());
        let hash = |hash: EngineHash| hash.0[1].to_string();
        let decoded = [
            message.number.to_string(),
            stored.parent.map_or_else(|| "-".into(), hash),
            stored.hashes.len().to_string(),
            hash(stored.hashes[0]),
            hash(*stored.hashes.last().unwrap()),
            tokens.len().to_string(),
            tokens
                .iter()
                .map(|&token| u64::from(token))
                .sum::<u64>()
                .to_string(),
        ];
        assert_eq!(decoded.join(" "), expected);
    }
}

#[test]
fn a_map_of_vllm_is_read() {
    let payload = corpus::vector("vllm-map-stored");
    let batch = decode(&payload).unwrap();
    assert_eq!(batch.rank, Some(0));
    assert_eq!(
        batch.events,
        [RawEvent::Stored(RawStored {
            hashes: vec![EngineHash::of(15_760_518_052_499_183_552)],
            parent: None,
            tokens: RawTokens::Ids(vec![1, 2, 3, 4]),
            block_size: 4,
            lora: RawLora::None,
            cache_salt: None,
            extra_keys: Vec::new(),
            medium: RawMedium::Tier(CacheTier::Device),
            group: Some(0),
            full_attention: true,
        })]
    );
}

#[test]
fn removals_with_byte_string_hashes_and_clears_are_read() {
    let payload = corpus::vector("vllm-map-removed-cleared");
    let batch = decode(&payload).unwrap();
    assert_eq!(batch.rank, None);
    assert_eq!(
        batch.events,
        [
            RawEvent::Removed(RawRemoved {
                hashes: vec![EngineHash::of(0x0101_0101)],
                medium: RawMedium::Tier(CacheTier::Device),
                group: None,
            }),
            RawEvent::Cleared,
        ]
    );
}

#[test]
fn signed_hashes_and_host_memory_of_sglang_are_read() {
    let payload = corpus::vector("sglang-map-stored-removed");
    let batch = decode(&payload).unwrap();
    assert_eq!(batch.rank, Some(1));
    let [RawEvent::Stored(stored), RawEvent::Removed(removed)] = &batch.events[..] else {
        panic!("{batch:?}")
    };
    let minus_two = EngineHash::of((-2_i64).cast_unsigned());
    assert_eq!(
        (&stored.hashes[..], stored.parent),
        (&[minus_two][..], Some(EngineHash::of(7)))
    );
    assert_eq!((stored.block_size, stored.group), (2, None));
    assert!(stored.full_attention, "no group means the only one");
    assert_eq!(
        (&removed.hashes[..], removed.medium),
        (&[minus_two][..], RawMedium::Tier(CacheTier::Host))
    );
}

#[test]
fn arrays_of_older_engines_are_read_and_may_be_short() {
    let payload = corpus::vector("legacy-stored");
    let batch = decode(&payload).unwrap();
    assert_eq!(batch.rank, Some(1));
    let [stored] = stored(&batch)[..] else {
        panic!("{batch:?}")
    };
    assert_eq!(stored.hashes, [EngineHash::of(1)]);
    assert_eq!(stored.parent, Some(EngineHash::of(5)));
    assert_eq!(stored.tokens, RawTokens::Ids(vec![1, 2]));
    let payload = corpus::vector("legacy-removed-cleared");
    let batch = decode(&payload).unwrap();
    assert!(matches!(
        batch.events[..],
        [RawEvent::Removed(_), RawEvent::Cleared]
    ));

    let first_version = rmp_serde::to_vec(&(1.5, json!([["BlockStored", [1], null, [1, 2], 2]]))).unwrap();
    let batch = decode(&first_version).unwrap();
    assert_eq!((batch.rank, batch.events.len()), (None, 1));
    assert!(matches!(batch.events[0], RawEvent::Stored(_)));
    // A list at the place of the group, as some engines send.
    let full = json!([
        "BlockStored",
        [1],
        null,
        [1, 2],
        2,
        null,
        "GPU",
        "lora",
        [["lora"]],
        [[]],
        "full_attention"
    ]);
    check(&full, |event| {
        let RawEvent::Stored(stored) = event else {
            panic!("{event:?}")
        };
        assert_eq!((stored.group, stored.lora), (None, RawLora::Named("lora")));
        assert_eq!(stored.extra_keys, [(0, ExtraKey::Text("lora"))]);
    });
}

#[test]
fn each_medium_is_a_tier_and_others_are_none() {
    let cases = [
        (json!(null), RawMedium::Tier(CacheTier::Device)),
        (json!("GPU"), RawMedium::Tier(CacheTier::Device)),
        (json!("CPU"), RawMedium::Tier(CacheTier::Host)),
        (json!("CPU_PINNED"), RawMedium::Tier(CacheTier::Host)),
        (json!("DISK"), RawMedium::Tier(CacheTier::Disk)),
        (json!("STORAGE"), RawMedium::Tier(CacheTier::Disk)),
        (json!("EXTERNAL"), RawMedium::Tier(CacheTier::Disk)),
        (json!("TAPE"), RawMedium::Unknown),
    ];
    for (medium, expected) in cases {
        check(
            &json!({"type": "BlockRemoved", "block_hashes": [1], "medium": medium}),
            |event| {
                let RawEvent::Removed(removed) = event else {
                    panic!("{event:?}")
                };
                assert_eq!(removed.medium, expected, "{medium}");
            },
        );
    }
    let mut event = store_event();
    event["locality"] = json!("REMOTE");
    check(&event, |event| {
        assert!(matches!(event, RawEvent::Stored(stored) if stored.medium == RawMedium::Remote));
    });
}

#[test]
fn only_groups_with_full_attention_count() {
    let kinds = [
        ("full_attention", true),
        ("mla_attention", true),
        ("sink_full_attention", true),
        ("sliding_window", false),
        ("mamba", false),
        ("chunked_local_attention", false),
        ("one to come", false),
    ];
    for (kind, counts) in kinds {
        let mut event = store_event();
        event["group_idx"] = json!(3);
        event["kv_cache_spec_kind"] = json!(kind);
        check(&event, |event| {
            let RawEvent::Stored(stored) = event else {
                panic!("{event:?}")
            };
            assert_eq!((stored.group, stored.full_attention), (Some(3), counts), "{kind}");
        });
    }
}

#[test]
fn extra_keys_keep_their_block_and_images_are_opaque() {
    let mut event = store_event();
    event["extra_keys"] = json!([["lora", ["image", 7], "salt"], null]);
    event["cache_salt"] = json!("other");
    check(&event, |event| {
        let RawEvent::Stored(stored) = event else {
            panic!("{event:?}")
        };
        let keys = [
            (0, ExtraKey::Text("lora")),
            (0, ExtraKey::Opaque),
            (0, ExtraKey::Text("salt")),
        ];
        assert_eq!(stored.extra_keys, keys);
        assert_eq!(stored.cache_salt, Some("other"));
    });
    let mut event = store_event();
    event["extra_keys"] = json!([null, [5]]);
    check(&event, |event| {
        assert!(matches!(event, RawEvent::Stored(stored) if stored.extra_keys == [(1, ExtraKey::Opaque)]))
    });
}

#[test]
fn a_lora_adapter_without_a_name_is_recognised() {
    let mut event = store_event();
    event["lora_id"] = json!(1);
    check(&event, |event| {
        assert!(matches!(event, RawEvent::Stored(stored) if stored.lora == RawLora::Unnamed))
    });
}

#[test]
fn pairs_of_tokens_are_recognised() {
    let mut event = store_event();
    event["token_ids"] = json!([[1, 2], [2, 3], [3, 4], [4, 5]]);
    check(&event, |event| {
        assert!(matches!(event, RawEvent::Stored(stored) if stored.tokens == RawTokens::Pairs))
    });
    for odd in [
        json!([1, [2, 3]]),
        json!([-1]),
        json!([4_294_967_296_u64]),
        json!(["a"]),
    ] {
        event["token_ids"] = odd;
        check(&event, |event| {
            assert!(matches!(event, RawEvent::Stored(stored) if stored.tokens == RawTokens::Unreadable))
        });
    }
}

#[test]
fn unknown_members_and_events_do_not_cost_the_batch() {
    let mut known = store_event();
    known["session_id"] = json!("s");
    known["lookahead_token_ids"] = json!([[1, 2], [3]]);
    known["to_come"] = json!({"a": [{"b": null}]});
    let payload = corpus::batch(&json!([
        {"type": "BlockMoved", "block_hashes": [1]},
        ["BlockMoved", 1, 2],
        {"block_hashes": [1]},
        7,
        [],
        {"type": "BlockStored", "block_hashes": [1]},
        {"type": "BlockStored", "block_hashes": [1], "token_ids": 1, "block_size": "x"},
        {"type": "BlockRemoved", "block_hashes": {"1": 2}},
        {"type": "BlockRemoved", "block_hashes": [1, "x"]},
        ["BlockRemoved"],
        known,
    ]));
    let batch = decode(&payload).unwrap();
    let (last, before) = batch.events.split_last().unwrap();
    let kinds = before.iter().map(|event| match event {
        RawEvent::Unknown => 'u',
        RawEvent::Unreadable => 'm',
        RawEvent::UnreadableRemoved => 'r',
        other => panic!("{other:?}"),
    });
    assert_eq!(kinds.collect::<String>(), "uummmmmrrr");
    assert!(matches!(last, RawEvent::Stored(stored) if stored.hashes.len() == 2));
}

#[test]
fn members_that_no_json_has_are_skipped_too() {
    // A map with a key that is no text, an extension value, text that is no UTF-8, and bytes.
    let event = [
        &b"\x86\x01\x02"[..],
        b"\xa1e\xd6\x01abcd",
        b"\xa1f\xc7\x03\x05abc",
        b"\xa1t\xa2\xff\xfe",
        b"\xa1b\xc4\x02ab",
        b"\xa4type\xb0AllBlocksCleared",
    ]
    .concat();
    let payload = [&b"\x92\x01\x91"[..], &event].concat();
    assert_eq!(decode(&payload).unwrap().events, [RawEvent::Cleared]);
}

#[test]
fn what_is_no_batch_is_refused_with_the_reason() {
    let load = corpus::vector("sglang-loadstat");
    let no_batches = [
        &load[..],
        b"",
        b"\xc1",
        b"\xc0",
        b"\x90",
        b"\x91\x01",
        b"\x92\x01\x02",
        b"\x92\xa1x\x90",
        b"\x80",
    ];
    for payload in no_batches {
        let error = decode(payload).unwrap_err().to_string();
        assert!(error.contains("no batch of KV events"), "{error}");
    }
    let long = vec![0xc0; MAX_PAYLOAD_LEN + 1];
    assert!(matches!(decode(&long), Err(InvalidPayload::TooLong(_))));
}

#[test]
fn lengths_that_the_payload_does_not_have_are_refused() {
    // Arrays, maps, texts and byte strings that announce four billion elements.
    for announced in [&b"\xdd"[..], b"\xdf", b"\xdb", b"\xc6", b"\xc9"] {
        for before in [
            &b""[..],
            b"\x92\x01",
            b"\x92\x01\x91",
            b"\x92\x01\x91\x81",
            b"\x92\x01\x91\x82\xacblock_hashes",
            b"\x92\x01\x91\x82\xa9token_ids",
            b"\x92\x01\x91\x82\xaaextra_keys",
            b"\x92\x01\x91\x82\xaaextra_keys\x91",
            b"\x92\x01\x91\x96\xabBlockStored",
        ] {
            let payload = [before, announced, b"\xff\xff\xff\xff", b"\x01\x02"].concat();
            assert!(decode(&payload).is_err(), "{payload:02x?}");
        }
    }
}

#[test]
fn the_bounds_of_a_batch_hold_over_all_its_events() {
    fn of(event: &[u8], count: usize) -> Vec<u8> {
        let mut payload = b"\x92\x01\xdd".to_vec();
        payload.extend((count as u32).to_be_bytes());
        for _ in 0..count {
            payload.extend(event);
        }
        payload
    }
    fn list(len: u32, element: u8) -> Vec<u8> {
        let mut list = [&b"\xdd"[..], &len.to_be_bytes()].concat();
        list.extend(std::iter::repeat_n(element, len as usize));
        list
    }
    let refused = |payload: &[u8], what: &str| {
        let error = decode(payload).unwrap_err().to_string();
        assert!(error.contains(what), "{what}: {error}");
    };
    refused(&of(b"\x90", MAX_EVENTS + 1), "events");
    assert!(decode(&of(b"\x90", MAX_EVENTS)).is_ok());
    let removal = [&b"\x92\xacBlockRemoved"[..], &list(MAX_HASHES as u32, 1)].concat();
    assert!(decode(&of(&removal, 1)).is_ok());
    refused(&of(&removal, 2), "block hashes");
    let tokens = [
        &b"\x95\xabBlockStored\x91\x01\xc0"[..],
        &list(MAX_TOKENS as u32, 1),
        b"\x01",
    ]
    .concat();
    assert!(decode(&of(&tokens, 1)).is_ok());
    refused(&of(&tokens, 2), "token ids");
    let keys = [
        &b"\x99\xabBlockStored\x91\x01\xc0\x90\x01\xc0\xc0\xc0\x91"[..],
        &list(MAX_EXTRA_KEYS as u32, 1),
    ]
    .concat();
    assert!(decode(&of(&keys, 1)).is_ok());
    refused(&of(&keys, 2), "extra keys");
}

#[test]
fn nesting_is_bounded() {
    let mut payload = b"\x92\x01\x91\x81\xa1x".to_vec();
    payload.extend(std::iter::repeat_n(0x91, 1_000_000));
    payload.push(1);
    assert!(decode(&payload).is_err());
    let shallow = [&b"\x92\x01\x91\x81\xa1x"[..], &[0x91; 20], b"\x01"].concat();
    assert_eq!(decode(&shallow).unwrap().events, [RawEvent::Unreadable]);
}
