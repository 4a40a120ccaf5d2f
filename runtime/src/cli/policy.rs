//! Options of `runtime policy`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{policy_kit::KitCommand, policy_test::PolicyTestOptions};

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    #[command(flatten)]
    Kit(KitCommand),
    /// Check whether a router accepts a policy component, and print why not.
    Check {
        /// The component.
        file: PathBuf,
        /// Its settings, in JSON.
        #[arg(long, default_value = "")]
        settings: String,
    },
    /// Make recorded decisions once more with a component, and print where it decides otherwise. Exits with 1 if it does.
    Test(PolicyTestOptions),
    /// Upload a component to a router, and so to all routers.
    Push {
        /// The component.
        file: PathBuf,
        /// The policy's name. The default is that of the file, without its extension.
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Its settings, in JSON.
        #[arg(long, value_name = "JSON")]
        settings: Option<String>,
        #[command(flatten)]
        admin: AdminOptions,
    },
    /// List the stored policies.
    List {
        #[command(flatten)]
        admin: AdminOptions,
    },
    /// Show a stored version, or with --model the policy of a model.
    Show {
        /// `name`, `name@1.2.0`, `name@1` or `name@sha256:DIGITS`.
        #[arg(value_name = "POLICY", required_unless_present = "model")]
        policy: Option<String>,
        /// A model.
        #[arg(long, value_name = "MODEL", conflicts_with = "policy")]
        model: Option<String>,
        #[command(flatten)]
        admin: AdminOptions,
    },
    /// Write the component of a stored version to a file.
    Download {
        /// As for `show`.
        policy: String,
        /// The file.
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
        #[command(flatten)]
        admin: AdminOptions,
    },
    /// Let a policy decide for a model.
    Activate {
        #[command(flatten)]
        choice: ChoiceOptions,
    },
    /// Let an earlier policy decide for a model again.
    Rollback {
        /// The model.
        model: String,
        /// The revision to return to, as `history` lists it. The default is the policy before the present one.
        #[arg(long, value_name = "N")]
        to_revision: Option<u64>,
        /// Only if the model's policy has this revision now.
        #[arg(long, value_name = "N")]
        revision: Option<u64>,
        #[command(flatten)]
        admin: AdminOptions,
    },
    /// List who changed a model's policy, when and how.
    History {
        /// The model.
        model: String,
        #[command(flatten)]
        admin: AdminOptions,
    },
    /// Delete a stored version that no model uses.
    Delete {
        /// As for `show`.
        policy: String,
        #[command(flatten)]
        admin: AdminOptions,
    },
    /// List the latest changes of policies at a router.
    Audit {
        #[command(flatten)]
        admin: AdminOptions,
    },
}

/// A policy for a model.
#[derive(Debug, Args)]
pub(crate) struct ChoiceOptions {
    /// The model.
    pub(crate) model: String,
    /// `name` for its newest version, `name@1.2.0`, `name@1` or `name@sha256:DIGITS`.
    pub(crate) policy: String,
    /// Settings in place of those of the upload, in JSON.
    #[arg(long, value_name = "JSON")]
    pub(crate) settings: Option<String>,
    /// Only if the model's policy has this revision now.
    #[arg(long, value_name = "N")]
    pub(crate) revision: Option<u64>,
    #[command(flatten)]
    pub(crate) admin: AdminOptions,
}

/// The admin API of a router.
#[derive(Debug, Args)]
pub(crate) struct AdminOptions {
    /// Address of a router's admin API, without TLS.
    #[arg(
        long = "admin",
        env = "SIGNALBOX_ADMIN_URL",
        default_value = "http://127.0.0.1:9090",
        value_name = "URL"
    )]
    pub(crate) url: String,
    /// Its bearer token.
    #[arg(
        long = "admin-token",
        env = "SIGNALBOX_ADMIN_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    pub(crate) token: Option<String>,
    /// Your name for the history and the audit log. The default is that of your account on this machine.
    #[arg(long = "user", env = "USER", value_name = "NAME", default_value = "")]
    pub(crate) user: String,
    /// Print the answer of the API, in JSON.
    #[arg(long)]
    pub(crate) json: bool,
}
