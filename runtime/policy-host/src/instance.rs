//! One running policy: a Store, what it exports, and the calls into it.

use std::{fmt, sync::Arc};

use wasmtime::Store;

use crate::{
    bindings::{explainer, observer, routing, state, types},
    component::PolicyComponent,
    convert,
    engine::PolicyEngine,
    fault::PolicyFault,
    features::{Candidates, Decision, Outcome, RequestFeatures},
    sandbox::Sandbox,
    signals::Signal,
};

/// Most outcomes in one call of `observe` (`wit/learning.wit`); more are told in several.
const MAX_OUTCOMES: usize = 256;
/// Most of a snapshot that is taken over (`wit/learning.wit`).
const MAX_SNAPSHOT_BYTES: usize = 1 << 20;
/// Most of an explanation that is kept (`wit/explainer.wit`).
const MAX_REASON_BYTES: usize = 1024;

/// One running instance in a Store of its own. After a fault it answers no more and must be dropped.
pub struct PolicyInstance {
    component: Arc<PolicyComponent>,
    store: Store<Sandbox>,
    routing: routing::Guest,
    observer: Option<observer::Guest>,
    state: Option<state::Guest>,
    explainer: Option<explainer::Guest>,
    /// The extra signals of the decision at hand; kept for its memory.
    extra: Vec<f32>,
}

impl fmt::Debug for PolicyInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyInstance")
            .field("component", &self.component)
            .finish_non_exhaustive()
    }
}

/// What a policy says of itself, checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Description {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) columns: types::Columns,
    pub(crate) signals: Vec<Signal>,
}

impl PolicyInstance {
    /// A new instance of `component`, not yet configured.
    pub(crate) fn start(component: &Arc<PolicyComponent>) -> Result<Self, PolicyFault> {
        let PolicyEngine(engine) = &component.engine;
        let budget_ms = engine.limits.configure_budget_ms;
        let mut store = Sandbox::store(&engine.wasm, engine.limits.max_memory_bytes);
        let _running = engine.ticker.enter();
        Sandbox::arm(&mut store, budget_ms);
        let exports = &component.exports;
        let started = exports.pre.instantiate(&mut store).and_then(|instance| {
            Ok(Self {
                component: Arc::clone(component),
                routing: exports.routing.load(&mut store, &instance)?,
                observer: exports
                    .observer
                    .as_ref()
                    .map(|it| it.load(&mut store, &instance))
                    .transpose()?,
                state: exports
                    .state
                    .as_ref()
                    .map(|it| it.load(&mut store, &instance))
                    .transpose()?,
                explainer: exports
                    .explainer
                    .as_ref()
                    .map(|it| it.load(&mut store, &instance))
                    .transpose()?,
                extra: Vec::new(),
                store,
            })
        });
        started.map_err(|error| PolicyFault::from_instantiation(&error, budget_ms))
    }

    /// Hands over the settings; the inner error is the policy's own sentence.
    pub(crate) fn configure(&mut self, settings: &str) -> Result<Result<(), String>, PolicyFault> {
        self.call_with_configure_budget(|routing, store| routing.call_configure(store, settings))
    }

    /// Asks who it is and what it wants to see; the inner error is a sentence about an answer that will not do.
    pub(crate) fn describe(&mut self) -> Result<Result<Description, String>, PolicyFault> {
        let info = self.call_with_configure_budget(|routing, store| routing.call_describe(store))?;
        Ok(Description::check(info))
    }

    /// Asks for a decision. The answer is checked (as many costs as candidates, none NaN, not all infinite; a pick in
    /// range) and left in `decision`, which is untouched after a fault.
    ///
    /// # Errors
    /// Whatever the policy did instead; the instance must then be dropped. Also when `candidates` is empty or its
    /// columns differ in length, which no policy is asked about.
    pub fn decide(
        &mut self,
        request: &RequestFeatures,
        candidates: &Candidates,
        decision: &mut Decision,
    ) -> Result<(), PolicyFault> {
        self.gather_signals(request, candidates)?;
        let PolicyEngine(engine) = &self.component.engine;
        let budget_ms = engine.limits.decide_budget_ms;
        let _running = engine.ticker.enter();
        Sandbox::arm(&mut self.store, budget_ms);
        let columns = convert::candidates(candidates, self.component.description.columns, &self.extra);
        let answer = self
            .routing
            .call_decide(&mut self.store, request.into(), columns)
            .map_err(|error| PolicyFault::from_call(&error, budget_ms))?;
        convert::accept(answer, candidates.len(), decision)
    }

    /// Whether it wants to hear of outcomes.
    #[must_use]
    pub fn observes(&self) -> bool {
        self.observer.is_some()
    }

