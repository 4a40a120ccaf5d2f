//! A new policy's folder.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use signalbox_policy_host::builtin_policies;

use crate::{
    language::Language,
    templates::{INTERFACE, files_of},
};

/// Longest name of a policy (`wit/types.wit`).
const MAX_NAME_BYTES: usize = 64;

/// Why there is no folder.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The name cannot be that of a policy in every language.
    #[error("{name:?} cannot name a policy: {reason}")]
    Name {
        /// As it was given.
        name: String,
        /// What would be right.
        reason: &'static str,
    },
    /// Something is there, and is not overwritten.
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    /// A file cannot be written.
    #[error("cannot write {}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Writes a folder with a policy of this name, and everything that it needs to build and to be tested. It must not exist yet.
///
/// # Errors
/// The name cannot be a policy's, or the folder exists or cannot be written.
pub fn write_folder(folder: &Path, name: &str, language: Language) -> Result<(), FolderError> {
    check_name(name)?;
    if folder.exists() {
        return Err(FolderError::Exists(folder.to_owned()));
    }
    for file in files_of(language).iter().chain(INTERFACE) {
        let path = folder.join(file.path);
        let written = path
            .parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::write(&path, file.text.replace("{{name}}", name)));
        written.map_err(|source| FolderError::Write { path, source })?;
    }
    Ok(())
}

/// Names that are good for a policy, a crate and a package alike.
fn check_name(name: &str) -> Result<(), FolderError> {
    let refuse = |reason| {
        Err(FolderError::Name {
            name: name.to_owned(),
            reason,
        })
    };
    let is_good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !name.starts_with(|first: char| first.is_ascii_lowercase())
        || !name.bytes().all(is_good)
        || name.len() > MAX_NAME_BYTES
    {
        return refuse("give at most 64 lower-case letters, digits and `-`, a letter first");
    }
    if name == "test" {
        return refuse("cargo has a library of that name");
    }
    if builtin_policies().iter().any(|(builtin, _)| *builtin == name) {
        return refuse("a built-in policy has that name");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_folder_has_every_file_with_the_name_in_it() {
        for language in Language::ALL {
            let parent = tempfile::tempdir().unwrap();
            let folder = parent.path().join("mine");
            write_folder(&folder, "mine", language).unwrap();
            assert_eq!(Language::of_folder(&folder), Some(language));
            let readme = fs::read_to_string(folder.join("README.md")).unwrap();
            assert!(
                readme.contains(&format!("runtime policy new mine --lang {language}")),
                "{readme}"
            );
            assert!(folder.join("wit/types.wit").is_file());
            for file in files_of(language) {
                let text = fs::read_to_string(folder.join(file.path)).unwrap();
                assert!(!text.contains("{{name}}"), "{}", file.path);
            }
            let again = write_folder(&folder, "mine", language).unwrap_err();
            assert!(matches!(again, FolderError::Exists(_)), "{again}");
        }
    }

    #[test]
    fn the_whole_sdk_and_interface_are_in_a_folder() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut expected = BTreeSet::new();
        for (folder, to) in [
            ("policies/sdk/src", "sdk/src"),
            ("policies/sdk/src/bindings", "sdk/src/bindings"),
            ("policies/sdk/src/predicted_ttft", "sdk/src/predicted_ttft"),
            ("wit", "wit"),
        ] {
            for entry in fs::read_dir(root.join(folder)).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_file() {
                    expected.insert(format!("{to}/{}", entry.file_name().display()));
                }
            }
        }
        let embedded = files_of(Language::Rust).iter().chain(INTERFACE);
        let embedded: BTreeSet<String> = embedded.map(|file| file.path.to_owned()).collect();
        let missing: Vec<_> = expected.difference(&embedded).collect();
        assert!(missing.is_empty(), "not in templates.rs: {missing:?}");
    }

    #[test]
    fn a_name_that_no_router_takes_is_refused() {
        let folder = Path::new("never-written");
        for name in [
            "",
            "Mine",
            "1st",
            "a_b",
            "a.b",
            "kv-aware",
            "test",
            &"a".repeat(65),
        ] {
            let refusal = write_folder(folder, name, Language::Js).unwrap_err();
            assert!(matches!(refusal, FolderError::Name { .. }), "{refusal}");
        }
        assert!(!folder.exists());
    }
}
