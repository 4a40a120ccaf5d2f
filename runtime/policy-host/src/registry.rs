//! The policies a router knows, and which of them decides for each model.
//!
//! Everything slow (compiling, trying, starting instances, dropping them) happens on the caller of an admin method or
//! on the reaper thread; a decision meets only the finished thing, through one atomic load. Stored versions are on the
//! [`versions`](version_store::VersionStore), who decides for a model is its [`ActivePolicy`].
//!
//! Three faults within a minute (`active_policy.rs`) quarantine a version: it decides for no model any more, and each
//! model it decided for goes back to what decided before it, at last to the default policy, and if that is in
//! quarantine itself to the native fallback. A quarantined version never returns by itself: whatever made it fault is
//! still in it. Uploading it again, which tries it again, lifts the quarantine.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use metrics::{counter, describe_counter};
use parking_lot::Mutex;

pub use active_policy::Activation;
pub(crate) use active_policy::ActivePolicy;
pub use swap::{PreparedPolicy, Succession};
pub use version_store::PolicyRecord;

use crate::{
    admission::AdmissionError,
    builtin::builtin_policies,
    component::PolicyComponent,
    description::{MAX_NAME, is_policy_name},
    engine::PolicyEngine,
    fault::PolicyFault,
    limits::PolicyLimits,
    runner::PolicyRunner,
};
use reaper::{Reaper, Retired};
use version_store::{Stored, VersionStore};

mod active_policy;
mod reaper;
mod swap;
mod version_store;

/// Models a policy can be activated for before anybody serves them: a bound on what admin calls can pile up.
const MAX_MODELS: usize = 4096;

/// The policies a router knows and which one decides for each model: uploads, versions, activation, faults,
/// quarantine, rollback. It does no I/O. A clone is a handle; threads share it.
#[derive(Debug, Clone)]
pub struct PolicyRegistry(Arc<Registry>);

#[derive(Debug)]
struct Registry {
    engine: PolicyEngine,
    default_policy: String,
    state: Mutex<State>,
    reaper: Reaper,
}

#[derive(Debug, Default)]
struct State {
    versions: VersionStore,
    active_policies: BTreeMap<String, Arc<ActivePolicy>>,
}

/// Why an admin call did nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistryError {
    /// No such policy or version.
    #[error("no policy is called {name:?}; known: {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The versions there are.
        known: String,
    },
    /// The component or its settings are not accepted.
    #[error(transparent)]
    Admission(#[from] AdmissionError),
    /// It cannot be done as things stand.
    #[error("{0}")]
    Conflict(String),
}

impl PolicyRegistry {
    /// A registry with the built-in policies admitted; `default_policy` decides for every model that was given no other.
    ///
    /// # Errors
    /// `default_policy` is none of the built-in ones, or one of those is not admitted by `engine`'s limits.
    pub fn new(engine: PolicyEngine, default_policy: &str) -> Result<Self, RegistryError> {
        let admit = |(name, wasm)| Ok((name, engine.admit(wasm, "")?));
        let builtin = builtin_policies()
            .into_iter()
            .map(admit)
            .collect::<Result<Vec<_>, AdmissionError>>()?;
        Self::with_builtin(engine, &builtin, default_policy)
    }

