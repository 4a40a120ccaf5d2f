//! Model folders, for engines and adapters that read their tokenizer from one.

use std::{fs, path::Path};

use serde_json::json;
use signalbox_tokenize::ModelArtifacts;
use tempfile::TempDir;

use super::options::EngineOptions;

/// Marks turns as the built-in template does.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + \
     '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// A folder in the layout of the Hugging Face hub, with the built-in byte-level tokenizer. It is deleted when dropped.
#[derive(Debug)]
pub struct ModelFolder(TempDir);

impl ModelFolder {
    /// The built-in tokenizer with a ChatML template.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn new() -> anyhow::Result<Self> {
        Self::with_template(CHATML)
    }

    /// The built-in tokenizer with this chat template.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn with_template(template: &str) -> anyhow::Result<Self> {
        Self::with(ModelArtifacts::byte_level().tokenizer_json(), template)
    }

    /// A tokenizer that differs from the built-in one in all ordinary words: it has none of its merges.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn with_another_tokenizer() -> anyhow::Result<Self> {
        let artifacts = ModelArtifacts::byte_level();
        let mut tokenizer: serde_json::Value = serde_json::from_slice(artifacts.tokenizer_json())?;
        tokenizer["model"]["merges"] = json!([]);
        Self::with(&serde_json::to_vec(&tokenizer)?, CHATML)
    }

    fn with(tokenizer: &[u8], template: &str) -> anyhow::Result<Self> {
        let folder = TempDir::new()?;
        fs::write(folder.path().join("tokenizer.json"), tokenizer)?;
        let config = json!({
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|im_end|>",
            "add_bos_token": false,
            "chat_template": template,
        });
        fs::write(folder.path().join("tokenizer_config.json"), config.to_string())?;
        Ok(Self(folder))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The settings of an engine that was started with this folder, which names it as its model's root.
    ///
    /// # Errors
    /// The folder is damaged.
    pub fn serve(&self, options: EngineOptions) -> anyhow::Result<EngineOptions> {
        Ok(EngineOptions {
            root: self.path().display().to_string(),
            artifacts: self.artifacts()?,
            ..options
        })
    }

    /// What an engine loads from it.
    ///
    /// # Errors
    /// The folder is damaged.
    pub fn artifacts(&self) -> anyhow::Result<ModelArtifacts> {
        Ok(ModelArtifacts::from_hf_folder(self.path())?)
    }
}
