//! The one connection of a process to NATS, shared by everything that uses NATS.
//!
//! [`NatsConnection::start`] does not wait for the server and fails on invalid settings only. The connection is dialled
//! for ever, and [`NatsConnection::status`] reports its state. While the server is away, the client queues a bounded
//! number of messages and then makes callers wait; a caller that must not wait checks the status first.

use std::{fmt, path::PathBuf, time::Duration};

/// The client library, for crates that build on this one.
pub use async_nats;
use async_nats::{Client, ConnectOptions, Event, ServerAddr, ToServerAddrs};
use signalbox_protocol::PlaneStatus;
use tokio::sync::watch;

/// Time between pings; two pings without an answer end the connection. So a server that hangs is detected within ten
/// seconds. The client's default would take two minutes.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// Longest wait for a server's greeting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest wait between two attempts to connect: a server that is back is used within two seconds.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(2);

/// The address of NATS and the credentials.
#[derive(Clone, Default)]
pub struct NatsConfig {
    /// `nats://host:port` or `tls://host:port`, with `user:password@` before the host if the server requires them;
    /// several servers of one cluster are separated by commas.
    pub url: String,
    /// A `.creds` file with a user JWT and an NKey.
    pub credentials: Option<PathBuf>,
    /// Certificate authorities (PEM) to trust in addition to the system's.
    pub ca: Option<PathBuf>,
    /// The client's certificate and key (PEM).
    pub client_certificate: Option<(PathBuf, PathBuf)>,
}

/// Why the settings of NATS cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    /// The address cannot be parsed.
    #[error("{url:?} is not a NATS address: {reason}; give nats://host:4222[,nats://host:4222…]")]
    Address {
        /// The address, without its password.
        url: String,
        /// The reason that the client gives.
        reason: String,
    },
    /// A file is missing or unreadable, or the client refuses the settings.
    #[error("NATS cannot be used with these settings: {0}")]
    Settings(String),
}

/// The connection. Clone = handle.
#[derive(Debug, Clone)]
pub struct NatsConnection {
    client: Client,
    status: watch::Receiver<PlaneStatus>,
}

impl NatsConnection {
    /// Starts to connect, and reconnects for ever. Call it inside a tokio runtime. The server lists the connection
    /// under `name`.
    ///
    /// # Errors
    /// See [`NatsError`]. A server that cannot be reached is not an error.
    pub async fn start(config: &NatsConfig, name: &str) -> Result<Self, NatsError> {
        let servers = servers(&config.url)?;
        let (status_sender, status) = watch::channel(PlaneStatus::connecting("nats"));
        let mut options = ConnectOptions::new()
            .name(name)
            .retry_on_initial_connect()
            .connection_timeout(CONNECT_TIMEOUT)
            .ping_interval(PING_INTERVAL)
            .reconnect_delay_callback(reconnect_delay)
            .event_callback(move |event| {
                on_event(&status_sender, &event);
                std::future::ready(())
            });
        if let Some(path) = &config.credentials {
            options = options
                .credentials_file(path)
                .await
                .map_err(|error| NatsError::Settings(format!("{}: {error}", path.display())))?;
        }
        for path in config.ca.iter().chain(
            config
                .client_certificate
                .iter()
                .flat_map(|(cert, key)| [cert, key]),
        ) {
            std::fs::metadata(path)
                .map_err(|error| NatsError::Settings(format!("{}: {error}", path.display())))?;
        }
        if let Some(path) = &config.ca {
            options = options.add_root_certificates(path.clone());
        }
        if let Some((certificate, key)) = &config.client_certificate {
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
        let client = options
            .connect(servers)
            .await
            .map_err(|error| NatsError::Settings(error.to_string()))?;
        Ok(Self { client, status })
    }

    /// The client. Publishing with it waits while its queue is full.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The state of the connection, and every change of it.
    pub fn status(&self) -> watch::Receiver<PlaneStatus> {
        self.status.clone()
    }

    /// Whether a server is connected now.
    pub fn is_up(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }
}

impl fmt::Debug for NatsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsConfig")
            .field("url", &without_secrets(&self.url))
            .field("credentials", &self.credentials)
            .field("ca", &self.ca)
            .field("client_certificate", &self.client_certificate)
            .finish()
    }
}

