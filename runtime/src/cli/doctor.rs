//! Options of `runtime doctor`.

use std::path::PathBuf;

use clap::Args;
use signalbox_worker::openai::StatedFacts;

use super::{PlaneOptions, UpstreamOptions};

#[derive(Debug, Args)]
pub(crate) struct DoctorOptions {
    #[command(flatten)]
    pub(crate) upstream: UpstreamOptions,
    /// Examine the workers of a cluster instead: `static://host:port[,host:port…]` or `etcd://host:port[,host:port…]`.
    #[arg(
        long,
        env = "SIGNALBOX_DISCOVERY",
        value_name = "URL",
        value_delimiter = ' ',
        conflicts_with = "upstream"
    )]
    pub(crate) discovery: Vec<String>,
    /// A folder with the model's Hugging Face tokenizer. The default is where a worker would find it.
    #[arg(long, env = "SIGNALBOX_TOKENIZER", value_name = "PATH")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// The model name that clients use, if another one than the engine's.
    #[arg(long, env = "SIGNALBOX_MODEL_NAME", value_name = "NAME")]
    pub(crate) model_name: Option<String>,
    /// Tokens per KV block, if another number than the engine states.
    #[arg(long, env = "SIGNALBOX_BLOCK_SIZE", value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) block_size: Option<u32>,
    #[command(flatten)]
    pub(crate) planes: PlaneOptions,
}

impl DoctorOptions {
    /// What the operator states about the engines.
    pub(crate) fn stated(&self) -> StatedFacts {
        StatedFacts {
            model: self.model_name.clone(),
            context_length: self.upstream.context_length,
            block_size: self.block_size,
            kv_tokens: None,
            max_sequences: None,
            events: self.upstream.kv_events.clone(),
            replay: self.upstream.kv_replay.clone(),
        }
    }
}
