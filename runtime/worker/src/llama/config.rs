//! What an engine is asked to be, whether that can be, and why not.

use std::io;
use std::path::PathBuf;

use super::cells::MAX_RUNNING;
use super::model::ModelFacts;

/// llama.cpp rounds its number of cells up to this.
const CELL_STEP: u32 = 256;

/// KV cells where none are asked for: room for some prompts beside those that run. SmolLM2-135M takes 380 MB for them.
const DEFAULT_KV_TOKENS: u32 = 16_384;

/// A CPU computes 64 tokens together as fast, each, as 512, and a prompt's chunk keeps running answers waiting: 64 take
/// about 0.3 s on two cores. A GPU needs many at once.
const DEFAULT_BATCH_TOKENS: u32 = if cfg!(feature = "llama-cuda") { 512 } else { 64 };

/// A cache smaller than this serves nobody; rather say that memory is short.
const LEAST_KV_TOKENS: u32 = 1_024;

/// What llama.cpp takes beside weights, KV cells and logits: graphs, scratch, the vocabulary. Seen: 20 to 50 MB.
const WORKING_BYTES: u64 = 64 << 20;

/// What a llama engine is to be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LlamaConfig {
    /// The model: a GGUF file.
    pub model_path: PathBuf,
    /// Tokens per KV block, 1 to 256.
    pub block_size: u32,
    /// Tokens the KV cache holds, over all sequences and what is kept for reuse, rounded up to 256. `None`: 16,384, or
    /// what half of the memory left beside the weights can hold if that is less.
    pub kv_tokens: Option<u32>,
    /// Sequences that run at once, 1 to 128.
    pub max_sequences: u32,
    /// Sequences that wait beside those before the engine answers that it is overloaded.
    pub max_waiting: u32,
    /// Threads that compute. `None`: one for each core that this process may use.
    pub threads: Option<u32>,
    /// Tokens computed in one step at most, prefill and decode together: what a running answer can be kept waiting by
    /// somebody's long prompt. Counts as a token for each sequence and a block beside where it is less.
    pub batch_tokens: u32,
    /// Attention that never writes out its scores and skips the cells of other sequences.
    pub flash_attention: bool,
}

impl LlamaConfig {
    /// The defaults, for this file.
    pub fn new(model_path: impl Into<PathBuf>) -> Self {
        Self {
            model_path: model_path.into(),
            block_size: 16,
            kv_tokens: None,
            max_sequences: 8,
            max_waiting: 64,
            threads: None,
            batch_tokens: DEFAULT_BATCH_TOKENS,
            flash_attention: true,
        }
    }
}

impl LlamaConfig {
    /// Tokens computed in one step at most.
    pub(super) fn step_tokens(&self) -> u32 {
        self.batch_tokens.max(self.max_sequences + self.block_size)
    }
}

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum LlamaError {
    /// The file cannot be read.
    #[error("the model {} cannot be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is something else.
    #[error("{} is not a GGUF file, or its head is broken; give a model in GGUF format", path.display())]
    NotGguf {
        /// The file.
        path: PathBuf,
    },
    /// A GGUF file that holds no model that generates text the way this engine does.
    #[error("{} is a {architecture} model: {why}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// `general.architecture`.
        architecture: String,
        /// What does not fit.
        why: &'static str,
    },
    /// llama.cpp refused the file.
    #[error(
        "llama.cpp cannot load {} (architecture {architecture}): it is truncated or broken, or newer than this build; \
         its own words are in the log at level debug",
        path.display()
    )]
    Refused {
        /// The file.
        path: PathBuf,
        /// `general.architecture`.
        architecture: String,
    },
    /// It would not fit.
    #[error(
        "{} needs about {} MB of memory ({} MB weights, {} MB for {kv_tokens} tokens of KV cache, the rest to work \
         in) and {} MB are available; ask for fewer KV tokens or take a smaller model",
        path.display(), megabytes(*needed), megabytes(*weights), megabytes(*kv), megabytes(*available)
    )]
    TooLittleMemory {
        /// The file.
        path: PathBuf,
        /// Bytes of all.
        needed: u64,
        /// Bytes of the weights.
        weights: u64,
        /// Bytes of the KV cache.
        kv: u64,
        /// Tokens of KV cache it was counted with.
        kv_tokens: u32,
        /// Bytes there are.
        available: u64,
    },
    /// A setting makes no sense.
    #[error("{0}")]
    Setting(String),
    /// llama.cpp could not set itself up.
    #[error("llama.cpp could not start: {0}")]
    Start(String),
}

fn megabytes(bytes: u64) -> u64 {
    bytes.div_ceil(1_000_000)
}

