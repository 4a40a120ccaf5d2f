//! How exact this router's knowledge of each worker's KV cache is: the verdict on a worker, and the table of all
//! verdicts.
//!
//! The worker judges (`protocol/src/parity.rs`) and reports with its load. The router adds one rule: a worker without KV
//! events is in fallback. Requests read the state of the worker that answers them, without a lock.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
};

use metrics::{Gauge, counter, describe_counter, describe_gauge, gauge};
use parking_lot::Mutex;
use signalbox_kv_index::WorkerSlot;
use signalbox_protocol::{Parity, ParityState, WorkerCard};

use crate::load::MAX_WORKERS;

/// Longest cause kept of a report, in bytes: it goes into logs and answers of the admin API. A longer one is cut.
const MAX_CAUSE_BYTES: usize = 512;

/// The verdict on one incarnation of a worker.
#[derive(Debug)]
pub(crate) struct Verdict {
    has_events: bool,
    parity: Parity,
}

/// A verdict that differs from the one before.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct VerdictChange {
    pub(crate) from: ParityState,
    /// Equal to `from` if only the cause is another one.
    pub(crate) to: ParityState,
}

impl Verdict {
    /// The verdict before the first report.
    pub(crate) fn new(has_events: bool) -> Self {
        Self {
            has_events,
            parity: combine(has_events, &Parity::default()),
        }
    }

    pub(crate) fn parity(&self) -> &Parity {
        &self.parity
    }

    /// Whether the router learns the worker's KV blocks from its own decisions, because there are no events or they
    /// cannot be relied on.
    pub(crate) fn is_learned(&self) -> bool {
        !self.has_events || self.parity.state == ParityState::Fallback
    }

    /// The worker reports this parity.
    pub(crate) fn report(&mut self, reported: &Parity) -> Option<VerdictChange> {
        let parity = combine(self.has_events, reported);
        if parity == self.parity {
            return None;
        }
        let before = std::mem::replace(&mut self.parity, parity);
        Some(VerdictChange {
            from: before.state,
            to: self.parity.state,
        })
    }
}

/// The verdict that follows from a report. A report without a verdict reads as exact, so exactness counts only for a
/// worker with events; a verdict with a cause counts as it is.
fn combine(has_events: bool, reported: &Parity) -> Parity {
    match reported.state {
        ParityState::Exact if !has_events => {
            Parity::impaired(ParityState::Fallback, "the worker publishes no KV events")
        }
        state => {
            let cut = reported.cause.floor_char_boundary(MAX_CAUSE_BYTES);
            Parity {
                state,
                cause: reported.cause[..cut].to_owned(),
            }
        }
    }
}

/// The parity of every present worker, by slot. Clone = handle.
#[derive(Debug, Clone)]
pub(crate) struct ParityTable {
    /// [`ParityState`] as a number; 0 is exact.
    states: Arc<[AtomicU8]>,
    /// The causes of the workers that are not exact.
    causes: Arc<Mutex<HashMap<WorkerSlot, String>>>,
}

impl Default for ParityTable {
    fn default() -> Self {
        Self {
            states: (0..MAX_WORKERS).map(|_| AtomicU8::default()).collect(),
            causes: Arc::default(),
        }
    }
}

impl ParityTable {
    pub(crate) fn set(&self, worker: WorkerSlot, parity: &Parity) {
        let Some(state) = self.states.get(worker.0 as usize) else {
            return;
        };
        let mut causes = self.causes.lock();
        if parity.cause.is_empty() {
            causes.remove(&worker);
        } else {
            causes.insert(worker, parity.cause.clone());
        }
        state.store(parity.state as u8, Relaxed);
    }

    /// The state of a worker; exact for a slot without one.
    pub(crate) fn state(&self, worker: WorkerSlot) -> ParityState {
        let state = self
            .states
            .get(worker.0 as usize)
            .map(|state| state.load(Relaxed));
        match state {
            Some(1) => ParityState::Degraded,
            Some(2) => ParityState::Fallback,
            _ => ParityState::Exact,
        }
    }

    /// The state of a worker and its cause.
    pub(crate) fn get(&self, worker: WorkerSlot) -> Parity {
        let causes = self.causes.lock();
        Parity {
            state: self.state(worker),
            cause: causes.get(&worker).cloned().unwrap_or_default(),
        }
    }

    /// Forgets a worker, so that another one can get its slot.
    pub(crate) fn forget(&self, worker: WorkerSlot) {
        self.set(worker, &Parity::default());
    }
}

