//! The HTTP client of this crate: plain HTTP and TLS, with bounds on the time to connect and on what is kept.
//!
//! TLS is rustls with ring, as in the clients of NATS and etcd. A server's certificate must be from an authority in the
//! machine's store, or from one in a file that the operator names.

use std::{
    error::Error,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Uri,
    header::{HeaderValue, InvalidHeaderValue},
};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use tokio::{net::TcpStream, time::timeout};
use tower_service::Service;

pub use self::authorities::AuthoritiesError;
pub(crate) use self::{authorities::authorities, tls_fault::TlsFault};

mod authorities;
mod tls_fault;

/// Longest time that a connection is kept without a request. uvicorn, under vLLM and SGLang, closes a connection that was
/// idle for 5 s (measured on vLLM 0.32). A request that is sent at that moment fails without an answer, so connections
/// are dropped well before.
const IDLE_LIMIT: Duration = Duration::from_millis(3_500);

/// Connections kept without a request. A stream has a connection of its own, so bursts need many.
const MAX_IDLE: usize = 256;

/// Longest time to connect, with the look-up of the name and the TLS handshake. A server on the same network answers in
/// milliseconds, one across the world within a second.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Largest head of an answer. Engines send less than 1 KiB, the Hugging Face hub some 4 KiB.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// Sends requests. Clone = handle; the clones share their connections.
pub(crate) type HttpClient = Client<Connector, Full<Bytes>>;

/// A client that trusts these authorities. Without any, no server at `https://` is trusted.
///
/// # Errors
/// rustls does not know the versions of TLS that it has itself.
pub(crate) fn client(authorities: RootCertStore) -> Result<HttpClient, rustls::Error> {
    let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(authorities)
        .with_no_client_auth();
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    // A request is one write, and must not wait for the acknowledgement of an earlier one.
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    // A machine that disappears sends nothing; the probes end its connections.
    tcp.set_keepalive(Some(Duration::from_secs(15)));
    Ok(Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_LIMIT)
        .pool_max_idle_per_host(MAX_IDLE)
        .http1_max_buf_size(MAX_HEAD_BYTES)
        .build(Connector(HttpsConnector::from((tcp, tls)))))
}

/// The value of `Authorization` for this key or token. It is not printed.
///
/// # Errors
/// The text has characters that no header can have.
pub(crate) fn bearer(token: &str) -> Result<HeaderValue, InvalidHeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Connects within [`CONNECT_TIMEOUT`]. The inner connectors bound the TCP connection alone: a server that accepts it and
/// never speaks TLS would hold a connection for ever.
#[derive(Debug, Clone)]
pub(crate) struct Connector(HttpsConnector<HttpConnector>);

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, address: Uri) -> Self::Future {
        let connecting = self.0.call(address);
        Box::pin(async move {
            match timeout(CONNECT_TIMEOUT, connecting).await {
                Ok(connection) => connection,
                Err(_) => {
                    let reason = format!("no connection within {CONNECT_TIMEOUT:?}");
                    Err(io::Error::new(io::ErrorKind::TimedOut, reason).into())
                }
            }
        })
    }
}
