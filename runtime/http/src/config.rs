//! Settings of both listeners.

use std::{net::SocketAddr, time::Duration};

/// Where to listen, and the limits on what a client may cost.
#[derive(Clone)]
pub struct HttpConfig {
    /// OpenAI's API.
    pub public: SocketAddr,
    /// The admin API and `/metrics`. Off loopback it needs a token.
    pub admin: SocketAddr,
    /// Threads that serve OpenAI's API, each with a router replica of its own; 0 counts as 1.
    pub threads: usize,
    /// Largest request body, in bytes.
    pub max_body_bytes: usize,
    /// Longest time a body may take to arrive.
    pub body_timeout: Duration,
    /// Longest time from a request's head to the end of its answer.
    pub request_timeout: Duration,
    /// The token that requests to the admin listener carry as `Authorization: Bearer`.
    pub admin_token: Option<String>,
    /// This deployment's name in `/health`.
    pub namespace: String,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            public: SocketAddr::from(([127, 0, 0, 1], 8000)),
            admin: SocketAddr::from(([127, 0, 0, 1], 9090)),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            // A prompt of a million tokens is about 5 MB of text.
            max_body_bytes: 16 * 1024 * 1024,
            body_timeout: Duration::from_secs(30),
            // What OpenAI's own client waits.
            request_timeout: Duration::from_secs(600),
            admin_token: None,
            namespace: "signalbox".into(),
        }
    }
}

impl std::fmt::Debug for HttpConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpConfig")
            .field("public", &self.public)
            .field("admin", &self.admin)
            .field("threads", &self.threads)
            .field("max_body_bytes", &self.max_body_bytes)
            .field("body_timeout", &self.body_timeout)
            .field("request_timeout", &self.request_timeout)
            .field("admin_token", &self.admin_token.as_ref().map(|_| "(set)"))
            .field("namespace", &self.namespace)
            .finish()
    }
}
