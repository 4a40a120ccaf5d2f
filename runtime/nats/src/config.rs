//! The settings of NATS, checked before the first connection.
//!
//! Secrets stay here and in the client: addresses that are given to the client, logged or printed have none.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use async_nats::{ConnectOptions, ServerAddr};
use percent_encoding::percent_decode_str;

/// The address of NATS and the credentials. At most one of user, token, NKey and credentials file may be given.
#[derive(Clone, Default)]
pub struct NatsConfig {
    /// `nats://host:port` or `tls://host:port`; several servers of one cluster are separated by commas, and those without
    /// a scheme have the first one's. `user:password@` or `token@` before a host counts for all servers; characters
    /// with a meaning in addresses are percent-encoded.
    pub url: String,
    /// The token that the servers require.
    pub token: Option<String>,
    /// A file with the seed of a user's NKey.
    pub nkey: Option<PathBuf>,
    /// A `.creds` file with a user JWT and an NKey.
    pub credentials: Option<PathBuf>,
    /// Certificate authorities (PEM) to trust instead of the system's. Makes the connection TLS.
    pub ca: Option<PathBuf>,
    /// The client's certificate and key (PEM). Makes the connection TLS.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
}

/// Why the settings of NATS cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    /// The address cannot be parsed.
    #[error("{url:?} is not a NATS address: {reason}; give nats://host:4222[,nats://host:4222…]")]
    Address {
        /// The address, without user and password.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Two of the ways to show who this process is are given.
    #[error(
        "NATS cannot be used with these settings: both {0} and {1} are given; the servers take one of them"
    )]
    Ambiguous(&'static str, &'static str),
    /// A file is missing, unreadable or not what it should be, or the client refuses the settings.
    #[error("NATS cannot be used with these settings: {0}")]
    Settings(String),
}

/// What a server requires of a client.
#[derive(Clone, PartialEq, Eq)]
enum Identity {
    User { name: String, password: String },
    Token(String),
}

impl NatsConfig {
    /// The servers to dial, without secrets, and the options of the connection to them.
    pub(crate) fn into_options(self) -> Result<(Vec<ServerAddr>, ConnectOptions), NatsError> {
        let (servers, identity) = servers(&self.url)?;
        let ways = [
            ("user or token in the address", identity.is_some()),
            ("token", self.token.is_some()),
            ("NKey", self.nkey.is_some()),
            ("credentials file", self.credentials.is_some()),
        ];
        let mut given = ways.iter().filter(|(_, is_given)| *is_given);
        if let (Some((first, _)), Some((second, _))) = (given.next(), given.next()) {
            return Err(NatsError::Ambiguous(first, second));
        }
        let mut options = ConnectOptions::new();
        options = match identity.or_else(|| self.token.map(Identity::Token)) {
            Some(Identity::User { name, password }) => options.user_and_password(name, password),
            Some(Identity::Token(token)) => options.token(token),
            None => options,
        };
        if let Some(path) = &self.nkey {
            options = options.nkey(read_seed(path)?);
        }
        if let Some(path) = &self.credentials {
            options = options
                .credentials(&read(path)?)
                .map_err(|_| unusable(path, "it is not a credentials file with a user JWT and an NKey"))?;
        }
        if let Some(path) = self.ca {
            read_pem(&path)?;
            options = options.add_root_certificates(path).require_tls(true);
        }
        if let Some((certificate, key)) = self.client_certificate {
            read_pem(&certificate)?;
            read_pem(&key)?;
            options = options.add_client_certificate(certificate, key).require_tls(true);
        }
        Ok((servers, options))
    }
}

impl fmt::Debug for NatsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsConfig")
            .field("url", &without_secrets(&self.url))
            .field("token", &self.token.as_ref().map(|_| "***"))
            .field("nkey", &self.nkey)
            .field("credentials", &self.credentials)
            .field("ca", &self.ca)
            .field("client_certificate", &self.client_certificate)
            .finish()
    }
}

/// Parses the servers, and what stands before their hosts.
fn servers(url: &str) -> Result<(Vec<ServerAddr>, Option<Identity>), NatsError> {
    let wrong = |reason: String| NatsError::Address {
        url: without_secrets(url),
        reason,
    };
    let scheme = url.trim().split_once("://").map_or("nats", |(scheme, _)| scheme);
    let (mut servers, mut found) = (Vec::new(), None);
    for one in url.split(',').map(str::trim) {
        let with_scheme = match one.contains("://") {
            true => one.to_owned(),
            false => format!("{scheme}://{one}"),
        };
        // The client's own reasons may quote the address.
        let address: ServerAddr = with_scheme
            .parse()
            .map_err(|_| wrong("it does not parse".into()))?;
        if !matches!(address.scheme(), "nats" | "tls") {
            return Err(wrong("the scheme is neither nats nor tls".into()));
        }
        if address.host().is_empty() {
            return Err(wrong("a host is missing".into()));
        }
        let identity = identity(&address).map_err(wrong)?;
        match (&found, identity) {
            (None, identity) => found = identity,
            (Some(first), Some(other)) if *first != other => {
                return Err(wrong(
                    "its servers have different users; the servers of one cluster take the same".into(),
                ));
            }
            (Some(_), _) => {}
        }
        let host = match address.host() {
            host if host.contains(':') => format!("[{host}]"),
            host => host.to_owned(),
        };
        let plain = format!("{}://{host}:{}", address.scheme(), address.port());
        servers.push(plain.parse().map_err(|_| wrong("it does not parse".into()))?);
    }
    Ok((servers, found))
}

