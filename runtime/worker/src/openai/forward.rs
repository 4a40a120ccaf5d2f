//! Sends a request to the engine and its answer to the router.
//!
//! What this promises, beside what `request_body`, `answer_stream` and `engine_error` promise about the bytes:
//!
//! - The router gets the first piece with the engine's first data, not with its headers, which come before the prefill.
//! - When the router cancels a request or its deadline passes, the connection is closed at once; engines take that as
//!   the end of the request.
//! - A stream of an engine that sends nothing and does not answer health polls fails. vLLM that gets a SIGTERM leaves
//!   its streams open without a byte (measured on 0.32).
//! - A connection that was closed without a byte of an answer is tried once more, because the engine may have closed it
//!   while it was idle.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{
    Method, Response,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use signalbox_protocol::{Endpoint, ErrorKind, GenerateRequest, StreamSummary, WireError};
use signalbox_request_plane::{PieceTokens, Responder};
use tokio::sync::watch;

use super::{
    answer_document::AnswerDocument,
    answer_stream::{AnswerFilter, StreamFault},
    continued_events::ContinuedEvents,
    engine_error::wire_error,
    engine_phase::EnginePhase,
    in_flight::InFlight,
    patience::{Failure, Patience, unavailable},
    request_body::Added,
    upstream::{Upstream, UpstreamError},
};

/// Largest JSON answer. Embeddings of 2,048 texts are some 60 MiB.
const MAX_DOCUMENT_BYTES: usize = 128 << 20;

/// Largest error answer.
const MAX_ERROR_BYTES: usize = 1 << 20;

/// One request on its way to the engine.
#[derive(Debug)]
pub(crate) struct Forward<'a> {
    pub(crate) upstream: &'a Upstream,
    pub(crate) request: &'a GenerateRequest,
    /// The body for the engine.
    pub(crate) body: Bytes,
    /// What the body asks for that the client did not.
    pub(crate) added: Added,
    /// The data-parallel rank to run on, at engines with several.
    pub(crate) rank: Option<u32>,
    /// The router's tokens of the prompt, and of what another engine delivered of the answer; empty if it has none.
    pub(crate) tokens: &'a [u32],
    pub(crate) phase: watch::Receiver<EnginePhase>,
    /// Counts what the engine sends.
    pub(crate) in_flight: &'a InFlight,
}

/// What an answer showed about the engine.
#[derive(Debug, Default)]
pub(crate) struct Answered {
    pub(crate) summary: StreamSummary,
    /// Tokens that the engine took from its KV cache; `None` if it does not report them.
    pub(crate) cached_tokens: Option<u32>,
    /// The engine's tokens of the prompt, if they were asked for.
    pub(crate) prompt_ids: Option<Vec<u32>>,
}

