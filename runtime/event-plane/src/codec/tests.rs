use proptest::prelude::*;

use super::*;

/// The example of `README.md`.
fn example() -> KvEventBatch {
    KvEventBatch {
        epoch: WorkerEpoch(1_766_000_000_000),
        sequence: 7,
        events: vec![
            KvEvent::Stored {
                tier: CacheTier::Device,
                parent: Some(SequenceHash(0x1111_2222_3333_4444)),
                blocks: vec![SequenceHash(1), SequenceHash(0xff00)],
            },
            KvEvent::Removed {
                tier: CacheTier::Host,
                blocks: vec![SequenceHash(u64::MAX)],
            },
            KvEvent::Cleared,
        ],
    }
}

/// The bytes of the README's example: the hexadecimal digits of each line, up to the bar.
fn documented_bytes() -> Vec<u8> {
    let readme = include_str!("../../README.md");
    let (_, rest) = readme.split_once("```bytes\n").unwrap();
    let (table, _) = rest.split_once("```").unwrap();
    let digits: String = table.lines().filter_map(|line| line.split('|').next()).collect();
    digits
        .split_whitespace()
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect()
}

#[test]
fn the_documented_example_is_encoded_and_decoded() {
    assert_eq!(encode_batch(&example())[..], documented_bytes());
    assert_eq!(decode_batch(&documented_bytes()).unwrap(), example());
}

#[test]
fn an_invalid_batch_is_refused_with_the_position_of_the_error() {
    let good = documented_bytes();
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        decode_batch(&bytes).unwrap_err()
    };
    assert_eq!(changed(0, 2), CodecError::Version(2));
    assert_eq!(changed(1, SNAPSHOT), CodecError::Malformed(1));
    assert_eq!(
        changed(21, 0xff),
        CodecError::Malformed(18),
        "more events than bytes"
    );
    assert_eq!(
        changed(22, 9),
        CodecError::Malformed(22),
        "an unknown kind of event"
    );
    assert_eq!(changed(23, 3), CodecError::Malformed(23), "an unknown tier");
    assert_eq!(
        changed(27, 0xff),
        CodecError::Malformed(24),
        "more blocks than bytes"
    );
    assert_eq!(decode_batch(&[]), Err(CodecError::Malformed(0)));
    let longer = [&good[..], &[0]].concat();
    assert_eq!(decode_batch(&longer), Err(CodecError::Malformed(good.len())));
}

#[test]
fn a_snapshot_holds_stored_events_only() {
    let bytes = encode(SNAPSHOT, WorkerEpoch(1), 0, &example().events);
    assert!(matches!(decode_snapshot(&bytes), Err(CodecError::Malformed(_))));
    assert!(matches!(
        decode_snapshot(&documented_bytes()),
        Err(CodecError::Malformed(1))
    ));
}

#[test]
fn a_block_takes_about_eight_bytes() {
    let blocks: Vec<_> = (0..16).map(SequenceHash).collect();
    let stored = KvEvent::Stored {
        tier: CacheTier::Device,
        parent: Some(SequenceHash(9)),
        blocks,
    };
    let batch = KvEventBatch {
        epoch: WorkerEpoch(1),
        sequence: 0,
        events: vec![stored; 100],
    };
    assert!(encode_batch(&batch).len() < 9 * 16 * 100);
}

fn hashes() -> impl Strategy<Value = Vec<SequenceHash>> {
    prop::collection::vec(any::<u64>().prop_map(SequenceHash), 0..20)
}

fn event() -> impl Strategy<Value = KvEvent> {
    let tier = || prop::sample::select(CacheTier::ALL.to_vec());
    let parent = prop::option::of(any::<u64>().prop_map(SequenceHash));
    prop_oneof![
        3 => (tier(), parent, hashes()).prop_map(|(tier, parent, blocks)| KvEvent::Stored { tier, parent, blocks }),
        2 => (tier(), hashes()).prop_map(|(tier, blocks)| KvEvent::Removed { tier, blocks }),
        1 => Just(KvEvent::Cleared),
    ]
}

proptest! {
    #[test]
    fn encoded_batches_decode_to_themselves(epoch: u64, sequence: u64, events in prop::collection::vec(event(), 0..20)) {
        let batch = KvEventBatch { epoch: WorkerEpoch(epoch), sequence, events };
        let bytes = encode_batch(&batch);
        prop_assert_eq!(decode_batch(&bytes).unwrap(), batch.clone());
        let events: usize = batch.events.iter().map(event_len).sum();
        prop_assert_eq!(bytes.len(), HEADER_LEN + events);
        let stored = batch.events.into_iter().filter(|event| matches!(event, KvEvent::Stored { .. })).collect();
        let snapshot = KvSnapshot { epoch: batch.epoch, next_sequence: sequence, stored };
        prop_assert_eq!(decode_snapshot(&encode_snapshot(&snapshot)).unwrap(), snapshot);
    }

    #[test]
    fn a_message_holds_one_or_more_batches(
        batches in prop::collection::vec(prop::collection::vec(event(), 0..5), 1..5), cut: prop::sample::Index,
    ) {
        let batches: Vec<_> = batches
            .into_iter()
            .enumerate()
            .map(|(sequence, events)| KvEventBatch { epoch: WorkerEpoch(1), sequence: sequence as u64, events })
            .collect();
        let encoded: Vec<_> = batches.iter().map(encode_batch).collect();
        let message = encoded.concat();
        prop_assert_eq!(decode_batches(&message).unwrap(), batches.clone());
        let ends: Vec<_> = encoded.iter().scan(0, |end, batch| { *end += batch.len(); Some(*end) }).collect();
        let cut = cut.index(message.len());
        match ends.iter().position(|end| *end == cut) {
            Some(whole) => prop_assert_eq!(decode_batches(&message[..cut]).unwrap(), &batches[..=whole]),
            None => prop_assert!(decode_batches(&message[..cut]).is_err()),
        }
    }

    /// Damaged bytes are an error, not a panic or a large allocation.
    #[test]
    fn damaged_bytes_are_an_error(events in prop::collection::vec(event(), 0..5), at: prop::sample::Index, byte: u8) {
        let batch = KvEventBatch { epoch: WorkerEpoch(1), sequence: 2, events };
        let mut bytes = encode_batch(&batch).to_vec();
        let at = at.index(bytes.len());
        prop_assert!(decode_batch(&bytes[..at]).is_err());
        bytes[at] = byte;
        if let Ok(read) = decode_batch(&bytes) {
            prop_assert_eq!(encode_batch(&read), bytes);
        }
    }
}