/// What stands before the host. A name without a password is a token, as for other clients of NATS.
fn identity(address: &ServerAddr) -> Result<Option<Identity>, String> {
    let decoded = |part: &str| match percent_decode_str(part).decode_utf8() {
        Ok(text) => Ok(text.into_owned()),
        Err(_) => Err("the user or password is not UTF-8 text once decoded".to_owned()),
    };
    match (address.username(), address.password()) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err("it has a password and no user".into()),
        (Some(token), None) => Ok(Some(Identity::Token(decoded(token)?))),
        (Some(name), Some(password)) => Ok(Some(Identity::User {
            name: decoded(name)?,
            password: decoded(password)?,
        })),
    }
}

/// Addresses without what stands before the hosts, for messages and logs. Hides too much rather than too little: a
/// password with a comma or a slash that is not encoded must not show.
pub fn without_secrets(url: &str) -> String {
    let Some((before, after)) = url.rsplit_once('@') else {
        return url.to_owned();
    };
    let scheme = before.find("://").map_or("", |at| &before[..at + 3]);
    format!("{scheme}***@{after}")
}

fn read_seed(path: &Path) -> Result<String, NatsError> {
    let text = read(path)?;
    let seed = text.split_whitespace().find(|word| word.starts_with("SU"));
    match seed {
        Some(seed) if nkeys::KeyPair::from_seed(seed).is_ok() => Ok(seed.to_owned()),
        _ => Err(unusable(
            path,
            "it has no seed of a user's NKey, which begins with SU",
        )),
    }
}

/// Checks that a file is PEM. With a file without any certificate the client would trust no server.
fn read_pem(path: &Path) -> Result<(), NatsError> {
    match read(path)?.contains("-----BEGIN ") {
        true => Ok(()),
        false => Err(unusable(path, "it is not a PEM file")),
    }
}

fn read(path: &Path) -> Result<String, NatsError> {
    std::fs::read_to_string(path).map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, reason: impl fmt::Display) -> NatsError {
    NatsError::Settings(format!("{}: {reason}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn at(url: &str) -> NatsConfig {
        NatsConfig {
            url: url.into(),
            ..NatsConfig::default()
        }
    }

    fn refused(config: NatsConfig) -> String {
        config.into_options().expect_err("refused").to_string()
    }

    #[test]
    fn one_user_counts_for_all_servers_and_reaches_no_address() {
        let user = |name: &str, password: &str| {
            let (name, password) = (name.into(), password.into());
            Some(Identity::User { name, password })
        };
        for (url, expected, identity) in [
            ("nats://a", "nats://a:4222", None),
            ("a:1,b:2", "nats://a:1 nats://b:2", None),
            (
                "tls://me:se%40c%2Cret@a:1, b:2",
                "tls://a:1 tls://b:2",
                user("me", "se@c,ret"),
            ),
            (
                "nats://me:x@a:1,nats://me:x@[::1]:2",
                "nats://a:1 nats://[::1]:2",
                user("me", "x"),
            ),
            (
                "nats://t%3Ak@a:1",
                "nats://a:1",
                Some(Identity::Token("t:k".into())),
            ),
            ("nats://me:@a:1", "nats://a:1", Some(Identity::Token("me".into()))),
        ] {
            let (servers, found) = servers(url).unwrap();
            let servers: Vec<_> = servers.iter().map(ServerAddr::as_url_str).collect();
            assert_eq!(servers.join(" "), expected, "{url}");
            assert!(found == identity, "{url}");
        }
    }

    #[test]
    fn no_message_has_a_secret() {
        for url in [
            "http://me:secret@host",
            "nats://me:secret@host:port",
            "nats://me:sec,secret@host:1",
            "nats://me:se/secret@host:1",
            "nats://me:secret@a,nats://you:secret@b",
            "nats://me:secret@",
            "nats://:secret@host",
            "me:secret@host:port",
            "nats://me:%ffsecret@host",
        ] {
            let message = refused(at(url));
            assert!(
                !message.contains("secret") && message.contains("***@"),
                "{message}"
            );
            assert!(!format!("{:?}", at(url)).contains("secret"));
        }
        let both = NatsConfig {
            token: Some("secret".into()),
            ..at("nats://me:secret@host")
        };
        assert!(!format!("{both:?}").contains("secret"));
        let message = refused(both);
        assert!(
            message.contains("token") && !message.contains("secret"),
            "{message}"
        );
    }

    #[test]
    fn files_are_checked_at_the_start() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"SUsecret").unwrap();
        let wrong = Some(file.path().to_owned());
        let missing = Some(PathBuf::from("/does/not/exist"));
        for path in [wrong, missing] {
            for config in [
                NatsConfig {
                    nkey: path.clone(),
                    ..at("nats://a")
                },
                NatsConfig {
                    credentials: path.clone(),
                    ..at("nats://a")
                },
                NatsConfig {
                    ca: path.clone(),
                    ..at("nats://a")
                },
                NatsConfig {
                    client_certificate: path.clone().zip(path.clone()),
                    ..at("nats://a")
                },
            ] {
                let message = refused(config);
                let shown = path.as_ref().unwrap().display().to_string();
                assert!(
                    message.contains(&shown) && !message.contains("secret"),
                    "{message}"
                );
            }
        }
    }
}