impl Forward<'_> {
    /// Sends the request and passes the answer on to `responder`, all but its end.
    pub(crate) async fn run(&self, responder: &Responder) -> Result<Answered, Failure> {
        let limit = Duration::from_millis(self.request.deadline_ms);
        let mut patience = Patience::new(limit, self.phase.clone(), responder.cancelled());
        let answer = self.send(&mut patience).await?;
        let status = answer.status();
        if !status.is_success() {
            let body = patience
                .of(self.upstream.read_whole(answer, MAX_ERROR_BYTES))
                .await?
                .map_err(|error| lost(&error))?;
            return Err(wire_error(status, &body.body).into());
        }
        let content_type = answer.headers().get(CONTENT_TYPE);
        let is_stream = content_type.is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"));
        if is_stream {
            self.stream(answer.into_body(), &mut patience, responder).await
        } else {
            self.document(answer, &mut patience, responder).await
        }
    }

    /// The head of the engine's answer.
    async fn send(&self, patience: &mut Patience<'_>) -> Result<Response<Incoming>, Failure> {
        let path = match self.request.continuation {
            None => self.request.format.endpoint.path(),
            Some(_) => Endpoint::Completions.path(),
        };
        let mut is_retry = false;
        loop {
            let sent = self
                .upstream
                .send(Method::POST, path, self.headers(), self.body.clone());
            match patience.of(sent).await? {
                Ok(answer) => return Ok(answer),
                Err(error @ UpstreamError::NoAnswer(..)) if !is_retry => {
                    tracing::debug!(request.id = %self.request.id, %error, "sending the request once more");
                    is_retry = true;
                }
                Err(error) => return Err(lost(&error).into()),
            }
        }
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(3);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Ok(id) = HeaderValue::from_str(self.request.id.as_str()) {
            headers.insert(HeaderName::from_static("x-request-id"), id);
        }
        if let Some(rank) = self.rank {
            headers.insert(HeaderName::from_static("x-data-parallel-rank"), rank.into());
        }
        headers
    }

    async fn stream(
        &self,
        mut body: Incoming,
        patience: &mut Patience<'_>,
        responder: &Responder,
    ) -> Result<Answered, Failure> {
        let endpoint = self.request.format.endpoint;
        let mut filter = AnswerFilter::new(endpoint, self.added);
        if self.added.continuable {
            filter = filter.with_ids(self.tokens);
        }
        let mut continued = self
            .request
            .continuation
            .as_ref()
            .map(|delivered| ContinuedEvents::new(endpoint, delivered));
        let (mut piece, mut tokens) = (Vec::new(), 0);
        loop {
            let frame = match patience.of(body.frame()).await? {
                Some(Ok(frame)) => frame,
                // The answer is there, whatever becomes of the connection.
                Some(Err(_)) if filter.is_whole() => break,
                Some(Err(error)) => {
                    return Err(unavailable(format!(
                        "the connection to the engine was lost: {error}"
                    )));
                }
                None => break,
            };
            let Ok(bytes) = frame.into_data() else { continue };
            self.in_flight.received();
            let pushed = match &mut continued {
                None => filter.push(&bytes, &mut piece),
                Some(continued) => continued
                    .push(&bytes)
                    .map_err(StreamFault::from)
                    .and_then(|bytes| filter.push(&bytes, &mut piece)),
            };
            if let Ok(more) = pushed {
                tokens += more;
            }
            if !piece.is_empty() {
                queue(responder, &mut filter, std::mem::take(&mut tokens), &piece)?;
                responder.flush();
                piece.clear();
            }
            pushed.map_err(|fault| self.failed(fault))?;
        }
        let summary = filter
            .end(&mut piece, self.tokens.len() as u32)
            .map_err(|fault| self.failed(fault))?;
        if !piece.is_empty() || tokens > 0 {
            queue(responder, &mut filter, tokens, &piece)?;
        }
        Ok(Answered {
            summary,
            cached_tokens: filter.cached_tokens(),
            prompt_ids: filter.take_prompt_ids(),
        })
    }

    async fn document(
        &self,
        answer: Response<Incoming>,
        patience: &mut Patience<'_>,
        responder: &Responder,
    ) -> Result<Answered, Failure> {
        let whole = patience
            .of(self.upstream.read_whole(answer, MAX_DOCUMENT_BYTES))
            .await?
            .map_err(|error| lost(&error))?;
        self.in_flight.received();
        let document = AnswerDocument::read(whole.body, self.added);
        patience
            .of(responder.send(&document.body))
            .await?
            .map_err(|_| Failure::CallerGone)?;
        let mut summary = document.summary;
        if summary.prompt_tokens == 0 {
            summary.prompt_tokens = self.tokens.len() as u32;
        }
        Ok(Answered {
            summary,
            cached_tokens: document.cached_tokens,
            prompt_ids: document.prompt_ids,
        })
    }

    /// The error for a stream that is not a whole answer. Another worker may do better.
    fn failed(&self, fault: StreamFault) -> Failure {
        let kind = match fault {
            StreamFault::TooLong => ErrorKind::Internal,
            StreamFault::Engine { .. } | StreamFault::Incomplete => ErrorKind::Unavailable,
        };
        tracing::warn!(request.id = %self.request.id, error = %fault, "the engine's stream failed");
        WireError::new(kind, format!("the engine failed: {fault}")).into()
    }
}

/// Queues a piece, with the ids of its tokens if the answer can be continued behind it, and else with their number.
fn queue(
    responder: &Responder,
    filter: &mut AnswerFilter<'_>,
    tokens: u32,
    piece: &[u8],
) -> Result<(), Failure> {
    let queued = match filter.take_ids() {
        Some(ids) => responder.queue_piece(PieceTokens::Ids(&ids), piece),
        None => responder.queue(tokens, piece),
    };
    queued.map_err(|_| Failure::CallerGone)
}

/// The error for a request that the engine did not answer.
fn lost(error: &UpstreamError) -> WireError {
    let kind = match error {
        UpstreamError::TooLarge(..) | UpstreamError::Request(_) => ErrorKind::Internal,
        _ => ErrorKind::Unavailable,
    };
    WireError::new(kind, error.to_string())
}
