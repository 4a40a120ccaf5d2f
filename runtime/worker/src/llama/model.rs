//! Loads a GGUF model, after checking that the engine can serve it.
//!
//! A loaded model stays until the process exits, because its contexts borrow it. This costs little: a worker has one
//! model, and its weights are file pages that the operating system may drop. A second engine on the same file shares
//! the model.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{fs, io};

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::{LogOptions, send_logs_to_tracing};
use parking_lot::Mutex;

use super::config::{LlamaConfig, check_settings, fit};
use super::error::LlamaError;
use super::facts::{ModelFacts, read_facts};
use super::memory::available_bytes;

/// A loaded model with a context to compute in.
pub(super) struct LoadedModel {
    pub(super) context: LlamaContext<'static>,
    pub(super) facts: ModelFacts,
}

/// The state of llama.cpp in this process. The lock also serialises the creation of contexts, which must not overlap
/// for one model.
static PROCESS: Mutex<Process> = Mutex::new(Process {
    backend: None,
    models: Vec::new(),
});

struct Process {
    backend: Option<&'static LlamaBackend>,
    models: Vec<CachedModel>,
}

/// A loaded model, with what identifies its file.
struct CachedModel {
    path: PathBuf,
    bytes: u64,
    modified: Option<SystemTime>,
    model: &'static LlamaModel,
}

/// Checks the settings and the file, loads the model and creates a context. Calls `progress` with the loaded share, 0
/// to 1.
pub(super) fn load(
    config: &LlamaConfig,
    progress: impl FnMut(f32) + 'static,
) -> Result<LoadedModel, LlamaError> {
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
            "not a regular file",
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
            why: "its state cannot be split into KV blocks; this engine serves models with attention only",
        });
    }
    facts.trained_context = model.n_ctx_train();
    facts.vocab_size = u32::try_from(model.n_vocab()).unwrap_or(0);
    facts.parameters = model.n_params();
    let context = model
        .new_context(backend, context_params(config, kv_tokens))
        .map_err(|error| LlamaError::Start(error.to_string()))?;
    Ok(LoadedModel { context, facts })
}

impl Process {
    fn backend(&mut self) -> Result<&'static LlamaBackend, LlamaError> {
        if let Some(backend) = self.backend {
            return Ok(backend);
        }
        // llama.cpp logs a great deal at level info, so its logs are enabled only at level debug.
        let enabled = tracing::enabled!(tracing::Level::DEBUG);
        send_logs_to_tracing(LogOptions::default().with_logs_enabled(enabled));
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
        let same = |cached: &&CachedModel| {
            cached.path == path && cached.bytes == bytes && cached.modified == modified
        };
        if let Some(cached) = self.models.iter().find(same) {
            progress(1.0);
            return Ok(cached.model);
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
        self.models.push(CachedModel {
            path,
            bytes,
            modified,
            model,
        });
        Ok(model)
    }
}

fn context_params(config: &LlamaConfig, kv_tokens: u32) -> LlamaContextParams {
    let threads = config.threads.unwrap_or_else(|| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        u32::try_from(crate::engine::default_threads(cores)).unwrap_or(1)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_model_is_named() {
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
