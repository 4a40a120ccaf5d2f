//! Loads a GGUF model, after looking whether it can work.
//!
//! A model lives as long as the process. Its context borrows it, a worker has one, and the weights are file pages
//! that the system may drop; a second engine on the same file shares them.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{fs, io};

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::gguf::GgufContext;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::{LogOptions, send_logs_to_tracing};
use parking_lot::Mutex;

use super::config::{LlamaConfig, LlamaError, check_settings, fit};
use super::memory::available_bytes;

/// What a model says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFacts {
    /// `general.architecture`: `llama`, `qwen2`, …
    pub architecture: String,
    /// `general.name`, where it has one.
    pub name: Option<String>,
    /// Tokens it was trained to see at once.
    pub trained_context: u32,
    /// Tokens in its vocabulary.
    pub vocab_size: u32,
    /// Number of weights.
    pub parameters: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Bytes of one token's KV.
    pub kv_bytes_per_token: u64,
}

/// A model ready to compute.
pub(super) struct Loaded {
    pub(super) context: LlamaContext<'static>,
    pub(super) facts: ModelFacts,
}

/// llama.cpp's state is one for the process, and making contexts of one model must not overlap: all under this lock.
static PROCESS: Mutex<Process> = Mutex::new(Process {
    backend: None,
    models: Vec::new(),
});

struct Process {
    backend: Option<&'static LlamaBackend>,
    models: Vec<Kept>,
}

struct Kept {
    path: PathBuf,
    bytes: u64,
    modified: Option<SystemTime>,
    model: &'static LlamaModel,
}

/// Checks, loads, and makes a context. `progress` hears shares from 0 to 1.
pub(super) fn load(config: &LlamaConfig, progress: impl FnMut(f32) + 'static) -> Result<Loaded, LlamaError> {
    check_settings(config)?;
    let path = &config.model_path;
    let unreadable = |source| LlamaError::Unreadable {
        path: path.clone(),
        source,
    };
    let file = fs::metadata(path).map_err(unreadable)?;
    if !file.is_file() {
        return Err(unreadable(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file",
        )));
    }
    fs::File::open(path).map_err(unreadable)?;

    let mut process = PROCESS.lock();
    let backend = process.backend()?;
    let mut facts = read_facts(path, file.len())?;
    let kv_tokens = fit(config, &facts, available_bytes())?;
    let model = process.model(path, &file, &facts, progress)?;
    if model.is_recurrent() || model.is_hybrid() {
        return Err(LlamaError::Unsupported {
            path: path.clone(),
            architecture: facts.architecture,
            why: "its state cannot be cut into KV blocks; this engine serves models with attention only",
        });
    }
    facts.trained_context = model.n_ctx_train();
    facts.vocab_size = u32::try_from(model.n_vocab()).unwrap_or(0);
    facts.parameters = model.n_params();
    let context = model
        .new_context(backend, context_params(config, kv_tokens))
        .map_err(|error| LlamaError::Start(error.to_string()))?;
    Ok(Loaded { context, facts })
}

/// Whether the cells of a prefix can be kept for others. With a sliding window llama.cpp reuses cells that its window
/// has left, also those kept for later.
pub(super) fn cells_can_be_kept(path: &Path, facts: &ModelFacts) -> bool {
    let window = format!("{}.attention.sliding_window", facts.architecture);
    GgufContext::from_file(path).is_none_or(|gguf| gguf.find_key(&window) < 0)
}

impl Process {
    fn backend(&mut self) -> Result<&'static LlamaBackend, LlamaError> {
        if let Some(backend) = self.backend {
            return Ok(backend);
        }
        // llama.cpp says a great deal at level info; whoever wants it asks for debug.
        let wanted = tracing::enabled!(tracing::Level::DEBUG);
        send_logs_to_tracing(LogOptions::default().with_logs_enabled(wanted));
        let backend = LlamaBackend::init().map_err(|error| LlamaError::Start(error.to_string()))?;
        let backend: &'static LlamaBackend = Box::leak(Box::new(backend));
        self.backend = Some(backend);
        Ok(backend)
    }

    fn model(
        &mut self,
        path: &Path,
        file: &fs::Metadata,
        facts: &ModelFacts,
        mut progress: impl FnMut(f32) + 'static,
    ) -> Result<&'static LlamaModel, LlamaError> {
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let (bytes, modified) = (file.len(), file.modified().ok());
        let same = |kept: &&Kept| kept.path == path && kept.bytes == bytes && kept.modified == modified;
        if let Some(kept) = self.models.iter().find(same) {
            progress(1.0);
            return Ok(kept.model);
        }
        let refused = || LlamaError::Refused {
            path: path.clone(),
            architecture: facts.architecture.clone(),
        };
        let params = LlamaModelParams::default().with_progress_callback(move |share| {
            progress(share);
            true
        });
        let backend = self.backend()?;
        let model = LlamaModel::load_from_file(backend, &path, &params).map_err(|_| refused())?;
        let model: &'static LlamaModel = Box::leak(Box::new(model));
        self.models.push(Kept {
            path,
            bytes,
            modified,
            model,
        });
        Ok(model)
    }
}

