//! What an adapter knows of the engine behind it.

use std::fmt;

use signalbox_protocol::LoraAdapter;
use signalbox_tokenize::MessagePreparation;

use super::kv_events::{InvalidEndpoint, resolve_endpoint};

/// The kind of an engine next door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineFlavour {
    /// vLLM.
    Vllm,
    /// SGLang.
    Sglang,
    /// Another server that speaks the OpenAI API. It has no KV events, and its load is not known.
    OpenAi,
}

impl EngineFlavour {
    /// How the engine prepares the messages of a chat. Of an unknown one, vLLM's way is the best guess: it is the one that
    /// most engines are compatible with.
    pub fn preparation(self) -> MessagePreparation {
        match self {
            Self::Vllm | Self::OpenAi => MessagePreparation::Vllm,
            Self::Sglang => MessagePreparation::Sglang,
        }
    }

    /// The name on the worker's card.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
            Self::OpenAi => "openai",
        }
    }
}

impl fmt::Display for EngineFlavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vllm => "vLLM",
            Self::Sglang => "SGLang",
            Self::OpenAi => "an OpenAI-compatible engine",
        })
    }
}

/// Where one data-parallel rank of an engine publishes its KV events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventEndpoint {
    /// The rank, from 0.
    pub rank: u32,
    /// The ZeroMQ address of the PUB socket, `tcp://host:port`.
    pub events: String,
    /// The ZeroMQ address of the ROUTER socket that replays old batches, if the engine has one.
    pub replay: Option<String>,
    /// The topic of the engine's messages; empty subscribes to all.
    pub topic: String,
}

/// What was found out about an engine. `None` is what it does not state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineFacts {
    /// Its kind.
    pub flavour: EngineFlavour,
    /// Its version; empty if it states none.
    pub version: String,
    /// The name of its base model in requests.
    pub model: String,
    /// Where the engine loaded the model from: a folder on its machine, or a name at the Hugging Face hub.
    pub model_root: Option<String>,
    /// Its LoRA adapters when it was found. It may load and unload some while it runs.
    pub adapters: Vec<LoraAdapter>,
    /// Most tokens of prompt and answer together.
    pub context_length: Option<u32>,
    /// Tokens per KV block.
    pub block_size: Option<u32>,
    /// KV blocks on the device, of one data-parallel rank.
    pub kv_blocks: Option<u32>,
    /// Whether it keeps the KV blocks of finished requests for later ones.
    pub prefix_caching: Option<bool>,
    /// Where it publishes KV events, one entry per data-parallel rank; empty if it publishes none.
    pub events: Vec<EventEndpoint>,
    /// Why the KV events that the engine publishes cannot be read.
    pub unusable_events: Option<String>,
    /// Data-parallel ranks, at least 1.
    pub ranks: u32,
    /// Most sequences that one rank decodes at the same time.
    pub max_sequences: Option<u32>,
    /// When the engine's process started. A later start is another incarnation.
    pub started_at: Option<StartTime>,
}

/// When an engine's process started, in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartTime(pub u64);

impl StartTime {
    /// From seconds, as engines state it; `None` for a number that is no time.
    pub fn from_seconds(seconds: f64) -> Option<Self> {
        (seconds.is_finite() && seconds > 0.0).then_some(Self((seconds * 1_000.0) as u64))
    }
}

/// What the operator states about an engine. It wins over what the engine states.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StatedFacts {
    /// The name of the model.
    pub model: Option<String>,
    /// Most tokens of prompt and answer together.
    pub context_length: Option<u32>,
    /// Tokens per KV block.
    pub block_size: Option<u32>,
    /// Tokens that the KV cache of one rank holds.
    pub kv_tokens: Option<u32>,
    /// Most sequences that one rank decodes at the same time.
    pub max_sequences: Option<u32>,
    /// The ZeroMQ address of rank 0's KV events. Each further rank has the next port.
    pub events: Option<String>,
    /// The ZeroMQ address of rank 0's replays.
    pub replay: Option<String>,
}

impl EngineFacts {
    /// Puts what the operator states in place of what was found.
    pub fn apply(&mut self, stated: &StatedFacts) {
        if let Some(model) = &stated.model {
            self.model.clone_from(model);
        }
        self.context_length = stated.context_length.or(self.context_length);
        self.block_size = stated.block_size.or(self.block_size);
        self.max_sequences = stated.max_sequences.or(self.max_sequences);
        if let Some(tokens) = stated.kv_tokens {
            self.kv_blocks = Some(tokens / self.block_size.unwrap_or(DEFAULT_BLOCK_SIZE).max(1));
        }
        let of_rank = |endpoint: &str, rank| resolve_endpoint(endpoint, "", rank);
        if let (None, Some(replay)) = (&stated.events, &stated.replay) {
            for endpoint in &mut self.events {
                endpoint.replay = of_rank(replay, endpoint.rank).ok();
            }
        }
        if let Some(events) = &stated.events {
            self.unusable_events = None;
            let endpoint = |rank| {
                Ok(EventEndpoint {
                    rank,
                    events: of_rank(events, rank)?,
                    replay: match &stated.replay {
                        Some(replay) => Some(of_rank(replay, rank)?),
                        None => None,
                    },
                    topic: String::new(),
                })
            };
            self.set_events((0..self.ranks).map(endpoint));
        }
    }

