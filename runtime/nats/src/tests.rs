//! Connections to real servers, with each way to show who a process is.

use std::{path::PathBuf, time::Duration};

use rcgen::{CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd};
use signalbox_protocol::PlaneState;
use signalbox_test_servers::{NatsOperator, NatsServer};
use tempfile::TempDir;

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

/// Connects, and sends a message to itself: a server that has not refused the connection may refuse everything else.
async fn works(config: &NatsConfig) {
    let connection = NatsConnection::start(config, "test").await.unwrap();
    becomes(&connection, PlaneState::Up).await;
    connection.client().flush().await.unwrap();
    assert!(connection.is_up());
}

/// Tries to connect, and returns the reason why it does not work.
async fn refusal(config: &NatsConfig) -> String {
    let connection = NatsConnection::start(config, "test").await.unwrap();
    let mut status = connection.status();
    let failed = status.wait_for(|status| status.state == PlaneState::Up || status.has_reason());
    let failed = tokio::time::timeout(PATIENCE, failed)
        .await
        .expect("in time")
        .unwrap()
        .clone();
    assert_eq!(failed.state, PlaneState::Connecting, "{}", failed.detail);
    // The client's first report has the kind only.
    let full = |status: &PlaneStatus| status.detail.contains("127.0.0.1:");
    tokio::time::timeout(PATIENCE, status.wait_for(full))
        .await
        .expect("in time")
        .unwrap()
        .detail
        .clone()
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
async fn a_user_and_a_password_in_the_address() {
    let mut server = NatsServer::prepare()
        .configured("authorization { users: [{ user: \"a:b\", password: \"p@ss,w/rd%\" }] }");
    server.start();
    let at = |who: &str| NatsConfig {
        url: format!("nats://{who}{}", server.address()),
        ..NatsConfig::default()
    };
    works(&at("a%3Ab:p%40ss%2Cw%2Frd%25@")).await;
    for who in ["a%3Ab:other@", "a%3Ab@", ""] {
        let reason = refusal(&at(who)).await;
        assert!(
            reason.contains("refuses the user") && !reason.contains("other"),
            "{reason}"
        );
    }
}

#[tokio::test]
async fn a_token_in_the_address_or_as_a_setting() {
    let mut server = NatsServer::prepare().configured("authorization { token: \"s3:cret\" }");
    server.start();
    works(&NatsConfig {
        url: format!("nats://s3%3Acret@{}", server.address()),
        ..NatsConfig::default()
    })
    .await;
    let with = |token: &str| NatsConfig {
        url: server.url(),
        token: Some(token.into()),
        ..NatsConfig::default()
    };
    works(&with("s3:cret")).await;
    let reason = refusal(&with("wrong")).await;
    assert!(
        reason.contains("refuses the user") && !reason.contains("wrong"),
        "{reason}"
    );
}

#[tokio::test]
async fn an_nkey_in_a_file() {
    let (right, wrong) = (nkeys::KeyPair::new_user(), nkeys::KeyPair::new_user());
    let mut server = NatsServer::prepare().configured(&format!(
        "authorization {{ users: [{{ nkey: {} }}] }}",
        right.public_key()
    ));
    server.start();
    let folder = TempDir::new().unwrap();
    let with = |key: &nkeys::KeyPair| {
        let file = folder.path().join(key.public_key());
        std::fs::write(&file, format!("# a user\n{}\n", key.seed().unwrap())).unwrap();
        NatsConfig {
            url: server.url(),
            nkey: Some(file),
            ..NatsConfig::default()
        }
    };
    works(&with(&right)).await;
    assert!(refusal(&with(&wrong)).await.contains("refuses the user"));
}

#[tokio::test]
async fn credentials_in_a_file() {
    let operator = NatsOperator::new();
    let mut server = NatsServer::prepare().configured(&operator.configuration());
    server.start();
    let folder = TempDir::new().unwrap();
    let with = |name: &str, credentials: String| {
        let file = folder.path().join(name);
        std::fs::write(&file, credentials).unwrap();
        NatsConfig {
            url: server.url(),
            credentials: Some(file),
            ..NatsConfig::default()
        }
    };
    works(&with("right", operator.credentials("anybody", "{}"))).await;
    let other = NatsOperator::new().credentials("anybody", "{}");
    assert!(refusal(&with("other", other)).await.contains("refuses the user"));
}

/// The files of a TLS server and of its clients.
struct Pki {
    folder: TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let pki = Self {
            folder: TempDir::new().unwrap(),
            authority,
        };
        pki.write("ca.pem", &pki.authority.pem());
        pki
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// The files of a certificate for `host` and of its key.
    fn certificate(&self, host: &str, is_expired: bool) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        if is_expired {
            params.not_before = date_time_ymd(2001, 1, 1);
            params.not_after = date_time_ymd(2002, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        let name = format!("{host}-{is_expired}");
        (
            self.write(&format!("{name}.pem"), &certificate.pem()),
            self.write(&format!("{name}.key"), &key.serialize_pem()),
        )
    }

    /// A server with this certificate, which verifies clients if `verifies`.
    fn server(&self, (certificate, key): &(PathBuf, PathBuf), verifies: bool) -> NatsServer {
        let mut server = NatsServer::prepare().configured(&format!(
            "tls {{ cert_file: {certificate:?}, key_file: {key:?}, ca_file: {:?}, verify: {verifies} }}",
            self.ca()
        ));
        server.start();
        server
    }
}

#[tokio::test]
async fn tls_with_and_without_a_client_certificate() {
    let pki = Pki::new();
    let right = pki.certificate("127.0.0.1", false);
    let (open, mutual) = (pki.server(&right, false), pki.server(&right, true));
    let at = |server: &NatsServer, client_certificate| NatsConfig {
        url: server.url(),
        ca: Some(pki.ca()),
        client_certificate,
        ..NatsConfig::default()
    };
    works(&at(&open, None)).await;
    works(&at(&mutual, Some(right))).await;
    let reason = refusal(&at(&mutual, None)).await;
    assert!(reason.contains("requires a client certificate"), "{reason}");
    let strangers = Pki::new();
    let stranger = strangers.certificate("client", false);
    let reason = refusal(&at(&mutual, Some(stranger))).await;
    assert!(
        reason.contains("client certificate") || reason.contains("process's certificate"),
        "{reason}"
    );
}

#[tokio::test]
async fn what_is_wrong_with_tls_is_named() {
    let pki = Pki::new();
    let right = pki.certificate("127.0.0.1", false);
    let (good, expired, other_host) = (
        pki.server(&right, false),
        pki.server(&pki.certificate("127.0.0.1", true), false),
        pki.server(&pki.certificate("nats.example", false), false),
    );
    let plain = NatsServer::started();
    let own = Some(pki.ca());
    for (server, ca, wanted) in [
        (&good, Some(Pki::new().ca()), "not trusted here"),
        (&good, None, "not trusted here"),
        (&expired, own.clone(), "has expired"),
        (&other_host, own.clone(), "not valid for name"),
        (&plain, own, "does not speak TLS"),
    ] {
        let config = NatsConfig {
            url: server.url(),
            ca,
            ..NatsConfig::default()
        };
        let reason = refusal(&config).await;
        assert!(reason.contains(wanted), "{wanted}: {reason}");
    }
}

#[tokio::test]
async fn a_denied_request_ends_with_the_denial_and_not_with_a_timeout() {
    let mut server = NatsServer::prepare().configured(
        "authorization { users: [{ user: u, password: p, permissions: { publish: [\"$JS.API.>\"], subscribe: \"_INBOX.>\" } }] }",
    );
    server.start();
    let config = NatsConfig {
        url: format!("nats://u:p@{}", server.address()),
        ..NatsConfig::default()
    };
    let connection = NatsConnection::start(&config, "test").await.unwrap();
    let request = connection.client().request("own.subject", "".into());
    let denied = connection.permitted(|denial| denial.subject == "own.subject", request);
    let denied = tokio::time::timeout(PATIENCE, denied)
        .await
        .expect("in time")
        .unwrap_err();
    assert!(denied.to_string().contains("publish to own.subject"), "{denied}");
    let allowed = connection.client().request("$JS.API.INFO", "".into());
    connection
        .permitted(|denial| denial.subject == "own.subject", allowed)
        .await
        .unwrap()
        .unwrap();
}
