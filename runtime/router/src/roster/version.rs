//! The versions of a model: workers that serve one name and differ in how a prompt becomes KV blocks.
//!
//! During a rolling update, workers with another tokenizer, chat template or block size serve the name beside the earlier
//! ones. A request goes to any of them. It is prepared once for each [`PromptForm`], which is what a prompt's tokens
//! depend on, and hashed once for each block size. So each version has hashes of its own, and no worker gets the tokens of
//! another version.

use std::{cmp::Reverse, fmt, sync::Arc};

use signalbox_protocol::{WorkerCard, name_hash};
use signalbox_tokenize::ModelText;

/// Most versions of one model that a router serves at a time. While there are several, each request costs a tokenisation
/// for each tokenizer. An update has two, and three while it is rolled back.
pub(crate) const MAX_VERSIONS: usize = 4;

/// How workers read a prompt: their tokenizer and chat template, and whether the engine reads the client's body itself.
/// Equal on all routers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PromptForm(u64);

/// A version of a model. Equal on all routers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct VersionId {
    pub(crate) form: PromptForm,
    /// Tokens per KV block.
    pub(crate) block_size: u32,
}

/// What requests need to know of a version.
#[derive(Debug, Clone)]
pub(crate) struct ModelVersion {
    pub(crate) id: VersionId,
    /// Whether the engines read clients' bodies themselves.
    pub(crate) reads_body: bool,
    pub(crate) text: Arc<ModelText>,
    /// The longest context of its ready workers.
    pub(crate) context_length: u32,
    /// Number of its ready workers.
    pub(crate) workers: usize,
}

impl PromptForm {
    /// The form for workers with this digest of the tokenizer and chat template.
    pub fn new(artifacts_digest: &str, reads_body: bool) -> Self {
        let reader = if reads_body { "engine" } else { "router" };
        Self(name_hash(&format!("{reader} {artifacts_digest}")))
    }

    /// The form of the prompts that a worker with this card reads.
    pub(crate) fn of(card: &WorkerCard) -> Self {
        Self::new(&card.artifacts_digest, card.reads_body)
    }
}

impl VersionId {
    /// The version that a worker with this card serves.
    pub(crate) fn of(card: &WorkerCard) -> Self {
        Self {
            form: PromptForm::of(card),
            block_size: card.block_size.max(1),
        }
    }
}

impl fmt::Display for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}", self.form.0, self.block_size)
    }
}

/// A worker with its version and its tokenizer.
pub(crate) type Served<'a> = (VersionId, &'a WorkerCard, &'a Arc<ModelText>);

/// The versions that these workers serve, the one with most workers first. Routers that know the same workers have the same
/// order.
pub(crate) fn versions_of<'a>(workers: impl IntoIterator<Item = Served<'a>>) -> Vec<ModelVersion> {
    let mut versions: Vec<ModelVersion> = Vec::new();
    for (id, card, text) in workers {
        match versions.iter_mut().find(|version| version.id == id) {
            Some(version) => {
                version.workers += 1;
                version.context_length = version.context_length.max(card.context_length);
            }
            None => versions.push(ModelVersion {
                id,
                reads_body: card.reads_body,
                text: text.clone(),
                context_length: card.context_length,
                workers: 1,
            }),
        }
    }
    versions.sort_by_key(|version| (Reverse(version.workers), version.id));
    versions
}

/// The versions that these workers serve, or those of before if there is no worker now: a model is known by its last ones.
pub(super) fn latest_versions<'a>(
    workers: impl IntoIterator<Item = Served<'a>>,
    before: &[ModelVersion],
) -> Vec<ModelVersion> {
    let served = versions_of(workers);
    if served.is_empty() {
        before.to_vec()
    } else {
        served
    }
}

/// The versions that are served, given the version of each worker of a model that could serve: if there are more than
/// [`MAX_VERSIONS`], those with most workers.
pub(super) fn admitted(workers: impl Iterator<Item = VersionId>) -> Vec<VersionId> {
    let mut counts: Vec<(VersionId, usize)> = Vec::new();
    for version in workers {
        match counts.iter_mut().find(|(id, _)| *id == version) {
            Some((_, count)) => *count += 1,
            None => counts.push((version, 1)),
        }
    }
    counts.sort_by_key(|(id, count)| (Reverse(*count), *id));
    counts.truncate(MAX_VERSIONS);
    counts.into_iter().map(|(id, _)| id).collect()
}
