//! One decision in a ring. Writing it copies numbers into buffers that are kept, and allocates nothing.

use std::sync::{Arc, Weak};

use signalbox_policy_host::{Candidates, Decision, PolicyComponent, RequestFeatures};
use signalbox_protocol::{RequestId, SequenceHash, WorkerId};

use crate::recorded_decision::DecisionOutcome;

/// One decision. The buffers are kept when the record is written over.
#[derive(Debug, Clone, Default)]
pub(super) struct Record {
    pub(super) number: u64,
    pub(super) at_unix_ms: u64,
    pub(super) took_ns: u32,
    pub(super) request: Option<RequestId>,
    pub(super) model: Arc<str>,
    pub(super) policy: Arc<str>,
    /// What decided; nothing for the fallback. A record keeps no version of a policy in memory.
    pub(super) component: Weak<PolicyComponent>,
    pub(super) features: RequestFeatures,
    /// The ids of all workers of the model, and the place of each row's worker among them.
    pub(super) ids: Arc<[WorkerId]>,
    pub(super) rows: Vec<usize>,
    pub(super) candidates: usize,
    /// The place of the chosen worker in `ids`.
    pub(super) chosen: usize,
    pub(super) chosen_row: usize,
    /// Empty where the rows were not kept.
    pub(super) columns: Candidates,
    pub(super) costs: Vec<f32>,
    pub(super) pick: Option<u32>,
    pub(super) outcome: Option<DecisionOutcome>,
}

/// What a decision saw and chose.
pub(crate) struct Decided<'a> {
    pub(crate) at_unix_ms: u64,
    pub(crate) took_ns: u32,
    pub(crate) request: Option<&'a RequestId>,
    pub(crate) model: &'a Arc<str>,
    pub(crate) policy: &'a Arc<str>,
    /// `None` if the fallback decided.
    pub(crate) component: Option<&'a Arc<PolicyComponent>>,
    pub(crate) features: RequestFeatures,
    /// The prompt's whole KV blocks.
    pub(crate) blocks: &'a [SequenceHash],
    pub(crate) ids: &'a Arc<[WorkerId]>,
    pub(crate) rows: &'a [usize],
    pub(crate) columns: &'a Candidates,
    pub(crate) decision: &'a Decision,
    pub(crate) chosen_row: usize,
}

impl Record {
    /// Writes a decision over this record. Without `keeps_rows` it keeps neither columns nor costs.
    pub(super) fn write(&mut self, number: u64, decided: Decided<'_>, keeps_rows: bool) {
        let Decided {
            at_unix_ms,
            took_ns,
            request,
            model,
            policy,
            component,
            features,
            blocks: _,
            ids,
            rows,
            columns,
            decision,
            chosen_row,
        } = decided;
        self.number = number;
        self.at_unix_ms = at_unix_ms;
        self.took_ns = took_ns;
        self.request = request.cloned();
        replace_shared(&mut self.model, model);
        replace_shared(&mut self.policy, policy);
        match component {
            Some(component) if self.component.as_ptr() == Arc::as_ptr(component) => {}
            Some(component) => self.component = Arc::downgrade(component),
            None => self.component = Weak::new(),
        }
        self.features = features;
        replace_shared(&mut self.ids, ids);
        self.candidates = rows.len();
        self.chosen = rows.get(chosen_row).copied().unwrap_or_default();
        self.chosen_row = chosen_row;
        self.pick = decision.pick;
        self.outcome = None;
        self.rows.clear();
        self.costs.clear();
        if keeps_rows {
            self.rows.extend_from_slice(rows);
            self.costs.extend_from_slice(&decision.costs);
            self.columns.copy_from(columns);
        }
    }

    /// Whether it has what the policy saw of each worker.
    pub(super) fn has_rows(&self) -> bool {
        !self.rows.is_empty()
    }

    pub(super) fn worker(&self, row: usize) -> &str {
        let id = self.rows.get(row).and_then(|place| self.ids.get(*place));
        id.map_or("", WorkerId::as_str)
    }

    pub(super) fn chosen_worker(&self) -> &str {
        self.ids.get(self.chosen).map_or("", WorkerId::as_str)
    }
}

/// Usually both are the same: then no count of references is touched, which all threads share.
fn replace_shared<T: ?Sized>(kept: &mut Arc<T>, next: &Arc<T>) {
    if !Arc::ptr_eq(kept, next) {
        *kept = Arc::clone(next);
    }
}
