//! Letting another policy decide, in two steps: everything that can fail or takes time comes first, and what is
//! prepared is published in a moment or not at all. In between a router asks the others whether it may.

use std::sync::Arc;

use super::{Activation, ActivePolicy, MAX_MODELS, PolicyRegistry, RegistryError};
use crate::{
    admission::AdmissionError,
    component::{PolicyComponent, settings_json},
    instance::PolicyInstance,
};

/// Most instances started ahead for one swap. Runners beyond it, one a thread, start theirs in their first decision.
const MAX_WARM: usize = 64;

/// A version with its settings, tried and started for the runners of a model, that decides nothing yet.
#[derive(Debug)]
pub struct PreparedPolicy {
    active_policy: Arc<ActivePolicy>,
    label: Arc<str>,
    component: Arc<PolicyComponent>,
    warm: Vec<PolicyInstance>,
}

/// How what decided so far is remembered, for when the next one is quarantined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Succession {
    /// It is what decided before.
    Forward,
    /// It was left for what decided before it, and does not come back.
    Back,
}

impl PolicyRegistry {
    /// Makes a policy (its newest version, unless `policy` is `name@version`) decide for `model` from the next decision
    /// on, and answers with what decided before. `settings` replace those it was uploaded with, for this model. Blocking for some milliseconds: instances for all runners are started before anything changes.
    ///
    /// # Errors
    /// There is no such policy, it is in quarantine, or it does not take the settings.
    pub fn activate(
        &self,
        model: &str,
        policy: &str,
        settings: Option<&str>,
    ) -> Result<Arc<Activation>, RegistryError> {
        let record = self.find(policy)?;
        let own = record.settings.to_string();
        let prepared = self.prepare(model, &record.name, &record.digest, settings.unwrap_or(&own))?;
        self.publish(prepared, Succession::Forward)
    }

    /// Gets the version with this digest ready to decide for `model` with these settings: a JSON object, or empty
    /// for the defaults. Blocking for some milliseconds.
    ///
    /// # Errors
    /// There is no such version, it is in quarantine, or it does not take the settings.
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
                    "policies are set for {MAX_MODELS} models, no more are kept"
                )));
            }
            (label, component, self.active_policy(&mut state, model))
        };
        if settings_json(settings) != Some(component.settings_json()) {
            component = self.0.engine.reconfigure(&component, settings)?;
        }
        let warm = if active_policy.active().is(&label, &component) {
            Vec::new()
        } else {
            warm(&component, active_policy.runners().min(MAX_WARM))?
        };
        Ok(PreparedPolicy {
            active_policy,
            label,
            component,
            warm,
        })
    }

    /// Lets what was prepared decide from the next decision on, and answers with what decided before. What decides
    /// already is left alone.
    ///
    /// # Errors
    /// It was quarantined or dropped since it was prepared.
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
        let active = active_policy.active();
        if active.is(&label, &component) {
            return Ok(active);
        }
        if succession == Succession::Back {
            active_policy.forget_since(&label);
        }
        Ok(active_policy.publish(label, component, warm, succession == Succession::Forward))
    }
}

/// `count` instances, or fewer when the host has no more places: runners without one start it themselves.
fn warm(component: &Arc<PolicyComponent>, count: usize) -> Result<Vec<PolicyInstance>, RegistryError> {
    let mut instances = Vec::with_capacity(count);
    for _ in 0..count {
        match component.instantiate() {
            Ok(instance) => instances.push(instance),
            Err(fault) if !fault.blamed() => break,
            Err(fault) => {
                return Err(AdmissionError::Unsound(format!("it does not start: it {fault}")).into());
            }
        }
    }
    Ok(instances)
}
