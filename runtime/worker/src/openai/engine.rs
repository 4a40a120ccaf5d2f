//! An engine next door that was found: what its workers have in common.

use std::sync::Arc;

use signalbox_event_plane::EventLog;
use signalbox_protocol::{LoraAdapter, WorkerCapacity, WorkerCard};
use tokio::sync::watch;

use super::{
    engine_phase::EnginePhase,
    engine_watch::EngineWatch,
    facts::{DEFAULT_BLOCK_SIZE, EngineFacts, EngineFlavour},
    kv_events::{KvEventSource, KvEventsConfig},
    load::EngineLoad,
    parity::ParitySetup,
    probe::FoundEngine,
    upstream::Upstream,
};
use crate::backend::BackendInfo;

/// Sequences that an engine decodes at once, if it does not state the number: vLLM's default.
const DEFAULT_MAX_SEQUENCES: u32 = 256;

/// Requests that may wait at an engine. Engines queue without a bound; a router that sends more waits for nothing.
const MAX_WAITING: u32 = 4_096;

/// An engine that was found and is watched. The workers of its ranks share it.
#[derive(Debug)]
pub struct Engine {
    pub(crate) upstream: Upstream,
    facts: EngineFacts,
    watch: EngineWatch,
}

/// What is known about the tokens that routers compute for this engine.
#[derive(Debug, Clone, Default)]
pub struct TokenFacts {
    /// Why routers cannot compute the engine's tokens, and the mend; `None` if they can.
    pub no_tokenizer: Option<String>,
    /// Why routers cannot render chats for this engine; `None` if they can.
    pub no_chats: Option<String>,
    /// What differed when the engine was asked for its tokens at the start.
    pub first_difference: Option<String>,
    /// The engine's tokens of a chat were the same: SGLang may take the router's in place of the messages.
    pub chat_is_equal: bool,
}

impl Engine {
    /// Starts to watch an engine. Needs a tokio runtime.
    pub fn watch(upstream: Upstream, found: FoundEngine) -> Arc<Self> {
        let watch = EngineWatch::start(upstream.clone(), &found);
        Arc::new(Self {
            upstream,
            facts: found.facts,
            watch,
        })
    }

    /// What was found out about it.
    pub fn facts(&self) -> &EngineFacts {
        &self.facts
    }

    /// Whether it runs.
    pub(crate) fn phase(&self) -> watch::Receiver<EnginePhase> {
        self.watch.phase()
    }

    /// The load of each rank as last reported; empty before the first report.
    pub(crate) fn loads(&self) -> watch::Receiver<Arc<[Option<EngineLoad>]>> {
        self.watch.loads()
    }

    /// The LoRA adapters that it listed last.
    pub(crate) fn adapters(&self) -> watch::Receiver<Arc<[LoraAdapter]>> {
        self.watch.adapters()
    }

    /// The properties of the worker of one rank.
    pub fn info(&self) -> BackendInfo {
        let facts = &self.facts;
        BackendInfo {
            engine: facts.flavour.as_str().into(),
            engine_version: facts.version.clone(),
            reads_body: true,
            continues_answers: facts.flavour == EngineFlavour::Vllm,
            abilities: Vec::new(),
            kv_events: !facts.events.is_empty(),
            block_size: self.block_size(),
            // Unknown: the engine itself refuses what is too long.
            context_length: facts.context_length.unwrap_or(u32::MAX),
            capacity: WorkerCapacity {
                kv_blocks: facts.kv_blocks.unwrap_or(0),
                max_sequences: facts.max_sequences.unwrap_or(DEFAULT_MAX_SEQUENCES),
                max_waiting: MAX_WAITING,
            },
        }
    }

    /// Tokens per KV block.
    pub(crate) fn block_size(&self) -> u32 {
        self.facts.block_size.unwrap_or(DEFAULT_BLOCK_SIZE).max(1)
    }

    /// Starts to read the KV events of one rank.
    pub(crate) fn read_events(&self, rank: u32, card: &WorkerCard, log: &EventLog) -> Option<KvEventSource> {
        let endpoint = self.facts.events.iter().find(|endpoint| endpoint.rank == rank)?;
        let config = KvEventsConfig {
            endpoint: endpoint.events.clone(),
            replay_endpoint: endpoint.replay.clone(),
            topic: endpoint.topic.clone(),
            rank: (self.facts.ranks > 1).then_some(rank),
            model: card.model.clone(),
            block_size: card.block_size,
            kv_blocks: card.capacity.kv_blocks,
        };
        // The addresses were checked when the engine was found.
        KvEventSource::start(config, log.clone())
            .inspect_err(|error| tracing::error!(worker.id = %card.id, %error, "KV events cannot be read"))
            .ok()
    }

    /// What is known about parity before the first request.
    pub(crate) fn parity_setup(&self, tokens: TokenFacts) -> ParitySetup {
        let facts = &self.facts;
        ParitySetup {
            block_size: self.block_size(),
            no_tokenizer: tokens.no_tokenizer,
            no_events: facts.events.is_empty().then(|| facts.no_events_cause()),
            no_caching: (facts.prefix_caching == Some(false))
                .then(|| format!("prefix caching is off at the engine: {}", facts.caching_mend())),
            no_chats: tokens.no_chats,
            first_difference: tokens.first_difference,
        }
    }
}
