//! A listening socket and its HTTP threads: each connection with its limits, each request with its connection.
//!
//! actix-web's own server hands connections to the library as they are. This one puts [`Connection`] between them, and
//! measures how long each step of a connection holds its thread.

use std::{
    future::Future,
    io,
    net::TcpListener,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use actix_http::{
    ConnectionType, HttpMessage, HttpService, Protocol, Request, Response, Version,
    body::{BodySize, BoxBody, MessageBody},
    error::DispatchError,
};
use actix_rt::net::TcpStream;
use actix_server::Server;
use actix_service::{
    IntoServiceFactory, Service, ServiceFactoryExt, apply_fn_factory, fn_service, map_config,
};
use actix_web::{
    App,
    dev::{AppConfig, ServiceResponse},
    http::header::TRANSFER_ENCODING,
    web::ServiceConfig,
};
use bytes::Bytes;
use metrics::{Histogram, describe_histogram, histogram};
use tokio::{io::AsyncWriteExt, time::timeout};

use crate::{
    connection::{Connection, ConnectionHandle, Exchange, HEAD_TIMEOUT, KEEP_ALIVE, LINGER, bare_answer},
    connection_limits::AddressLimit,
    cors::{self, Cors},
    slashes,
};

/// How long steps of connections held their HTTP thread: the steps of at least [`RECORDED`].
pub(crate) const STEP_SECONDS: &str = "signalbox_http_step_seconds";

/// Shortest step that is recorded. Nearly all steps are far shorter, and to count them would cost more than to measure them.
const RECORDED: Duration = Duration::from_millis(1);

/// Longest time to tell a client that its address has too many connections. The answer fits any socket's buffer.
const REFUSAL: Duration = Duration::from_secs(1);

/// Gives the installed recorder the help text of the metric.
pub(crate) fn describe() {
    describe_histogram!(
        STEP_SECONDS,
        "Seconds that one step of a connection held its HTTP thread, of steps of 1 ms and more, by listener; none of the public one should take 50 ms"
    );
}

/// A bound socket, and what is served there.
pub(crate) struct Listener {
    /// The label `listener` of the steps.
    pub(crate) name: &'static str,
    pub(crate) socket: TcpListener,
    pub(crate) threads: usize,
    /// Most connections, divided among the threads. Further ones wait to be accepted.
    pub(crate) max_connections: usize,
    pub(crate) per_address: Arc<AddressLimit>,
    pub(crate) cors: Cors,
}

/// Serves `routes` with the settings that streaming needs.
///
/// Half-closed connections are closed. Otherwise the answer to a client that has closed its side, and the work at the
/// engine, would run to the end.
pub(crate) fn serve(
    listener: Listener,
    routes: impl Fn(&mut ServiceConfig) + Clone + Send + 'static,
) -> io::Result<Server> {
    let Listener {
        name,
        socket,
        threads,
        max_connections,
        per_address,
        cors,
    } = listener;
    let cors = Arc::new(cors);
    let address = socket.local_addr()?;
    let builder = Server::build()
        .workers(threads)
        .max_concurrent_connections((max_connections / threads).max(1))
        .shutdown_timeout(1)
        .disable_signals();
    let shutdown = builder.graceful_shutdown_signal();
    let connections = move || {
        let (per_address, shutdown) = (Arc::clone(&per_address), shutdown.clone());
        let app = App::new()
            .configure(routes.clone())
            .into_factory()
            .map_err(|error| error.error_response());
        let app = map_config(app, |()| AppConfig::default());
        let http = HttpService::build()
            .graceful_shutdown_signal(move || {
                let shutdown = shutdown.clone();
                async move { shutdown.notified().await }
            })
            .keep_alive(KEEP_ALIVE)
            .client_request_timeout(HEAD_TIMEOUT)
            .client_disconnect_timeout(LINGER)
            .h1_allow_half_closed(false)
            .local_addr(address)
            .on_connect_ext(|connection: &Connection, data| {
                data.insert(connection.handle());
            })
            .finish(apply_fn_factory(app, {
                let cors = Arc::clone(&cors);
                move |request: Request, app: &_| exchange(request, app, &cors)
            }));
        let http = apply_fn_factory(http, move |connection, http: &_| {
            Timed::new(Service::call(http, connection), name)
        });
        fn_service(move |socket: TcpStream| admit(socket, Arc::clone(&per_address))).and_then(http)
    };
    Ok(builder.listen(name, socket, connections)?.run())
}

/// Takes in a connection, or refuses it because its address has too many.
async fn admit(
    mut socket: TcpStream,
    per_address: Arc<AddressLimit>,
) -> Result<(Connection, Protocol, Option<std::net::SocketAddr>), DispatchError> {
    let peer = socket.peer_addr()?;
    socket.set_nodelay(true)?;
    let Some(place) = per_address.admit(peer.ip()) else {
        let _ = timeout(REFUSAL, socket.write_all(&bare_answer("429 Too Many Requests"))).await;
        return Err(io::Error::other("the address has as many connections as it may").into());
    };
    Ok((Connection::new(socket, place), Protocol::Http1, Some(peer)))
}

/// Answers one request, and lets its connection know when the answer begins and ends.
///
/// A client of HTTP/1.0 does not know chunks: its streamed answer is a bare body that ends with the connection.
fn exchange<S>(
    mut request: Request,
    app: &S,
    cors: &Cors,
) -> impl Future<Output = Result<Response<AnswerOf>, S::Error>> + use<S>
where
    S: Service<Request, Response = ServiceResponse>,
{
    let is_chunked = request.headers().contains_key(TRANSFER_ENCODING);
    let knows_chunks = request.version() >= Version::HTTP_11;
    let exchange = match request.conn_data::<ConnectionHandle>() {
        Some(connection) => connection.begin(is_chunked),
        None => Exchange::none(),
    };
    slashes::merge(&mut request);
    let origin = cors.allowed(&request);
    let preflight = origin.as_ref().and_then(|_| cors::preflight(&request));
    let answering = match preflight {
        Some(preflight) => Err(preflight),
        None => Ok(app.call(request)),
    };
    async move {
        let mut response = match answering {
            Ok(answering) => Response::from(answering.await?),
            Err(preflight) => preflight.map_body(|_, ()| BoxBody::new(())),
        };
        if let Some(origin) = origin {
            cors::allow(origin, response.headers_mut());
        }
        let ends_by_closing = !knows_chunks && response.body().size() == BodySize::Stream;
        if ends_by_closing {
            response.head_mut().no_chunking(true);
        }
        if ends_by_closing || exchange.closes() {
            response.head_mut().set_connection_type(ConnectionType::Close);
        }
        Ok(response.map_body(|_, body| AnswerOf {
            body,
            _exchange: exchange,
        }))
    }
}

/// The body of an answer. It is dropped when all of it is with the library.
struct AnswerOf {
    body: BoxBody,
    _exchange: Exchange,
}

impl MessageBody for AnswerOf {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_next(cx)
    }
}

/// Serves a connection, and records its steps that held the thread for long.
struct Timed<F> {
    serving: Pin<Box<F>>,
    seconds: Histogram,
}

impl<F> Timed<F> {
    fn new(serving: F, listener: &'static str) -> Self {
        Self {
            serving: Box::pin(serving),
            seconds: histogram!(STEP_SECONDS, "listener" => listener),
        }
    }
}

impl<F: Future> Future for Timed<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let began = Instant::now();
        let polled = self.serving.as_mut().poll(cx);
        let took = began.elapsed();
        if took >= RECORDED {
            self.seconds.record(took);
        }
        polled
    }
}
