//! Both listeners, from the first bind to the last byte.

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
    HttpConfig,
    admin::{self, Admin},
    frontend::Frontend,
    metrics, routes,
    traffic::Traffic,
};

/// Connections that may wait to be accepted: a burst of clients starting together.
const BACKLOG: i32 = 1_024;

/// Connections an HTTP thread holds; more wait in the backlog.
const MAX_CONNECTIONS: usize = 25_000;

/// How long an idle connection is kept. Longer than the 60 s of common load balancers, so that they close first.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// Most time for a connection's first request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection is read on after its request was refused unread, so that the client sees the answer
/// rather than a reset.
const LINGER: Duration = Duration::from_secs(5);

/// How long a client may leave written bytes unread before its connection is given up, and with it the work at the
/// engine. The HTTP library has no such timeout; the kernel does.
const STALLED_READER_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a silent client is trusted to be there while it waits for its first token, and how often it is asked
/// after that.
const KEEPALIVE_PROBES: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));

/// How long the last bytes of answers have to leave once no request is under way.
const FLUSH: Duration = Duration::from_millis(500);

/// How often the metric store folds in what was recorded: unread histograms would grow without a bound.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// Why the HTTP side could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address} for {what}; stop what listens there or choose another address")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// What would have been served there.
        what: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// The admin API would be open to other machines.
    #[error(
        "the admin API would be open to other machines at {address}; set an admin token or choose an address on loopback"
    )]
    AdminExposed {
        /// The address asked for.
        address: SocketAddr,
    },
    /// A listener that was bound could not be served, or stopped being served.
    #[error("the HTTP server stopped")]
    Serve(#[source] io::Error),
}

/// Both listeners, bound and not yet served: whoever connects waits.
#[derive(Debug)]
pub struct HttpServer {
    config: HttpConfig,
    router: Router,
    metrics: PrometheusHandle,
    public: TcpListener,
    admin: TcpListener,
}

impl HttpServer {
    /// Binds both listeners, so that a taken port is known before anything starts.
    ///
    /// `metrics` is the handle of the recorder this process installed; it renders summaries instead of histograms
    /// unless it was given [`HISTOGRAM_BUCKETS`](crate::HISTOGRAM_BUCKETS).
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

    /// Serves both listeners until stopped. Call it within an actix system: each HTTP thread becomes an arbiter of
    /// it, with a router replica of its own.
    ///
    /// # Errors
    /// The system refuses a listener or a thread.
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

/// The HTTP side at work. Dropping it does not stop it; [`stop`](Self::stop) does.
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
    /// Where OpenAI's API is, with the port the system chose where 0 was asked for.
    pub fn public_address(&self) -> SocketAddr {
        self.public_address
    }

    /// Where the admin API is.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Waits for a listener that ends by itself, which is a failure.
    pub async fn failed(&mut self) -> HttpError {
        let [public, admin] = &mut self.tasks;
        let ended = tokio::select! { ended = public => ended, admin = admin => admin };
        HttpError::Serve(match ended {
            Ok(Err(error)) => error,
            Ok(Ok(())) => io::Error::other("a listener ended"),
            Err(error) => io::Error::other(error),
        })
    }

    /// Refuses new requests from now on, gives those under way `grace` to end, and closes both listeners.
    pub async fn stop(self, grace: Duration) {
        self.traffic.drain();
        let [public, admin] = self.handles;
        if timeout(grace, self.traffic.idle()).await.is_ok() {
            // What was answered last may still be on its way out.
            let _ = timeout(FLUSH, public.stop(true)).await;
        } else {
            tracing::warn!(
                grace_s = grace.as_secs_f64(),
                "requests still under way are cut off"
            );
            public.stop(false).await;
        }
        admin.stop(false).await;
        self.upkeep.abort();
    }
}

/// A listening socket whose connections inherit its settings.
fn bind(address: SocketAddr, what: &'static str) -> Result<TcpListener, HttpError> {
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
        what,
        source,
    })
}

/// A server with the settings that streaming needs.
///
/// Half-closed connections are not kept: a client that closes would otherwise hold its answer, and its work at the
/// engine, until the answer ends.
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