/// An error for a setting that makes no sense.
pub(super) fn check_settings(config: &LlamaConfig) -> Result<(), LlamaError> {
    let LlamaConfig {
        block_size,
        max_sequences,
        kv_tokens,
        threads,
        ..
    } = *config;
    let wrong = |text: String| Err(LlamaError::Setting(text));
    if !(1..=CELL_STEP).contains(&block_size) {
        return wrong(format!(
            "the KV block size is {block_size} tokens; give 1 to {CELL_STEP}"
        ));
    }
    if !(1..=MAX_RUNNING).contains(&max_sequences) {
        return wrong(format!(
            "max_sequences is {max_sequences}; give 1 to {MAX_RUNNING}"
        ));
    }
    if kv_tokens.is_some_and(|tokens| tokens < 2 * block_size) {
        return wrong(format!(
            "kv_tokens is less than two blocks of {block_size}; give {LEAST_KV_TOKENS} or more"
        ));
    }
    if threads == Some(0) {
        return wrong("threads is 0; give 1 or more".to_owned());
    }
    Ok(())
}

/// The number of KV cells to take; an error where the model with them would not fit into `available` bytes.
pub(super) fn fit(
    config: &LlamaConfig,
    facts: &ModelFacts,
    available: Option<u64>,
) -> Result<u32, LlamaError> {
    let per_token = facts.kv_bytes_per_token.max(1);
    let logits = u64::from(config.step_tokens()) * u64::from(facts.vocab_size) * size_of::<f32>() as u64;
    let fixed = facts.file_bytes + WORKING_BYTES + logits;
    let kv_tokens = match (config.kv_tokens, available) {
        (Some(asked), _) => asked.next_multiple_of(CELL_STEP),
        (None, None) => DEFAULT_KV_TOKENS,
        (None, Some(available)) => {
            // Half: other workers start on the same machine.
            let affordable = available.saturating_sub(fixed) / 2 / per_token;
            let affordable = u32::try_from(affordable).unwrap_or(u32::MAX) / CELL_STEP * CELL_STEP;
            affordable.clamp(LEAST_KV_TOKENS, DEFAULT_KV_TOKENS)
        }
    };
    let kv = u64::from(kv_tokens) * per_token;
    let needed = fixed + kv;
    match available {
        Some(available) if available < needed => Err(LlamaError::TooLittleMemory {
            path: config.model_path.clone(),
            needed,
            weights: facts.file_bytes,
            kv,
            kv_tokens,
            available,
        }),
        _ => Ok(kv_tokens),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> ModelFacts {
        ModelFacts {
            architecture: "llama".to_owned(),
            name: None,
            trained_context: 8192,
            vocab_size: 50_000,
            parameters: 0,
            file_bytes: 100_000_000,
            kv_bytes_per_token: 20_000,
        }
    }

    #[test]
    fn the_cache_takes_its_default_or_half_of_what_the_weights_leave() {
        let config = LlamaConfig::new("m.gguf");
        assert_eq!(fit(&config, &facts(), None).unwrap(), DEFAULT_KV_TOKENS);
        assert_eq!(fit(&config, &facts(), Some(8 << 30)).unwrap(), DEFAULT_KV_TOKENS);
        let small = fit(&config, &facts(), Some(400_000_000)).unwrap();
        assert!((LEAST_KV_TOKENS..DEFAULT_KV_TOKENS / 2).contains(&small) && small.is_multiple_of(CELL_STEP));
    }

    #[test]
    fn too_little_memory_is_said_in_one_sentence_with_the_figures() {
        let config = LlamaConfig {
            kv_tokens: Some(10_000),
            ..LlamaConfig::new("m.gguf")
        };
        let error = fit(&config, &facts(), Some(300_000_000)).unwrap_err().to_string();
        for part in [
            "m.gguf needs about",
            "100 MB weights",
            "205 MB for 10240 tokens",
            "300 MB are available",
        ] {
            assert!(error.contains(part), "{part:?} is missing: {error}");
        }
    }

    #[test]
    fn settings_that_make_no_sense_are_named() {
        let check = |change: fn(&mut LlamaConfig)| {
            let mut config = LlamaConfig::new("m.gguf");
            change(&mut config);
            check_settings(&config).unwrap_err().to_string()
        };
        assert!(check(|c| c.block_size = 0).contains("block size is 0"));
        assert!(check(|c| c.max_sequences = 129).contains("max_sequences is 129; give 1 to 128"));
        assert!(check(|c| c.kv_tokens = Some(16)).contains("kv_tokens"));
        assert!(check(|c| c.threads = Some(0)).contains("threads is 0"));
    }
}
