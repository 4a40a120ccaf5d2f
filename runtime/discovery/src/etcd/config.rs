//! The settings of etcd, checked before the first connection.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};

use super::keyspace::Keyspace;
use crate::error::DiscoveryError;

/// Longest wait for a connection: etcd is near, and there may be another endpoint.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Idle time after which a connection is pinged, and the longest wait for the answer: a server that hangs is detected
/// within ten seconds. etcd closes connections that ping more often than every five seconds.
const PING: (Duration, Duration) = (Duration::from_secs(6), Duration::from_secs(4));

/// The address of etcd, the credentials, and what this process registers under.
#[derive(Clone)]
pub struct EtcdConfig {
    /// `host:port`, `http://host:port` or `https://host:port` of the members of one cluster. Without a scheme it is
    /// https if `tls` is set. One endpoint is used at a time.
    pub endpoints: Vec<String>,
    /// Processes of the same namespace see each other. 1 to 64 letters, digits, `-` or `_`.
    pub namespace: String,
    /// How long a process that is cut off from etcd stays present: 1 s to 1 h, rounded up to whole seconds.
    pub lease_ttl: Duration,
    /// Name and password of a user that may read and write `/signalbox/{namespace}/`.
    pub user: Option<(String, String)>,
    /// Certificates.
    pub tls: Option<EtcdTls>,
}

/// TLS files, in PEM.
#[derive(Debug, Clone, Default)]
pub struct EtcdTls {
    /// Certificate authorities to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// The client's certificate and key.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

/// Checked settings, with the files read.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) keys: Keyspace,
    pub(crate) endpoints: Vec<Endpoint>,
    /// Whole seconds, as etcd counts.
    pub(crate) lease_ttl: Duration,
}

/// One server, with everything needed to connect to it.
#[derive(Clone)]
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
    /// Reads the files and checks all settings. Sends no request.
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
            "http" if tls.is_some() => return wrong("TLS settings are given, but http does not use TLS"),
            "http" => None,
            "https" => Some(tls.unwrap_or_else(|| TlsOptions::new().with_native_roots())),
            _ => return wrong("the scheme is neither http nor https"),
        };
        if address.contains('@') {
            return wrong("user and password have settings of their own");
        }
        let address = address.strip_suffix('/').unwrap_or(address);
        match address.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok() => {}
            _ => return wrong("it does not end in host:port"),
        }
        // No pings without a pending request, which etcd treats as abuse. One request is always pending.
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

    /// Builds a client without a connection, which checks addresses and certificates.
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

    /// A client for this server only. It connects with its first request, which is the login if there is a user.
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

/// An address without its password, for messages and logs.
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

/// Reads a PEM file. Refuses a file without any certificate, with which the client would trust no server.
fn read_pem(path: &Path) -> Result<String, DiscoveryError> {
    let wrong = |reason: &dyn fmt::Display| DiscoveryError::Tls(format!("{}: {reason}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
    if text.contains("-----BEGIN ") {
        Ok(text)
    } else {
        Err(wrong(&"it is not a PEM file"))
    }
}

#[cfg(test)]
mod tests;
