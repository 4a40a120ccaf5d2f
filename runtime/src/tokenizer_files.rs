//! Finds the tokenizer of a model that an engine next door serves.

use std::path::{Path, PathBuf};

use anyhow::Context;
use signalbox_tokenize::ModelArtifacts;
use signalbox_worker::hub::{HubCache, HubConfig, HubName};

/// A tokenizer and where it is from.
#[derive(Debug)]
pub(crate) struct FoundTokenizer {
    pub(crate) artifacts: ModelArtifacts,
    /// For a person.
    pub(crate) source: String,
    /// Why it is not the model's, and the mend; `None` if it is.
    pub(crate) not_found: Option<String>,
}

/// Where to look, in this order.
#[derive(Debug)]
pub(crate) struct TokenizerPlaces<'a> {
    /// The folder that the user names. What is wrong with it is an error.
    pub(crate) folder: Option<&'a Path>,
    /// Where the engine loaded its model from: a folder on its machine, or a name at the hub.
    pub(crate) model_root: Option<&'a str>,
    /// The model's name at the engine, which may be one at the hub.
    pub(crate) model: &'a str,
    /// The cache of the Hugging Face hub.
    pub(crate) hub_cache: Option<&'a Path>,
    /// The hub itself, which is asked last; `None` if it must not be.
    pub(crate) hub: Option<&'a HubConfig>,
}

impl FoundTokenizer {
    /// Without a tokenizer each byte is a token, and routers cannot know the engine's tokens.
    pub(crate) fn none(problem: &str) -> Self {
        Self {
            artifacts: ModelArtifacts::byte_level(),
            source: "none".into(),
            not_found: Some(format!("{problem}: give its folder with --tokenizer")),
        }
    }
}

impl TokenizerPlaces<'_> {
    /// Reads the first tokenizer that is there. A hub that fails is no error: it is why there is no tokenizer.
    pub(crate) async fn find(&self) -> anyhow::Result<FoundTokenizer> {
        if let Some(folder) = self.folder {
            let artifacts = ModelArtifacts::from_hf_folder(folder)
                .with_context(|| format!("--tokenizer {} cannot be used", folder.display()))?;
            return Ok(found(artifacts, folder));
        }
        let mut problems = Vec::new();
        for folder in self.candidates() {
            if !folder.is_dir() {
                continue;
            }
            match ModelArtifacts::from_hf_folder(&folder) {
                Ok(artifacts) => return Ok(found(artifacts, &folder)),
                Err(error) => {
                    let error = anyhow::Error::from(error);
                    problems.push(format!("{} cannot be used: {error:#}", folder.display()));
                }
            }
        }
        if problems.is_empty() {
            let name = self.name();
            problems.push(format!("no tokenizer of {name} was found on this machine"));
        }
        match self.fetch().await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => {}
            Err(error) => problems.push(format!("it cannot be fetched: {error:#}")),
        }
        Ok(FoundTokenizer::none(&problems.join("; ")))
    }

    /// Fetches the tokenizer; `None` if the engine names no model of the hub, or the hub must not be asked.
    async fn fetch(&self) -> anyhow::Result<Option<FoundTokenizer>> {
        let (Some(hub), Ok(name)) = (self.hub, self.name().parse::<HubName>()) else {
            return Ok(None);
        };
        let cache = self
            .hub_cache
            .context("this user has no home folder; give a folder with --hf-hub-cache")?;
        tracing::info!(model = %name, hub = hub.endpoint, "fetching the tokenizer");
        let folder = hub.fetch_tokenizer(&name, &HubCache::new(cache)).await?;
        let artifacts = ModelArtifacts::from_hf_folder(&folder)
            .with_context(|| format!("what came into {} cannot be used", folder.display()))?;
        Ok(Some(found(artifacts, &folder)))
    }

    /// The name of the model's files. What the model is called counts only if the engine does not state where it is from.
    fn name(&self) -> &str {
        self.model_root.unwrap_or(self.model)
    }

    /// Folders that may hold the tokenizer.
    fn candidates(&self) -> impl Iterator<Item = PathBuf> {
        let root = self
            .model_root
            .map(PathBuf::from)
            .filter(|root| root.is_absolute());
        let names = [self.model_root, Some(self.model)].into_iter().flatten();
        let snapshots = names.filter_map(|name| HubCache::new(self.hub_cache?).snapshot(&name.parse().ok()?));
        root.into_iter().chain(snapshots)
    }
}

