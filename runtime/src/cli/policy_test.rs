//! Options of `runtime policy test`.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct PolicyTestOptions {
    /// The component, or the name of a built-in policy.
    #[arg(value_name = "POLICY")]
    pub(crate) policy: String,
    /// The decisions, as a router writes them (`--decision-log`).
    #[arg(long, value_name = "FILE")]
    pub(crate) decisions: PathBuf,
    /// Settings, in JSON. The default is those of each decision that this component made, and the policy's own for others.
    #[arg(long, value_name = "JSON")]
    pub(crate) settings: Option<String>,
    /// Differences to print.
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub(crate) show: u16,
}
