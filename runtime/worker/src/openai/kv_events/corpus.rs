//! The payloads in `corpus/`, for tests.

use bytes::Bytes;

use super::frames::Numbered;

/// The messages of a real vLLM, in order. The first has number 1.
pub(super) fn captured() -> Vec<Numbered> {
    include_str!("corpus/vllm-0.32-frames.hex")
        .lines()
        .map(|line| {
            let frames: Vec<_> = line.split(' ').map(unhex).collect();
            super::frames::read_live(&frames).unwrap()
        })
        .collect()
}

/// The payload of this name in `payload-vectors.txt`.
pub(super) fn vector(name: &str) -> Bytes {
    vectors()
        .into_iter()
        .find_map(|(found, payload)| (found == name).then_some(payload))
        .unwrap_or_else(|| panic!("no vector {name}"))
}

/// All payloads of `payload-vectors.txt`, with their names.
pub(super) fn vectors() -> Vec<(&'static str, Bytes)> {
    include_str!("corpus/payload-vectors.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (name, payload) = line.split_once(' ').unwrap();
            (name, unhex(payload))
        })
        .collect()
}

/// A batch of events, encoded as the engines encode it.
pub(super) fn batch(events: &serde_json::Value) -> Bytes {
    rmp_serde::to_vec(&(1.5, events, 0)).unwrap().into()
}

fn unhex(hex: &str) -> Bytes {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}