fn servers(url: &str) -> Result<Vec<ServerAddr>, NatsError> {
    let wrong = |reason: String| NatsError::Address {
        url: without_secrets(url),
        reason,
    };
    let servers: Vec<ServerAddr> = url
        .split(',')
        .map(|one| one.trim().parse::<ServerAddr>())
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(error.to_string()))?;
    servers
        .to_server_addrs()
        .map(Iterator::collect)
        .map_err(|error| wrong(error.to_string()))
}

/// An address without its password, for messages and logs.
fn without_secrets(url: &str) -> String {
    let hide = |one: &str| match (one.find("://"), one.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}***{}", &one[..scheme + 3], &one[at..]),
        (None, Some(at)) => format!("***{}", &one[at..]),
        _ => one.to_owned(),
    };
    url.split(',').map(hide).collect::<Vec<_>>().join(",")
}

/// The wait before an attempt: none before the first, 20 ms before the second, then doubled each time.
fn reconnect_delay(attempts: usize) -> Duration {
    match attempts {
        0 | 1 => Duration::ZERO,
        more => Duration::from_millis(5 << more.min(9)).min(MAX_RECONNECT_DELAY),
    }
}

fn on_event(status: &watch::Sender<PlaneStatus>, event: &Event) {
    match event {
        Event::Connected => {
            status.send_if_modified(PlaneStatus::up);
        }
        Event::Disconnected | Event::Closed => down(status, "the connection is lost"),
        Event::ClientError(error) => {
            // Each failed attempt reports the error again; the status changes at the first only.
            down(status, &error.to_string());
        }
        Event::SlowConsumer(subscription) => {
            tracing::warn!(
                subscription,
                "NATS messages were dropped because they arrived faster than they were read"
            );
        }
        Event::ServerError(error) => tracing::warn!(%error, "the NATS server reports an error"),
        Event::LameDuckMode => tracing::info!("the NATS server is about to stop"),
        Event::Draining => {}
    }
}

fn down(status: &watch::Sender<PlaneStatus>, reason: &str) {
    status.send_if_modified(|status| status.down(reason));
}

#[cfg(test)]
mod tests {
    use signalbox_protocol::PlaneState;
    use signalbox_test_servers::NatsServer;

    use super::*;

    /// Fails a test that hangs.
    const PATIENCE: Duration = Duration::from_secs(30);

    async fn becomes(connection: &NatsConnection, state: PlaneState) {
        let mut status = connection.status();
        tokio::time::timeout(PATIENCE, status.wait_for(|status| status.state == state))
            .await
            .expect("in time")
            .expect("the connection exists");
    }

    #[tokio::test]
    async fn a_server_may_start_late_and_restart() {
        let mut server = NatsServer::prepare();
        let config = NatsConfig {
            url: server.url(),
            ..NatsConfig::default()
        };
        let connection = NatsConnection::start(&config, "test").await.unwrap();
        assert_eq!(connection.status().borrow().state, PlaneState::Connecting);
        server.start();
        becomes(&connection, PlaneState::Up).await;
        assert!(connection.is_up());
        server.kill();
        becomes(&connection, PlaneState::Down).await;
        server.start();
        becomes(&connection, PlaneState::Up).await;
    }

    #[tokio::test]
    async fn invalid_settings_are_reported_without_secrets() {
        let config = |url: &str| NatsConfig {
            url: url.into(),
            ..NatsConfig::default()
        };
        let refused = NatsConnection::start(&config("http://me:secret@host"), "test")
            .await
            .unwrap_err();
        let message = refused.to_string();
        assert!(
            message.contains("http://***@host") && message.contains("nats://"),
            "{message}"
        );
        let no_file = NatsConfig {
            credentials: Some("/does/not/exist.creds".into()),
            ..config("nats://127.0.0.1:1")
        };
        let refused = NatsConnection::start(&no_file, "test")
            .await
            .unwrap_err()
            .to_string();
        assert!(refused.contains("/does/not/exist.creds"), "{refused}");
        assert!(!format!("{:?}", config("nats://me:secret@host")).contains("secret"));
    }

    #[test]
    fn the_first_attempt_is_at_once_and_later_ones_every_two_seconds() {
        assert_eq!(reconnect_delay(1), Duration::ZERO);
        assert_eq!(reconnect_delay(2), Duration::from_millis(20));
        assert_eq!(reconnect_delay(100), MAX_RECONNECT_DELAY);
    }
}
