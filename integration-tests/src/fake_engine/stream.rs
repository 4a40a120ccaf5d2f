//! Server-sent events of a running request.

use std::{io, sync::Arc};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;

use super::{
    engine::{Engine, Running},
    faults::{StreamFault, StreamFaultKind},
    generation::{Job, Usage},
    phase::Phase,
    request::Delivery,
};

/// What vLLM writes when its engine process dies.
pub(super) const ENGINE_DIED: &str =
    "EngineCore encountered an issue. See stack trace (above) for the root cause.";

/// Events that may wait for a slow client.
const EVENTS: usize = 16;

/// The next tokens of one answer.
#[derive(Debug)]
pub(super) struct Piece<'a> {
    /// The number of the answer.
    pub(super) index: usize,
    pub(super) tokens: &'a [u32],
    /// The text of each token.
    pub(super) pieces: &'a [String],
    /// Generated tokens of this answer before this piece.
    pub(super) before: usize,
    /// Finish and stop reason, with the last piece.
    pub(super) finish: Option<(&'static str, &'a Value)>,
    /// The counts up to and with this piece.
    pub(super) usage: Usage,
}

impl Piece<'_> {
    pub(super) fn text(&self) -> String {
        self.pieces.concat()
    }
}

/// How a route writes its answers: as one document, or as events. Each string is one event, with its end.
pub(super) trait AnswerShape: Send + 'static {
    /// How the client wants the answer.
    fn delivery(&self) -> &Delivery;
    /// The whole answer, for a client that wants no stream.
    fn document(&self, job: &Job, usage: Usage) -> Value;
    /// The events before the first token; sent together with it.
    fn opening(&mut self, job: &Job, usage: Usage) -> Vec<String>;
    /// The events of a piece.
    fn piece(&mut self, job: &Job, piece: &Piece<'_>) -> Vec<String>;
    /// The events after the last token, without `[DONE]`.
    fn closing(&mut self, job: &Job, usage: Usage) -> Vec<String>;
    /// The event of an error midway.
    fn error(&self, message: &str) -> String;
    /// Whether `data: [DONE]` is the last event.
    fn has_done(&self) -> bool {
        true
    }
}

/// Starts the request and returns the receiver of its events.
pub(super) fn start(
    engine: Arc<Engine>,
    job: Job,
    format: impl AnswerShape,
) -> mpsc::Receiver<io::Result<Bytes>> {
    let (sender, receiver) = mpsc::channel(EVENTS);
    let sink = Sink {
        sender,
        engine: engine.clone(),
    };
    tokio::spawn(async move {
        tokio::select! {
            _ = drive(&engine, &job, format, &sink) => {}
            // The client has closed its connection: the request ends.
            () = sink.sender.closed() => {}
        }
    });
    receiver
}

/// Returns `None` when the client is gone or the stream is cut short.
async fn drive(engine: &Arc<Engine>, job: &Job, mut format: impl AnswerShape, sink: &Sink) -> Option<()> {
    let mut running = job.begin(engine).await?;
    let mut done = 0;
    let longest = job.longest_answer();
    let interval = format.delivery().interval;
    let mut opening = Some(format.opening(job, job.usage(engine, &running, 0)));
    let mut from = 0;
    while from < longest {
        // The first token comes alone, as at vLLM with `stream_interval`.
        let to = if from == 0 {
            1
        } else {
            (from + interval).min(longest)
        };
        generate(&mut running, job, from, to).await;
        for event in opening.take().into_iter().flatten() {
            sink.send(event).await?;
        }
        for (index, answer) in job.answers.iter().enumerate() {
            let end = to.min(answer.tokens.len());
            if from >= end {
                continue;
            }
            let fault = engine.faults.lock().stream;
            if let Some(fault) = fault.filter(|fault| done >= fault.after) {
                return break_off(fault, format.error(ENGINE_DIED), sink).await;
            }
            done += end - from;
            let is_last = end == answer.tokens.len();
            let piece = Piece {
                index,
                tokens: &answer.tokens[from..end],
                pieces: &answer.pieces[from..end],
                before: from,
                finish: is_last.then_some((answer.finish, &answer.stop_reason)),
                usage: job.usage(engine, &running, done),
            };
            for event in format.piece(job, &piece) {
                sink.send(event).await?;
            }
        }
        from = to;
    }
    let usage = job.usage(engine, &running, done);
    drop(running);
    for event in format.closing(job, usage) {
        sink.send(event).await?;
    }
    if format.has_done() {
        sink.send("data: [DONE]\n\n".into()).await?;
    }
    Some(())
}

/// Runs the steps of tokens `from..to` of all answers.
pub(super) async fn generate(running: &mut Running, job: &Job, from: usize, to: usize) {
    for step in from..to {
        let tokens: Vec<&[u32]> = job
            .answers
            .iter()
            .map(|answer| answer.tokens.get(step..=step).unwrap_or_default())
            .collect();
        running.step(&tokens).await;
    }
}

async fn break_off(fault: StreamFault, error: String, sink: &Sink) -> Option<()> {
    match fault.kind {
        StreamFaultKind::ErrorThenDone => {
            sink.send(error).await?;
            sink.send("data: [DONE]\n\n".into()).await
        }
        StreamFaultKind::NoFinishReason => sink.send("data: [DONE]\n\n".into()).await,
        StreamFaultKind::Reset => {
            let error = io::Error::from(io::ErrorKind::ConnectionReset);
            sink.sender.send(Err(error)).await.ok()
        }
        StreamFaultKind::Silence => {
            sink.sender.closed().await;
            None
        }
    }
}

struct Sink {
    sender: mpsc::Sender<io::Result<Bytes>>,
    engine: Arc<Engine>,
}

impl Sink {
    /// Sends an event. After SIGTERM nothing is sent, and nothing ends.
    async fn send(&self, event: String) -> Option<()> {
        let phase = *self.engine.phase.borrow();
        if phase != Phase::Serving {
            self.sender.closed().await;
            return None;
        }
        self.sender.send(Ok(event.into())).await.ok()
    }
}
