//! Accepts connections, up to the limit.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use signalbox_protocol::{ErrorKind, WireError};
use tokio::net::TcpListener;

use super::{handshake::refuse, serve::serve, state::ServerState};
use crate::{nats::NatsListener, stream::Stream};

/// Pause after a failed accept, which mostly means that file descriptors ran out. Without a pause the task would spin.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// The source of routers' connections.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp {
        listener: TcpListener,
        address: SocketAddr,
    },
    Nats(NatsListener),
}

impl Listener {
    /// The next router's connection, and the router's address for logs.
    async fn accept(&mut self) -> io::Result<(Stream, String)> {
        match self {
            Self::Tcp { listener, .. } => {
                let (socket, peer) = listener.accept().await?;
                socket.set_nodelay(true)?;
                Ok((Stream::Tcp(socket), peer.to_string()))
            }
            Self::Nats(listener) => {
                let stream = listener.accept().await?;
                let peer = stream.peer();
                Ok((Stream::Nats(stream), peer))
            }
        }
    }
}

/// Accepts until the server drains, then stops listening.
pub(super) async fn accept(mut listener: Listener, server: Arc<ServerState>) {
    loop {
        let accepted = tokio::select! {
            () = server.stop_accepting.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, peer)) => admit(socket, peer, &server),
            Err(error) => {
                tracing::warn!(%error, "accepting a router's connection failed");
                tokio::time::sleep(AFTER_FAILURE).await;
            }
        }
    }
}

fn admit(socket: Stream, peer: String, server: &Arc<ServerState>) {
    let limit = server.config.max_connections;
    if let Ok(permit) = server.connection_permits.clone().try_acquire_owned() {
        let state = server.clone();
        server.tasks.spawn(async move {
            serve(socket, peer, state).await;
            drop(permit);
        });
    } else if let Ok(permit) = server.refusal_permits.clone().try_acquire_owned() {
        tracing::warn!(%peer, limit, "refused a router's connection: the limit is reached");
        server.tasks.spawn(async move {
            let message = format!("the worker has {limit} connections, as many as it allows");
            refuse(socket, &WireError::new(ErrorKind::Overloaded, message)).await;
            drop(permit);
        });
    }
}
