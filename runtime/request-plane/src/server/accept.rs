//! Takes connections, as many as allowed.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use signalbox_protocol::{ErrorKind, WireError};
use tokio::net::{TcpListener, TcpStream};

use super::{connection, greeting::farewell, shared::Shared};

/// Pause after a failed accept, which mostly means that file descriptors ran out: trying at once would spin.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// Accepts until the server drains, then frees the port.
pub(super) async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let accepted = tokio::select! {
            () = shared.stop_accepting.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        if let Err(error) = accepted.and_then(|(socket, peer)| admit(socket, peer, &shared)) {
            tracing::warn!(%error, "a router's connection was not accepted");
            tokio::time::sleep(AFTER_FAILURE).await;
        }
    }
}

fn admit(socket: TcpStream, peer: SocketAddr, shared: &Arc<Shared>) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let limit = shared.config.max_connections;
    if let Ok(room) = shared.room.clone().try_acquire_owned() {
        let shared_too = shared.clone();
        shared.tasks.spawn(async move {
            connection::serve(socket, peer, shared_too).await;
            drop(room);
        });
    } else if let Ok(refusal) = shared.refusals.clone().try_acquire_owned() {
        tracing::warn!(%peer, limit, "refused a router's connection: all are in use");
        shared.tasks.spawn(async move {
            let message = format!("the worker holds {limit} connections, as many as it may");
            farewell(socket, &WireError::new(ErrorKind::Overloaded, message)).await;
            drop(refusal);
        });
    }
    Ok(())
}
