//! Both listeners: bound, served and stopped.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use actix_web::{
    App,
    dev::{Server, ServerHandle},
    web::ServiceConfig,
};
use metrics_exporter_prometheus::PrometheusHandle;
use signalbox_router::Router;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::{task::JoinHandle, time::timeout};

use crate::{
    admin::{self, Admin},
    config::HttpConfig,
    frontend::Frontend,
    metrics, routes,
    traffic::Traffic,
};

/// Connections that may wait to be accepted. Enough for a burst of clients that start together.
const BACKLOG: i32 = 1_024;

/// Connections an HTTP thread holds; more wait in the backlog.
const MAX_CONNECTIONS: usize = 25_000;

/// How long an idle connection is kept. Longer than the 60 s of common load balancers, so that the balancer closes
/// first.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// Longest time for a connection's first request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection is still read after its request was refused unread, so that the client gets the answer
/// rather than a reset.
const LINGER: Duration = Duration::from_secs(5);

/// How long a client may leave written bytes unread before its connection is closed and the work at the engine is
/// cancelled. The HTTP library has no such timeout; the kernel has one.
const STALLED_READER_TIMEOUT: Duration = Duration::from_secs(60);

/// Idle time of a connection before the first TCP keepalive probe, and the time between probes. They detect a client
/// that disappeared while it waits for its first token.
const KEEPALIVE_PROBES: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));

/// How long the last bytes of answers may take to be sent once no request is under way.
const FLUSH: Duration = Duration::from_millis(500);

/// How often the metric store merges recorded samples: unread histograms would grow without a bound.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// Why the HTTP server could not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// An address cannot be listened on.
    #[error(
        "cannot listen on {address} for {service}; stop the process that listens there or choose another address"
    )]
    Bind {
        /// The configured address.
        address: SocketAddr,
        /// What would have been served there.
        service: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The admin API would be open to other machines without a token.
    #[error(
        "the admin API would be open to other machines at {address}; set an admin token or choose an address on loopback"
    )]
    AdminExposed {
        /// The configured address.
        address: SocketAddr,
    },
    /// A bound listener could not be served, or stopped.
    #[error("the HTTP server stopped")]
    Serve(#[source] io::Error),
}

/// Both listeners, bound and not yet served: connections wait.
#[derive(Debug)]
pub struct HttpServer {
    config: HttpConfig,
    router: Router,
    metrics: PrometheusHandle,
    public: TcpListener,
    admin: TcpListener,
}

impl HttpServer {
    /// Binds both listeners, so that a port in use is an error before anything starts.
    ///
    /// `metrics` is the handle of this process's recorder. The recorder needs
    /// [`HISTOGRAM_BUCKETS`](crate::HISTOGRAM_BUCKETS), or it renders summaries instead of histograms.
    ///
    /// # Errors
    /// An address cannot be bound, or the admin API would be open to other machines without a token.
    pub fn bind(config: HttpConfig, router: Router, metrics: PrometheusHandle) -> Result<Self, HttpError> {
        if admin::is_exposed(config.admin) && config.admin_token.as_ref().is_none_or(String::is_empty) {
            return Err(HttpError::AdminExposed {
                address: config.admin,
            });
        }
        let public = bind(config.public, "the OpenAI API")?;
        let admin = bind(config.admin, "the admin API")?;
        Ok(Self {
            config,
            router,
            metrics,
            public,
            admin,
        })
    }

