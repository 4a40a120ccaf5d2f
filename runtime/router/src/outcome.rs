//! What became of each request, for the record of its decision and for policies that learn.
//!
//! A request reports when it ends, however it ends: the report is made when its [`OutcomeReporter`] is dropped. Outcomes for
//! policies wait in a queue of the thread, because no request waits for a policy to learn.

use std::{cell::RefCell, collections::VecDeque, rc::Rc, sync::Arc};

use signalbox_policy_host::Outcome;
use signalbox_protocol::StreamSummary;
use tokio::time::Instant;

use crate::{decision_log::DecisionTicket, recorded_decision::DecisionOutcome};

/// Most outcomes that wait for policies: those of half a second at 8,000 requests a second of one thread. The oldest ones
/// are dropped.
const MAX_WAITING: usize = 4_096;

/// The outcomes of a thread's requests that wait for policies. Clone = handle.
#[derive(Debug, Clone, Default)]
pub(crate) struct OutcomeQueue(Rc<RefCell<VecDeque<ModelOutcome>>>);

/// The name of a model, and what became of a request for it.
type ModelOutcome = (Arc<str>, Outcome);

impl OutcomeQueue {
    fn push(&self, model: Arc<str>, outcome: Outcome) {
        let mut waiting = self.0.borrow_mut();
        if waiting.len() >= MAX_WAITING {
            waiting.pop_front();
        }
        waiting.push_back((model, outcome));
    }

    /// Takes all outcomes, by model, oldest first.
    pub(crate) fn take(&self) -> Vec<(Arc<str>, Vec<Outcome>)> {
        let mut by_model: Vec<(Arc<str>, Vec<Outcome>)> = Vec::new();
        for (model, outcome) in self.0.take() {
            match by_model.iter_mut().find(|(known, _)| *known == model) {
                Some((_, outcomes)) => outcomes.push(outcome),
                None => by_model.push((model, vec![outcome])),
            }
        }
        by_model
    }
}

/// A decision whose outcome is to be reported.
#[derive(Debug)]
pub(crate) struct Awaited {
    /// The decision's record; `None` where decisions are not recorded.
    pub(crate) ticket: Option<DecisionTicket>,
    /// The model, if the policy that decided wants outcomes.
    pub(crate) observed: Option<Arc<str>>,
    /// The worker's key, the decision's number, and what the router knew of the prompt.
    pub(crate) known: Outcome,
}

/// Follows one request from its decision to its end at the chosen worker.
#[derive(Debug)]
pub(crate) struct OutcomeReporter {
    awaited: Awaited,
    decided: Instant,
    queue: OutcomeQueue,
    cached_tokens: Option<u32>,
}

impl OutcomeReporter {
    pub(crate) fn new(awaited: Awaited, queue: OutcomeQueue) -> Self {
        Self {
            awaited,
            decided: Instant::now(),
            queue,
            cached_tokens: None,
        }
    }

    /// A piece of the answer has arrived, with `tokens` tokens.
    pub(crate) fn generated(&mut self, tokens: u32) {
        let known = &mut self.awaited.known;
        if tokens > 0 && known.ttft_ms == 0.0 {
            known.ttft_ms = milliseconds_since(self.decided);
        }
        known.output_tokens = known.output_tokens.saturating_add(tokens);
    }

    /// The answer has ended without an error.
    pub(crate) fn ended(mut self, summary: StreamSummary) {
        let known = &mut self.awaited.known;
        known.completed = true;
        known.cached_tokens = summary.cached_tokens;
        known.output_tokens = known.output_tokens.max(summary.completion_tokens);
        if summary.prompt_tokens > 0 {
            known.prompt_tokens = summary.prompt_tokens;
        }
        self.cached_tokens = Some(summary.cached_tokens);
    }
}

impl Drop for OutcomeReporter {
    fn drop(&mut self) {
        let Awaited {
            ticket,
            observed,
            known,
        } = &mut self.awaited;
        known.total_ms = milliseconds_since(self.decided);
        if let Some(ticket) = ticket.take() {
            ticket.ended(DecisionOutcome {
                completed: known.completed,
                ttft_ms: (known.ttft_ms > 0.0).then_some(known.ttft_ms),
                total_ms: known.total_ms,
                output_tokens: known.output_tokens,
                cached_tokens: self.cached_tokens,
            });
        }
        if let Some(model) = observed.take() {
            self.queue.push(model, *known);
        }
    }
}

fn milliseconds_since(start: Instant) -> f32 {
    start.elapsed().as_secs_f32() * 1e3
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn reporter(queue: &OutcomeQueue, model: &str) -> OutcomeReporter {
        let awaited = Awaited {
            ticket: None,
            observed: Some(model.into()),
            known: Outcome {
                worker: 7,
                ..Outcome::default()
            },
        };
        OutcomeReporter::new(awaited, queue.clone())
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_reports_how_it_ended_whatever_way_it_ends() {
        let queue = OutcomeQueue::default();
        let mut answered = reporter(&queue, "m");
        tokio::time::advance(Duration::from_millis(40)).await;
        answered.generated(1);
        tokio::time::advance(Duration::from_millis(60)).await;
        answered.generated(2);
        answered.ended(StreamSummary {
            prompt_tokens: 100,
            cached_tokens: 64,
            completion_tokens: 3,
        });
        drop(reporter(&queue, "other"));
        drop(reporter(&queue, "m"));
        let by_model = queue.take();
        let [(m, of_m), (other, of_other)] = by_model.as_slice() else {
            panic!("two models: {by_model:?}")
        };
        assert_eq!((&**m, &**other), ("m", "other"));
        assert_eq!((of_m.len(), of_other.len()), (2, 1));
        let [whole, failed] = of_m.as_slice() else {
            panic!("two outcomes")
        };
        assert!(whole.completed && !failed.completed);
        assert_eq!((whole.ttft_ms.round(), whole.total_ms.round()), (40.0, 100.0));
        assert_eq!(
            (whole.cached_tokens, whole.output_tokens, whole.prompt_tokens),
            (64, 3, 100)
        );
        assert_eq!((failed.worker, failed.ttft_ms), (7, 0.0));
        assert!(queue.take().is_empty());
    }

    #[tokio::test]
    async fn the_queue_is_bounded() {
        let queue = OutcomeQueue::default();
        for _ in 0..MAX_WAITING + 10 {
            drop(reporter(&queue, "m"));
        }
        assert_eq!(queue.take()[0].1.len(), MAX_WAITING);
    }
}
