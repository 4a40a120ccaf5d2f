//! The worker's side: receives calls from routers and sends answers, on any tokio runtime.
//!
//! Each connection has a task that reads and one that writes (`serve`). Both share a `router_connection` with the
//! responders; its `send_queue` has the output. An engine thread queues the pieces of a step there and flushes, and the
//! writer sends them all at once.

mod accept;
mod config;
mod connection_end;
mod generating;
mod handshake;
mod responder;
mod router_connection;
mod send_queue;
mod serve;
mod state;
mod stream_signal;

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use signalbox_protocol::{WorkerCard, WorkerId};
use tokio::{net::TcpListener, time::timeout};

use crate::nats::{ADDRESS_PREFIX, NatsListener, NatsTransport};
use accept::Listener;
use state::{ServerState, Timeouts};

pub use config::ServerConfig;
pub use responder::{CallHandler, Responder};
pub use stream_signal::CallerGone;

/// The time for the last messages to leave for NATS. It takes milliseconds unless NATS is down.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// A bound listener that does not accept yet.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    config: ServerConfig,
    timeouts: Timeouts,
}

impl Server {
    /// Binds `address`; port 0 picks a free port.
    ///
    /// # Errors
    /// The address is in use, or does not belong to this machine.
    pub async fn bind(address: SocketAddr, config: ServerConfig) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Self::new(Listener::Tcp { listener, address }, config))
    }

    /// Listens on NATS for routers of the transport's namespace, for a worker that routers cannot dial. While NATS is down
    /// no router can connect; everything else, limits and drain included, is as over TCP. No other process may listen for
    /// the same worker.
    ///
    /// # Errors
    /// The NATS client has stopped.
    pub async fn on_nats(
        transport: NatsTransport,
        worker: WorkerId,
        config: ServerConfig,
    ) -> io::Result<Self> {
        let listener = NatsListener::bind(transport, worker).await?;
        Ok(Self::new(Listener::Nats(listener), config))
    }

    fn new(listener: Listener, config: ServerConfig) -> Self {
        metrics::describe_gauge!(
            "signalbox_request_plane_connections",
            "Connections of routers to this worker"
        );
        metrics::describe_counter!(
            "signalbox_request_plane_slow_readers_total",
            "Answers ended because the router read them too slowly"
        );
        Self {
            listener,
            config,
            timeouts: Timeouts::default(),
        }
    }

    /// The TCP address, with the port that was picked; `None` on NATS.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.listener {
            Listener::Tcp { address, .. } => Some(*address),
            Listener::Nats(_) => None,
        }
    }

    /// The address that routers dial: `host:port` as bound, or `nats:<worker>`. Over TCP the worker's card may name
    /// another host, under which routers reach this machine.
    pub fn address(&self) -> String {
        match &self.listener {
            Listener::Tcp { address, .. } => address.to_string(),
            Listener::Nats(listener) => format!("{ADDRESS_PREFIX}{}", listener.worker()),
        }
    }

    /// Accepts routers until [`ServerHandle::drain`]. Dropping the handle does not stop the server. `card` goes into every
    /// hello. Must be called inside a tokio runtime.
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
    /// Drains the server: stops listening, sends a Drain frame to every router, waits until no Generate stream is open, at
    /// most `grace`, then writes what is queued and closes all connections. Streams still open then are lost.
    pub async fn drain(&self, grace: Duration) {
        self.server.drain(grace).await;
        if let Some(nats) = &self.nats {
            // The last writes are in the NATS client's queue, and the process may exit after this function.
            let _ = timeout(FLUSH_TIMEOUT, nats.flush()).await;
        }
    }
}

impl fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerHandle").finish_non_exhaustive()
    }
}
