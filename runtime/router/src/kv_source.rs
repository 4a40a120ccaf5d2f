//! Where a worker's credit in the KV index comes from: its KV events, or what this router learns from its own decisions.
//!
//! A [`KvSource`] follows the verdict on its worker. While the events can be relied on, an [`EventStream`] applies them.
//! In fallback, and for a worker without events, the stream is stopped and the [block learner](crate::block_learner)
//! fills the index. At each change between the two the worker's credit is dropped: what one source gave never mixes with
//! what the other gives. A new stream starts from a snapshot.

use std::{cell::Cell, rc::Rc};

use signalbox_protocol::{KvDigest, Parity, ParityState};
use tracing::{debug, info, info_span, warn};

use crate::{
    event_stream::{EventStream, EventStreamConfig, KvReport, StopFollowing},
    load::EventState,
    parity::{ParityMetrics, ParityTable, Verdict},
    supervisor::ActorHandle,
};

#[cfg(test)]
mod tests;

/// The source of one worker's credit, and the verdict that it follows. [`KvSource::end`] ends it.
#[derive(Debug)]
pub(crate) struct KvSource {
    config: EventStreamConfig,
    table: ParityTable,
    metrics: ParityMetrics,
    verdict: Verdict,
    /// `None` while the router learns.
    stream: Option<FollowedStream>,
}

/// An event stream that is stopped when this is dropped.
#[derive(Debug)]
struct FollowedStream {
    actor: ActorHandle<EventStream>,
    stopped: Rc<Cell<bool>>,
}

impl KvSource {
    /// Starts with the verdict that the worker's card allows. `config` is that of each stream.
    pub(crate) fn start(config: EventStreamConfig, table: ParityTable) -> Self {
        let verdict = Verdict::new(config.card.kv_events);
        let metrics = ParityMetrics::new(&config.card);
        let mut source = Self {
            config,
            table,
            metrics,
            verdict,
            stream: None,
        };
        source.publish();
        source.log(ParityState::Exact);
        source.follow_verdict();
        source
    }

    /// The worker reports its parity.
    pub(crate) fn report(&mut self, reported: &Parity) {
        let was_learned = self.verdict.is_learned();
        let Some(change) = self.verdict.report(reported) else {
            return;
        };
        self.publish();
        if change.from != change.to {
            self.metrics.count_change(change.to);
        }
        self.log(change.from);
        if self.verdict.is_learned() != was_learned {
            self.follow_verdict();
        }
    }

    /// The worker reports what its KV cache holds.
    pub(crate) fn report_held(&self, next_batch: u64, digest: KvDigest) {
        if let Some(stream) = &self.stream {
            // A full mailbox has an earlier report, and another one follows.
            let _ = stream.actor.address().try_send(KvReport { next_batch, digest });
        }
    }

    /// The worker left: the index holds no block of it any more (K-1).
    pub(crate) fn end(&mut self) {
        self.stream = None;
        self.config.index.remove_worker(self.config.slot);
        self.table.forget(self.config.slot);
        self.metrics.set(None);
    }

    fn publish(&self) {
        self.table.set(self.config.slot, self.verdict.parity());
        self.metrics.set(Some(self.verdict.parity().state));
    }

    fn follow_verdict(&mut self) {
        self.stream = None;
        let EventStreamConfig {
            index, load, slot, ..
        } = &self.config;
        index.remove_worker(*slot);
        load.refresh_indexed_blocks(*slot, index);
        if self.verdict.is_learned() {
            load.begin_learning(*slot);
        } else {
            load.set_event_state(*slot, EventState::Resyncing);
            self.stream = Some(FollowedStream::start(&self.config));
        }
    }

    /// One line for each change of the state. A cause that changes alone may hold figures, and is logged for debugging.
    fn log(&self, before: ParityState) {
        let card = &self.config.card;
        let Parity { state, cause } = self.verdict.parity();
        let (id, model, now) = (&card.id, &card.model, state.as_str());
        match state.cmp(&before) {
            std::cmp::Ordering::Greater => {
                warn!(worker.id = %id, model, state = now, cause, "what this router knows of the worker's KV cache is less exact");
            }
            std::cmp::Ordering::Less => {
                info!(worker.id = %id, model, state = now, cause, "what this router knows of the worker's KV cache is more exact");
            }
            std::cmp::Ordering::Equal if cause.is_empty() => {}
            std::cmp::Ordering::Equal => {
                debug!(worker.id = %id, model, state = now, cause, "the cause of the worker's KV state has changed");
            }
        }
    }
}

impl FollowedStream {
    fn start(config: &EventStreamConfig) -> Self {
        let stopped = Rc::new(Cell::new(false));
        let config = EventStreamConfig {
            stopped: stopped.clone(),
            ..config.clone()
        };
        // The span names the worker in the log line of a failure.
        let _span = info_span!("worker", worker.id = %config.card.id).entered();
        Self {
            actor: ActorHandle::start("event_stream", move || EventStream::new(config.clone())),
            stopped,
        }
    }
}

impl Drop for FollowedStream {
    fn drop(&mut self) {
        // The actor may still receive a message before it stops. It ignores the message, since `stopped` is set.
        self.stopped.set(true);
        #[expect(
            clippy::disallowed_methods,
            reason = "a control message, sent once to each actor"
        )]
        self.actor.address().do_send(StopFollowing);
    }
}
