//! One running policy: a Store, its exports, and the calls into it.

use std::{fmt, sync::Arc, time::Instant};

use wasmtime::Store;

use crate::{
    bindings::{explainer, observer, routing, state, types},
    candidates::Candidates,
    component::PolicyComponent,
    convert::{self, Opinion},
    description::Description,
    fault::PolicyFault,
    features::{Decision, Outcome, RequestFeatures},
    names::Gathered,
    sandbox::Sandbox,
};

/// Most outcomes in one call of `observe` (`wit/learning.wit`); more need several calls.
const MAX_OUTCOMES: usize = 256;
/// Largest snapshot, in bytes (`wit/learning.wit`).
const MAX_SNAPSHOT_BYTES: usize = 1 << 20;
/// Longest explanation, in bytes (`wit/explainer.wit`); a longer one is cut.
const MAX_REASON_BYTES: usize = 1024;

/// One running instance in a Store of its own. After a fault every call fails, and the instance must be dropped.
pub struct PolicyInstance {
    component: Arc<PolicyComponent>,
    store: Store<Sandbox>,
    routing: routing::Guest,
    observer: Option<observer::Guest>,
    state: Option<state::Guest>,
    explainer: Option<explainer::Guest>,
    /// What the policy reads in the current decision. The buffers are kept from one decision to the next.
    gathered: Gathered,
}

impl fmt::Debug for PolicyInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyInstance")
            .field("component", &self.component)
            .finish_non_exhaustive()
    }
}

impl PolicyComponent {
    /// Starts an instance and configures it: some 30 µs for a policy in Rust. Each of the two steps has a budget of
    /// `configure_budget_ms`.
    ///
    /// # Errors
    /// The instance faults or refuses its settings, although neither happened at admission. Or the host has no place
    /// for another instance.
    pub fn instantiate(self: &Arc<Self>) -> Result<PolicyInstance, PolicyFault> {
        let mut instance = PolicyInstance::start(self)?;
        let configured = instance.configure(&self.settings)?;
        configured.map_err(|refusal| {
            PolicyFault::Instantiate(format!(
                "it refuses the settings that it accepted at admission: {refusal}"
            ))
        })?;
        Ok(instance)
    }
}

impl PolicyInstance {
    /// A new instance of `component`, not yet configured.
    pub(crate) fn start(component: &Arc<PolicyComponent>) -> Result<Self, PolicyFault> {
        let engine = &component.engine;
        let limits = engine.limits();
        let budget_ms = limits.configure_budget_ms;
        let mut store = Sandbox::store(engine.wasm(), limits.max_memory_bytes);
        let _running = engine.ticker().enter();
        Sandbox::arm(&mut store, budget_ms);
        let exports = &component.exports;
        let started = exports.pre.instantiate(&mut store).and_then(|instance| {
            Ok(Self {
                component: Arc::clone(component),
                routing: exports.routing.load(&mut store, &instance)?,
                observer: exports
                    .observer
                    .as_ref()
                    .map(|observer| observer.load(&mut store, &instance))
                    .transpose()?,
                state: exports
                    .state
                    .as_ref()
                    .map(|state| state.load(&mut store, &instance))
                    .transpose()?,
                explainer: exports
                    .explainer
                    .as_ref()
                    .map(|explainer| explainer.load(&mut store, &instance))
                    .transpose()?,
                gathered: Gathered::default(),
                store,
            })
        });
        started.map_err(|error| PolicyFault::from_instantiation(&error, budget_ms))
    }

    /// Calls `configure`. The inner error is the policy's own sentence.
    pub(crate) fn configure(&mut self, settings: &str) -> Result<Result<(), String>, PolicyFault> {
        self.call_with_configure_budget(|routing, store| routing.call_configure(store, settings))
    }

    /// Calls `describe` and checks the answer. The inner error is a sentence about what is wrong with the answer.
    pub(crate) fn describe(&mut self) -> Result<Result<Description, String>, PolicyFault> {
        let info = self.call_with_configure_budget(|routing, store| routing.call_describe(store))?;
        Ok(Description::check(info))
    }

    /// Calls `decide`, checks the answer (as many costs as candidates, none NaN or `-inf`, at least one finite; a pick
    /// in range), and stores it in `decision`. After a fault or an abstention `decision` is unchanged.
    ///
    /// # Errors
    /// The policy faulted: the instance must be dropped. Or `candidates` is empty or its columns differ in length: then
    /// the policy was not called, and the instance can go on.
    pub fn decide(
        &mut self,
        request: &RequestFeatures,
        candidates: &Candidates,
        decision: &mut Decision,
    ) -> Result<Opinion, PolicyFault> {
        self.gather(request, candidates)?;
        let engine = &self.component.engine;
        let budget_ms = engine.limits().decide_budget_ms;
        let running = engine.ticker().enter();
        Sandbox::arm(&mut self.store, budget_ms);
        let rows = candidates.len();
        let request = self.gathered.request(request);
        let columns = self.gathered.candidates(rows);
        let answer = self.routing.call_decide(&mut self.store, request, columns);
        drop(running);
        convert::accept(self.ended(answer, budget_ms)?, rows, decision)
    }

    /// Whether the policy wants outcomes.
    #[must_use]
    pub fn observes(&self) -> bool {
        self.observer.is_some()
    }

