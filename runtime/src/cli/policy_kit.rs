//! The commands for authors of policies: `runtime policy new`, `build` and `bench`. They need no router.

use std::path::PathBuf;

use clap::{
    Subcommand,
    builder::{PossibleValuesParser, TypedValueParser},
};
use signalbox_policy_kit::Language;

#[derive(Debug, Subcommand)]
pub(crate) enum KitCommand {
    /// Make the folder of a new policy: it builds and tests by itself, and its README has the commands.
    New {
        /// The policy's name: lower-case letters, digits and `-`.
        name: String,
        /// The language to write it in.
        #[arg(long, default_value = "rust", value_parser = language())]
        lang: Language,
        /// The folder; by default the name.
        #[arg(long, value_name = "FOLDER")]
        folder: Option<PathBuf>,
    },
    /// Build the policy of a folder into its file `policy.wasm`, and check that as an upload does.
    Build {
        /// The folder.
        #[arg(default_value = ".")]
        folder: PathBuf,
    },
    /// Time a policy's decisions, and print its size and memory.
    Bench {
        /// The component.
        file: PathBuf,
        /// Its settings, in JSON.
        #[arg(long, default_value = "")]
        settings: String,
    },
}

fn language() -> impl TypedValueParser<Value = Language> {
    PossibleValuesParser::new(Language::ALL.map(Language::name)).try_map(|name| name.parse::<Language>())
}
