//! Options of the planes, which routers and workers share.

use std::path::PathBuf;

use clap::Args;
use signalbox_protocol::WorkerId;

/// What carries events and membership. Routers and workers of one cluster need the same.
#[derive(Clone, Args)]
pub(crate) struct PlaneOptions {
    /// What carries KV events: `memory` (each worker's own connection to each router) or
    /// `nats://host:port[,host:port…]` (`tls://` for TLS), with `user:password@` or `token@` before the first host if the
    /// servers require it, percent-encoded. Other processes of this machine can read a command line: set secrets by the
    /// variable or in a file.
    #[arg(
        long,
        env = "SIGNALBOX_EVENTS",
        default_value = "memory",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub(crate) events: String,
    /// Separates clusters that share NATS and etcd: letters, digits, `-`, `_`.
    #[arg(
        long,
        env = "SIGNALBOX_NAMESPACE",
        default_value = "default",
        value_name = "NAME",
        value_parser = namespace
    )]
    pub(crate) namespace: String,
    /// NATS: the token that the servers require.
    #[arg(
        long,
        env = "SIGNALBOX_NATS_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    pub(crate) nats_token: Option<String>,
    /// NATS: a file with the seed of this process's NKey.
    #[arg(long, env = "SIGNALBOX_NATS_NKEY", value_name = "FILE")]
    pub(crate) nats_nkey: Option<PathBuf>,
    /// NATS: a file of credentials (`.creds`).
    #[arg(long, env = "SIGNALBOX_NATS_CREDS", value_name = "FILE")]
    pub(crate) nats_creds: Option<PathBuf>,
    /// NATS: certificate authorities to trust (PEM); makes the connection TLS.
    #[arg(long, env = "SIGNALBOX_NATS_CA", value_name = "FILE")]
    pub(crate) nats_ca: Option<PathBuf>,
    /// NATS: this process's certificate (PEM); makes the connection TLS.
    #[arg(long, env = "SIGNALBOX_NATS_CERT", value_name = "FILE", requires = "nats_key")]
    pub(crate) nats_cert: Option<PathBuf>,
    /// NATS: the certificate's key (PEM).
    #[arg(long, env = "SIGNALBOX_NATS_KEY", value_name = "FILE", requires = "nats_cert")]
    pub(crate) nats_key: Option<PathBuf>,
    /// NATS: number of servers that each keep a copy of events and policies. Routers raise the number of what exists to
    /// it; nobody lowers it. Without it, new streams have one copy, and existing ones stay as they are.
    #[arg(long, env = "SIGNALBOX_NATS_REPLICAS", value_name = "N", value_parser = clap::value_parser!(u8).range(1..=5))]
    pub(crate) nats_replicas: Option<u8>,
    /// etcd: seconds after which a process that does not renew its lease counts as gone.
    #[arg(long, env = "SIGNALBOX_LEASE_S", default_value_t = 10, value_name = "S", value_parser = clap::value_parser!(u16).range(2..=600))]
    pub(crate) lease_s: u16,
    /// etcd: user.
    #[arg(
        long,
        env = "SIGNALBOX_ETCD_USER",
        value_name = "NAME",
        requires = "etcd_password"
    )]
    pub(crate) etcd_user: Option<String>,
    /// etcd: the user's password.
    #[arg(
        long,
        env = "SIGNALBOX_ETCD_PASSWORD",
        hide_env_values = true,
        value_name = "PASSWORD",
        requires = "etcd_user"
    )]
    pub(crate) etcd_password: Option<String>,
    /// etcd: certificate authorities to trust (PEM); makes the connection TLS.
    #[arg(long, env = "SIGNALBOX_ETCD_CA", value_name = "FILE")]
    pub(crate) etcd_ca: Option<PathBuf>,
    /// etcd: this process's certificate (PEM).
    #[arg(long, env = "SIGNALBOX_ETCD_CERT", value_name = "FILE", requires = "etcd_key")]
    pub(crate) etcd_cert: Option<PathBuf>,
    /// etcd: the certificate's key (PEM).
    #[arg(long, env = "SIGNALBOX_ETCD_KEY", value_name = "FILE", requires = "etcd_cert")]
    pub(crate) etcd_key: Option<PathBuf>,
}

impl std::fmt::Debug for PlaneOptions {
    /// Without addresses and passwords, which hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PlaneOptions")
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

/// A name that fits NATS subjects and etcd keys.
pub(super) fn namespace(text: &str) -> Result<String, String> {
    match text.parse::<WorkerId>() {
        Ok(name) => Ok(name.to_string()),
        Err(_) => Err("give 1 to 64 letters, digits, `-` or `_`".into()),
    }
}