    /// Serves both listeners until [`RunningHttp::stop`]. Call it within an actix system: each HTTP thread becomes an
    /// arbiter of it, with a router replica of its own.
    ///
    /// # Errors
    /// The operating system refuses a listener or a thread.
    pub fn run(self) -> Result<RunningHttp, HttpError> {
        let Self {
            config,
            router,
            metrics,
            public,
            admin,
        } = self;
        metrics::describe();
        let traffic = Arc::new(Traffic::default());
        let (public_address, admin_address) = (
            public.local_addr().map_err(HttpError::Serve)?,
            admin.local_addr().map_err(HttpError::Serve)?,
        );
        let upkeep = {
            let metrics = metrics.clone();
            actix_rt::spawn(async move {
                loop {
                    tokio::time::sleep(METRICS_UPKEEP).await;
                    metrics.run_upkeep();
                }
            })
        };
        let public = {
            let (config, router, traffic) = (config.clone(), router.clone(), Arc::clone(&traffic));
            serve(public, config.threads, move |app| {
                routes::public(
                    app,
                    Frontend::start(&config, router.clone(), Arc::clone(&traffic)),
                );
            })
        };
        let admin = serve(admin, 1, move |app| {
            routes::admin(app, Admin::new(&config, router.clone(), metrics.clone()))
        });
        let (public, admin) = (
            public.map_err(HttpError::Serve)?,
            admin.map_err(HttpError::Serve)?,
        );
        Ok(RunningHttp {
            public_address,
            admin_address,
            traffic,
            handles: [public.handle(), admin.handle()],
            tasks: [actix_rt::spawn(public), actix_rt::spawn(admin)],
            upkeep,
        })
    }
}

/// The running HTTP server. Dropping this does not stop the server; [`stop`](Self::stop) does.
#[derive(Debug)]
pub struct RunningHttp {
    public_address: SocketAddr,
    admin_address: SocketAddr,
    traffic: Arc<Traffic>,
    handles: [ServerHandle; 2],
    tasks: [JoinHandle<io::Result<()>>; 2],
    upkeep: JoinHandle<()>,
}

impl RunningHttp {
    /// The address of OpenAI's API. If port 0 was configured, this has the port the system chose.
    pub fn public_address(&self) -> SocketAddr {
        self.public_address
    }

    /// The address of the admin API.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Waits until a listener stops by itself, which is a failure.
    pub async fn failed(&mut self) -> HttpError {
        let [public, admin] = &mut self.tasks;
        let ended = tokio::select! { ended = public => ended, admin = admin => admin };
        HttpError::Serve(match ended {
            Ok(Err(error)) => error,
            Ok(Ok(())) => io::Error::other("a listener ended"),
            Err(error) => io::Error::other(error),
        })
    }

    /// Refuses new requests, gives requests under way up to `grace` to end, and closes both listeners.
    pub async fn stop(self, grace: Duration) {
        self.traffic.drain();
        let [public, admin] = self.handles;
        if timeout(grace, self.traffic.idle()).await.is_ok() {
            // The last bytes of answers may still be unsent.
            let _ = timeout(FLUSH, public.stop(true)).await;
        } else {
            tracing::warn!(
                grace_s = grace.as_secs_f64(),
                "requests still under way after the grace are cancelled"
            );
            public.stop(false).await;
        }
        admin.stop(false).await;
        self.upkeep.abort();
    }
}

/// A listening socket. Its connections inherit its settings.
fn bind(address: SocketAddr, service: &'static str) -> Result<TcpListener, HttpError> {
    let listen = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        #[cfg(unix)]
        socket.set_reuse_address(true)?;
        socket.set_tcp_nodelay(true)?;
        let (idle, interval) = KEEPALIVE_PROBES;
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle).with_interval(interval))?;
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(STALLED_READER_TIMEOUT))?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    listen().map_err(|source| HttpError::Bind {
        address,
        service,
        source,
    })
}

/// An HTTP server with the settings that streaming needs.
///
/// Half-closed connections are closed. Otherwise the answer to a client that has closed its side, and the work at the
/// engine, would run to the end.
fn serve(
    listener: TcpListener,
    threads: usize,
    routes: impl Fn(&mut ServiceConfig) + Clone + Send + 'static,
) -> io::Result<Server> {
    let server = actix_web::HttpServer::new(move || App::new().configure(routes.clone()))
        .workers(threads.max(1))
        .max_connections(MAX_CONNECTIONS)
        .keep_alive(KEEP_ALIVE)
        .client_request_timeout(HEAD_TIMEOUT)
        .client_disconnect_timeout(LINGER)
        .h1_allow_half_closed(false)
        .tcp_nodelay(true)
        .shutdown_timeout(1)
        .disable_signals()
        .listen(listener)?;
    Ok(server.run())
}
