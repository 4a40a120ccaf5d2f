//! When to dial again, and why the last attempts failed.
//!
//! The client reports a failed attempt by its kind only, so that "IO error" would be all an operator sees of an expired
//! certificate. The whole reason is in the client's list of servers, which it shows before each round of attempts.

use std::{sync::Arc, time::Duration};

use async_nats::{Event, Server};
use parking_lot::Mutex;
use signalbox_protocol::{PlaneState, PlaneStatus};
use tokio::sync::watch;

use crate::denials::Denials;

/// Longest wait between two attempts to connect: a server that is back is used at once, also for requests over NATS. A
/// refused connection costs next to nothing.
const MAX_DELAY: Duration = Duration::from_millis(250);

/// Wait before the next attempt after a server has refused the credentials or the certificate: it logs each attempt, and
/// only a person can mend it.
const REFUSED_DELAY: Duration = Duration::from_secs(5);

/// Most servers whose failure is described: enough for the clusters in use, and a line of a log.
const MAX_DESCRIBED: usize = 3;

/// What is known of the connection, from the client's events and failures. Clone = handle.
#[derive(Debug, Clone)]
pub(crate) struct Reconnect(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    status: watch::Sender<PlaneStatus>,
    denials: watch::Sender<Denials>,
    failure: Mutex<Option<Failure>>,
}

/// Why the last round of attempts failed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Failure {
    reason: String,
    /// A server was reached and does not accept this process.
    is_refusal: bool,
}

impl Reconnect {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Shared {
            status: watch::Sender::new(PlaneStatus::connecting("nats")),
            denials: watch::Sender::default(),
            failure: Mutex::default(),
        }))
    }

    pub(crate) fn status(&self) -> watch::Receiver<PlaneStatus> {
        self.0.status.subscribe()
    }

    pub(crate) fn denials(&self) -> watch::Receiver<Denials> {
        self.0.denials.subscribe()
    }

    /// The wait before an attempt: none before the first, 20 ms before the second, then doubled each time. A part of a
    /// long wait is random, so that all processes that lost a server do not return at the same moment.
    pub(crate) fn delay(&self, attempts: usize) -> Duration {
        let is_refusal = self
            .0
            .failure
            .lock()
            .as_ref()
            .is_some_and(|failure| failure.is_refusal);
        let longest = match attempts {
            0 | 1 => Duration::ZERO,
            _ if is_refusal => REFUSED_DELAY,
            more => Duration::from_millis(5 << more.min(9)).min(MAX_DELAY),
        };
        longest.mul_f64(rand::random_range(0.75..=1.0))
    }

    /// Takes in how the attempts on each server ended. The client calls it before each round.
    pub(crate) fn on_round(&self, servers: &[Server]) {
        let failure = Failure::of(servers);
        if let Some(failure) = &failure {
            self.down(&failure.reason);
        }
        *self.0.failure.lock() = failure;
    }

    pub(crate) fn on_event(&self, event: &Event) {
        match event {
            Event::Connected => {
                self.0.denials.send_modify(Denials::clear);
                self.0.status.send_if_modified(PlaneStatus::up);
            }
            Event::Disconnected | Event::Closed => {
                // By now the failure of the first attempt to connect again may be known.
                if self.0.status.borrow().state == PlaneState::Up {
                    self.down("the connection is lost");
                }
            }
            Event::ClientError(error) => {
                let known = self.0.failure.lock().clone();
                match known {
                    Some(failure) => self.down(&failure.reason),
                    None => self.down(&error.to_string()),
                }
            }
            Event::SlowConsumer(subscription) => {
                tracing::warn!(
                    subscription,
                    "NATS messages were dropped because they arrived faster than they were read"
                );
            }
            Event::ServerError(error) => self.on_server_error(&error.to_string()),
            Event::LameDuckMode => tracing::info!("the NATS server is about to stop"),
            Event::Draining => {}
        }
    }

    /// A denial is logged once for each connection and subject: the same one comes with every attempt.
    fn on_server_error(&self, error: &str) {
        let mut is_new = false;
        self.0.denials.send_modify(|denials| is_new = denials.note(error));
        if is_new {
            tracing::warn!(error, "the NATS server reports an error");
        }
    }

    fn down(&self, reason: &str) {
        self.0.status.send_if_modified(|status| status.down(reason));
    }
}

