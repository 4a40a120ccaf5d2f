//! What events become on their way into a batch.

use signalbox_protocol::KvEvent;

use crate::codec::{HEADER_LEN, event_len};

/// The most a batch takes, in bytes: half of what NATS takes by default (1 MiB), so that envelopes fit too.
pub(super) const MAX_BATCH_LEN: usize = 512 << 10;
/// The most blocks of one event: a quarter of a batch.
const MAX_EVENT_BLOCKS: usize = MAX_BATCH_LEN / 4 / 8;

/// Joins neighbouring events that say one thing: chains that continue each other on a tier, removals from a tier.
/// Decoding makes one store per block and sequence, and each event carries 14 bytes beside its blocks.
pub(super) fn coalesce(events: Vec<KvEvent>) -> Vec<KvEvent> {
    let mut joined: Vec<KvEvent> = Vec::with_capacity(events.len());
    for event in events {
        match (joined.last_mut(), event) {
            (_, KvEvent::Cleared) => {
                // What was before no longer matters.
                joined.clear();
                joined.push(KvEvent::Cleared);
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
                    blocks: all,
                }),
                KvEvent::Removed { tier, blocks },
            ) if *last_tier == tier => {
                all.extend(blocks);
            }
            (_, event) => joined.push(event),
        }
    }
    joined
}

/// Cuts events into batches of at most [`MAX_BATCH_LEN`] bytes.
pub(super) fn split(events: Vec<KvEvent>) -> Vec<Vec<KvEvent>> {
    let mut batches = Vec::new();
    let (mut batch, mut len) = (Vec::new(), HEADER_LEN);
    for event in events.into_iter().flat_map(split_event) {
        let more = event_len(&event);
        if len + more > MAX_BATCH_LEN {
            batches.push(std::mem::take(&mut batch));
            len = HEADER_LEN;
        }
        len += more;
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
                let follows = std::mem::replace(&mut parent, part.last().copied());
                KvEvent::Stored {
                    tier,
                    parent: follows,
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
