//! The stored policies of a router, and the active policy of each model.
//!
//! The [`VersionStore`] holds the stored versions; each model has an [`ActivePolicy`]. All slow work (to compile, to
//! try, to start and to drop instances) is done by the caller of an admin method or on the reaper thread. A decision
//! finds the active version with one atomic load.
//!
//! Three faults within a minute (`active_policy.rs`) put a version in quarantine, and it decides for no model any more.
//! Each model that it decided for returns to the latest earlier version that is not in quarantine, else to the default
//! policy, else to the native fallback. A version never leaves quarantine by itself, since the cause of its faults is
//! still in it. An upload of the same component tries it again and ends the quarantine.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

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
};
use reaper::{Reaper, Retired};
use version_store::{Replaced, Stored, VersionStore};

mod active_policy;
mod reaper;
mod swap;
mod version_store;

/// Most models with an active policy. Admin calls can activate policies for models that no worker serves, so their
/// number needs a bound.
const MAX_MODELS: usize = 4096;

/// Time between two log lines about faults that no policy caused, such as a lack of places for instances. Each decision may
/// have such a fault.
const UNBLAMED_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The stored policies of a router and the active policy of each model: uploads, versions, activation, faults,
/// quarantine, rollback. It does no I/O. A clone is a handle; threads share it.
#[derive(Debug, Clone)]
pub struct PolicyRegistry(Arc<RegistryInner>);

/// What all handles of a registry share.
#[derive(Debug)]
struct RegistryInner {
    engine: PolicyEngine,
    default_policy: String,
    state: Mutex<State>,
    reaper: Reaper,
    listener: Listener,
    /// Limits the log lines about faults of the host.
    unblamed: Mutex<LogTurns>,
}

#[derive(Debug, Default)]
struct State {
    versions: VersionStore,
    active_policies: BTreeMap<String, Arc<ActivePolicy>>,
}

/// A component that was stored, and what it replaced.
#[derive(Debug)]
pub struct UploadedPolicy {
    /// The stored version.
    pub record: PolicyRecord,
    label: Arc<str>,
    before: Option<Replaced>,
}

impl UploadedPolicy {
    /// Whether no such component was stored before.
    #[must_use]
    pub const fn is_new(&self) -> bool {
        self.before.is_none()
    }
}

/// What happens to a policy without an admin call.
#[derive(Debug, Clone, PartialEq)]
pub enum RegistryEvent {
    /// A version was put in quarantine.
    Quarantined {
        /// The version.
        policy: PolicyRecord,
        /// The models that it decided for.
        models: Vec<String>,
        /// Its last fault.
        reason: String,
    },
}

/// Who receives the events.
#[derive(Default)]
struct Listener(OnceLock<Box<dyn Fn(RegistryEvent) + Send + Sync>>);

impl Listener {
    fn notify(&self, event: RegistryEvent) {
        if let Some(listener) = self.0.get() {
            listener(event);
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

/// Why an admin call failed. The call changed nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistryError {
    /// There is no such policy or version.
    #[error("no policy is called {name:?}; known: {known}")]
    Unknown {
        /// The policy or version in the call.
        name: String,
        /// The stored versions.
        known: String,
    },
    /// The component or its settings are not admitted.
    #[error(transparent)]
    Admission(#[from] AdmissionError),
    /// The state of the registry does not allow the call.
    #[error("{0}")]
    Conflict(String),
}

impl PolicyRegistry {
    /// A registry that stores the built-in policies. `default_policy` decides for every model for which no other policy
    /// was activated.
    ///
    /// # Errors
    /// `default_policy` is not a built-in policy, or the limits of `engine` refuse a built-in policy.
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
            "Calls in which a policy failed and the fallback decided, by policy and kind"
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
            AdmissionError::Unsound(format!("no thread to drop old policies on starts: {error}"))
        })?;
        let mut state = State::default();
        for (name, component) in builtin {
            state.versions.keep(name, Arc::clone(component), None, true)?;
        }
        state.versions.find(default_policy)?;
        let default_policy = default_policy.to_owned();
        Ok(Self(Arc::new(RegistryInner {
            engine,
            default_policy,
            state: Mutex::new(state),
            reaper,
            listener: Listener::default(),
            unblamed: Mutex::default(),
        })))
    }

    /// Admits a component and stores it as the newest version of `name`. It compiles the component: call it off the
    /// request threads. `settings` are a JSON object, or empty for the defaults. The bytes of a stored version do not
    /// make a second record: the version leaves quarantine and has the new settings. A component whose version another
    /// component of that name has gets a part of its digest: `1.2.0+0a1b2c3d`.
    ///
    /// # Errors
    /// `name` cannot name a policy or is the name of a built-in one, the component or its settings are not admitted, or
    /// all versions that can be stored are in use.
    pub fn upload(&self, name: &str, wasm: &[u8], settings: &str) -> Result<UploadedPolicy, RegistryError> {
        check_name(name)?;
        self.keep(name, self.0.engine.admit(wasm, settings)?, None)
    }

