//! Runs engines: takes requests, steps the engines on a thread, and sends the pieces of answers.
//!
//! An [`EngineThread`] steps engines and is blocked by nothing else. Messages reach it through one bounded queue. The
//! results of a step leave it in a fixed order: first the changes of the KV cache, then all tokens of the step, then
//! one flush per request. When a router reads a token, the KV events of its step are therefore already published. The
//! runner promises:
//!
//! - Every submitted request ends exactly once: with its answer, with an error, or because its caller closed the
//!   stream.
//! - After a caller closed its stream, its request costs the engine nothing once the current step ends. A simulated
//!   step drops the request within 50 ms.
//! - If an engine fails or panics, every open request gets an error and the engine's state is [`RunnerState::Failed`].
//!   Other engines on the thread continue. The process should then exit and be restarted: the worker has lost its
//!   engine.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
    mpsc::TrySendError,
};

use futures_util::{FutureExt, future::BoxFuture};
use signalbox_protocol::{Ability, ErrorKind, GenerateRequest, LoadReport, Parity, WireError};
use signalbox_request_plane::Responder;
use tokio::sync::watch;

use crate::{
    backend::{Backend, BackendInfo, BackendRequest},
    engine::EngineInfo,
};

use self::{
    engine_thread::{EngineMailbox, Message},
    intake::{Intake, PreparedRequest, engine_stopped},
};

mod choice;
mod engine_run;
mod engine_thread;
mod gauges;
mod intake;
mod open_requests;
mod sink;
#[cfg(test)]
mod tests;

pub use self::{engine_thread::EngineThread, intake::MAX_CHOICES, sink::AnswerSink};

/// The state of an engine on its thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunnerState {
    /// The engine takes requests.
    Running,
    /// The engine was stopped, or all handles of its thread were dropped.
    Stopped,
    /// The engine panicked. This state is final.
    Failed,
}

/// The handle of an engine on its thread. Clones refer to the same engine.
#[derive(Debug, Clone)]
pub struct RunnerHandle {
    mailbox: EngineMailbox,
    /// The engine's number on its thread.
    number: usize,
    intake: Arc<Intake>,
    stopping: Arc<AtomicBool>,
    load: watch::Receiver<LoadReport>,
    state: watch::Receiver<RunnerState>,
}

impl RunnerHandle {
    /// Submits a request to the engine without waiting. If the request cannot be taken, it fails through `sink` with
    /// the reason.
    pub fn submit(&self, request: &GenerateRequest, tokens: Vec<u32>, sink: impl AnswerSink + 'static) {
        let prepared = match self.intake.prepare(request, tokens, Box::new(sink)) {
            Ok(Some(prepared)) => prepared,
            Ok(None) => return,
            Err((sink, error)) => return sink.fail(error),
        };
        let (mailbox, number) = (self.mailbox.clone(), self.number);
        match request.constraint.clone() {
            None => pass_on(&mailbox, number, prepared),
            Some(constraint) => self.intake.constrain(prepared, constraint, move |prepared| {
                pass_on(&mailbox, number, prepared);
            }),
        }
    }

    /// The engine's properties.
    pub fn info(&self) -> &EngineInfo {
        self.intake.info()
    }

    /// The engine's load after its last step.
    pub fn load(&self) -> watch::Receiver<LoadReport> {
        self.load.clone()
    }

    /// The engine's state.
    pub fn state(&self) -> watch::Receiver<RunnerState> {
        self.state.clone()
    }

    /// Stops the engine after its current step and waits for that. Open requests fail.
    pub async fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.mailbox.stop_requested.swap(true, Ordering::AcqRel);
        // A full queue keeps the thread awake anyway, and a disconnected one means that the thread has ended.
        let _ = self.mailbox.messages.try_send(Message::Wake);
        let mut state = self.state.clone();
        // An error means that the state's sender was dropped with the engine.
        let _ = state.wait_for(|state| *state != RunnerState::Running).await;
    }
}

/// Puts a request into the queue of engine `number`, or fails it.
fn pass_on(mailbox: &EngineMailbox, number: usize, request: PreparedRequest) {
    let message = Message::Request(number, Box::new(request));
    let (message, error) = match mailbox.messages.try_send(message) {
        Ok(()) => return,
        Err(TrySendError::Full(message)) => {
            let text = "the worker's queue of requests is full; try again later";
            (message, WireError::new(ErrorKind::Overloaded, text))
        }
        Err(TrySendError::Disconnected(message)) => (message, engine_stopped()),
    };
    if let Message::Request(_, request) = message {
        request.fail(error);
    }
}

impl Backend for RunnerHandle {
    fn generate(&self, request: BackendRequest, responder: Responder) {
        self.submit(&request.generate, request.tokens, responder);
    }

    fn load(&self) -> watch::Receiver<LoadReport> {
        Self::load(self)
    }

    /// The engines of this crate publish every change of their KV cache and take the router's tokens: always exact.
    fn parity(&self) -> watch::Receiver<Parity> {
        watch::channel(Parity::default()).1
    }

    fn failed(&self) -> BoxFuture<'static, String> {
        let mut state = self.state();
        async move {
            if state
                .wait_for(|state| *state == RunnerState::Failed)
                .await
                .is_err()
            {
                // The engine was stopped and will not fail any more.
                std::future::pending::<()>().await;
            }
            "the engine panicked; the log has the reason".into()
        }
        .boxed()
    }

    fn stop(&self) -> BoxFuture<'static, ()> {
        let handle = self.clone();
        async move { Self::stop(&handle).await }.boxed()
    }
}

impl From<EngineInfo> for BackendInfo {
    fn from(info: EngineInfo) -> Self {
        Self {
            engine: info.name.to_owned(),
            engine_version: String::new(),
            reads_body: false,
            continues_answers: true,
            abilities: vec![
                Ability::SamplingLimits,
                Ability::Constraints,
                Ability::ToolCalls,
                Ability::AnswerParts,
                Ability::PromptLogprobs,
            ],
            kv_events: true,
            block_size: info.block_size,
            context_length: info.context_length,
            capacity: info.capacity,
        }
    }
}