    fn with_builtin(
        engine: PolicyEngine,
        builtin: &[(&'static str, Arc<PolicyComponent>)],
        default_policy: &str,
    ) -> Result<Self, RegistryError> {
        describe_counter!(
            "signalbox_policy_faults_total",
            "Calls in which a policy failed, by policy and kind"
        );
        describe_counter!(
            "signalbox_policy_swaps_total",
            "Times a policy became the active one of a model"
        );
        describe_counter!(
            "signalbox_policy_quarantines_total",
            "Times a policy version was put in quarantine"
        );
        let reaper = Reaper::start().map_err(|error| {
            AdmissionError::Unsound(format!("no thread to drop old policies on: {error}"))
        })?;
        let mut state = State::default();
        for (name, component) in builtin {
            state.versions.keep(name, Arc::clone(component), None, true)?;
        }
        state.versions.find(default_policy)?;
        let default_policy = default_policy.to_owned();
        Ok(Self(Arc::new(Registry {
            engine,
            default_policy,
            state: Mutex::new(state),
            reaper,
        })))
    }

    /// Admits a component and stores it as the newest version of `name`. Blocking (it compiles): run it off the
    /// request threads. `settings` are a JSON object, or empty for the defaults. The same bytes and settings again
    /// return the stored record, out of quarantine; the same bytes with other settings change those of the record.
    /// A version that was declared before for other bytes is told apart by its digest: `1.2.0+0a1b2c3d`.
    ///
    /// # Errors
    /// The name cannot be one, the component or its settings are not accepted, or there is no room.
    pub fn upload(&self, name: &str, wasm: &[u8], settings: &str) -> Result<PolicyRecord, RegistryError> {
        check_name(name)?;
        self.store(name, self.0.engine.admit(wasm, settings)?, None)
    }

    /// As [`upload`](Self::upload), of what was uploaded to another router: it keeps the `version` it was told apart by
    /// there, unless another component has it here.
    ///
    /// # Errors
    /// As for an upload.
    pub fn restore(
        &self,
        name: &str,
        version: &str,
        wasm: &[u8],
        settings: &str,
    ) -> Result<PolicyRecord, RegistryError> {
        check_name(name)?;
        self.store(name, self.0.engine.admit(wasm, settings)?, Some(version))
    }

    fn store(
        &self,
        name: &str,
        component: Arc<PolicyComponent>,
        version: Option<&str>,
    ) -> Result<PolicyRecord, RegistryError> {
        let mut state = self.0.state.lock();
        state.make_room()?;
        let label = state.versions.keep(name, component, version, false)?;
        tracing::info!(policy.name = &*label, "policy stored");
        state.record(&label)
    }

    /// What policies may use here.
    #[must_use]
    pub fn limits(&self) -> PolicyLimits {
        self.0.engine.limits()
    }

    /// Every stored version, by name and then oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<PolicyRecord> {
        let state = self.0.state.lock();
        let mut records: Vec<_> = state
            .versions
            .iter()
            .map(|stored| state.record_of(stored))
            .collect();
        records.sort_by(|a, b| a.name.cmp(&b.name));
        records
    }

    /// The version that `name@version` names, or the newest by `name`, if it may be activated.
    ///
    /// # Errors
    /// There is none, or it is in quarantine.
    pub fn find(&self, policy: &str) -> Result<PolicyRecord, RegistryError> {
        let state = self.0.state.lock();
        state.versions.find(policy).map(|stored| state.record_of(stored))
    }

    /// The version with exactly these bytes, in quarantine or not.
    #[must_use]
    pub fn by_digest(&self, name: &str, digest: &str) -> Option<PolicyRecord> {
        let state = self.0.state.lock();
        let stored = state.versions.by_digest(name, digest)?;
        Some(state.record_of(stored))
    }

    /// What decides for `model` now: the default policy, unless another one was activated.
    #[must_use]
    pub fn deciding(&self, model: &str) -> Arc<Activation> {
        self.active_policy(&mut self.0.state.lock(), model).active()
    }

    /// What decides for `model` now; `None` when nobody asked for a runner or activated a policy for it yet.
    #[must_use]
    pub fn active(&self, model: &str) -> Option<Arc<Activation>> {
        self.0
            .state
            .lock()
            .active_policies
            .get(model)
            .map(|active_policy| active_policy.active())
    }

    /// A thread's view of what decides for `model`, with an instance of its own started here.
    #[must_use]
    pub fn runner(&self, model: &str) -> PolicyRunner {
        let active_policy = self.active_policy(&mut self.0.state.lock(), model);
        PolicyRunner::new(self.clone(), model, active_policy)
    }

    /// Notes a fault of `activation`: counted, logged, and after too many the version goes into quarantine.
    pub(crate) fn note_fault(&self, model: &str, activation: &Activation, fault: &PolicyFault) {
        let label = &activation.label;
        counter!("signalbox_policy_faults_total", "policy" => label.to_string(), "kind" => fault.kind())
            .increment(1);
        if !fault.blamed() {
            tracing::debug!(
                policy.name = &**label,
                model,
                "policy could not be asked: {fault}"
            );
            return;
        }
        tracing::warn!(
            policy.name = &**label,
            model,
            kind = fault.kind(),
            "policy fault, fallback decides: {fault}"
        );
        if activation.fault_is_one_too_many(Instant::now()) {
            self.quarantine(label, fault);
        }
    }

    /// Drops what a thread is done with on another one.
    pub(crate) fn retire(&self, retired: impl Into<Retired>) {
        self.0.reaper.take(retired.into());
    }

    fn quarantine(&self, label: &str, fault: &PolicyFault) {
        let mut state = self.0.state.lock();
        if !state.versions.quarantine(label, fault.to_string()) {
            return;
        }
        counter!("signalbox_policy_quarantines_total", "policy" => label.to_owned()).increment(1);
        for (model, active_policy) in &state.active_policies {
            if &*active_policy.active().label != label {
                continue;
            }
            let earlier = active_policy
                .predecessor(|label| !state.versions.is_quarantined(label))
                .map(|earlier| (Arc::clone(&earlier.label), Arc::clone(&earlier.component)));
            let default = || {
                state
                    .versions
                    .find(&self.0.default_policy)
                    .ok()
                    .map(|it| (Arc::clone(&it.label), Arc::clone(&it.component)))
            };
            match earlier.or_else(default) {
                Some((next, component)) => {
                    tracing::error!(
                        policy.name = label,
                        model,
                        next = &*next,
                        "policy quarantined, another one decides"
                    );
                    active_policy.publish(next, component, Vec::new(), false);
                }
                None => {
                    tracing::error!(
                        policy.name = label,
                        model,
                        "policy quarantined, the fallback decides"
                    );
                    active_policy.suspend();
                }
            }
        }
    }

    /// The active policy of `model`, begun with the default policy when there is none yet.
    fn active_policy(&self, state: &mut State, model: &str) -> Arc<ActivePolicy> {
        if let Some(active_policy) = state.active_policies.get(model) {
            return Arc::clone(active_policy);
        }
        let active_policy = Arc::new(match state.versions.find(&self.0.default_policy) {
            Ok(stored) => ActivePolicy::new(Arc::clone(&stored.label), Arc::clone(&stored.component), true),
            // In quarantine: the fallback decides until something is activated.
            Err(_) => {
                let stored = state.versions.newest(&self.0.default_policy);
                ActivePolicy::new(Arc::clone(&stored.label), Arc::clone(&stored.component), false)
            }
        });
        state
            .active_policies
            .insert(model.to_owned(), Arc::clone(&active_policy));
        active_policy
    }
}

impl State {
    fn record(&self, label: &str) -> Result<PolicyRecord, RegistryError> {
        self.versions.by_label(label).map(|stored| self.record_of(stored))
    }

