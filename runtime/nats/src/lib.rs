//! The process's one connection to NATS, shared by everything that goes over it.
//!
//! [`NatsConnection::start`] never waits and fails only on settings that cannot be right: a server that is away is
//! dialled again for ever, and [`NatsConnection::status`] says how that goes. What is published meanwhile is up to
//! the caller: the client keeps a bounded number of messages and then makes callers wait, so callers that must not
//! wait look at the status first.

use std::{fmt, path::PathBuf, time::Duration};

/// The client, for those that build on this crate.
pub use async_nats;
use async_nats::{Client, ConnectOptions, Event, ServerAddr, ToServerAddrs};
use signalbox_protocol::PlaneStatus;
use tokio::sync::watch;

/// A server is pinged this often; two pings without an answer end the connection. So a server that hangs is noticed
/// within ten seconds, where the client's default would take two minutes.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// Longest wait for a server's greeting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest wait between two attempts: a server that is back is used within two seconds.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(2);

/// Where NATS is and how to be let in.
#[derive(Clone, Default)]
pub struct NatsConfig {
    /// `nats://host:port` or `tls://host:port`, with `user:password@` where that is how to be let in; several of one
    /// cluster with commas between.
    pub url: String,
    /// A `.creds` file: user JWT and NKey.
    pub credentials: Option<PathBuf>,
    /// Certificate authorities (PEM) to trust beside the system's.
    pub ca: Option<PathBuf>,
    /// The client's certificate and key (PEM).
    pub client_certificate: Option<(PathBuf, PathBuf)>,
}

/// Settings that cannot be right.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    /// The address means nothing.
    #[error("{url:?} is no NATS address: {reason}; give nats://host:4222[,nats://host:4222…]")]
    Address {
        /// As given, without a password.
        url: String,
        /// The client's reason.
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
    /// Starts to connect, and keeps at it. Call it inside a tokio runtime; `name` is shown in the server's lists.
    ///
    /// # Errors
    /// See [`NatsError`]; a server that cannot be reached is none.
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
                note(&status_sender, &event);
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

    /// The client. Publishing with it waits while many messages are unsent.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// How the connection is doing, and every change of that.
    pub fn status(&self) -> watch::Receiver<PlaneStatus> {
        self.status.clone()
    }

    /// Whether a server answers right now.
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

/// An address for messages and logs.
fn without_secrets(url: &str) -> String {
    let hide = |one: &str| match (one.find("://"), one.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}***{}", &one[..scheme + 3], &one[at..]),
        (None, Some(at)) => format!("***{}", &one[at..]),
        _ => one.to_owned(),
    };
    url.split(',').map(hide).collect::<Vec<_>>().join(",")
}

/// 0, then 10 ms doubled at each attempt.
fn reconnect_delay(attempts: usize) -> Duration {
    match attempts {
        0 | 1 => Duration::ZERO,
        more => Duration::from_millis(5 << more.min(9)).min(MAX_RECONNECT_DELAY),
    }
}

fn note(status: &watch::Sender<PlaneStatus>, event: &Event) {
    match event {
        Event::Connected => {
            status.send_if_modified(PlaneStatus::up);
        }
        Event::Disconnected | Event::Closed => down(status, "the connection is lost"),
        Event::ClientError(error) => {
            // Told again at every attempt: only the first says something new.
            down(status, &error.to_string());
        }
        Event::SlowConsumer(subscription) => {
            tracing::warn!(
                subscription,
                "NATS messages were dropped: they came faster than they were read"
            );
        }
        Event::ServerError(error) => tracing::warn!(%error, "NATS server reports an error"),
        Event::LameDuckMode => tracing::info!("NATS server is about to stop"),
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

    /// Only ends a test that would hang.
    const PATIENCE: Duration = Duration::from_secs(30);

    async fn becomes(connection: &NatsConnection, state: PlaneState) {
        let mut status = connection.status();
        tokio::time::timeout(PATIENCE, status.wait_for(|status| status.state == state))
            .await
            .expect("in time")
            .expect("the connection lives");
    }

    #[tokio::test]
    async fn a_server_may_come_late_and_go_and_come_back() {
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
    async fn wrong_settings_are_told_without_secrets() {
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
    fn attempts_come_at_once_and_then_every_two_seconds() {
        assert_eq!(reconnect_delay(1), Duration::ZERO);
        assert_eq!(reconnect_delay(2), Duration::from_millis(20));
        assert_eq!(reconnect_delay(100), MAX_RECONNECT_DELAY);
    }
}
