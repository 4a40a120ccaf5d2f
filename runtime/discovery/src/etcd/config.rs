//! Settings, looked through before anything is dialled.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};

use super::keyspace::Keyspace;
use crate::DiscoveryError;

/// Longest wait for a server to take a connection: etcd is near, and there may be another endpoint.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A quiet connection is pinged after this long, and given up after the second: a server that hangs is noticed within
/// ten seconds. etcd hangs up on those that ping more often than every five seconds.
const PING: (Duration, Duration) = (Duration::from_secs(6), Duration::from_secs(4));

/// Where etcd is, how to be let in, and what to say there.
#[derive(Clone)]
pub struct EtcdConfig {
    /// `host:port`, `http://host:port` or `https://host:port`; members of one cluster. Without a scheme it is https
    /// if `tls` is set. One is used at a time.
    pub endpoints: Vec<String>,
    /// Who sees each other: 1 to 64 letters, digits, `-` or `_`.
    pub namespace: String,
    /// How long a process that says nothing more counts as present: 1 s to 1 h, whole seconds.
    pub lease_ttl: Duration,
    /// Name and password. It needs to read and write `/signalbox/{namespace}/`.
    pub user: Option<(String, String)>,
    /// How to trust and to be trusted.
    pub tls: Option<EtcdTls>,
}

/// TLS files, PEM.
#[derive(Debug, Clone, Default)]
pub struct EtcdTls {
    /// Certificate authorities to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// The client's certificate and key.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

/// Settings that can be right, with files read.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) keys: Keyspace,
    pub(crate) endpoints: Vec<Endpoint>,
    /// Whole seconds, as etcd counts.
    pub(crate) lease_ttl: Duration,
}

/// One server, with all it takes to connect to it.
pub(crate) struct Endpoint {
    url: String,
    options: ConnectOptions,
    user: Option<(String, String)>,
}

impl Default for EtcdConfig {
    fn default() -> Self {
        Self {
            endpoints: vec!["127.0.0.1:2379".into()],
            namespace: "default".into(),
            lease_ttl: Duration::from_secs(10),
            user: None,
            tls: None,
        }
    }
}

impl fmt::Debug for EtcdConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints: Vec<String> = self.endpoints.iter().map(|one| without_secrets(one)).collect();
        f.debug_struct("EtcdConfig")
            .field("endpoints", &endpoints)
            .field("namespace", &self.namespace)
            .field("lease_ttl", &self.lease_ttl)
            .field("user", &self.user.as_ref().map(|(name, _)| (name, "***")))
            .field("tls", &self.tls)
            .finish()
    }
}

impl Settings {
    /// Reads files and checks everything; asks no server.
    pub(crate) async fn new(config: EtcdConfig) -> Result<Self, DiscoveryError> {
        let keys = Keyspace::new(&config.namespace).ok_or(DiscoveryError::Namespace(config.namespace))?;
        if !(Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&config.lease_ttl) {
            return Err(DiscoveryError::LeaseTtl(config.lease_ttl));
        }
        let tls = config.tls.as_ref().map(read_tls).transpose()?;
        let mut endpoints = Vec::new();
        for given in &config.endpoints {
            let endpoint = Endpoint::new(given, tls.clone(), config.user.clone())?;
            endpoint.check().await?;
            endpoints.push(endpoint);
        }
        if endpoints.is_empty() {
            return Err(DiscoveryError::NoEndpoint);
        }
        let lease_ttl = Duration::from_secs(config.lease_ttl.as_secs_f64().ceil() as u64);
        Ok(Self {
            keys,
            endpoints,
            lease_ttl,
        })
    }
}

impl Endpoint {
    fn new(
        given: &str,
        tls: Option<TlsOptions>,
        user: Option<(String, String)>,
    ) -> Result<Self, DiscoveryError> {
        let wrong = |reason: &str| {
            Err(DiscoveryError::Endpoint {
                endpoint: without_secrets(given),
                reason: reason.into(),
            })
        };
        let (scheme, address) = given.split_once("://").unwrap_or(match tls {
            Some(_) => ("https", given),
            None => ("http", given),
        });
        let tls = match scheme {
            "http" if tls.is_some() => return wrong("TLS settings are given, and http uses none"),
            "http" => None,
            "https" => Some(tls.unwrap_or_else(|| TlsOptions::new().with_native_roots())),
            _ => return wrong("the scheme is neither http nor https"),
        };
        if address.contains('@') {
            return wrong("user and password are settings of their own");
        }
        let address = address.strip_suffix('/').unwrap_or(address);
        match address.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok() => {}
            _ => return wrong("it does not end in host:port"),
        }
        // No pings without a request: etcd takes those for abuse, and there always is one that waits.
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(PING.0, PING.1)
            .with_keep_alive_while_idle(false)
            .with_auto_token_refresh(true)
            .with_require_leader(true);
        if let Some(tls) = tls {
            options = options.with_tls(tls);
        }
        let url = format!("{scheme}://{address}");
        Ok(Self { url, options, user })
    }

    /// Builds a client that asks nobody anything, which is where the client looks at addresses and certificates.
    async fn check(&self) -> Result<(), DiscoveryError> {
        match Client::connect([&self.url], Some(self.options.clone())).await {
            Ok(_) => Ok(()),
            Err(error @ etcd_client::Error::InvalidUri(_)) => Err(DiscoveryError::Endpoint {
                endpoint: self.url.clone(),
                reason: error.to_string(),
            }),
            Err(error) => Err(DiscoveryError::Tls(super::outage::reason(&error))),
        }
    }

    /// A client for this server alone. It connects with its first request, which with a user is made here.
    pub(crate) async fn connect(&self) -> Result<Client, etcd_client::Error> {
        let mut options = self.options.clone();
        if let Some((name, password)) = &self.user {
            options = options.with_user(name, password);
        }
        Client::connect([&self.url], Some(options)).await
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The options hold keys.
        f.debug_tuple("Endpoint").field(&self.url).finish()
    }
}

/// An address for messages and logs.
fn without_secrets(endpoint: &str) -> String {
    endpoint
        .rsplit_once('@')
        .map_or_else(|| endpoint.into(), |(_, host)| format!("***@{host}"))
}

fn read_tls(tls: &EtcdTls) -> Result<TlsOptions, DiscoveryError> {
    let mut options = match &tls.ca {
        Some(ca) => TlsOptions::new().ca_certificate(Certificate::from_pem(read_pem(ca)?)),
        None => TlsOptions::new().with_native_roots(),
    };
    if let Some((certificate, key)) = &tls.certificate {
        options = options.identity(Identity::from_pem(read_pem(certificate)?, read_pem(key)?));
    }
    Ok(options)
}

/// The client takes a file without a single certificate for no certificates, and then trusts nobody: told here.
fn read_pem(path: &Path) -> Result<String, DiscoveryError> {
    let wrong = |reason: &dyn fmt::Display| DiscoveryError::Tls(format!("{}: {reason}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
    if text.contains("-----BEGIN ") {
        Ok(text)
    } else {
        Err(wrong(&"it is no PEM file"))
    }
}

#[cfg(test)]
mod tests;
