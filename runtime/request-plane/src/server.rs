//! The worker's side: takes calls from routers and sends answers, on any tokio runtime.
//!
//! Each connection has a task that reads (`connection`) and one that writes; between them and the responders stands
//! the connection's `outbox`. An engine thread queues a step's pieces there and flushes, and the writer sends them
//! all at once.

mod accept;
mod connection;
mod greeting;
mod outbox;
mod responder;
mod shared;

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use signalbox_protocol::WorkerCard;
use tokio::net::TcpListener;

use crate::CallParts;
use shared::{Shared, Timeouts};

pub use responder::{CallerGone, Responder};

/// Both sides' default for the largest frame: 32 MiB holds a prompt of a million tokens with its text.
pub(crate) const DEFAULT_MAX_FRAME_BYTES: usize = 32 << 20;

/// What a worker's server allows its routers.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Streams open at once on one connection; more fail as overloaded.
    pub max_streams_per_connection: usize,
    /// Connections at once: one for each router thread that uses this worker. More are refused with a reason.
    pub max_connections: usize,
    /// Largest frame taken from a router; calls that are larger fail at the router, which is told this limit.
    pub max_frame_bytes: usize,
    /// Bytes kept for a stream beyond what its router has room for. A stream past it fails as overloaded.
    pub stream_backlog_bytes: usize,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            max_streams_per_connection: 1024,
            max_connections: 1024,
            max_frame_bytes: DEFAULT_MAX_FRAME_BYTES,
            // About 20,000 tokens' worth of chunks: longer than answers are, so only a router in trouble meets it.
            stream_backlog_bytes: 4 << 20,
        }
    }
}

/// What a worker does with a call.
pub trait CallHandler: Send + Sync + 'static {
    /// Takes a call; must not block, since it runs where the connection is read. Answers through `responder`, now or
    /// later, from any thread.
    fn call(&self, parts: CallParts, responder: Responder);
}

/// A bound listener that does not accept yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    config: ServerConfig,
    timeouts: Timeouts,
}

impl Server {
    /// Binds `address`; port 0 picks a free one.
    ///
    /// # Errors
    /// The address is taken, or not this machine's.
    pub async fn bind(address: SocketAddr, config: ServerConfig) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Ok(Self {
            address: listener.local_addr()?,
            listener,
            config,
            timeouts: Timeouts::default(),
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Accepts routers from now on, until [`ServerHandle::drain`]; dropping the handle does not stop it. Call it
    /// inside a tokio runtime. `card` goes into every hello.
    pub fn serve(self, card: Arc<WorkerCard>, handler: Arc<dyn CallHandler>) -> ServerHandle {
        let shared = Arc::new(Shared::new(self.config, self.timeouts, card, handler));
        shared.tasks.spawn(accept::accept(self.listener, shared.clone()));
        ServerHandle { shared }
    }

    #[cfg(test)]
    pub(crate) fn with_timeouts(mut self, hello: Duration, silence: Duration) -> Self {
        self.timeouts = Timeouts { hello, silence };
        self
    }
}

/// Handle of a running server.
#[derive(Clone)]
pub struct ServerHandle {
    shared: Arc<Shared>,
}

impl ServerHandle {
    /// Leaves politely: stops listening, tells every router to send nothing new, waits until no Generate stream is
    /// open, at most `grace`, then writes what is queued and closes all connections. What is still open then is lost.
    pub async fn drain(&self, grace: Duration) {
        self.shared.drain(grace).await;
    }
}

impl fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerHandle").finish_non_exhaustive()
    }
}