    /// Takes where the ranks publish KV events. If one of the addresses cannot be used, none is.
    pub(crate) fn set_events(
        &mut self,
        endpoints: impl IntoIterator<Item = Result<EventEndpoint, InvalidEndpoint>>,
    ) {
        match endpoints.into_iter().collect() {
            Ok(endpoints) => self.events = endpoints,
            Err(error) => {
                self.events = Vec::new();
                self.unusable_events = Some(error.to_string());
            }
        }
    }

    /// The names of its LoRA adapters when it was found.
    pub fn adapter_names(&self) -> Vec<&str> {
        self.adapters
            .iter()
            .map(|adapter| adapter.name.as_str())
            .collect()
    }

    /// What the engine does not state or has turned off, each with the mend.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if self.events.is_empty() {
            missing.push(self.no_events_cause());
        } else if self.events.iter().any(|endpoint| endpoint.replay.is_none()) {
            missing.push(
                "no replay of KV events, so blocks from before the adapter's start are unknown: set replay_endpoint in \
                 the engine's --kv-events-config, or give --kv-replay"
                    .into(),
            );
        }
        if self.prefix_caching == Some(false) {
            missing.push(format!("prefix caching is off: {}", self.caching_mend()));
        }
        if self.block_size.is_none() {
            missing.push(format!(
                "no size of its KV blocks; {DEFAULT_BLOCK_SIZE} tokens are assumed: give --block-size"
            ));
        }
        if self.kv_blocks.is_none() {
            missing.push("no size of its KV cache: give --kv-tokens".into());
        }
        if self.context_length.is_none() {
            missing.push("no context length: give --context-length".into());
        }
        if self.started_at.is_none() {
            missing.push(
                "no start time, so a restart shows only while the engine is down (vLLM with one API server process, and \
                 SGLang with --enable-metrics, state it)"
                    .into(),
            );
        }
        missing
    }

    /// Why there are no KV events, and the mend.
    pub fn no_events_cause(&self) -> String {
        match &self.unusable_events {
            Some(problem) => format!("the engine's KV events cannot be read: {problem}"),
            None => format!("the engine publishes no KV events: {}", self.events_mend()),
        }
    }

    /// What turns KV events on.
    pub fn events_mend(&self) -> &'static str {
        match self.flavour {
            EngineFlavour::Vllm => {
                "start vLLM with --kv-events-config '{\"enable_kv_cache_events\":true,\"publisher\":\"zmq\",\
                 \"endpoint\":\"tcp://*:5557\",\"replay_endpoint\":\"tcp://*:5558\"}'"
            }
            EngineFlavour::Sglang => {
                "start SGLang with --kv-events-config '{\"publisher\":\"zmq\",\"endpoint\":\"tcp://*:5557\",\
                 \"replay_endpoint\":\"tcp://*:5558\"}'"
            }
            EngineFlavour::OpenAi => {
                "if the engine publishes vLLM's KV events, give --kv-events tcp://host:port"
            }
        }
    }

    /// What turns prefix caching on.
    pub fn caching_mend(&self) -> &'static str {
        match self.flavour {
            EngineFlavour::Vllm => "start vLLM without --no-enable-prefix-caching",
            EngineFlavour::Sglang => "start SGLang without --disable-radix-cache",
            EngineFlavour::OpenAi => "turn it on at the engine",
        }
    }
}

/// The KV block size that is assumed of an engine that states none: vLLM's own default on GPUs.
pub const DEFAULT_BLOCK_SIZE: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> EngineFacts {
        EngineFacts {
            flavour: EngineFlavour::Vllm,
            version: "0.32.0".into(),
            model: "m".into(),
            model_root: None,
            adapters: Vec::new(),
            context_length: Some(4_096),
            block_size: Some(32),
            kv_blocks: Some(100),
            prefix_caching: Some(true),
            events: Vec::new(),
            unusable_events: None,
            ranks: 2,
            max_sequences: None,
            started_at: StartTime::from_seconds(1.5),
        }
    }

    #[test]
    fn what_the_operator_states_wins() {
        let mut facts = facts();
        facts.apply(&StatedFacts {
            model: Some("n".into()),
            block_size: Some(64),
            kv_tokens: Some(6_400),
            events: Some("tcp://gpu:5557".into()),
            ..StatedFacts::default()
        });
        assert_eq!(
            (facts.model.as_str(), facts.block_size, facts.kv_blocks),
            ("n", Some(64), Some(100))
        );
        assert_eq!(facts.context_length, Some(4_096));
        let events: Vec<_> = facts.events.iter().map(|rank| rank.events.as_str()).collect();
        assert_eq!(events, ["tcp://gpu:5557", "tcp://gpu:5558"]);
        facts.apply(&StatedFacts {
            events: Some("tcp://gpu:65535".into()),
            ..StatedFacts::default()
        });
        assert!(facts.events.is_empty() && facts.no_events_cause().contains("65535"));
    }

    #[test]
    fn what_is_missing_is_named_with_its_mend() {
        let mut without = facts();
        without.prefix_caching = Some(false);
        without.kv_blocks = None;
        let missing = without.missing().join("\n");
        for words in ["--kv-events-config", "--no-enable-prefix-caching", "--kv-tokens"] {
            assert!(missing.contains(words), "{words} in {missing}");
        }
        let mut whole = facts();
        whole.events = vec![EventEndpoint {
            rank: 0,
            events: "tcp://h:1".into(),
            replay: Some("tcp://h:2".into()),
            topic: String::new(),
        }];
        assert_eq!(whole.missing(), Vec::<String>::new());
    }
}
