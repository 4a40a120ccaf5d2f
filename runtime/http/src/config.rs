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
    /// Most bytes that the bodies of all requests take together, until workers begin to answer them.
    pub body_budget_bytes: usize,
    /// Most connections to the public listener. Further ones wait until another is closed.
    pub max_connections: usize,
    /// Most connections to the public listener from one address, or one /64 of IPv6; `None` for no limit. Further ones are
    /// refused.
    pub max_connections_per_address: Option<usize>,
    /// Longest time a body may take to arrive.
    pub body_timeout: Duration,
    /// Longest time from a request's head to the end of its answer.
    pub request_timeout: Duration,
    /// How long a stream may have no bytes until its head is sent, and a comment from then on as often; `None` for never.
    pub ping_after: Option<Duration>,
    /// Origins whose web pages may use the API, such as `https://chat.example`, or `*`; none by default.
    pub cors_origins: Vec<String>,
    /// Whether OpenAI's listener has `/metrics` too.
    pub public_metrics: bool,
    /// The token that requests to the admin listener carry as `Authorization: Bearer`.
    pub admin_token: Option<String>,
    /// This deployment's name in `/health`.
    pub namespace: String,
    /// The headers of clients that policies see, hashed: `header:NAME`.
    pub policy_headers: Vec<String>,
    /// The header of clients that names their tenant to policies, hashed: `tenant`; `None` for none.
    pub tenant_header: Option<String>,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            public: SocketAddr::from(([127, 0, 0, 1], 8000)),
            admin: SocketAddr::from(([127, 0, 0, 1], 9090)),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            // A prompt of a million tokens is about 5 MB of text.
            max_body_bytes: 16 * 1024 * 1024,
            // 32 of the largest bodies, or 5,000 long prompts.
            body_budget_bytes: 512 * 1024 * 1024,
            max_connections: 25_000,
            max_connections_per_address: None,
            body_timeout: Duration::from_secs(30),
            // What OpenAI's own client waits.
            request_timeout: Duration::from_secs(600),
            // Common proxies wait 60 s for a byte. The sooner a head is sent, the more errors are events.
            ping_after: Some(Duration::from_secs(15)),
            cors_origins: Vec::new(),
            public_metrics: false,
            admin_token: None,
            namespace: "signalbox".into(),
            policy_headers: Vec::new(),
            tenant_header: Some("x-tenant-id".into()),
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
            .field("body_budget_bytes", &self.body_budget_bytes)
            .field("max_connections", &self.max_connections)
            .field("max_connections_per_address", &self.max_connections_per_address)
            .field("body_timeout", &self.body_timeout)
            .field("request_timeout", &self.request_timeout)
            .field("ping_after", &self.ping_after)
            .field("cors_origins", &self.cors_origins)
            .field("public_metrics", &self.public_metrics)
            .field("admin_token", &self.admin_token.as_ref().map(|_| "(set)"))
            .field("namespace", &self.namespace)
            .field("policy_headers", &self.policy_headers)
            .field("tenant_header", &self.tenant_header)
            .finish()
    }
}
