//! Continues an answer at another worker when the worker that streams it is lost.
//!
//! A worker that can continue answers sends the ids of an answer's tokens beside their bytes. A [`Continuation`] keeps
//! them behind the prompt's tokens. If the worker fails, the request goes to another worker with all of them; that worker
//! writes what follows, and the client reads one answer. No byte is sent twice, because the ids are those of the
//! pieces that were delivered. An answer is not continued if
//!
//! - it is no stream: nothing of it was delivered, so it moves as a whole (`attempts.rs`);
//! - it has several choices or log probabilities;
//! - the router does not know all tokens of the prompt;
//! - its worker sent a piece without ids. Workers do for parts that they could not continue, such as tool calls;
//! - the client reads too slowly, or the error repeats on every worker;
//! - the answers under way keep more memory than [`MAX_KEPT_BYTES`].

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use bytes::Bytes;
use signalbox_kv_index::WorkerSlot;
use signalbox_protocol::{Continuation as Delivered, ErrorKind, WorkerCard};
use signalbox_request_plane::{LinkError, TokenIds};
use tokio::time::Instant;

use crate::{attempts::MAX_ATTEMPTS, route_request::RouteRequest};

#[cfg(test)]
mod tests;

/// Most memory that the prompts and bodies of answers under way take in one process: 2,000 prompts of 32,000 tokens.
/// Answers beyond it are streamed, and are not continued.
pub(crate) const MAX_KEPT_BYTES: usize = 256 << 20;

/// Largest first piece that is kept: it has one event of a few hundred bytes, and perhaps the text that `echo` repeats.
const MAX_FIRST_PIECE_BYTES: usize = 16 << 10;

/// What the answers under way of one process keep. Clone = handle.
#[derive(Debug, Clone, Default)]
pub(crate) struct KeptBytes(Arc<AtomicUsize>);

/// A part of [`KeptBytes`], until it is dropped.
#[derive(Debug)]
struct KeptPart {
    all: KeptBytes,
    bytes: usize,
}

impl KeptBytes {
    fn reserve(&self, bytes: usize) -> Option<KeptPart> {
        let fits = |kept: usize| kept.checked_add(bytes).filter(|kept| *kept <= MAX_KEPT_BYTES);
        self.0.fetch_update(Relaxed, Relaxed, fits).ok()?;
        Some(KeptPart {
            all: self.clone(),
            bytes,
        })
    }
}

impl Drop for KeptPart {
    fn drop(&mut self) {
        self.all.0.fetch_sub(self.bytes, Relaxed);
    }
}

/// What is needed to continue one answer.
#[derive(Debug)]
pub(crate) struct Continuation {
    /// Its tokens are those of the prompt, and then the delivered ones.
    request: RouteRequest,
    prompt_tokens: usize,
    first_piece: Bytes,
    /// The worker that streams the answer.
    worker: WorkerSlot,
    /// The workers that failed before it.
    failed: Vec<WorkerSlot>,
    deadline: Instant,
    _kept: KeptPart,
}

/// An answer that its worker left unfinished.
#[derive(Debug)]
pub(crate) struct Interrupted {
    /// The request for the rest of the answer.
    pub(crate) request: RouteRequest,
    /// The workers that failed, at least one.
    pub(crate) failed: Vec<WorkerSlot>,
    /// The error of the last one.
    pub(crate) error: LinkError,
    /// When the answer must be whole.
    pub(crate) deadline: Instant,
}

/// Whether a worker's answer to `request` can be continued, so that the worker is asked for token ids.
pub(crate) fn is_continuable(request: &RouteRequest, card: &WorkerCard) -> bool {
    let generate = &request.generate;
    card.continues_answers
        && generate.format.stream
        && generate.sampling.n == 1
        && generate.sampling.logprobs.is_none()
        && !request.tokens.is_empty()
        && request.unhashed_tokens == 0
}

impl Continuation {
    /// The continuation of an answer that `worker` begins with `first_piece`, after the workers in `failed`. `None` if the
    /// answer cannot be continued.
    pub(crate) fn new(
        mut request: RouteRequest,
        first_piece: &Bytes,
        worker: WorkerSlot,
        failed: Vec<WorkerSlot>,
        deadline: Instant,
        kept: &KeptBytes,
    ) -> Option<Self> {
        if !request.generate.wants_token_ids || first_piece.len() > MAX_FIRST_PIECE_BYTES {
            return None;
        }
        let before = request.generate.continuation.as_ref();
        let delivered = before.map_or(0, |before| before.delivered_tokens as usize);
        // What the client lets the answer grow to, of which many use a part only: the estimate stops at the prompt's length.
        let growth = (request.generate.sampling.max_tokens as usize).min(request.tokens.len());
        let kept = kept.reserve((request.tokens.len() + growth) * 4 + request.body.len())?;
        request.tokens.reserve(growth);
        Some(Self {
            prompt_tokens: request.tokens.len().saturating_sub(delivered),
            request,
            first_piece: first_piece.clone(),
            worker,
            failed,
            deadline,
            _kept: kept,
        })
    }

    /// The name that the client asked for.
    pub(crate) fn model(&self) -> &str {
        &self.request.generate.model
    }

    /// The workers that failed before the one that streams the answer.
    pub(crate) fn failed(&self) -> &[WorkerSlot] {
        &self.failed
    }

    /// Notes the tokens of a piece that the client gets. False if the answer cannot be continued behind it.
    pub(crate) fn delivered(&mut self, tokens: u32, ids: &TokenIds) -> bool {
        self.request.tokens.extend(ids.iter());
        ids.len() == tokens as usize
    }

    /// The request for the rest of the answer, after this error of its worker.
    ///
    /// # Errors
    /// No other worker could do better, or as many workers failed as one request may try.
    pub(crate) fn interrupted(mut self, error: LinkError) -> Result<Interrupted, LinkError> {
        self.failed.push(self.worker);
        if !may_continue(&error) || self.failed.len() >= MAX_ATTEMPTS {
            return Err(error);
        }
        let delivered = self.request.tokens.len() - self.prompt_tokens;
        let first_piece = match self.request.generate.continuation.take() {
            Some(before) => before.first_piece,
            None => String::from_utf8_lossy(&self.first_piece).into_owned(),
        };
        self.request.generate.continuation = Some(Delivered {
            delivered_tokens: u32::try_from(delivered).unwrap_or(u32::MAX),
            first_piece,
        });
        Ok(Interrupted {
            request: self.request,
            failed: self.failed,
            error,
            deadline: self.deadline,
        })
    }
}

/// Whether another worker may continue an answer that ended with this error. A worker refuses an answer in its middle as
/// overloaded when the client reads too slowly.
fn may_continue(error: &LinkError) -> bool {
    match error {
        LinkError::Refused(error) => error.kind == ErrorKind::Unavailable,
        LinkError::Unreachable { .. } | LinkError::Lost { .. } | LinkError::Draining { .. } => true,
        LinkError::Full { .. } => false,
    }
}
