//! Payloads that no engine sends: random bytes, and those of the corpus with bytes changed. None may panic, and none may
//! take much more memory than it has bytes.

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::{
    corpus,
    normalise::Blocks,
    payload::{self, RawEvent, RawTokens},
};

/// A payload of the corpus longer than this is used once in a hundred times, so that the test is quick.
const SHORT: usize = 700;

#[test]
fn no_payload_panics_or_takes_much_memory() {
    decode_hostile_payloads(100_000);
}

/// Run it with `cargo test --release -p signalbox-worker -- --ignored hostile`, or for a minute without `--release`.
#[test]
#[ignore = "takes minutes"]
fn a_million_hostile_payloads_do_not_panic_or_take_much_memory() {
    decode_hostile_payloads(1_000_000);
}

fn decode_hostile_payloads(count: usize) {
    let mut rng = StdRng::seed_from_u64(12);
    let mut corpus: Vec<Vec<u8>> = corpus::captured()
        .iter()
        .map(|message| message.payload.to_vec())
        .collect();
    corpus.extend(corpus::vectors().into_iter().map(|(_, payload)| payload.to_vec()));
    let (long, short): (Vec<_>, Vec<_>) = corpus.into_iter().partition(|payload| payload.len() > SHORT);
    let (mut read, mut events) = (0, 0);
    // Blocks of the size of the vectors, then of the captured messages.
    let mut followers = [2, 32].map(|block_size| Blocks::new("m", block_size, 100));
    let mut changes = Vec::new();
    for round in 0..count {
        let payload = match round % 10 {
            0 => random_bytes(&mut rng),
            _ if round % 100 == 1 => mutated(&mut rng, &long),
            _ => mutated(&mut rng, &short),
        };
        let Ok(batch) = payload::decode(&payload) else {
            continue;
        };
        read += 1;
        events += batch.events.len();
        assert!(
            size(&batch) <= 4096 + 400 * payload.len(),
            "{} bytes for {payload:02x?}",
            size(&batch)
        );
        for blocks in &mut followers {
            for event in &batch.events {
                blocks.apply(event, &mut changes);
            }
            // The bound of a small engine, whatever it sends.
            assert!(blocks.held() <= 1 << 16);
        }
        changes.clear();
    }
    assert!(
        read > count / 20 && events > count / 20,
        "{read} of {count} payloads were read, with {events} events: the mutations are too wild to test anything"
    );
}

fn random_bytes(rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = vec![0; rng.random_range(0..200)];
    rng.fill_bytes(&mut bytes);
    if rng.random_bool(0.5) {
        // A batch up to its events.
        bytes.splice(0..0, *b"\x93\x01\x91");
    }
    bytes
}

fn mutated(rng: &mut StdRng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut payload = corpus.choose(rng).unwrap().clone();
    for _ in 0..rng.random_range(1..4) {
        if payload.is_empty() {
            break;
        }
        let at = rng.random_range(0..payload.len());
        match rng.random_range(0..8) {
            0 => payload[at] = rng.random(),
            1 => payload[at] ^= 1 << rng.random_range(0..8),
            2 => payload.truncate(at),
            3 => payload.insert(at, rng.random()),
            4 => _ = payload.remove(at),
            // Markers of everything that has a length, nil, and the markers that are reserved.
            5 => {
                payload[at] = *[
                    0xc0, 0xc1, 0xc4, 0xc6, 0xc7, 0xc9, 0xd9, 0xdb, 0xdc, 0xdd, 0xde, 0xdf,
                ]
                .choose(rng)
                .unwrap();
            }
            6 => {
                let end = (at + 4).min(payload.len());
                payload[at..end].fill(0xff);
            }
            _ => {
                let other = corpus.choose(rng).unwrap();
                let from = rng.random_range(0..other.len());
                let to = (from + rng.random_range(1..64)).min(other.len());
                payload.splice(at..at, other[from..to].iter().copied());
            }
        }
    }
    payload
}

/// Bytes that a batch has allocated.
fn size(batch: &payload::Batch<'_>) -> usize {
    let parts = batch.events.iter().map(|event| match event {
        RawEvent::Stored(stored) => {
            let tokens = match &stored.tokens {
                RawTokens::Ids(ids) => ids.capacity() * size_of::<u32>(),
                RawTokens::Pairs | RawTokens::Unreadable => 0,
            };
            tokens
                + stored.hashes.capacity() * size_of::<payload::EngineHash>()
                + stored.extra_keys.capacity() * size_of::<(usize, payload::ExtraKey<'_>)>()
        }
        RawEvent::Removed(removed) => removed.hashes.capacity() * size_of::<payload::EngineHash>(),
        _ => 0,
    });
    batch.events.capacity() * size_of::<RawEvent<'_>>() + parts.sum::<usize>()
}
