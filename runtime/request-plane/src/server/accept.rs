//! Takes connections, as many as allowed.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use signalbox_protocol::{ErrorKind, WireError};
use tokio::net::TcpListener;

use super::{connection, greeting::farewell, state::ServerState};
use crate::{nats::NatsListener, stream::Stream};

/// Pause after a failed accept, which mostly means that file descriptors ran out: trying at once would spin.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// Where routers come from.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp {
        listener: TcpListener,
        address: SocketAddr,
    },
    Nats(NatsListener),
}

impl Listener {
    /// The next router, and what to call it in logs.
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
                tracing::warn!(%error, "a router's connection was not accepted");
                tokio::time::sleep(AFTER_FAILURE).await;
            }
        }
    }
}

fn admit(socket: Stream, peer: String, server: &Arc<ServerState>) {
    let limit = server.config.max_connections;
    if let Ok(room) = server.room.clone().try_acquire_owned() {
        let shared_too = server.clone();
        server.tasks.spawn(async move {
            connection::serve(socket, peer, shared_too).await;
            drop(room);
        });
    } else if let Ok(refusal) = server.refusals.clone().try_acquire_owned() {
        tracing::warn!(%peer, limit, "refused a router's connection: all are in use");
        server.tasks.spawn(async move {
            let message = format!("the worker holds {limit} connections, as many as it may");
            farewell(socket, &WireError::new(ErrorKind::Overloaded, message)).await;
            drop(refusal);
        });
    }
}