    /// Takes back an upload that could not be kept elsewhere, and restores what was stored before it.
    pub fn take_back(&self, upload: UploadedPolicy) {
        let mut state = self.0.state.lock();
        tracing::info!(policy.name = &*upload.label, "policy taken back");
        state.versions.put_back(&upload.label, upload.before);
    }

    /// As [`upload`](Self::upload), for a component that was uploaded to another router. It keeps the `version` it has
    /// there, unless another component has that version here.
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
        let kept = self.keep(name, self.0.engine.admit(wasm, settings)?, Some(version))?;
        Ok(kept.record)
    }

    fn keep(
        &self,
        name: &str,
        component: Arc<PolicyComponent>,
        version: Option<&str>,
    ) -> Result<UploadedPolicy, RegistryError> {
        let mut state = self.0.state.lock();
        state.versions.check_builtin(name, &component)?;
        state.make_room()?;
        let (label, before) = state.versions.keep(name, component, version, false)?;
        tracing::info!(policy.name = &*label, "policy stored");
        let record = state.record(&label)?;
        Ok(UploadedPolicy {
            record,
            label,
            before,
        })
    }

    /// The limits of policies.
    #[must_use]
    pub fn limits(&self) -> PolicyLimits {
        self.0.engine.limits()
    }

    /// All stored versions, sorted by name; the versions of one name are sorted by age, the oldest first.
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

    /// The version that `policy` means: `name` the newest upload of it, `name@1.2.0` that version, `name@1` or `name@1.2`
    /// the highest release that begins so, `name@sha256:DIGITS` the one whose digest begins so.
    ///
    /// # Errors
    /// There is no such version, or it is in quarantine.
    pub fn find(&self, policy: &str) -> Result<PolicyRecord, RegistryError> {
        let state = self.0.state.lock();
        state.versions.find(policy).map(|stored| state.record_of(stored))
    }

    /// As [`find`](Self::find), also if the version is in quarantine.
    ///
    /// # Errors
    /// There is no such version.
    pub fn look_up(&self, policy: &str) -> Result<PolicyRecord, RegistryError> {
        let state = self.0.state.lock();
        state
            .versions
            .look_up(policy)
            .map(|stored| state.record_of(stored))
    }

    /// Drops an upload that decides for no model.
    ///
    /// # Errors
    /// There is no such version, it is part of the binary, or it decides for a model.
    pub fn remove(&self, name: &str, digest: &str) -> Result<(), RegistryError> {
        let mut state = self.0.state.lock();
        let Some(stored) = state.versions.by_digest(name, digest) else {
            return Err(RegistryError::Conflict(format!("{name} has no version {digest}")));
        };
        let (record, label) = (state.record_of(stored), Arc::clone(&stored.label));
        if record.builtin {
            return Err(RegistryError::Conflict(format!(
                "{label} is part of this program and cannot be deleted"
            )));
        }
        if !record.models.is_empty() {
            return Err(RegistryError::Conflict(format!(
                "{label} decides for {}; activate another policy first",
                record.models.join(", ")
            )));
        }
        state.versions.remove(&label);
        tracing::info!(policy.name = &*label, "policy deleted");
        Ok(())
    }

    /// Calls `listener` with each event from now on. It must return at once. The first listener stays.
    pub fn listen(&self, listener: impl Fn(RegistryEvent) + Send + Sync + 'static) {
        if self.0.listener.0.set(Box::new(listener)).is_err() {
            tracing::debug!("the events of policies have a listener already");
        }
    }

    /// The version of `name` with this digest, in quarantine or not.
    #[must_use]
    pub fn by_digest(&self, name: &str, digest: &str) -> Option<PolicyRecord> {
        let state = self.0.state.lock();
        let stored = state.versions.by_digest(name, digest)?;
        Some(state.record_of(stored))
    }

    /// The activation that decides for `model` now: of the default policy, unless another one was activated.
    #[must_use]
    pub fn deciding(&self, model: &str) -> Arc<Activation> {
        self.active_policy(model).current()
    }

    /// The activation that decides for `model` now; `None` while the model has no runner and no policy was activated
    /// for it.
    #[must_use]
    pub fn active(&self, model: &str) -> Option<Arc<Activation>> {
        self.0
            .state
            .lock()
            .active_policies
            .get(model)
            .map(|active_policy| active_policy.current())
    }

    /// The active policy of `model`, which begins with the default policy.
    pub(crate) fn active_policy(&self, model: &str) -> Arc<ActivePolicy> {
        self.active_policy_in(&mut self.0.state.lock(), model)
    }

    /// Counts and logs a fault of `activation`. The third one within a minute puts the version in quarantine.
    pub(crate) fn note_fault(&self, model: &str, activation: &Activation, fault: &PolicyFault) {
        let label = &activation.label;
        counter!("signalbox_policy_faults_total", "policy" => label.to_string(), "kind" => fault.kind())
            .increment(1);
        if !fault.blamed() {
            if let Some(unlogged) = self.0.unblamed.lock().take_turn(Instant::now()) {
                tracing::warn!(
                    policy.name = &**label,
                    model,
                    unlogged,
                    "policy {fault}; the fallback decides instead of it"
                );
            }
            return;
        }
        tracing::warn!(
            policy.name = &**label,
            model,
            kind = fault.kind(),
            "policy fault: it {fault}; the fallback decides"
        );
        if activation.note_fault(Instant::now()) {
            self.quarantine(label, fault);
        }
    }

    /// Drops an instance or an activation on the reaper thread.
    pub(crate) fn retire(&self, retired: impl Into<Retired>) {
        self.0.reaper.take(retired.into());
    }

    fn quarantine(&self, label: &str, fault: &PolicyFault) {
        if let Some(event) = self.replace_everywhere(label, fault) {
            self.0.listener.notify(event);
        }
    }

    /// Puts a version in quarantine and lets others decide for its models. `None` if it is there already.
    fn replace_everywhere(&self, label: &str, fault: &PolicyFault) -> Option<RegistryEvent> {
        let mut state = self.0.state.lock();
        if !state.versions.quarantine(label, fault.to_string()) {
            return None;
        }
        let record = state.record(label).ok()?;
        let mut models = Vec::new();
        counter!("signalbox_policy_quarantines_total", "policy" => label.to_owned()).increment(1);
        for (model, active_policy) in &state.active_policies {
            if &*active_policy.current().label != label {
                continue;
            }
            models.push(model.clone());
            let earlier = active_policy
                .predecessor(|label| state.versions.find(label).is_ok())
                .map(|earlier| (Arc::clone(&earlier.label), Arc::clone(&earlier.component)));
            let default = || {
                state
                    .versions
                    .find(&self.0.default_policy)
                    .ok()
                    .map(|stored| (Arc::clone(&stored.label), Arc::clone(&stored.component)))
            };
            match earlier.or_else(default) {
                Some((next, component)) => {
                    tracing::error!(
                        policy.name = label,
                        model,
                        next = &*next,
                        "policy in quarantine; another one decides"
                    );
                    active_policy.publish(next, component, Vec::new(), false);
                }
                None => {
                    tracing::error!(
                        policy.name = label,
                        model,
                        "policy in quarantine; the fallback decides"
                    );
                    active_policy.suspend();
                }
            }
        }
        Some(RegistryEvent::Quarantined {
            policy: record,
            models,
            reason: fault.to_string(),
        })
    }

    fn active_policy_in(&self, state: &mut State, model: &str) -> Arc<ActivePolicy> {
        if let Some(active_policy) = state.active_policies.get(model) {
            return Arc::clone(active_policy);
        }
        let active_policy = Arc::new(match state.versions.find(&self.0.default_policy) {
            Ok(stored) => ActivePolicy::new(Arc::clone(&stored.label), Arc::clone(&stored.component), true),
            // The default policy is in quarantine: the fallback decides until another policy is activated.
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

/// One log line in [`UNBLAMED_LOG_INTERVAL`].
#[derive(Debug, Default)]
struct LogTurns {
    last: Option<Instant>,
    unlogged: u64,
}

impl LogTurns {
    /// How many faults were not logged since the last line, if a line is due now.
    fn take_turn(&mut self, now: Instant) -> Option<u64> {
        let is_due = |last| now.saturating_duration_since(last) >= UNBLAMED_LOG_INTERVAL;
        if self.last.is_none_or(is_due) {
            self.last = Some(now);
            return Some(std::mem::take(&mut self.unlogged));
        }
        self.unlogged += 1;
        None
    }
}

impl State {
    fn record(&self, label: &str) -> Result<PolicyRecord, RegistryError> {
        self.versions.by_label(label).map(|stored| self.record_of(stored))
    }

    fn record_of(&self, stored: &Stored) -> PolicyRecord {
        let decides = |active_policy: &ActivePolicy| {
            let current = active_policy.current();
            current.decides() && current.label == stored.label
        };
        let models = self
            .active_policies
            .iter()
            .filter(|(_, active_policy)| decides(active_policy))
            .map(|(model, _)| model.clone())
            .collect();
        stored.record(models)
    }

    /// When the store is full, drops the oldest version that no model needs.
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
    /// As [`PolicyRegistry::new`], with components that are admitted once for all tests.
    pub(crate) fn for_tests(default_policy: &str) -> Result<Self, RegistryError> {
        use crate::test_support;
        Self::with_builtin(test_support::engine(), &test_support::builtin(), default_policy)
    }

    /// As [`PolicyRegistry::upload`] of a guest, which is admitted once for all tests.
    pub(crate) fn store_guest(&self, guest: &str) -> PolicyRecord {
        self.store(guest, crate::test_support::admitted(guest), None)
            .expect(guest)
    }

    pub(crate) fn store(
        &self,
        name: &str,
        component: Arc<PolicyComponent>,
        version: Option<&str>,
    ) -> Result<PolicyRecord, RegistryError> {
        self.keep(name, component, version).map(|kept| kept.record)
    }
}