    /// Tells it what became of requests, oldest first; nothing happens when it does not want to hear.
    ///
    /// # Errors
    /// As [`PolicyInstance::decide`].
    pub fn observe(&mut self, outcomes: &[Outcome]) -> Result<(), PolicyFault> {
        let Some(observer) = self.observer.clone() else {
            return Ok(());
        };
        for some in outcomes.chunks(MAX_OUTCOMES) {
            let some: Vec<types::Outcome> = some.iter().map(Into::into).collect();
            self.call_with_configure_budget(|_, store| observer.call_observe(store, &some))?;
        }
        Ok(())
    }

    /// What it wants its next version to inherit; `None` when it keeps nothing.
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
                "a snapshot of {size} bytes; {MAX_SNAPSHOT_BYTES} is the most"
            )));
        }
        Ok(Some(snapshot).filter(|snapshot| !snapshot.is_empty()))
    }

    /// Offers it what an earlier version left; answers with the sentence of a policy that will not take it.
    ///
    /// # Errors
    /// As [`PolicyInstance::decide`].
    pub fn restore(&mut self, snapshot: &[u8]) -> Result<Result<(), String>, PolicyFault> {
        let Some(state) = self.state.clone() else {
            return Ok(Err("it keeps no state".into()));
        };
        self.call_with_configure_budget(|_, store| state.call_restore(store, snapshot))
    }

    /// Why the candidate in row `chosen` has the request, in the policy's words; `None` when it does not explain.
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
        self.gather_signals(request, candidates)?;
        let extra = std::mem::take(&mut self.extra);
        let columns = convert::candidates(candidates, self.component.description.columns, &extra);
        let reason = self.call_with_configure_budget(|_, store| {
            explainer.call_explain(store, request.into(), columns, chosen)
        });
        let mut reason = reason?;
        reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
        self.extra = extra;
        Ok(Some(reason))
    }

    /// What this is an instance of.
    #[must_use]
    pub const fn component(&self) -> &Arc<PolicyComponent> {
        &self.component
    }

    /// Fills `extra`, after seeing that the columns are columns: the guest is promised that.
    fn gather_signals(
        &mut self,
        request: &RequestFeatures,
        candidates: &Candidates,
    ) -> Result<(), PolicyFault> {
        let rows = candidates.len();
        if rows == 0 {
            return Err(PolicyFault::Candidates("there is none".into()));
        }
        let optional = self.component.wants_optional().then(|| candidates.optional());
        let mut shown = candidates
            .usual()
            .into_iter()
            .chain(optional.into_iter().flatten());
        if let Some((name, column)) = shown.find(|(_, column)| column.len() != rows) {
            let found = column.len();
            return Err(PolicyFault::Candidates(format!(
                "the column {name} has {found} rows for {rows} of them"
            )));
        }
        self.extra.clear();
        for signal in &self.component.description.signals {
            signal.append(request, candidates, &mut self.extra);
        }
        Ok(())
    }

    /// A call off the path of decisions, which has the longer budget.
    fn call_with_configure_budget<R>(
        &mut self,
        call: impl FnOnce(&routing::Guest, &mut Store<Sandbox>) -> wasmtime::Result<R>,
    ) -> Result<R, PolicyFault> {
        let PolicyEngine(engine) = &self.component.engine;
        let budget_ms = engine.limits.configure_budget_ms;
        let _running = engine.ticker.enter();
        Sandbox::arm(&mut self.store, budget_ms);
        call(&self.routing, &mut self.store).map_err(|error| PolicyFault::from_call(&error, budget_ms))
    }
}

impl Description {
    fn check(info: types::Info) -> Result<Self, String> {
        let types::Info {
            name,
            version,
            columns,
            extra,
        } = info;
        if !is_policy_name(&name) {
            return Err(format!(
                "it calls itself {name:?}; a name has at most {MAX_NAME} lower-case letters, digits, `-`, `_` and `.`, a \
                 letter or digit first"
            ));
        }
        let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+');
        if version.is_empty() || version.len() > MAX_NAME || !version.chars().all(sound) {
            return Err(format!(
                "it gives its version as {version:?}; a version has 1 to {MAX_NAME} letters, digits, `.`, `-` and `+`"
            ));
        }
        Ok(Self {
            name,
            version,
            columns,
            signals: Signal::named(&extra)?,
        })
    }
}

/// Longest name or version: they stand in headers and metric labels.
pub(crate) const MAX_NAME: usize = 64;

/// Whether `name` can name a policy: safe in URLs, headers, metric labels and file names.
pub(crate) fn is_policy_name(name: &str) -> bool {
    let sound = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= MAX_NAME
        && name.starts_with(sound)
        && name.chars().all(|c| sound(c) || matches!(c, '-' | '_' | '.'))
}

#[cfg(test)]
mod tests;
