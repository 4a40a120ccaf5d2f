//! The settings of a llama engine, and whether they fit the model and the memory.

use std::path::PathBuf;

use super::cells::MAX_RUNNING;
use super::error::LlamaError;
use super::facts::ModelFacts;

/// llama.cpp rounds its number of cells up to a multiple of this.
const CELL_STEP: u32 = 256;

/// Most KV cells by default: room for some prompts beside the running ones. SmolLM2-135M takes 380 MB for them.
const DEFAULT_KV_TOKENS: u32 = 16_384;

/// Default tokens of a step. On a CPU the cost per token is the same for 64 as for 512. Running answers wait for the
/// chunk of a prompt, and 64 tokens take about 0.3 s on two cores. A GPU needs many tokens at once.
const DEFAULT_BATCH_TOKENS: u32 = if cfg!(feature = "llama-cuda") { 512 } else { 64 };

/// Fewest KV cells by default. If memory has no room for them, the engine does not start.
const LEAST_KV_TOKENS: u32 = 1_024;

/// Memory of llama.cpp beside weights, KV cells and logits: graphs, scratch, the vocabulary. Measured: 20 to 50 MB.
const WORKING_BYTES: u64 = 64 << 20;

/// The settings of a llama engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LlamaConfig {
    /// The model: a GGUF file.
    pub model_path: PathBuf,
    /// Tokens per KV block, 1 to 256.
    pub block_size: u32,
    /// Tokens that the KV cache holds, running and idle together, rounded up to a multiple of 256. `None`: 16,384, or
    /// what fits into half of the memory beside the weights if that is less.
    pub kv_tokens: Option<u32>,
    /// Most running sequences, 1 to 128.
    pub max_sequences: u32,
    /// Most waiting sequences. The engine refuses more sequences as overloaded.
    pub max_waiting: u32,
    /// Threads that compute; `None` for [`default_threads`](crate::engine::default_threads).
    pub threads: Option<u32>,
    /// Most tokens computed in one step, prefill and decode together. It bounds how long the chunk of a long prompt
    /// delays running answers. Raised to at least one token for each sequence and one KV block.
    pub batch_tokens: u32,
    /// Use flash attention, which never stores its scores and skips the cells of other sequences.
    pub flash_attention: bool,
}

impl LlamaConfig {
    /// The default settings for this model file.
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

    /// Most tokens computed in one step.
    pub(super) fn step_tokens(&self) -> u32 {
        self.batch_tokens.max(self.max_sequences + self.block_size)
    }
}

/// Checks the range of every setting.
pub(super) fn check_settings(config: &LlamaConfig) -> Result<(), LlamaError> {
    let LlamaConfig {
        block_size,
        max_sequences,
        kv_tokens,
        threads,
        ..
    } = *config;
    let wrong = |message: String| Err(LlamaError::Setting(message));
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
            "kv_tokens is less than two KV blocks of {block_size} tokens; give {LEAST_KV_TOKENS} or more"
        ));
    }
    if threads == Some(0) {
        return wrong("threads is 0; give 1 or more".to_owned());
    }
    Ok(())
}

/// The number of KV cells to allocate. Fails if the model with its KV cells does not fit into `available` bytes.
pub(super) fn fit(
    config: &LlamaConfig,
    facts: &ModelFacts,
    available: Option<u64>,
) -> Result<u32, LlamaError> {
    let per_token = facts.kv_bytes_per_token.max(1);
    let logits = u64::from(config.step_tokens()) * u64::from(facts.vocab_size) * size_of::<f32>() as u64;
    let fixed = facts.file_bytes + WORKING_BYTES + logits;
    let kv_tokens = match (config.kv_tokens, available) {
        (Some(tokens), _) => tokens.next_multiple_of(CELL_STEP),
        (None, None) => DEFAULT_KV_TOKENS,
        (None, Some(available)) => {
            // Half of the memory, because other workers may start on the same machine.
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
    fn the_cache_takes_its_default_size_or_half_of_the_memory_beside_the_weights() {
        let config = LlamaConfig::new("m.gguf");
        assert_eq!(fit(&config, &facts(), None).unwrap(), DEFAULT_KV_TOKENS);
        assert_eq!(fit(&config, &facts(), Some(8 << 30)).unwrap(), DEFAULT_KV_TOKENS);
        let small = fit(&config, &facts(), Some(400_000_000)).unwrap();
        assert!((LEAST_KV_TOKENS..DEFAULT_KV_TOKENS / 2).contains(&small) && small.is_multiple_of(CELL_STEP));
    }

    #[test]
    fn the_error_for_too_little_memory_has_the_figures() {
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
    fn invalid_settings_are_named() {
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
