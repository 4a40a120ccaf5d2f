//! Fetches tokenizers from the Hugging Face hub.
//!
//! An engine next door often states its model's name at the hub, and a worker beside it has none of the model's files.
//! The few files of the tokenizer are fetched then, once, into the cache of the hub's own libraries ([`HubCache`]). The
//! next start finds them there. The hub is asked for nothing else.
//!
//! A fetch ends within 60 s, and a hub that cannot be reached within 5 s. What fails leaves no file that a
//! later start would take for a whole tokenizer.

use std::{path::PathBuf, str::FromStr, time::Duration};

use hyper::{StatusCode, header::InvalidHeaderValue};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

pub use self::cache::HubCache;
use self::client::HubClient;
use crate::http_client::{AuthoritiesError, TlsFault};

mod cache;
mod client;

/// The public hub.
pub const PUBLIC_HUB: &str = "https://huggingface.co";

/// Longest time for all files together: a tokenizer has up to 40 MB, a slow line 1 MB a second.
const FETCH_TIMEOUT: Duration = Duration::from_secs(60);

/// A vocabulary, in the order in which `ModelArtifacts::from_hf_folder` looks for it.
const VOCABULARIES: [&str; 3] = ["tokenizer.json", "tokenizer.model", "tiktoken.model"];

/// The other files that `ModelArtifacts::from_hf_folder` reads if they are there.
const OTHER_FILES: [&str; 8] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "config.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/tool_use.jinja",
    "tekken.json",
];

/// The name of a model at the hub: `owner/name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName {
    owner: String,
    model: String,
}

/// A text is not the name of a model at the hub.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no name of a model at the hub; it has the form owner/name")]
pub struct HubNameError(String);

impl FromStr for HubName {
    type Err = HubNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((owner, model)) if is_file_name(owner) && is_file_name(model) => Ok(Self {
                owner: owner.into(),
                model: model.into(),
            }),
            _ => Err(HubNameError(text.into())),
        }
    }
}

impl std::fmt::Display for HubName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.owner, self.model)
    }
}

/// Whether a part of a name, or a revision, is safe as the name of a folder and in a URL.
fn is_file_name(part: &str) -> bool {
    !part.is_empty()
        && !part.starts_with('.')
        && part
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// Which hub, and who asks.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubConfig {
    /// `https://host` or `http://host:port`, with a path before its routes, if any.
    pub endpoint: String,
    /// The token of a user, for models that are not public.
    pub token: Option<String>,
}

impl std::fmt::Debug for HubConfig {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubConfig")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

/// Why a tokenizer was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The address is none.
    #[error("{0:?} is no address of a hub; give https://host with --hf-endpoint or HF_ENDPOINT")]
    Endpoint(String),
    /// The token fits no header.
    #[error("HF_TOKEN has characters that no header can have")]
    Token(#[source] InvalidHeaderValue),
    /// There is nobody to vouch for the hub.
    #[error("the certificate of the hub cannot be checked")]
    Authorities(#[source] AuthoritiesError),
    /// rustls refuses its settings.
    #[error("TLS cannot be used")]
    TlsSettings(#[source] rustls::Error),
    /// No connection.
    #[error("{0} cannot be reached")]
    Unreachable(String, #[source] hyper_util::client::legacy::Error),
    /// No secure connection.
    #[error("TLS with {0} failed: {1}; SSL_CERT_FILE names a file of other authorities")]
    Tls(String, String),
    /// The connection ended within an answer.
    #[error("the connection to {0} was lost")]
    Lost(String, #[source] hyper::Error),
    /// The model does not exist, or is not for everybody.
    #[error("the hub refuses {name} with {status}: {}", refusal(*has_token))]
    Refused {
        /// The model.
        name: HubName,
        /// 401 or 403.
        status: StatusCode,
        /// Whether a token was sent.
        has_token: bool,
    },
    /// There is no tokenizer among the model's files.
    #[error(
        "{0} has no tokenizer at the hub: there is none of tokenizer.json, tokenizer.model and tiktoken.model"
    )]
    NoTokenizer(HubName),
    /// Another status than those of a hub.
    #[error("{url} answers {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// The answer.
        status: StatusCode,
    },
    /// The answer is none of a hub.
    #[error("{0} names no revision (X-Repo-Commit) in its answer; is it a Hugging Face hub?")]
    NoRevision(String),
    /// A redirect that is not followed.
    #[error("{url} redirects to {location:?}, which is not followed: {reason}")]
    Redirect {
        /// What was asked for.
        url: String,
        /// Where to.
        location: String,
        /// Why not.
        reason: &'static str,
    },
    /// A file is larger than any tokenizer.
    #[error("{url} has more than {limit} bytes")]
    TooLarge {
        /// What was asked for.
        url: String,
        /// Most bytes of a file.
        limit: usize,
    },
    /// The files did not arrive in time.
    #[error("{0} did not send the tokenizer within {1:?}")]
    TimedOut(String, Duration),
    /// The cache cannot be written.
    #[error("{0} cannot be written; give a folder that can with --hf-hub-cache")]
    Cache(PathBuf, #[source] std::io::Error),
}

fn refusal(has_token: bool) -> &'static str {
    match has_token {
        true => "it does not exist, or the token in HF_TOKEN has no access to it",
        false => "it does not exist, or needs a token; give one in HF_TOKEN",
    }
}

impl HubConfig {
    /// Checks the address and the token, and sends nothing.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub fn check(&self) -> Result<(), HubError> {
        client::Access::new(self).map(|_| ())
    }

    /// Fetches the files of the tokenizer into `cache`; returns their folder. Files that are there already stay.
    ///
    /// # Errors
    /// There is no whole tokenizer in the cache.
    pub async fn fetch_tokenizer(&self, name: &HubName, cache: &HubCache) -> Result<PathBuf, HubError> {
        match timeout(FETCH_TIMEOUT, self.fetch(name, cache)).await {
            Ok(fetched) => fetched,
            Err(_) => Err(HubError::TimedOut(self.endpoint.clone(), FETCH_TIMEOUT)),
        }
    }

    async fn fetch(&self, name: &HubName, cache: &HubCache) -> Result<PathBuf, HubError> {
        let client = HubClient::new(self)?;
        // The revision that the cache has is the engine's, if it shares the cache.
        let known = cache.revision(name);
        let mut vocabulary = None;
        for file in VOCABULARIES {
            let asked = known.as_deref().unwrap_or("main");
            if let Some(found) = client.file(name, asked, file).await? {
                vocabulary = Some((file, found));
                break;
            }
        }
        let (vocabulary_name, vocabulary) = vocabulary.ok_or_else(|| HubError::NoTokenizer(name.clone()))?;
        let revision = vocabulary
            .revision
            .ok_or_else(|| HubError::NoRevision(self.endpoint.clone()))?;
        let mut files = Vec::new();
        for file in OTHER_FILES {
            // All of one revision, whatever is pushed meanwhile.
            if let Some(found) = client.file(name, &revision, file).await? {
                files.push((file, found.bytes));
            }
        }
        // The vocabulary is written last: where it is, the other files are too.
        files.push((vocabulary_name, vocabulary.bytes));
        cache.store(name, &revision, &files)
    }
}

impl HubError {
    fn of_connection(endpoint: &str, error: hyper_util::client::legacy::Error) -> Self {
        match TlsFault::of(&error) {
            Some(fault) => Self::Tls(endpoint.into(), fault.to_string()),
            None => Self::Unreachable(endpoint.into(), error),
        }
    }
}

#[cfg(test)]
mod tests;
