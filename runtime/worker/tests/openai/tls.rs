//! An engine behind TLS: what is trusted, and what is reported of a certificate that is not.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair,
    generate_simple_self_signed,
};
use signalbox_worker::openai::{FoundEngine, ProbeError, StatedFacts, Upstream, find_engine};
use tempfile::TempDir;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::AbortHandle,
    time::timeout,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer},
};

use super::{LONG, scripted_engine::ScriptedEngine};

/// Speaks TLS in front of a plain engine.
struct TlsFront {
    address: SocketAddr,
    task: AbortHandle,
}

impl TlsFront {
    async fn start(engine: &ScriptedEngine, certificate: &Certificate, key: &KeyPair) -> Self {
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let engine = engine.url.strip_prefix("http://").unwrap().to_owned();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, engine) = (acceptor.clone(), engine.clone());
                tokio::spawn(async move {
                    // A client that does not trust the certificate ends the handshake.
                    let Ok(mut client) = acceptor.accept(stream).await else {
                        return;
                    };
                    let mut engine = TcpStream::connect(engine).await.unwrap();
                    // Either side may close without a goodbye.
                    let _ = copy_bidirectional(&mut client, &mut engine).await;
                });
            }
        });
        Self {
            address,
            task: task.abort_handle(),
        }
    }

    async fn find(&self, host: &str, ca: Option<&PathBuf>) -> Result<FoundEngine, ProbeError> {
        let url = format!("https://{host}:{}", self.address.port());
        find(&url, ca).await
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn find(url: &str, ca: Option<&PathBuf>) -> Result<FoundEngine, ProbeError> {
    let upstream = Upstream::new(url.parse().unwrap(), None, ca.map(PathBuf::as_path)).unwrap();
    let stated = StatedFacts::default();
    timeout(LONG, find_engine(&upstream, &stated, |_| {}))
        .await
        .unwrap()
}

/// An authority, as a file too.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    file: PathBuf,
    _folder: TempDir,
}

impl Authority {
    fn new() -> Self {
        Self::named("authority")
    }

    fn named(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, issuer.pem()).unwrap();
        Self {
            issuer,
            file,
            _folder: folder,
        }
    }

    /// A server's certificate for these names and addresses, and its key.
    fn issue(&self, names: &[&str]) -> (Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let params = CertificateParams::new(names).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }
}

#[tokio::test]
async fn an_engine_is_used_if_its_certificate_is_of_the_named_authority() {
    let engine = ScriptedEngine::start(Vec::new()).await;
    let authority = Authority::new();
    let (certificate, key) = authority.issue(&["localhost", "127.0.0.1"]);
    let front = TlsFront::start(&engine, &certificate, &key).await;
    for host in ["localhost", "127.0.0.1"] {
        let found = front.find(host, Some(&authority.file)).await.unwrap();
        assert_eq!(found.facts.model, "tiny");
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_ends_the_start_with_what_is_wrong() {
    let engine = ScriptedEngine::start(Vec::new()).await;
    let (authority, replaced, other) = (Authority::new(), Authority::new(), Authority::named("other"));
    let (certificate, key) = authority.issue(&["localhost"]);
    let front = TlsFront::start(&engine, &certificate, &key).await;
    let cases = [
        ("localhost", &other.file, "--upstream-ca"),
        ("localhost", &replaced.file, "--upstream-ca"),
        ("127.0.0.1", &authority.file, "localhost"),
    ];
    for (host, ca, named) in cases {
        let error = front.find(host, Some(ca)).await.unwrap_err();
        let is_insecure = matches!(error, ProbeError::Insecure(_));
        let text = error.to_string();
        let url = format!("https://{host}:");
        assert!(
            is_insecure && text.contains(named) && text.contains(&url),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_certificate_of_an_authority_is_no_servers() {
    let engine = ScriptedEngine::start(Vec::new()).await;
    let authority = Authority::new();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let front = TlsFront::start(&engine, &params.self_signed(&key).unwrap(), &key).await;
    let error = front.find("localhost", Some(&authority.file)).await.unwrap_err();
    assert!(error.to_string().contains("CA:FALSE"), "{error}");
}

#[tokio::test]
async fn a_self_signed_certificate_is_trusted_if_it_is_named() {
    let engine = ScriptedEngine::start(Vec::new()).await;
    let own = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let front = TlsFront::start(&engine, &own.cert, &own.signing_key).await;
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("own.pem");
    std::fs::write(&file, own.cert.pem()).unwrap();
    front.find("localhost", Some(&file)).await.unwrap();
}

#[tokio::test]
async fn an_engine_without_tls_is_named_as_such() {
    let authority = Authority::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    // As uvicorn answers to what is no HTTP.
    let url = format!("https://{}", listener.local_addr().unwrap());
    let served = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        stream.writable().await.unwrap();
        stream.try_write(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        stream
    });
    let error = find(&url, Some(&authority.file)).await.unwrap_err();
    assert!(
        error.to_string().contains("give its address with http://"),
        "{error}"
    );
    drop(served.await.unwrap());
}

#[tokio::test]
async fn a_server_that_never_finishes_the_handshake_is_left() {
    let authority = Authority::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let upstream = Upstream::new(url.parse().unwrap(), None, Some(&authority.file)).unwrap();
    let asked = tokio::spawn(async move {
        let limit = Duration::from_secs(60);
        upstream
            .post("/tokenize", "{}".into(), limit)
            .await
            .unwrap_err()
            .to_string()
    });
    let (_silent, _) = listener.accept().await.unwrap();
    // The clock moves on by itself while nothing else happens.
    tokio::time::pause();
    let error = asked.await.unwrap();
    assert!(error.contains("cannot connect"), "{error}");
}
