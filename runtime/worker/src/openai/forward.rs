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

use std::{future::Future, pin::Pin, time::Duration};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{
    Method, Response,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use signalbox_protocol::{ErrorKind, GenerateRequest, StreamSummary, WireError};
use signalbox_request_plane::Responder;
use tokio::{
    sync::watch,
    time::{Instant, Sleep, sleep},
};

use super::{
    answer_document::AnswerDocument,
    answer_stream::{AnswerFilter, StreamFault},
    engine_error::wire_error,
    engine_phase::EnginePhase,
    request_body::Added,
    upstream::{Upstream, UpstreamError},
};

/// How long an engine may send nothing while it does not answer health polls either.
pub(crate) const MOST_SILENCE: Duration = Duration::from_secs(10);

/// How often a silent stream is looked at again once it is overdue.
const SILENCE_RECHECK: Duration = Duration::from_secs(1);

/// Largest JSON answer. Embeddings of 2,048 texts are some 60 MiB.
const MAX_DOCUMENT_BYTES: usize = 128 << 20;

/// Largest error answer.
const MAX_ERROR_BYTES: usize = 1 << 20;

/// Longest time for one answer. Longer deadlines are reduced to it, so that no request stays open for ever.
const MAX_TIME_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

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
    /// The number of prompt tokens that the router counted; 0 if it has none.
    pub(crate) prompt_tokens: u32,
    pub(crate) phase: watch::Receiver<EnginePhase>,
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

/// Why a request has no whole answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The router needs no answer any more.
    CallerGone,
    /// The router gets this error.
    Error(WireError),
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Self {
        Self::Error(error)
    }
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
        let path = self.request.format.endpoint.path();
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
        let mut filter = AnswerFilter::new(self.request.format.endpoint, self.added);
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
            let pushed = filter.push(&bytes, &mut piece);
            if let Ok(more) = pushed {
                tokens += more;
            }
            if !piece.is_empty() {
                responder
                    .queue(std::mem::take(&mut tokens), &piece)
                    .map_err(|_| Failure::CallerGone)?;
                responder.flush();
                piece.clear();
            }
            pushed.map_err(|fault| self.failed(fault))?;
        }
        let summary = filter
            .end(&mut piece, self.prompt_tokens)
            .map_err(|fault| self.failed(fault))?;
        if !piece.is_empty() || tokens > 0 {
            responder.queue(tokens, &piece).map_err(|_| Failure::CallerGone)?;
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
        let document = AnswerDocument::read(whole.body, self.added);
        patience
            .of(responder.send(&document.body))
            .await?
            .map_err(|_| Failure::CallerGone)?;
        let mut summary = document.summary;
        if summary.prompt_tokens == 0 {
            summary.prompt_tokens = self.prompt_tokens;
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

/// How long a request waits for the engine.
struct Patience<'a> {
    cancelled: Pin<Box<dyn Future<Output = ()> + Send + 'a>>,
    deadline: Pin<Box<Sleep>>,
    limit: Duration,
    /// When to look next whether the engine is silent.
    check: Pin<Box<Sleep>>,
    last_progress: Instant,
    phase: watch::Receiver<EnginePhase>,
}

impl<'a> Patience<'a> {
    /// Of a request that may take `limit`, and that ends when `cancelled` returns.
    fn new(
        limit: Duration,
        phase: watch::Receiver<EnginePhase>,
        cancelled: impl Future<Output = ()> + Send + 'a,
    ) -> Self {
        let limit = limit.min(MAX_TIME_LIMIT);
        Self {
            cancelled: Box::pin(cancelled),
            deadline: Box::pin(sleep(limit)),
            limit,
            check: Box::pin(sleep(MOST_SILENCE)),
            last_progress: Instant::now(),
            phase,
        }
    }

    /// Waits for a step of the engine, unless the caller, the deadline or the engine's silence ends the request before.
    async fn of<T>(&mut self, step: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::pin!(step);
        loop {
            tokio::select! {
                biased;
                () = &mut self.cancelled => return Err(Failure::CallerGone),
                step = &mut step => {
                    self.last_progress = Instant::now();
                    return Ok(step);
                }
                () = &mut self.check => {
                    let silence = self.last_progress.elapsed();
                    if silence >= MOST_SILENCE && *self.phase.borrow() != EnginePhase::Up {
                        return Err(unavailable(format!(
                            "the engine has sent nothing for {} s and does not answer health checks",
                            silence.as_secs()
                        )));
                    }
                    let wait = MOST_SILENCE.saturating_sub(silence).max(SILENCE_RECHECK);
                    self.check.as_mut().reset(Instant::now() + wait);
                }
                () = &mut self.deadline => {
                    let message = format!(
                        "the answer was not complete within the deadline of {} ms",
                        self.limit.as_millis()
                    );
                    return Err(WireError::new(ErrorKind::DeadlineExceeded, message).into());
                }
            }
        }
    }
}

fn unavailable(message: String) -> Failure {
    WireError::new(ErrorKind::Unavailable, message).into()
}

/// The error for a request that the engine did not answer.
fn lost(error: &UpstreamError) -> WireError {
    let kind = match error {
        UpstreamError::TooLarge(..) | UpstreamError::Request(_) => ErrorKind::Internal,
        _ => ErrorKind::Unavailable,
    };
    WireError::new(kind, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long the engine may take for each step, and the error that ends the request.
    async fn outcome(limit_s: u64, phase: EnginePhase, steps_s: &[u64]) -> Result<(), ErrorKind> {
        let (_sender, phase) = watch::channel(phase);
        let mut patience = Patience::new(Duration::from_secs(limit_s), phase, std::future::pending());
        for step in steps_s {
            let step = sleep(Duration::from_secs(*step));
            match patience.of(step).await {
                Ok(()) => {}
                Err(Failure::Error(error)) => return Err(error.kind),
                Err(Failure::CallerGone) => panic!("nobody cancelled"),
            }
        }
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_engine_that_answers_health_checks_is_waited_for() {
        assert_eq!(outcome(600, EnginePhase::Up, &[300]).await, Ok(()));
        assert_eq!(outcome(600, EnginePhase::Unsure, &[9, 9, 9]).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_engine_that_answers_no_health_check_fails() {
        let started = Instant::now();
        let outcome = outcome(600, EnginePhase::Unsure, &[5, 300]).await;
        assert_eq!(outcome, Err(ErrorKind::Unavailable));
        let waited = started.elapsed();
        assert!((15..=17).contains(&waited.as_secs()), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_dies_while_it_is_silent_fails_the_stream() {
        let (sender, phase) = watch::channel(EnginePhase::Up);
        let mut patience = Patience::new(Duration::from_secs(600), phase, std::future::pending());
        tokio::spawn(async move {
            sleep(Duration::from_secs(60)).await;
            sender.send_replace(EnginePhase::Gone("it refuses".into()));
            std::future::pending::<()>().await;
        });
        let started = Instant::now();
        let outcome = patience.of(std::future::pending::<()>()).await;
        assert!(matches!(outcome, Err(Failure::Error(error)) if error.kind == ErrorKind::Unavailable));
        let waited = started.elapsed();
        assert!((60..=61).contains(&waited.as_secs()), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_ends_a_request() {
        assert_eq!(
            outcome(20, EnginePhase::Up, &[19, 2]).await,
            Err(ErrorKind::DeadlineExceeded)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_request_ends_at_once() {
        let (_sender, phase) = watch::channel(EnginePhase::Up);
        let mut patience = Patience::new(Duration::from_secs(1), phase, std::future::ready(()));
        let outcome = patience.of(std::future::ready(())).await;
        assert!(matches!(outcome, Err(Failure::CallerGone)));
    }
}
