//! What SGLang states about itself, as read from the source of 0.5.23.

use serde::Deserialize;

use crate::openai::{
    facts::{EngineFacts, EventEndpoint, StartTime},
    kv_events::{InvalidEndpoint, resolve_endpoint},
};

/// `GET /server_info`: all of its settings, of which these matter here.
#[derive(Debug, Deserialize)]
pub(super) struct ServerInfo {
    page_size: Option<u32>,
    dp_size: Option<u32>,
    max_running_requests: Option<u32>,
    /// Tokens that the KV cache of one rank holds. Only SGLang's answer has it.
    max_total_num_tokens: u32,
    max_req_input_len: Option<u32>,
    #[serde(default)]
    disable_radix_cache: bool,
    version: Option<String>,
    model_path: Option<String>,
    startup_time: Option<f64>,
    kv_events: Option<KvEvents>,
}

/// Where the ranks publish KV events: consecutive ports from the base on.
#[derive(Debug, Deserialize)]
struct KvEvents {
    publisher: Option<String>,
    endpoint_host: Option<String>,
    endpoint_port_base: Option<u32>,
    #[serde(default)]
    topic: String,
    block_size: Option<u32>,
    dp_size: Option<u32>,
    replay_endpoint_port_base: Option<u32>,
}

impl ServerInfo {
    /// `None` if the answer is not SGLang's.
    pub(super) fn parse(json: &[u8]) -> Option<Self> {
        serde_json::from_slice(json).ok()
    }

    pub(super) fn add_to(self, facts: &mut EngineFacts, host: &str) {
        if let Some(version) = self.version {
            facts.version = version;
        }
        facts.model_root = self.model_path.or_else(|| facts.model_root.take());
        facts.context_length = facts.context_length.or(self.max_req_input_len);
        facts.prefix_caching = Some(!self.disable_radix_cache);
        facts.max_sequences = self.max_running_requests;
        facts.started_at = facts
            .started_at
            .or_else(|| self.startup_time.and_then(StartTime::from_seconds));
        facts.block_size = self
            .kv_events
            .as_ref()
            .and_then(|events| events.block_size)
            .or(self.page_size);
        facts.kv_blocks = facts
            .block_size
            .map(|block_size| self.max_total_num_tokens / block_size.max(1));
        facts.ranks = self.dp_size.unwrap_or(1).max(1);
        let ranks = facts.ranks;
        facts.set_events(
            self.kv_events
                .map(|events| events.endpoints(ranks, host))
                .unwrap_or_default(),
        );
    }
}

impl KvEvents {
    fn endpoints(&self, ranks: u32, host: &str) -> Vec<Result<EventEndpoint, InvalidEndpoint>> {
        let Some(port) = self
            .endpoint_port_base
            .filter(|_| self.publisher.as_deref() == Some("zmq"))
        else {
            return Vec::new();
        };
        let bound = self.endpoint_host.as_deref().filter(|host| !host.is_empty());
        let of_rank =
            |port: u32, rank| resolve_endpoint(&format!("tcp://{}:{port}", bound.unwrap_or("*")), host, rank);
        let endpoint = |rank| {
            Ok(EventEndpoint {
                rank,
                events: of_rank(port, rank)?,
                replay: match self.replay_endpoint_port_base {
                    Some(port) => Some(of_rank(port, rank)?),
                    None => None,
                },
                topic: self.topic.clone(),
            })
        };
        (0..self.dp_size.unwrap_or(ranks).max(1)).map(endpoint).collect()
    }
}
