//! How long a request waits for its engine: until its caller, its deadline or the engine's silence ends it.

use std::{future::Future, pin::Pin, time::Duration};

use signalbox_protocol::{ErrorKind, WireError};
use tokio::{
    sync::watch,
    time::{Instant, Sleep, sleep},
};

use super::engine_phase::EnginePhase;

/// How long an engine may send nothing while it does not answer health polls either.
const MOST_SILENCE: Duration = Duration::from_secs(10);

/// How often a silent stream is looked at again once it is overdue.
const SILENCE_RECHECK: Duration = Duration::from_secs(1);

/// Longest time for one answer. Longer deadlines are reduced to it, so that no request stays open for ever.
const MAX_TIME_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

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

/// How long a request waits for the engine.
pub(crate) struct Patience<'a> {
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
    pub(crate) fn new(
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
    pub(crate) async fn of<T>(&mut self, step: impl Future<Output = T>) -> Result<T, Failure> {
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

/// A failure after which another worker may answer.
pub(crate) fn unavailable(message: String) -> Failure {
    WireError::new(ErrorKind::Unavailable, message).into()
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
