//! The swap of a model's policy, in two steps. The first prepares: it does all that is slow or can fail. The second
//! publishes, which is quick. Between the two, the routers of a cluster agree on the swap.

use std::sync::Arc;

use super::{Activation, ActivePolicy, MAX_MODELS, PolicyRegistry, RegistryError};
use crate::{
    admission::AdmissionError,
    component::{PolicyComponent, settings_json},
    instance::PolicyInstance,
};

/// Most instances that are started before a swap, one for each runner. Other runners start theirs in their next
/// decision.
const MAX_WARM: usize = 64;

/// A version with its settings, tried and started for the runners of a model. It decides nothing before it is
/// published.
#[derive(Debug)]
pub struct PreparedPolicy {
    active_policy: Arc<ActivePolicy>,
    label: Arc<str>,
    component: Arc<PolicyComponent>,
    warm: Vec<PolicyInstance>,
}

/// What a swap does with the activation before it. A quarantine returns to the latest earlier activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Succession {
    /// Remember it as the latest earlier activation.
    Forward,
    /// Forget it: a rollback left it.
    Back,
}

impl PolicyRegistry {
    /// Makes a policy (its newest version, unless `policy` is `name@version`) decide for `model` from the next decision
    /// on, and returns the activation before it. `settings` replace those of the upload, for this model. Takes some
    /// milliseconds: it starts instances for all runners before anything changes.
    ///
    /// # Errors
    /// There is no such policy, it is in quarantine, or it refuses the settings.
    pub fn activate(
        &self,
        model: &str,
        policy: &str,
        settings: Option<&str>,
    ) -> Result<Arc<Activation>, RegistryError> {
        let record = self.find(policy)?;
        let uploaded = record.settings.to_string();
        let settings = settings.unwrap_or(&uploaded);
        let prepared = self.prepare(model, &record.name, &record.digest, settings)?;
        self.publish(prepared, Succession::Forward)
    }

    /// Prepares the version with this digest to decide for `model` with these settings: a JSON object, or empty for the
    /// defaults. Takes some milliseconds.
    ///
    /// # Errors
    /// There is no such version, it is in quarantine, or it refuses the settings.
    pub fn prepare(
        &self,
        model: &str,
        name: &str,
        digest: &str,
        settings: &str,
    ) -> Result<PreparedPolicy, RegistryError> {
        let (label, mut component, active_policy) = {
            let mut state = self.0.state.lock();
            let stored = state.versions.usable(name, digest)?;
            let (label, component) = (Arc::clone(&stored.label), Arc::clone(&stored.component));
            if state.active_policies.len() >= MAX_MODELS && !state.active_policies.contains_key(model) {
                return Err(RegistryError::Conflict(format!(
                    "{MAX_MODELS} models have an active policy, the most that are possible"
                )));
            }
            (label, component, self.active_policy_in(&mut state, model))
        };
        if settings_json(settings) != Some(component.settings_json()) {
            component = self.0.engine.reconfigure(&component, settings)?;
        }
        let warm = if active_policy.current().decides_by(&label, &component) {
            Vec::new()
        } else {
            start_instances(&component, active_policy.runners().min(MAX_WARM))?
        };
        Ok(PreparedPolicy {
            active_policy,
            label,
            component,
            warm,
        })
    }

    /// Makes the prepared version decide from the next decision on, and returns the activation before it. Does nothing
    /// when that version already decides with the same settings.
    ///
    /// # Errors
    /// The version was put in quarantine or dropped since it was prepared.
    pub fn publish(
        &self,
        prepared: PreparedPolicy,
        succession: Succession,
    ) -> Result<Arc<Activation>, RegistryError> {
        let PreparedPolicy {
            active_policy,
            label,
            component,
            warm,
        } = prepared;
        let state = self.0.state.lock();
        state.versions.find(&label)?;
        let current = active_policy.current();
        if current.decides_by(&label, &component) {
            return Ok(current);
        }
        if succession == Succession::Back {
            active_policy.forget_since(&label);
        }
        Ok(active_policy.publish(label, component, warm, succession == Succession::Forward))
    }
}

/// Starts `count` instances, or fewer when the host has no more places. Runners without one start it themselves.
fn start_instances(
    component: &Arc<PolicyComponent>,
    count: usize,
) -> Result<Vec<PolicyInstance>, RegistryError> {
    let mut instances = Vec::with_capacity(count);
    for _ in 0..count {
        match component.instantiate() {
            Ok(instance) => instances.push(instance),
            Err(fault) if !fault.blamed() => break,
            Err(fault) => {
                return Err(
                    AdmissionError::Unsound(format!("no instance starts: the policy {fault}")).into(),
                );
            }
        }
    }
    Ok(instances)
}