    /// Whether the policy explains its decisions.
    #[must_use]
    pub fn explains(&self) -> bool {
        self.explainer.is_some()
    }

    /// Whether the policy passes state to its next version.
    pub(crate) const fn keeps_state(&self) -> bool {
        self.state.is_some()
    }

    /// Gives the policy the outcomes of requests, oldest first. Does nothing when the policy wants none.
    ///
    /// # Errors
    /// As [`PolicyInstance::decide`].
    pub fn observe(&mut self, outcomes: &[Outcome]) -> Result<(), PolicyFault> {
        let Some(observer) = self.observer.clone() else {
            return Ok(());
        };
        for batch in outcomes.chunks(MAX_OUTCOMES) {
            let batch: Vec<types::Outcome> = batch.iter().map(Into::into).collect();
            self.call_with_configure_budget(|_, store| observer.call_observe(store, &batch))?;
        }
        Ok(())
    }

    /// What the next version of the policy takes over; `None` when the policy keeps no state.
    ///
    /// # Errors
    /// As [`PolicyInstance::decide`]; also a snapshot larger than 1 MiB.
    pub fn snapshot(&mut self) -> Result<Option<Vec<u8>>, PolicyFault> {
        let Some(state) = self.state.clone() else {
            return Ok(None);
        };
        let snapshot = self.call_with_configure_budget(|_, store| state.call_snapshot(store))?;
        if snapshot.len() > MAX_SNAPSHOT_BYTES {
            let size = snapshot.len();
            return Err(PolicyFault::Answer(format!(
                "the snapshot has {size} bytes; at most {MAX_SNAPSHOT_BYTES} are possible"
            )));
        }
        Ok(Some(snapshot).filter(|snapshot| !snapshot.is_empty()))
    }

    /// Gives the policy the snapshot of an earlier version. The inner error is the sentence of a policy that refuses
    /// it.
    ///
    /// # Errors
    /// As [`PolicyInstance::decide`].
    pub fn restore(&mut self, snapshot: &[u8]) -> Result<Result<(), String>, PolicyFault> {
        let Some(state) = self.state.clone() else {
            return Ok(Err("it keeps no state".into()));
        };
        self.call_with_configure_budget(|_, store| state.call_restore(store, snapshot))
    }

    /// Why the candidate in row `chosen` has the request, in the policy's words; `None` when the policy does not
    /// explain its decisions.
    ///
    /// # Errors
    /// As [`PolicyInstance::decide`].
    pub fn explain(
        &mut self,
        request: &RequestFeatures,
        candidates: &Candidates,
        chosen: u32,
    ) -> Result<Option<String>, PolicyFault> {
        let Some(explainer) = self.explainer.clone() else {
            return Ok(None);
        };
        self.gather(request, candidates)?;
        let gathered = std::mem::take(&mut self.gathered);
        let request = gathered.request(request);
        let columns = gathered.candidates(candidates.len());
        let reason = self
            .call_with_configure_budget(|_, store| explainer.call_explain(store, request, columns, chosen));
        self.gathered = gathered;
        let mut reason = reason?;
        reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
        Ok(Some(reason))
    }

    /// Size of its linear memories together, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.store.data().memory_bytes()
    }

    /// The component of this instance.
    #[must_use]
    pub const fn component(&self) -> &Arc<PolicyComponent> {
        &self.component
    }

    /// Checks that each column has a row for each candidate, which the WIT promises to guests, and gathers what the
    /// policy reads.
    fn gather(&mut self, request: &RequestFeatures, candidates: &Candidates) -> Result<(), PolicyFault> {
        if candidates.is_empty() {
            return Err(PolicyFault::Candidates("there is no candidate".into()));
        }
        let names = &self.component.description.names;
        if let Some((name, rows)) = candidates.uneven_column(names.groups) {
            return Err(PolicyFault::Candidates(format!(
                "the column {name} has {rows} rows for {} candidates",
                candidates.len()
            )));
        }
        names.gather(request, candidates, &mut self.gathered);
        Ok(())
    }

    /// What a call returned, or its fault. Writes what the policy logged.
    fn ended<R>(&mut self, returned: wasmtime::Result<R>, budget_ms: u64) -> Result<R, PolicyFault> {
        let diagnostics = &mut self.store.data_mut().diagnostics;
        let returned = returned.map_err(|error| {
            PolicyFault::from_call(&error, budget_ms).with_reason(diagnostics.last_warning())
        });
        if !diagnostics.is_empty() {
            diagnostics.write(self.component.label(), Instant::now());
        }
        returned
    }

    /// Makes a call other than `decide`, which has the longer budget.
    fn call_with_configure_budget<R>(
        &mut self,
        call: impl FnOnce(&routing::Guest, &mut Store<Sandbox>) -> wasmtime::Result<R>,
    ) -> Result<R, PolicyFault> {
        let engine = &self.component.engine;
        let budget_ms = engine.limits().configure_budget_ms;
        let running = engine.ticker().enter();
        Sandbox::arm(&mut self.store, budget_ms);
        let returned = call(&self.routing, &mut self.store);
        drop(running);
        self.ended(returned, budget_ms)
    }
}

#[cfg(test)]
mod tests;
