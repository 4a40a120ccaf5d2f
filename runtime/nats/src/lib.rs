//! The one connection of a process to NATS, shared by everything that uses NATS.
//!
//! [`NatsConnection::start`] does not wait for the server and fails on invalid settings only. The connection is dialled
//! for ever, [`NatsConnection::status`] reports its state, and [`NatsConnection::denials`] what the server does not
//! permit. While the server is away, the client queues a bounded number of messages and then makes callers wait; a
//! caller that must not wait checks the status first.

use std::time::Duration;

/// The client library, for crates that build on this one.
pub use async_nats;
use async_nats::Client;
use signalbox_protocol::PlaneStatus;
use tokio::sync::watch;

pub use config::{NatsConfig, NatsError, without_secrets};
pub use denials::{Denial, Denials};
pub use replicas::Replicas;

mod config;
mod denials;
mod reconnect;
mod replicas;
#[cfg(test)]
mod tests;

use reconnect::Reconnect;

/// Time between pings; two pings without an answer end the connection. So a server that hangs is detected within ten
/// seconds. The client's default would take two minutes.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// Longest wait for a server's greeting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The connection. Clone = handle.
#[derive(Debug, Clone)]
pub struct NatsConnection {
    client: Client,
    reconnect: Reconnect,
}

impl NatsConnection {
    /// Starts to connect, and reconnects for ever. Call it inside a tokio runtime. The server lists the connection
    /// under `name`.
    ///
    /// # Errors
    /// See [`NatsError`]. A server that cannot be reached is not an error.
    pub async fn start(config: &NatsConfig, name: &str) -> Result<Self, NatsError> {
        let (servers, options) = config.clone().into_options()?;
        let reconnect = Reconnect::new();
        let (delays, rounds, events) = (reconnect.clone(), reconnect.clone(), reconnect.clone());
        let client = options
            .name(name)
            .retry_on_initial_connect()
            .connection_timeout(CONNECT_TIMEOUT)
            .ping_interval(PING_INTERVAL)
            .reconnect_delay_callback(move |attempts| delays.delay(attempts))
            // Leaves the choice of the server to the client.
            .reconnect_to_server_callback(move |servers, _| {
                rounds.on_round(&servers);
                std::future::ready(None)
            })
            .event_callback(move |event| {
                events.on_event(&event);
                std::future::ready(())
            })
            .connect(servers)
            .await
            .map_err(|error| NatsError::Settings(error.to_string()))?;
        Ok(Self { client, reconnect })
    }

    /// The client. Publishing with it waits while its queue is full.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The state of the connection, and every change of it.
    pub fn status(&self) -> watch::Receiver<PlaneStatus> {
        self.reconnect.status()
    }

    /// What the server has denied since the connection was made, and every change of it.
    pub fn denials(&self) -> watch::Receiver<Denials> {
        self.reconnect.denials()
    }

    /// Waits for the answer to a request, or until the server denies a subject that `concerns` returns true for.
    ///
    /// # Errors
    /// The denial. A server that denies a subject answers nothing.
    pub async fn permitted<T>(
        &self,
        concerns: impl Fn(&Denial) -> bool,
        answer: impl Future<Output = T>,
    ) -> Result<T, Denial> {
        let mut denials = self.denials();
        let before = denials.borrow().count();
        let denied = async {
            let find = |denials: &Denials| denials.find_since(before, &concerns).cloned();
            let found = denials.wait_for(|denials| find(denials).is_some()).await;
            match found.ok().and_then(|denials| find(&denials)) {
                Some(denial) => denial,
                // The connection was closed for good.
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            answer = answer => Ok(answer),
            denial = denied => Err(denial),
        }
    }

    /// Whether a server is connected now.
    pub fn is_up(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }
}
