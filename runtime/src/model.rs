//! Which model an engine serves, under which name, with which tokenizer.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use signalbox_tokenize::{ModelArtifacts, read_gguf_metadata};

use crate::settings::{EngineKind, EngineSettings};

/// Where `make` puts the model it fetches, below the working directory.
const DEFAULT_MODEL: &str = ".local/models/SmolLM2-135M-Instruct.Q4_1.gguf";

/// What a worker serves.
#[derive(Debug)]
pub(crate) struct ServedModel {
    pub(crate) engine: EngineKind,
    /// The GGUF file; the simulated engine needs none.
    pub(crate) path: Option<PathBuf>,
    pub(crate) name: String,
    pub(crate) artifacts: ModelArtifacts,
    /// Most tokens of prompt and answer together, if the model states it.
    pub(crate) context_length: Option<u32>,
}

impl ServedModel {
    /// Reads what is needed to serve; the engine reads the weights itself.
    pub(crate) fn resolve(settings: &EngineSettings) -> anyhow::Result<Self> {
        let engine = settings.kind;
        let path = model_path(settings)?;
        let metadata = path.as_deref().map(read_gguf_metadata).transpose()?;
        let artifacts = match (&settings.tokenizer, &path) {
            (Some(folder), _) => ModelArtifacts::from_hf_folder(folder)?,
            (None, Some(path)) => ModelArtifacts::from_gguf(path)?,
            (None, None) => ModelArtifacts::byte_level(),
        };
        let context_length = match &metadata {
            Some(metadata) => Some(u32::try_from(metadata.context_length()?).unwrap_or(u32::MAX)),
            None => None,
        };
        let name = match (&settings.model_name, &settings.tokenizer, &path) {
            (Some(name), _, _) => name.clone(),
            (None, Some(folder), _) if engine == EngineKind::Sim => file_name(folder),
            (None, _, Some(path)) => without_quantisation(&file_name(path)),
            (None, _, None) => "sim".into(),
        };
        if name.is_empty() || name.len() > 200 || name.chars().any(char::is_control) {
            bail!("the model name {name:?} is not 1 to 200 printable bytes; give one with --model-name");
        }
        Ok(Self {
            engine,
            path,
            name,
            artifacts,
            context_length,
        })
    }
}

/// The model's file: required by the real engine, optional for the simulated one.
fn model_path(settings: &EngineSettings) -> anyhow::Result<Option<PathBuf>> {
    if let Some(path) = &settings.model {
        std::fs::metadata(path).with_context(|| format!("cannot read the model {}", path.display()))?;
        return Ok(Some(path.clone()));
    }
    let default = Path::new(DEFAULT_MODEL);
    match (default.is_file(), settings.kind) {
        (true, _) if settings.tokenizer.is_none() => Ok(Some(default.into())),
        (false, EngineKind::Llama) => {
            bail!("{DEFAULT_MODEL} does not exist; `make model` fetches it, or give a GGUF file with --model")
        }
        _ => Ok(None),
    }
}

fn file_name(path: &Path) -> String {
    let name = if path.extension().is_some_and(|extension| extension == "gguf") {
        path.file_stem()
    } else {
        path.file_name()
    };
    name.map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// `SmolLM2-135M-Instruct.Q4_1` and `Qwen3-0.6B-Q8_0` are named after the model, without the quantisation.
fn without_quantisation(name: &str) -> String {
    let is_quantisation = |suffix: &str| {
        let upper = suffix.to_ascii_uppercase();
        matches!(upper.as_str(), "F16" | "F32" | "BF16")
            || upper
                .strip_prefix("IQ")
                .or_else(|| upper.strip_prefix('Q'))
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    match name.rfind(['.', '-']) {
        Some(dot) if is_quantisation(&name[dot + 1..]) => name[..dot].into(),
        _ => name.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_named_after_its_file_without_the_quantisation() {
        for (file, name) in [
            ("a/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct"),
            ("Qwen3-0.6B-Q8_0.gguf", "Qwen3-0.6B"),
            ("Llama-3.2-1B-IQ4_XS.gguf", "Llama-3.2-1B"),
            ("tiny-bf16.gguf", "tiny"),
            ("Qwen2.5.gguf", "Qwen2.5"),
            ("models/Qwen3", "Qwen3"),
        ] {
            assert_eq!(without_quantisation(&file_name(Path::new(file))), name);
        }
    }
}
