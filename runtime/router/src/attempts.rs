//! The attempts of one request, as a pure state: which workers failed it, and whether to try another one.
//!
//! `replica.rs` decides, sends and waits. It reports each attempt that brought no answer here, and performs the step
//! that comes back. With the first bytes of an answer the attempts are over. If the worker fails later, the attempts for
//! the rest of the answer (`continuation.rs`) begin with the workers that failed before.

use signalbox_kv_index::WorkerSlot;
use signalbox_protocol::{ErrorKind, WireError};
use signalbox_request_plane::LinkError;

use crate::{candidates::NoCandidate, client_errors};

/// Most workers that one request is tried on. More would turn a request that kills workers into an outage.
pub(crate) const MAX_ATTEMPTS: usize = 4;

/// The attempts so far of one request.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    failed: Vec<WorkerSlot>,
    /// Whether a worker failed by a defect.
    had_defect: bool,
    /// Of the latest worker in `failed`, as the client receives it.
    last_error: Option<WireError>,
    /// The longest context that was too short for the request; 0 if none was.
    too_short: u32,
}

/// Why there is no answer yet.
#[derive(Debug)]
pub(crate) enum Setback {
    /// The decision had no candidate.
    NoCandidate(NoCandidate),
    /// The view no longer has the model.
    ModelGone,
    /// Two workers were lost with the same prompt.
    LostTwice,
    /// The worker refused the request, or the link to it failed, before the first bytes of an answer.
    WorkerFailed {
        worker: WorkerSlot,
        /// The worker's context length.
        context_length: u32,
        error: LinkError,
    },
    /// The deadline passed before the first bytes of an answer.
    DeadlinePassed,
}

/// What to do after a setback.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NextStep {
    /// Decide again, without the workers in [`Attempts::failed`].
    DecideAgain,
    /// As [`NextStep::DecideAgain`], if the retry budget has a place, and else [`Attempts::out_of_budget`].
    Retry,
    /// Answer the client with this error.
    GiveUp(WireError),
}

impl Attempts {
    /// The attempts for the rest of an answer, after these workers failed, the last one with this error.
    pub(crate) fn resumed(failed: Vec<WorkerSlot>, error: LinkError) -> Self {
        Self {
            failed,
            had_defect: false,
            last_error: Some(client_errors::worker_failed(error)),
            too_short: 0,
        }
    }

    /// Workers whose context is no longer than this cannot answer the request: one refused it for that reason.
    pub(crate) fn too_short(&self) -> u32 {
        self.too_short
    }

    /// The workers that the next decision excludes.
    pub(crate) fn failed(&self) -> &[WorkerSlot] {
        &self.failed
    }

    /// The workers that failed.
    pub(crate) fn into_failed(self) -> Vec<WorkerSlot> {
        self.failed
    }

    /// The step after an attempt that brought no answer to a request for `model`.
    ///
    /// An error of a worker is of more use to the client than a lack of candidates, so the latest one is preferred. A
    /// policy's rejection is what its operator wants the client to read.
    pub(crate) fn after(&mut self, setback: Setback, model: &str) -> NextStep {
        match setback {
            Setback::NoCandidate(reason) => self.give_up(reason, model),
            Setback::ModelGone => self.give_up(NoCandidate::Unavailable, model),
            Setback::DeadlinePassed => NextStep::GiveUp(client_errors::no_answer_in_time()),
            Setback::LostTwice => NextStep::GiveUp(client_errors::lost_twice()),
            Setback::WorkerFailed { error, .. } if !may_move(&error) || self.is_second_defect(&error) => {
                NextStep::GiveUp(client_errors::worker_failed(error))
            }
            Setback::WorkerFailed {
                worker,
                context_length,
                error,
            } => {
                if is_too_long(&error) {
                    self.too_short = self.too_short.max(context_length);
                }
                let needs_budget = needs_budget(&error);
                self.failed.push(worker);
                self.last_error = Some(client_errors::worker_failed(error));
                if self.failed.len() >= MAX_ATTEMPTS {
                    self.give_up(NoCandidate::Unavailable, model)
                } else if needs_budget {
                    NextStep::Retry
                } else {
                    NextStep::DecideAgain
                }
            }
        }
    }

    /// The error for the client if the retry budget has no place for the next attempt.
    pub(crate) fn out_of_budget(&mut self, model: &str) -> WireError {
        let error = self.last_error.take();
        error.unwrap_or_else(|| client_errors::no_candidate(NoCandidate::Unavailable, model))
    }

    /// Whether this is the second defect: the request causes it, not the worker.
    fn is_second_defect(&mut self, error: &LinkError) -> bool {
        is_defect(error) && std::mem::replace(&mut self.had_defect, true)
    }

