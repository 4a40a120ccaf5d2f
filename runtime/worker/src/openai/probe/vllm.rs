//! What vLLM states about itself, as captured from 0.32.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::openai::{
    facts::{EngineFacts, EventEndpoint},
    kv_events::{InvalidEndpoint, resolve_endpoint},
    prometheus,
};

/// `GET /version`: `{"version":"0.32.0"}`.
pub(super) fn version(json: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Answer {
        version: String,
    }
    serde_json::from_slice(json)
        .map(|answer: Answer| answer.version)
        .ok()
}

/// Adds what the metrics, `GET /kv_event_sources` and, in the engine's development mode, `GET /server_info` state.
pub(super) fn add_facts(
    facts: &mut EngineFacts,
    metrics: &str,
    event_sources: &[u8],
    server_info: Option<&[u8]>,
    host: &str,
) {
    let caches: Vec<_> = prometheus::samples(metrics, "vllm:cache_config_info").collect();
    if let Some(cache) = caches.first() {
        let number = |label: &str| cache.label(label).and_then(|text| text.parse().ok());
        facts.block_size = number("block_size");
        facts.kv_blocks = number("num_gpu_blocks");
        facts.prefix_caching = cache.label("enable_prefix_caching").map(|text| text == "True");
    }
    let events = event_endpoints(event_sources, host);
    facts.ranks = (events.len().max(caches.len()) as u32).max(1);
    facts.set_events(events);
    let scheduler = server_info
        .and_then(|json| serde_json::from_slice::<Value>(json).ok())
        .and_then(|info| {
            info.pointer("/vllm_config/scheduler_config/max_num_seqs")?
                .as_u64()
        });
    facts.max_sequences = scheduler.and_then(|number| number.try_into().ok());
}

/// One entry of `GET /kv_event_sources`, by data-parallel rank.
#[derive(Deserialize)]
struct EventSource {
    #[serde(default)]
    enable_kv_cache_events: bool,
    publisher: Option<String>,
    endpoint: Option<String>,
    replay_endpoint: Option<String>,
    #[serde(default)]
    topic: String,
}

/// The ranks that publish events; none if the answer is none. The ports of the ranks are stated as they are bound.
fn event_endpoints(json: &[u8], host: &str) -> Vec<Result<EventEndpoint, InvalidEndpoint>> {
    let sources: BTreeMap<String, EventSource> = serde_json::from_slice(json).unwrap_or_default();
    let mut ranks: Vec<(u32, EventSource)> = sources
        .into_iter()
        .filter(|(_, source)| source.enable_kv_cache_events && source.publisher.as_deref() == Some("zmq"))
        .filter_map(|(rank, source)| Some((rank.parse().ok()?, source)))
        .collect();
    ranks.sort_by_key(|(rank, _)| *rank);
    let endpoint = |(rank, source): (u32, EventSource)| {
        Ok(EventEndpoint {
            rank,
            events: resolve_endpoint(&source.endpoint.unwrap_or_default(), host, 0)?,
            replay: match source.replay_endpoint {
                Some(endpoint) => Some(resolve_endpoint(&endpoint, host, 0)?),
                None => None,
            },
            topic: source.topic,
        })
    };
    ranks.into_iter().map(endpoint).collect()
}