impl Failure {
    /// `None` if no attempt has failed since the last connection.
    fn of(servers: &[Server]) -> Option<Self> {
        let failed: Vec<_> = servers
            .iter()
            .filter_map(|server| Some((server, server.last_error.as_deref()?)))
            .collect();
        let described = failed.iter().take(MAX_DESCRIBED).map(|(server, error)| {
            let address = format!("{}:{}", server.addr.host(), server.addr.port());
            format!("{address}: {}", describe(error))
        });
        let reason = described.collect::<Vec<_>>().join("; ");
        (!failed.is_empty()).then(|| Self {
            reason,
            is_refusal: failed.iter().any(|(_, error)| is_refusal(error)),
        })
    }
}

/// What a person needs to know of a client's error. The texts on the left are those of rustls and of the client.
fn describe(error: &str) -> String {
    const KNOWN: [(&str, &str); 10] = [
        (
            "authorization violation",
            "the server refuses the user, token, key or credentials",
        ),
        (
            "UnknownIssuer",
            "the server's certificate is from an authority that is not trusted here",
        ),
        (
            "BadSignature",
            "the server's certificate is from an authority that is not trusted here",
        ),
        (
            "CaUsedAsEndEntity",
            "the server's certificate is one of an authority (CA:TRUE), which a server must not present",
        ),
        ("certificate expired", "the server's certificate has expired"),
        // From servers before Go 1.21 for a certificate that is missing, too.
        (
            "alert: BadCertificate",
            "the server requires a client certificate that it trusts",
        ),
        (
            "alert: CertificateRequired",
            "the server requires a client certificate",
        ),
        (
            "alert: UnknownCA",
            "the server does not trust the authority of this process's certificate",
        ),
        (
            "alert: CertificateExpired",
            "the server refuses this process's certificate, which has expired",
        ),
        ("InvalidContentType", "the server does not speak TLS"),
    ];
    let known = KNOWN.iter().find(|(text, _)| error.contains(text));
    match known {
        Some((_, meaning)) => (*meaning).to_owned(),
        // The kind says less than its cause.
        None => error
            .strip_prefix("IO error: ")
            .or_else(|| error.strip_prefix("TLS error: "))
            .unwrap_or(error)
            .to_owned(),
    }
}

/// Whether the server was reached and only another setting, here or there, can help.
fn is_refusal(error: &str) -> bool {
    ["authorization violation", "alert: ", "nats: "]
        .iter()
        .any(|sign| error.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(address: &str, error: Option<&str>) -> Server {
        Server {
            addr: address.parse().unwrap(),
            failed_attempts: 1,
            did_connect: false,
            is_discovered: false,
            last_error: error.map(Into::into),
        }
    }

    #[test]
    fn the_first_attempt_is_at_once_and_later_ones_within_a_quarter_of_a_second() {
        let reconnect = Reconnect::new();
        assert_eq!(reconnect.delay(1), Duration::ZERO);
        for attempts in 2..100 {
            let delay = reconnect.delay(attempts);
            assert!(
                Duration::from_millis(15) <= delay && delay <= MAX_DELAY,
                "{delay:?}"
            );
        }
    }

    #[test]
    fn refused_credentials_are_tried_again_seldom_and_a_server_that_is_away_often() {
        let reconnect = Reconnect::new();
        let away = server("a:1", Some("IO error: Connection refused (os error 111)"));
        let refused = server(
            "b:2",
            Some("authorization violation: nats: authorization violation"),
        );
        reconnect.on_round(&[away.clone(), refused]);
        assert!(reconnect.delay(9) > MAX_DELAY);
        let status = reconnect.status().borrow().clone();
        assert_eq!(status.state, PlaneState::Connecting);
        assert_eq!(
            status.detail,
            "a:1: Connection refused (os error 111); b:2: the server refuses the user, token, key or credentials"
        );
        reconnect.on_round(&[away, server("b:2", None)]);
        assert!(reconnect.delay(9) <= MAX_DELAY);
        assert_eq!(
            reconnect.status().borrow().detail,
            "a:1: Connection refused (os error 111)"
        );
    }

    #[test]
    fn a_late_event_does_not_hide_the_reason() {
        let reconnect = Reconnect::new();
        reconnect.on_event(&Event::Connected);
        reconnect.on_round(&[server(
            "a:1",
            Some("TLS error: IO error: invalid peer certificate: UnknownIssuer"),
        )]);
        reconnect.on_event(&Event::Disconnected);
        reconnect.on_event(&Event::ClientError(async_nats::ClientError::Other(
            "IO error".into(),
        )));
        let detail = reconnect.status().borrow().detail.clone();
        assert!(detail.contains("not trusted here"), "{detail}");
    }
}
