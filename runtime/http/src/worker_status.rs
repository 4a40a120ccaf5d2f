//! The listener of a worker process: `/live`, `/ready` and `/metrics`.
//!
//! A worker serves its requests to routers over the request plane. This listener is for what watches processes. It answers
//! questions and takes no orders, so it needs no token.

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
};

use actix_web::{
    HttpResponse,
    dev::ServerHandle,
    web::{self, Data, ServiceConfig},
};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::{
    admin::fleet::metrics_text,
    connection_limits::AddressLimit,
    cors::Cors,
    error, health,
    listener::{self, Listener},
    routes::{readable, resource},
    server::{HttpError, MAX_ADMIN_CONNECTIONS, bind, upkeep},
};

/// Whether the workers of this process take requests. A clone is a handle on the same state.
#[derive(Debug, Clone)]
pub struct WorkerReadiness(Arc<RwLock<Result<(), String>>>);

impl WorkerReadiness {
    /// The workers do not take requests, because of `reason`.
    #[must_use]
    pub fn not_yet(reason: &str) -> Self {
        Self(Arc::new(RwLock::new(Err(reason.into()))))
    }

    /// The workers take requests from now on.
    pub fn set_ready(&self) {
        self.set(Ok(()));
    }

    /// The workers take no requests from now on, because of `reason`.
    pub fn set_away(&self, reason: &str) {
        self.set(Err(reason.into()));
    }

    fn set(&self, state: Result<(), String>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = state;
    }

    fn state(&self) -> Result<(), String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The running listener. Dropping it does not stop it.
#[derive(Debug)]
pub struct WorkerStatusServer {
    address: SocketAddr,
    handle: ServerHandle,
    _upkeep: JoinHandle<()>,
}

impl WorkerStatusServer {
    /// Listens at `address`, on one thread. `metrics` is the handle of this process's recorder. Call it within an actix
    /// system.
    ///
    /// # Errors
    /// The address cannot be bound, or the operating system refuses a thread.
    pub fn start(
        address: SocketAddr,
        metrics: PrometheusHandle,
        readiness: WorkerReadiness,
    ) -> Result<Self, HttpError> {
        let socket = bind(address, "the worker's metrics")?;
        let address = socket.local_addr().map_err(HttpError::Serve)?;
        let upkeep = upkeep(metrics.clone());
        let listener = Listener {
            name: "worker",
            socket,
            threads: 1,
            max_connections: MAX_ADMIN_CONNECTIONS,
            per_address: AddressLimit::new(None),
            cors: Cors::default(),
        };
        let server = listener::serve(listener, move |app| {
            routes(app, metrics.clone(), readiness.clone());
        })
        .map_err(HttpError::Serve)?;
        let handle = server.handle();
        actix_rt::spawn(server);
        Ok(Self {
            address,
            handle,
            _upkeep: upkeep,
        })
    }

    /// The address. If port 0 was configured, this has the port the system chose.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the listener.
    pub async fn stop(self) {
        self.handle.stop(false).await;
    }
}

fn routes(config: &mut ServiceConfig, metrics: PrometheusHandle, readiness: WorkerReadiness) {
    config
        .app_data(Data::new(metrics))
        .app_data(Data::new(readiness))
        .service(readable("/live", health::live))
        .service(readable("/ready", ready))
        .service(resource("/metrics", "GET", [web::get().to(exported)]))
        .default_service(web::to(error::not_found));
}

async fn ready(readiness: Data<WorkerReadiness>) -> HttpResponse {
    match readiness.state() {
        Ok(()) => HttpResponse::Ok().json(json!({"status": "ready"})),
        Err(message) => {
            HttpResponse::ServiceUnavailable().json(json!({"status": "not_ready", "message": message}))
        }
    }
}

async fn exported(metrics: Data<PrometheusHandle>) -> HttpResponse {
    metrics_text(metrics.render())
}