    fn give_up(&mut self, reason: NoCandidate, model: &str) -> NextStep {
        let is_rejected = matches!(reason, NoCandidate::Rejected(_));
        let error = self.last_error.take().filter(|_| !is_rejected);
        NextStep::GiveUp(error.unwrap_or_else(|| client_errors::no_candidate(reason, model)))
    }
}

/// Whether another worker may answer a request that failed with this error. Every failure of a link may move; of a
/// worker's own errors a lack of room or a departure, a prompt that is too long for its context, since another worker may
/// have a longer one, and once a defect. The others repeat on every worker.
pub(crate) fn may_move(error: &LinkError) -> bool {
    match error {
        LinkError::Refused(refusal) => {
            is_too_long(error)
                || is_defect(error)
                || matches!(refusal.kind, ErrorKind::Overloaded | ErrorKind::Unavailable)
        }
        LinkError::Unreachable { .. }
        | LinkError::Lost { .. }
        | LinkError::Draining { .. }
        | LinkError::Full { .. } => true,
    }
}

/// Whether an attempt after this error needs a place in the retry budget. A worker that never got the request lost nothing by
/// it, a lost connection is moved once, and a prompt that is too long for one worker is no sign of trouble.
pub(crate) fn needs_budget(error: &LinkError) -> bool {
    matches!(error, LinkError::Refused(_)) && !is_too_long(error)
}

/// Whether the worker answered that it has a defect.
fn is_defect(error: &LinkError) -> bool {
    matches!(error, LinkError::Refused(error) if error.kind == ErrorKind::Internal)
}

