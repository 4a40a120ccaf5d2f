//! Both listeners: bound, served and stopped.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use actix_web::dev::ServerHandle;
use metrics_exporter_prometheus::PrometheusHandle;
use signalbox_router::Router;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::{task::JoinHandle, time::timeout};

use crate::{
    admin::{self, Admin, AdminToken},
    body::BodyBudget,
    config::HttpConfig,
    connection_limits::AddressLimit,
    cors::Cors,
    frontend::{Frontend, Shared},
    listener::{self, Listener},
    metrics,
    prepare_pool::PreparePool,
    routes,
    traffic::Traffic,
};

/// Connections that may wait to be accepted. Enough for a burst of clients that start together.
const BACKLOG: i32 = 1_024;

/// How long a client may take no bytes at all before its connection is closed. The HTTP library has no such timeout; the
/// kernel has one. It also ends the connection of a client that acknowledges nothing because it disappeared. A client that
/// reads slowly opens its window again each time it has read a packet's worth, or a sixteenth of its buffer: with 5 minutes
/// even 300 bytes a second are enough for a window of 64 KiB. The work at the engine does not wait for it: it ends at the
/// request's deadline.
const STALLED_READER_TIMEOUT: Duration = Duration::from_secs(300);

/// Idle time of a connection before the first TCP keepalive probe, and the time between probes. They detect a client
/// that disappeared while it waits for its first token.
const KEEPALIVE_PROBES: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));

/// How long the last bytes of answers may take to be sent once no request is under way.
const FLUSH: Duration = Duration::from_millis(500);

/// Most connections to the admin listener. Operators, their scripts and the collectors of metrics hold a few each.
pub(crate) const MAX_ADMIN_CONNECTIONS: usize = 256;

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
        let admin_token = AdminToken::new(config.admin_token.clone());
        let shared = Shared {
            traffic: Arc::clone(&traffic),
            prepare_pool: Arc::new(PreparePool::new(cores()).map_err(HttpError::Serve)?),
            body_budget: BodyBudget::new(config.body_budget_bytes),
            admin_token: admin_token.clone(),
        };
        let (public_address, admin_address) = (
            public.local_addr().map_err(HttpError::Serve)?,
            admin.local_addr().map_err(HttpError::Serve)?,
        );
        let upkeep = upkeep(metrics.clone());
        let public = {
            let (config, router, metrics) = (config.clone(), router.clone(), metrics.clone());
            let listener = Listener {
                name: "public",
                socket: public,
                threads: config.threads.max(1),
                max_connections: config.max_connections,
                per_address: AddressLimit::new(config.max_connections_per_address),
                cors: Cors::new(config.cors_origins.clone()),
            };
            listener::serve(listener, move |app| {
                let frontend = Frontend::start(&config, router.clone(), shared.clone());
                let page = config.public_metrics.then(|| metrics.clone());
                routes::public(app, frontend, page);
            })
        };
        let admin = {
            let listener = Listener {
                name: "admin",
                socket: admin,
                threads: 1,
                max_connections: MAX_ADMIN_CONNECTIONS,
                per_address: AddressLimit::new(None),
                cors: Cors::default(),
            };
            let token = admin_token.clone();
            listener::serve(listener, move |app| {
                let (token, router) = (token.clone(), router.clone());
                routes::admin(app, Admin::new(&config, token, router, metrics.clone()));
            })
        };
        let (public, admin) = (
            public.map_err(HttpError::Serve)?,
            admin.map_err(HttpError::Serve)?,
        );
        Ok(RunningHttp {
            public_address,
            admin_address,
            admin_token,
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
    admin_token: AdminToken,
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

    /// A handle to replace the admin API's token while it is served.
    pub fn admin_token(&self) -> AdminToken {
        self.admin_token.clone()
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

    /// Refuses new requests, gives requests under way up to `grace` to end, ends the others with an error, and closes both
    /// listeners.
    pub async fn stop(self, grace: Duration) {
        self.traffic.drain();
        let [public, admin] = self.handles;
        if timeout(grace, self.traffic.idle()).await.is_err() {
            tracing::warn!(
                grace_s = grace.as_secs_f64(),
                "requests still under way after the grace end with an error"
            );
            self.traffic.cut_off();
            let _ = timeout(FLUSH, self.traffic.idle()).await;
        }
        // The last bytes of answers may still be unsent.
        if timeout(FLUSH, public.stop(true)).await.is_err() {
            public.stop(false).await;
        }
        admin.stop(false).await;
        self.upkeep.abort();
    }
}

/// Merges recorded samples of metrics from time to time.
pub(crate) fn upkeep(metrics: PrometheusHandle) -> JoinHandle<()> {
    actix_rt::spawn(async move {
        loop {
            tokio::time::sleep(METRICS_UPKEEP).await;
            metrics.run_upkeep();
        }
    })
}

/// A listening socket. Its connections inherit its settings.
pub(crate) fn bind(address: SocketAddr, service: &'static str) -> Result<TcpListener, HttpError> {
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

/// The machine's cores.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
