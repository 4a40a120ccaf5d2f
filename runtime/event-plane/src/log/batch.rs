//! Merges events and splits them into batches.

use signalbox_protocol::KvEvent;

use crate::codec::{HEADER_LEN, event_len};

/// Most bytes of a batch: half of the default limit of NATS (1 MiB), so that envelopes fit too.
pub(super) const MAX_BATCH_LEN: usize = 512 << 10;
/// Most blocks of one event: they fill a quarter of a batch.
const MAX_EVENT_BLOCKS: usize = MAX_BATCH_LEN / 4 / 8;

/// Merges adjacent events of a tier: chains that continue each other, and removals. Decode steps of an engine store one
/// block per sequence, and each event has up to 14 bytes beside its blocks.
pub(super) fn merge(events: Vec<KvEvent>) -> Vec<KvEvent> {
    let mut merged: Vec<KvEvent> = Vec::with_capacity(events.len());
    for event in events {
        match (merged.last_mut(), event) {
            (_, KvEvent::Cleared) => {
                // The events before have no effect any more.
                merged.clear();
                merged.push(KvEvent::Cleared);
            }
            (_, KvEvent::Stored { blocks, .. } | KvEvent::Removed { blocks, .. }) if blocks.is_empty() => {}
            (
                Some(KvEvent::Stored {
                    tier: last_tier,
                    blocks: chain,
                    ..
                }),
                KvEvent::Stored {
                    tier,
                    parent: Some(parent),
                    blocks,
                },
            ) if *last_tier == tier && chain.last() == Some(&parent) => chain.extend(blocks),
            (
                Some(KvEvent::Removed {
                    tier: last_tier,
                    blocks: removed,
                }),
                KvEvent::Removed { tier, blocks },
            ) if *last_tier == tier => {
                removed.extend(blocks);
            }
            (_, event) => merged.push(event),
        }
    }
    merged
}

/// Splits events into batches of at most [`MAX_BATCH_LEN`] bytes.
pub(super) fn split(events: Vec<KvEvent>) -> Vec<Vec<KvEvent>> {
    let mut batches = Vec::new();
    let (mut batch, mut len) = (Vec::new(), HEADER_LEN);
    for event in events.into_iter().flat_map(split_event) {
        let added = event_len(&event);
        if len + added > MAX_BATCH_LEN {
            batches.push(std::mem::take(&mut batch));
            len = HEADER_LEN;
        }
        len += added;
        batch.push(event);
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

fn split_event(event: KvEvent) -> Vec<KvEvent> {
    match event {
        KvEvent::Stored {
            tier,
            mut parent,
            blocks,
        } if blocks.len() > MAX_EVENT_BLOCKS => blocks
            .chunks(MAX_EVENT_BLOCKS)
            .map(|part| {
                let part_parent = std::mem::replace(&mut parent, part.last().copied());
                KvEvent::Stored {
                    tier,
                    parent: part_parent,
                    blocks: part.to_vec(),
                }
            })
            .collect(),
        KvEvent::Removed { tier, blocks } if blocks.len() > MAX_EVENT_BLOCKS => blocks
            .chunks(MAX_EVENT_BLOCKS)
            .map(|part| KvEvent::Removed {
                tier,
                blocks: part.to_vec(),
            })
            .collect(),
        event => vec![event],
    }
}