fn found(artifacts: ModelArtifacts, folder: &Path) -> FoundTokenizer {
    FoundTokenizer {
        artifacts,
        source: folder.display().to_string(),
        not_found: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tokenizer in which each byte is a token, as a folder of the hub.
    fn write_tokenizer(folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        let bytes = ModelArtifacts::byte_level();
        std::fs::write(folder.join("tokenizer.json"), bytes.tokenizer_json()).unwrap();
        std::fs::write(folder.join("tokenizer_config.json"), "{}").unwrap();
    }

    fn places<'a>(root: Option<&'a str>, model: &'a str, cache: &'a Path) -> TokenizerPlaces<'a> {
        TokenizerPlaces {
            folder: None,
            model_root: root,
            model,
            hub_cache: Some(cache),
            hub: None,
        }
    }

    #[tokio::test]
    async fn the_tokenizer_is_found_where_the_engine_or_the_hub_put_it() {
        let temporary = tempfile::TempDir::new().unwrap();
        let cache = temporary.path().join("hub");
        let snapshot = cache.join("models--org--name/snapshots/abc123");
        write_tokenizer(&snapshot);
        std::fs::create_dir_all(cache.join("models--org--name/refs")).unwrap();
        std::fs::write(cache.join("models--org--name/refs/main"), "abc123\n").unwrap();
        let root = temporary.path().join("model");
        write_tokenizer(&root);

        let shown = |folder: &Path| folder.display().to_string();
        for (model_root, model, expected) in [
            (Some(root.to_str().unwrap()), "m", shown(&root)),
            (Some("org/name"), "m", shown(&snapshot)),
            (None, "org/name", shown(&snapshot)),
            (Some("/not/here"), "org/name", shown(&snapshot)),
        ] {
            let found = places(model_root, model, &cache).find().await.unwrap();
            assert_eq!((found.source, found.not_found), (expected, None));
        }
        for model in ["org/other", "../name", "org/..", "m", "a/b/c", ""] {
            let found = places(None, model, &cache).find().await.unwrap();
            assert!(found.not_found.unwrap().contains("--tokenizer"), "{model}");
        }
    }

    #[tokio::test]
    async fn a_folder_that_the_user_names_must_be_right() {
        let temporary = tempfile::TempDir::new().unwrap();
        let places = TokenizerPlaces {
            folder: Some(temporary.path()),
            ..places(None, "m", temporary.path())
        };
        assert!(format!("{:#}", places.find().await.unwrap_err()).contains("--tokenizer"));
    }

    #[tokio::test]
    async fn a_damaged_tokenizer_is_named() {
        let temporary = tempfile::TempDir::new().unwrap();
        std::fs::write(temporary.path().join("tokenizer.json"), "{").unwrap();
        let root = temporary.path().to_str().unwrap();
        let found = places(Some(root), "m", temporary.path()).find().await.unwrap();
        let problem = found.not_found.unwrap();
        assert!(
            problem.contains(root) && problem.contains("--tokenizer"),
            "{problem}"
        );
    }

    #[tokio::test]
    async fn a_hub_that_fails_is_named_and_is_asked_for_names_of_the_hub_only() {
        let temporary = tempfile::TempDir::new().unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let hub = HubConfig {
            endpoint: format!("http://{}", listener.local_addr().unwrap()),
            token: None,
        };
        drop(listener);
        for (root, is_asked) in [
            (Some("org/name"), true),
            (None, true),
            (Some("/models/name"), false),
            (Some("name"), false),
        ] {
            let places = TokenizerPlaces {
                hub: Some(&hub),
                ..places(root, "org/model", temporary.path())
            };
            let problem = places.find().await.unwrap().not_found.unwrap();
            assert!(problem.contains("--tokenizer"), "{problem}");
            assert_eq!(problem.contains("cannot be reached"), is_asked, "{problem}");
        }
    }
}