/// Gives the installed recorder the help text of each metric of this file.
pub(crate) fn describe_metrics() {
    describe_gauge!(
        "signalbox_worker_kv_state",
        "How exact the knowledge of a worker's KV cache is: 1 for its present state, 0 for the others"
    );
    describe_counter!(
        "signalbox_worker_kv_state_changes_total",
        "Changes of a worker's KV state, by the state that it changed to"
    );
}

/// The metrics of one worker's parity: a gauge for each state, 1 for the present one. All are 0 after the worker left.
pub(crate) struct ParityMetrics {
    model: String,
    states: [(ParityState, Gauge); 3],
}

impl std::fmt::Debug for ParityMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParityMetrics").finish_non_exhaustive()
    }
}

impl ParityMetrics {
    pub(crate) fn new(card: &WorkerCard) -> Self {
        let states = [ParityState::Exact, ParityState::Degraded, ParityState::Fallback];
        let gauge_of = |state: ParityState| {
            let labels = [
                ("worker", card.id.to_string()),
                ("model", card.model.clone()),
                ("state", state.as_str().to_owned()),
            ];
            (state, gauge!("signalbox_worker_kv_state", &labels))
        };
        Self {
            model: card.model.clone(),
            states: states.map(gauge_of),
        }
    }

    pub(crate) fn set(&self, present: Option<ParityState>) {
        for (state, gauge) in &self.states {
            gauge.set(if Some(*state) == present { 1.0 } else { 0.0 });
        }
    }

    /// Counts a change to another state.
    pub(crate) fn count_change(&self, to: ParityState) {
        let labels = [("model", self.model.clone()), ("state", to.as_str().to_owned())];
        counter!("signalbox_worker_kv_state_changes_total", &labels).increment(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKER: WorkerSlot = WorkerSlot(3);

    #[test]
    fn a_worker_with_events_has_the_verdict_that_it_reports() {
        let mut verdict = Verdict::new(true);
        assert_eq!(
            (verdict.parity(), verdict.is_learned()),
            (&Parity::default(), false)
        );
        assert_eq!(verdict.report(&Parity::default()), None);
        let degraded = Parity::impaired(ParityState::Degraded, "another chat template");
        let fallback = Parity::impaired(ParityState::Fallback, "no events for 30 s");
        let changes = [&degraded, &fallback, &fallback, &Parity::default()].map(|reported| {
            let change = verdict.report(reported);
            assert_eq!(verdict.parity(), reported);
            (
                change.map(|change| (change.from, change.to)),
                verdict.is_learned(),
            )
        });
        let (exact, degraded, fallback) = (ParityState::Exact, ParityState::Degraded, ParityState::Fallback);
        assert_eq!(
            changes,
            [
                (Some((exact, degraded)), false),
                (Some((degraded, fallback)), true),
                (None, true),
                (Some((fallback, exact)), false)
            ]
        );
    }

    #[test]
    fn a_worker_without_events_is_learned_and_in_fallback_until_it_reports_another_cause() {
        let mut verdict = Verdict::new(false);
        assert_eq!(verdict.parity().state, ParityState::Fallback);
        assert_eq!(verdict.parity().cause, "the worker publishes no KV events");
        assert_eq!(verdict.report(&Parity::default()), None);
        let own = Parity::impaired(ParityState::Fallback, "start the engine with --kv-events-config");
        let change = verdict.report(&own).unwrap();
        assert_eq!(
            (change.from, change.to),
            (ParityState::Fallback, ParityState::Fallback)
        );
        assert_eq!(verdict.parity(), &own);
        let better = Parity::impaired(ParityState::Degraded, "prefix caching is off");
        assert!(verdict.report(&better).is_some());
        assert_eq!((verdict.parity(), verdict.is_learned()), (&better, true));
    }

    #[test]
    fn a_long_cause_is_cut_at_a_character() {
        let mut verdict = Verdict::new(true);
        verdict.report(&Parity::impaired(ParityState::Degraded, "é".repeat(1_000)));
        assert_eq!(verdict.parity().cause, "é".repeat(MAX_CAUSE_BYTES / 2));
    }

    #[test]
    fn the_table_has_what_was_set_last_until_the_worker_is_forgotten() {
        let table = ParityTable::default();
        for state in [ParityState::Fallback, ParityState::Degraded] {
            let parity = Parity::impaired(state, "a cause");
            table.set(WORKER, &parity);
            assert_eq!((table.get(WORKER), table.state(WORKER)), (parity, state));
        }
        table.forget(WORKER);
        assert_eq!(table.get(WORKER), Parity::default());
        table.set(
            WorkerSlot(MAX_WORKERS),
            &Parity::impaired(ParityState::Fallback, ""),
        );
        assert_eq!(table.state(WorkerSlot(MAX_WORKERS)), ParityState::Exact);
    }
}