    fn record_of(&self, stored: &Stored) -> PolicyRecord {
        let decides = |active_policy: &ActivePolicy| {
            active_policy.active().decides() && active_policy.active().label == stored.label
        };
        let models = self
            .active_policies
            .iter()
            .filter(|(_, active_policy)| decides(active_policy))
            .map(|(model, _)| model.clone())
            .collect();
        stored.record(models)
    }

    /// Drops the oldest version nobody would miss when the versions is full.
    fn make_room(&mut self) -> Result<(), RegistryError> {
        let active_policies = &self.active_policies;
        self.versions.make_room(|label| {
            active_policies
                .values()
                .any(|active_policy| active_policy.needs(label))
        })
    }
}

fn check_name(name: &str) -> Result<(), RegistryError> {
    if is_policy_name(name) {
        return Ok(());
    }
    Err(RegistryError::Admission(AdmissionError::Unsound(format!(
        "{name:?} cannot name a policy; a name has 1 to {MAX_NAME} lower-case letters, digits, `-`, `_` and `.`, a \
         letter or digit first"
    ))))
}

#[cfg(test)]
mod tests;

#[cfg(test)]
impl PolicyRegistry {
    /// As [`PolicyRegistry::new`], with components that were admitted once for all tests.
    pub(crate) fn for_tests(default_policy: &str) -> Result<Self, RegistryError> {
        use crate::test_support;
        Self::with_builtin(test_support::engine(), &test_support::builtin(), default_policy)
    }

    /// As [`PolicyRegistry::upload`] of one of the guests, which is admitted once for all tests.
    pub(crate) fn stock(&self, guest: &str) -> PolicyRecord {
        self.store(guest, crate::test_support::admitted(guest), None)
            .expect(guest)
    }
}