/// Whether the worker refused the prompt because it does not fit into its context.
fn is_too_long(error: &LinkError) -> bool {
    matches!(error, LinkError::Refused(error) if error.kind == ErrorKind::ContextLengthExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(kind: ErrorKind) -> LinkError {
        LinkError::Refused(WireError::new(kind, format!("refused as {kind:?}")))
    }

    fn lost() -> LinkError {
        LinkError::Lost {
            address: "a:1".into(),
            reason: "reset".into(),
        }
    }

    fn unreachable() -> LinkError {
        LinkError::Unreachable {
            address: "a:1".into(),
            reason: "refused".into(),
        }
    }

    fn failed(worker: u32, error: LinkError) -> Setback {
        Setback::WorkerFailed {
            worker: WorkerSlot(worker),
            context_length: 1_024,
            error,
        }
    }

    /// The kind of the error that ends the attempts, or `None` for another decision.
    fn kind_of(step: &NextStep) -> Option<ErrorKind> {
        match step {
            NextStep::DecideAgain | NextStep::Retry => None,
            NextStep::GiveUp(error) => Some(error.kind),
        }
    }

    #[test]
    fn the_first_setback_leads_to_another_decision_or_to_an_error() {
        use ErrorKind::*;
        let (address, limit) = (String::from("a:1"), 1);
        let draining = LinkError::Draining {
            address: address.clone(),
        };
        let full = LinkError::Full { address, limit };
        let table = [
            (
                "no candidate can be reached",
                Setback::NoCandidate(NoCandidate::Unavailable),
                Some(Unavailable),
            ),
            (
                "every candidate is busy",
                Setback::NoCandidate(NoCandidate::Busy),
                Some(Overloaded),
            ),
            ("the model is gone", Setback::ModelGone, Some(Unavailable)),
            (
                "the deadline passed",
                Setback::DeadlinePassed,
                Some(DeadlineExceeded),
            ),
            ("the worker is unreachable", failed(0, unreachable()), None),
            ("the worker was lost", failed(0, lost()), None),
            ("the worker drains", failed(0, draining), None),
            ("the link is full", failed(0, full), None),
            ("the worker has no room", failed(0, refused(Overloaded)), None),
            ("the worker is leaving", failed(0, refused(Unavailable)), None),
            (
                "the request is invalid",
                failed(0, refused(InvalidRequest)),
                Some(InvalidRequest),
            ),
            (
                "the prompt is too long for this worker",
                failed(0, refused(ContextLengthExceeded)),
                None,
            ),
            (
                "the prompt is too long for every worker",
                Setback::NoCandidate(NoCandidate::TooLong { context_length: 9 }),
                Some(ContextLengthExceeded),
            ),
            (
                "the worker's deadline passed",
                failed(0, refused(DeadlineExceeded)),
                Some(DeadlineExceeded),
            ),
            ("the worker has a defect", failed(0, refused(Internal)), None),
            (
                "two workers were lost with the prompt",
                Setback::LostTwice,
                Some(Internal),
            ),
        ];
        for (name, setback, expected) in table {
            let mut attempts = Attempts::default();
            let step = attempts.after(setback, "m");
            assert_eq!(kind_of(&step), expected, "{name}");
            let excluded = usize::from(expected.is_none());
            assert_eq!(attempts.failed().len(), excluded, "{name}");
        }
    }

    #[test]
    fn a_prompt_that_is_too_long_for_one_worker_needs_a_longer_context_at_the_next() {
        let mut attempts = Attempts::default();
        assert_eq!(attempts.after(failed(0, lost()), "m"), NextStep::DecideAgain);
        assert_eq!(attempts.too_short(), 0);
        let too_long = || failed(1, refused(ErrorKind::ContextLengthExceeded));
        assert_eq!(attempts.after(too_long(), "m"), NextStep::DecideAgain);
        assert_eq!(attempts.too_short(), 1_024);
        // No worker has a longer one: the client receives the worker's own error.
        let none = Setback::NoCandidate(NoCandidate::TooLong {
            context_length: 1_024,
        });
        assert_eq!(
            attempts.after(none, "m"),
            NextStep::GiveUp(WireError::new(
                ErrorKind::ContextLengthExceeded,
                "refused as ContextLengthExceeded"
            ))
        );
    }

    #[test]
    fn a_second_defect_is_the_requests_and_does_not_move() {
        let mut attempts = Attempts::default();
        let defect = |worker| failed(worker, refused(ErrorKind::Internal));
        assert_eq!(attempts.after(defect(0), "m"), NextStep::Retry);
        assert_eq!(
            kind_of(&attempts.after(defect(1), "m")),
            Some(ErrorKind::Internal)
        );
    }

    #[test]
    fn only_what_a_worker_refused_needs_a_place_in_the_budget() {
        use ErrorKind::*;
        for (error, expected) in [
            (refused(Overloaded), NextStep::Retry),
            (refused(Unavailable), NextStep::Retry),
            (refused(ContextLengthExceeded), NextStep::DecideAgain),
            (lost(), NextStep::DecideAgain),
            (unreachable(), NextStep::DecideAgain),
        ] {
            let name = format!("{error:?}");
            let mut attempts = Attempts::default();
            assert_eq!(attempts.after(failed(0, error), "m"), expected, "{name}");
        }
        let mut attempts = Attempts::default();
        attempts.after(failed(0, refused(Overloaded)), "m");
        assert_eq!(attempts.out_of_budget("m").message, "refused as Overloaded");
    }

    #[test]
    fn every_failed_worker_is_excluded_from_the_next_decision() {
        let mut attempts = Attempts::default();
        assert_eq!(attempts.failed(), []);
        for worker in [7, 3, 5] {
            assert_eq!(attempts.after(failed(worker, lost()), "m"), NextStep::DecideAgain);
        }
        assert_eq!(attempts.failed(), [7, 3, 5].map(WorkerSlot));
    }

    #[test]
    fn the_fourth_failed_worker_ends_the_attempts_with_its_error() {
        let mut attempts = Attempts::default();
        for worker in 0..3 {
            assert_eq!(attempts.after(failed(worker, lost()), "m"), NextStep::DecideAgain);
        }
        let step = attempts.after(failed(3, refused(ErrorKind::Overloaded)), "m");
        assert_eq!(
            step,
            NextStep::GiveUp(WireError::new(ErrorKind::Overloaded, "refused as Overloaded"))
        );
    }

    #[test]
    fn the_latest_error_of_a_worker_is_preferred_over_a_lack_of_candidates() {
        let lacks = [
            Setback::NoCandidate(NoCandidate::Unavailable),
            Setback::NoCandidate(NoCandidate::Busy),
            Setback::ModelGone,
        ];
        for lack in lacks {
            let name = format!("{lack:?}");
            let mut attempts = Attempts::default();
            attempts.after(failed(0, lost()), "m");
            attempts.after(failed(1, refused(ErrorKind::Overloaded)), "m");
            let expected = WireError::new(ErrorKind::Overloaded, "refused as Overloaded");
            assert_eq!(attempts.after(lack, "m"), NextStep::GiveUp(expected), "{name}");
        }
    }

    #[test]
    fn an_error_that_does_not_move_is_preferred_over_an_earlier_one() {
        let mut attempts = Attempts::default();
        attempts.after(failed(0, lost()), "m");
        let step = attempts.after(failed(1, refused(ErrorKind::InvalidRequest)), "m");
        assert_eq!(kind_of(&step), Some(ErrorKind::InvalidRequest));
    }

    #[test]
    fn the_deadline_is_preferred_over_an_earlier_error() {
        let mut attempts = Attempts::default();
        attempts.after(failed(0, refused(ErrorKind::Overloaded)), "m");
        let step = attempts.after(Setback::DeadlinePassed, "m");
        assert_eq!(step, NextStep::GiveUp(client_errors::no_answer_in_time()));
    }

    #[test]
    fn errors_name_the_model_of_the_request() {
        for setback in [Setback::ModelGone, Setback::NoCandidate(NoCandidate::Busy)] {
            let NextStep::GiveUp(error) = Attempts::default().after(setback, "llama-3") else {
                panic!("another decision");
            };
            assert!(error.message.contains("\"llama-3\""), "{error}");
        }
    }
}