/// What the file's head tells, before anything is loaded.
fn read_facts(path: &Path, file_bytes: u64) -> Result<ModelFacts, LlamaError> {
    let gguf = GgufContext::from_file(path).ok_or_else(|| LlamaError::NotGguf {
        path: path.to_owned(),
    })?;
    let Some(architecture) = text(&gguf, "general.architecture") else {
        return Err(LlamaError::Unsupported {
            path: path.to_owned(),
            architecture: "nameless".to_owned(),
            why: "the file has no general.architecture and so holds no language model",
        });
    };
    let has = |key: &str| gguf.find_key(&format!("{architecture}.{key}")) >= 0;
    if has("attention.causal") || has("decoder_start_token_id") {
        return Err(LlamaError::Unsupported {
            path: path.to_owned(),
            architecture,
            why: "it encodes text and does not continue it; this engine serves decoder-only models",
        });
    }
    let number = |key: &str| number(&gguf, &format!("{architecture}.{key}"));
    let heads = number("attention.head_count").unwrap_or(1).max(1);
    // Where it differs by layer the file has an array; all heads is the most it can be.
    let kv_heads = number("attention.head_count_kv").unwrap_or(heads);
    let head_size = number("embedding_length").unwrap_or(0) / heads;
    let row = number("attention.key_length").unwrap_or(head_size)
        + number("attention.value_length").unwrap_or(head_size);
    const F16_BYTES: u64 = 2;
    Ok(ModelFacts {
        name: text(&gguf, "general.name"),
        trained_context: number("context_length")
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(0),
        vocab_size: number("vocab_size")
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(0),
        parameters: 0,
        file_bytes,
        kv_bytes_per_token: number("block_count").unwrap_or(0) * kv_heads * row * F16_BYTES,
        architecture,
    })
}

fn context_params(config: &LlamaConfig, kv_tokens: u32) -> LlamaContextParams {
    let threads = config.threads.unwrap_or_else(|| {
        std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1))
    });
    let threads = i32::try_from(threads).unwrap_or(1);
    LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(kv_tokens))
        .with_n_batch(config.step_tokens())
        .with_n_ubatch(config.step_tokens())
        .with_n_seq_max(config.max_sequences)
        .with_kv_unified(true)
        .with_n_threads(threads)
        .with_n_threads_batch(threads)
        .with_flash_attention_policy(config.flash_attention.into())
        .with_no_perf(true)
}

/// Types of GGUF values: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>
const GGUF_UINT32: u32 = 4;
const GGUF_STRING: u32 = 8;
const GGUF_UINT64: u32 = 10;

fn number(gguf: &GgufContext, key: &str) -> Option<u64> {
    let place = gguf.find_key(key);
    if place < 0 {
        return None;
    }
    match gguf.kv_type(place) {
        GGUF_UINT32 => Some(u64::from(gguf.val_u32(place))),
        GGUF_UINT64 => Some(gguf.val_u64(place)),
        _ => None,
    }
}

fn text(gguf: &GgufContext, key: &str) -> Option<String> {
    let place = gguf.find_key(key);
    let is_text = place >= 0 && gguf.kv_type(place) == GGUF_STRING;
    is_text.then(|| gguf.val_str(place).map(str::to_owned)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_file_is_named() {
        let folder = std::env::temp_dir();
        let missing = folder.join("no such model.gguf");
        let error = load(&LlamaConfig::new(&missing), |_| ()).err().unwrap();
        assert!(
            matches!(&error, LlamaError::Unreadable { path, .. } if *path == missing),
            "{error}"
        );
        let error = load(&LlamaConfig::new(&folder), |_| ()).err().unwrap();
        assert!(
            matches!(&error, LlamaError::Unreadable { source, .. } if source.to_string().contains("regular"))
        );
        let foreign = folder.join(format!("signalbox-foreign-{}.gguf", std::process::id()));
        fs::write(&foreign, "PK\u{3}\u{4} this is something else").unwrap();
        let error = load(&LlamaConfig::new(&foreign), |_| ()).err().unwrap();
        fs::remove_file(&foreign).unwrap();
        assert!(
            matches!(&error, LlamaError::NotGguf { path } if *path == foreign),
            "{error}"
        );
    }
}
