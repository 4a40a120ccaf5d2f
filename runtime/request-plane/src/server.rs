//! The worker's side: takes calls from routers and sends answers, on any tokio runtime.
//!
//! Each connection has a task that reads (`connection`) and one that writes; between them and the responders stands
//! the connection's `send_queue`. An engine thread queues a step's pieces there and flushes, and the writer sends them
//! all at once.

mod accept;
mod connection;
mod greeting;
mod responder;
mod send_queue;
mod state;

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use signalbox_protocol::{WorkerCard, WorkerId};
use tokio::{net::TcpListener, time::timeout};

use crate::{
    CallParts,
    nats::{ADDRESS_PREFIX, NatsListener, NatsTransport},
};
use accept::Listener;
use state::{ServerState, Timeouts};

pub use responder::{CallerGone, Responder};

/// Both sides' default for the largest frame: 32 MiB holds a prompt of a million tokens with its text.
pub(crate) const DEFAULT_MAX_FRAME_BYTES: usize = 32 << 20;

/// For the last words to leave for NATS, which takes milliseconds unless NATS is away.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

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
    listener: Listener,
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
        let address = listener.local_addr()?;
        Ok(Self::new(Listener::Tcp { listener, address }, config))
    }

    /// Listens on NATS for routers of the transport's namespace: for a worker that they cannot dial. A NATS server
    /// that is away delays only the routers; limits, drain and all else are as over TCP. No other process may
    /// listen for the same worker.
    ///
    /// # Errors
    /// The client of NATS has stopped.
    pub async fn on_nats(
        transport: NatsTransport,
        worker: WorkerId,
        config: ServerConfig,
    ) -> io::Result<Self> {
        let listener = NatsListener::bind(transport, worker).await?;
        Ok(Self::new(Listener::Nats(listener), config))
    }

    fn new(listener: Listener, config: ServerConfig) -> Self {
        Self {
            listener,
            config,
            timeouts: Timeouts::default(),
        }
    }

    /// Where it listens for TCP, with the port it was given; `None` on NATS.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.listener {
            Listener::Tcp { address, .. } => Some(*address),
            Listener::Nats(_) => None,
        }
    }

    /// What routers dial: `host:port` as bound, or `nats:<worker>`. Over TCP the card may name another host, under
    /// which routers know this machine.
    pub fn address(&self) -> String {
        match &self.listener {
            Listener::Tcp { address, .. } => address.to_string(),
            Listener::Nats(listener) => format!("{ADDRESS_PREFIX}{}", listener.worker()),
        }
    }

    /// Accepts routers from now on, until [`ServerHandle::drain`]; dropping the handle does not stop it. Call it
    /// inside a tokio runtime. `card` goes into every hello.
    pub fn serve(self, card: Arc<WorkerCard>, handler: Arc<dyn CallHandler>) -> ServerHandle {
        let nats = match &self.listener {
            Listener::Tcp { .. } => None,
            Listener::Nats(listener) => Some(listener.transport().clone()),
        };
        let server = Arc::new(ServerState::new(self.config, self.timeouts, card, handler));
        server.tasks.spawn(accept::accept(self.listener, server.clone()));
        ServerHandle { server, nats }
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
    server: Arc<ServerState>,
    nats: Option<NatsTransport>,
}

impl ServerHandle {
    /// Leaves politely: stops listening, tells every router to send nothing new, waits until no Generate stream is
    /// open, at most `grace`, then writes what is queued and closes all connections. What is still open then is lost.
    pub async fn drain(&self, grace: Duration) {
        self.server.drain(grace).await;
        if let Some(nats) = &self.nats {
            // What was written is in the client's queue, and the process may end now.
            let _ = timeout(FLUSH_TIMEOUT, nats.flush()).await;
        }
    }
}

impl fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerHandle").finish_non_exhaustive()
    }
}
