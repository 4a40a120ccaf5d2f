//! The cache of the hub's own libraries on this machine, which engines on it often share.
//!
//! Layout: <https://huggingface.co/docs/huggingface_hub/guides/manage-cache>. `refs/main` of a model names a revision,
//! `snapshots/{revision}` has its files. Libraries make these links to `blobs`, and take plain files as well.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process,
};

use bytes::Bytes;

use super::{HubError, HubName, is_file_name};

/// A folder with a folder for each model.
#[derive(Debug, Clone)]
pub struct HubCache(PathBuf);

impl HubCache {
    /// The cache in this folder, which need not exist.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    /// The folder with the files of the model's newest revision here; it may lack any file.
    pub fn snapshot(&self, name: &HubName) -> Option<PathBuf> {
        let revision = self.revision(name)?;
        Some(self.model(name).join("snapshots").join(revision))
    }

    /// The model's newest revision here.
    pub(super) fn revision(&self, name: &HubName) -> Option<String> {
        let revision = fs::read_to_string(main_of(&self.model(name))).ok()?;
        let revision = revision.trim();
        is_file_name(revision).then(|| revision.to_owned())
    }

    /// Adds files of a revision in this order; returns their folder. Files that are there already stay, and so does
    /// `refs/main`: an engine that shares the cache may have only the revision that it names.
    pub(super) fn store(
        &self,
        name: &HubName,
        revision: &str,
        files: &[(&str, Bytes)],
    ) -> Result<PathBuf, HubError> {
        let model = self.model(name);
        let snapshot = model.join("snapshots").join(revision);
        for (file, bytes) in files {
            add(&snapshot.join(file), bytes)?;
        }
        add(&main_of(&model), revision.as_bytes())?;
        Ok(snapshot)
    }

    fn model(&self, name: &HubName) -> PathBuf {
        self.0.join(format!("models--{}--{}", name.owner, name.model))
    }
}

fn main_of(model: &Path) -> PathBuf {
    model.join("refs").join("main")
}

/// Writes a file that is not there yet. It is there in whole or not at all: several workers may fetch one model.
fn add(path: &Path, bytes: &[u8]) -> Result<(), HubError> {
    let written = || -> io::Result<()> {
        if path.try_exists()? {
            return Ok(());
        }
        let folder = path.parent().unwrap_or(path);
        fs::create_dir_all(folder)?;
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let part = folder.join(format!(".{file}.{}.part", process::id()));
        let renamed = fs::write(&part, bytes).and_then(|()| fs::rename(&part, path));
        if renamed.is_err() {
            // It may be half written. What cannot be removed is no worse than before.
            let _ = fs::remove_file(&part);
        }
        renamed
    };
    written().map_err(|error| HubError::Cache(path.into(), error))
}
