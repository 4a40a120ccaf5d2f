//! The HTTP side: connections, their keep-alive, and their ends.

use std::{convert::Infallible, sync::Arc};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use super::{engine::Engine, phase::Phase, publisher::EventPorts, routes};

/// Takes connections until the engine ends, and keeps the open ones until it is dead.
pub(super) async fn serve(
    listener: TcpListener,
    engine: Arc<Engine>,
    ports: Arc<[EventPorts]>,
    phase: watch::Receiver<Phase>,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = Phase::not_serving(phase.clone()) => break,
        };
        // Ended connections need no answer.
        while connections.try_join_next().is_some() {}
        if let Ok((stream, _)) = accepted {
            connections.spawn(connection(stream, engine.clone(), ports.clone(), phase.clone()));
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(
    stream: TcpStream,
    engine: Arc<Engine>,
    ports: Arc<[EventPorts]>,
    phase: watch::Receiver<Phase>,
) {
    let _ = stream.set_nodelay(true);
    let keep_alive = engine.options.keep_alive;
    let service = service_fn(move |request| {
        let (engine, ports) = (engine.clone(), ports.clone());
        async move { Ok::<_, Infallible>(routes::answer(engine, ports, request).await) }
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // It also bounds the wait for a next request.
        .header_read_timeout(keep_alive)
        .serve_connection(TokioIo::new(stream), service);
    let is_dead = tokio::select! {
        _ = &mut connection => false,
        () = Phase::dead(phase) => true,
    };
    if is_dead {
        let stream = connection.into_parts().io.into_inner();
        // Closing then sends a reset, as the kernel does for a killed process with unread data.
        let _ = stream.set_zero_linger();
    }
}
