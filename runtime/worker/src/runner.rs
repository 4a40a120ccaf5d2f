//! The thread of engines: requests in, steps, pieces of answers out.
//!
//! Engines are stepped on an [`EngineThread`], which nothing else may block. Everything reaches it through one
//! bounded queue and leaves it through the requests' sinks, once a step: first what changed in the KV cache, then all
//! tokens of the step, then one flush a request. So a router that reads a token may already know where its prompt
//! lies. The runner promises:
//!
//! - every request it was given ends once: with its answer, an error, or because its caller left;
//! - a caller that left costs the engine nothing after the step at hand, and in a simulated step not 50 ms;
//! - a fault of an engine, panics included, ends in an error for everybody who asked it and in [`RunnerState::Failed`];
//!   other engines on the thread go on. The process is expected to exit then and be started again: a worker without
//!   its engine is of no use.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
    mpsc::TrySendError,
};

use signalbox_protocol::{ErrorKind, GenerateRequest, LoadReport, WireError};
use tokio::sync::watch;

use crate::engine::EngineInfo;

use self::{
    engine_thread::{Message, ToThread},
    intake::{Intake, engine_is_gone},
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

/// What has become of an engine on its thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunnerState {
    /// It takes requests.
    Running,
    /// It was told to stop, or nobody can reach its thread any more.
    Stopped,
    /// Its engine panicked. It never comes back.
    Failed,
}

/// Handle of an engine on its thread; clones name the same one.
#[derive(Debug, Clone)]
pub struct RunnerHandle {
    to_thread: ToThread,
    number: usize,
    intake: Arc<Intake>,
    stopping: Arc<AtomicBool>,
    load: watch::Receiver<LoadReport>,
    state: watch::Receiver<RunnerState>,
}

impl RunnerHandle {
    /// Hands a request to the engine. Never waits; what cannot be taken is failed through `sink` with the reason.
    pub fn submit(&self, request: &GenerateRequest, tokens: Vec<u32>, sink: impl AnswerSink + 'static) {
        let job = match self.intake.prepare(request, tokens, Box::new(sink)) {
            Ok(job) => job,
            Err((sink, error)) => return sink.fail(error),
        };
        let job = Message::Job(self.number, Box::new(job));
        let (job, error) = match self.to_thread.messages.try_send(job) {
            Ok(()) => return,
            Err(TrySendError::Full(job)) => {
                let message = "This worker takes no more requests at the moment; try again soon.";
                (job, WireError::new(ErrorKind::Overloaded, message))
            }
            Err(TrySendError::Disconnected(job)) => (job, engine_is_gone()),
        };
        if let Message::Job(_, job) = job {
            job.fail(error);
        }
    }

    /// What the engine is.
    pub fn info(&self) -> &EngineInfo {
        self.intake.info()
    }

    /// The engine's load, as of its last step.
    pub fn load(&self) -> watch::Receiver<LoadReport> {
        self.load.clone()
    }

    /// What has become of the engine.
    pub fn state(&self) -> watch::Receiver<RunnerState> {
        self.state.clone()
    }

    /// Ends the engine after the step at hand, failing what is open, and waits until that is done.
    pub async fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.to_thread.stops.swap(true, Ordering::AcqRel);
        // Full: then the thread is awake anyway. Disconnected: it has ended.
        let _ = self.to_thread.messages.try_send(Message::Wake);
        let mut state = self.state.clone();
        // An error means that the sender is gone, and with it the engine.
        let _ = state.wait_for(|state| *state != RunnerState::Running).await;
    }
}
