//! The languages that policies are written in.

use std::{fmt, path::Path, str::FromStr};

/// A language of policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// Rust, by `cargo`.
    Rust,
    /// C, by `zig cc` or `clang`.
    C,
    /// JavaScript, by `componentize-qjs`.
    Js,
    /// Python, by `componentize-py`.
    Python,
}

impl Language {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Rust, Self::C, Self::Js, Self::Python];

    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::C => "c",
            Self::Js => "js",
            Self::Python => "python",
        }
    }

    /// The file by which a folder of this language is recognised.
    pub(crate) const fn mark(self) -> &'static str {
        match self {
            Self::Rust => "Cargo.toml",
            Self::C => "policy.c",
            Self::Js => "package.json",
            Self::Python => "policy.py",
        }
    }

    /// The language of a folder.
    #[must_use]
    pub fn of_folder(folder: &Path) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|language| folder.join(language.mark()).is_file())
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Language {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|language| language.name() == name);
        found.ok_or_else(|| format!("there is no language {name:?}; known: rust, c, js, python"))
    }
}
