//! One thread's instance of a model's active policy. Every decision succeeds: the fallback decides when the policy
//! cannot.

use std::sync::Arc;

use crate::{
    candidates::{Candidates, Wanted},
    convert::Opinion,
    fallback::{self, Fallback},
    fault::PolicyFault,
    features::{Decision, Outcome, RequestFeatures},
    instance::PolicyInstance,
    registry::{Activation, ActivePolicy, PolicyRegistry},
};

/// One thread's instance of the active policy of one model. It follows every swap.
#[derive(Debug)]
pub struct PolicyRunner {
    registry: PolicyRegistry,
    model: Arc<str>,
    active_policy: Arc<ActivePolicy>,
    /// The activation of the last call.
    activation: Arc<Activation>,
    /// `None` after a fault, until the next decision.
    instance: Option<PolicyInstance>,
    /// The label of the fallback.
    fallback: Arc<str>,
}

/// Which policy decided, and the fault if the fallback did.
#[derive(Debug, Clone)]
pub struct Decided {
    /// `name@version` of the policy, or `fallback@…`.
    pub by: Arc<str>,
    /// Why the fallback decided. `None` when the policy decided or abstained, or is in quarantine.
    pub fault: Option<PolicyFault>,
}

impl PolicyRegistry {
    /// A runner of the policy of `model` for one thread, with a started instance.
    #[must_use]
    pub fn runner(&self, model: &str) -> PolicyRunner {
        PolicyRunner::new(self, model)
    }
}

impl PolicyRunner {
    fn new(registry: &PolicyRegistry, model: &str) -> Self {
        let active_policy = registry.active_policy(model);
        active_policy.runner_started();
        let activation = active_policy.current();
        let mut runner = Self {
            registry: registry.clone(),
            model: model.into(),
            active_policy,
            activation,
            instance: None,
            fallback: fallback::LABEL.into(),
        };
        if runner.activation.decides() {
            runner.instance = runner.start();
        }
        runner
    }

    /// Stores a decision in `decision` and returns which policy made it. Never fails: after a fault the fallback
    /// decides, and the fault counts towards a quarantine.
    ///
    /// `candidates` returns the candidates, with the columns that the active policy wants.
    pub fn decide<'a>(
        &mut self,
        request: &RequestFeatures,
        candidates: impl FnOnce(Wanted<'_>) -> &'a Candidates,
        decision: &mut Decision,
    ) -> Decided {
        self.follow();
        let candidates = candidates(self.activation.component.wanted());
        let fault = match self.call(|instance| instance.decide(request, candidates, decision)) {
            Some(Ok(Opinion::Decided)) => {
                return Decided {
                    by: Arc::clone(&self.activation.label),
                    fault: None,
                };
            }
            Some(Err(fault)) => Some(fault),
            Some(Ok(Opinion::Abstained)) | None => None,
        };
        Fallback.decide(request, candidates, decision);
        Decided {
            by: Arc::clone(&self.fallback),
            fault,
        }
    }

    /// Whether the policy wants outcomes. If not, the caller need not gather them.
    #[must_use]
    pub fn observes(&self) -> bool {
        self.instance.as_ref().is_some_and(PolicyInstance::observes)
    }

    /// Whether the policy keeps state, which the end of this runner would lose.
    #[must_use]
    pub fn keeps_state(&self) -> bool {
        self.instance.as_ref().is_some_and(PolicyInstance::keeps_state)
    }

    /// Gives the policy the outcomes of requests that it placed, oldest first. Call it with batches, after the answers.
    pub fn observe(&mut self, outcomes: &[Outcome]) {
        self.follow();
        self.call(|instance| instance.observe(outcomes));
    }

    /// Why the candidate in row `chosen` has the request, in the policy's words. Call it right after
    /// [`PolicyRunner::decide`], with the same arguments. `None` when the policy does not explain its decisions.
    pub fn explain(
        &mut self,
        request: &RequestFeatures,
        candidates: &Candidates,
        chosen: u32,
    ) -> Option<String> {
        self.call(|instance| instance.explain(request, candidates, chosen))?
            .ok()?
    }

    /// The activation of the last call.
    #[must_use]
    pub const fn activation(&self) -> &Arc<Activation> {
        &self.activation
    }

    /// Makes a call on the instance, and starts one if there is none. `None` when the activation does not decide. A
    /// fault is noted and ends the instance.
    fn call<R>(
        &mut self,
        call: impl FnOnce(&mut PolicyInstance) -> Result<R, PolicyFault>,
    ) -> Option<Result<R, PolicyFault>> {
        if !self.activation.decides() {
            return None;
        }
        let result = match self.instance.as_mut() {
            Some(instance) => call(instance),
            None => self
                .activation
                .component
                .instantiate()
                .and_then(|instance| call(self.instance.insert(instance))),
        };
        if let Err(fault) = &result {
            self.note(fault);
            if let Some(instance) = self.instance.take() {
                self.registry.retire(instance);
            }
        }
        Some(result)
    }

    /// Follows a swap, if there was one: takes an instance of the current activation, passes it the state of the old
    /// instance, and gives the old instance to the reaper.
    fn follow(&mut self) {
        let Some(next) = self.active_policy.newer_than(&self.activation) else {
            return;
        };
        let before = std::mem::replace(&mut self.activation, next);
        let old = std::mem::replace(&mut self.instance, self.activation.take_warm());
        if let Some(mut old) = old {
            if self.activation.decides() && self.activation.policy() == before.policy() {
                self.pass_state(&before, &mut old);
            }
            self.registry.retire(old);
        }
        self.registry.retire(before);
    }

    /// Passes the state of `old` to the new instance, if both keep state. When that fails, the new instance starts
    /// without state.
    fn pass_state(&mut self, before: &Activation, old: &mut PolicyInstance) {
        let snapshot = match old.snapshot() {
            Ok(Some(snapshot)) => snapshot,
            Ok(None) => return,
            Err(fault) => {
                self.registry.note_fault(&self.model, before, &fault);
                return;
            }
        };
        if let Some(Ok(Err(refusal))) = self.call(|instance| instance.restore(&snapshot)) {
            let (from, to) = (&*before.label, &*self.activation.label);
            tracing::info!(
                from,
                to,
                model = &*self.model,
                "policy starts without the state of its last version: {refusal}"
            );
        }
    }

    fn start(&self) -> Option<PolicyInstance> {
        let started = self
            .activation
            .take_warm()
            .map_or_else(|| self.activation.component.instantiate(), Ok);
        started.inspect_err(|fault| self.note(fault)).ok()
    }

    fn note(&self, fault: &PolicyFault) {
        self.registry.note_fault(&self.model, &self.activation, fault);
    }
}

impl Drop for PolicyRunner {
    fn drop(&mut self) {
        let surplus = self.active_policy.runner_stopped();
        for instance in self.instance.take().into_iter().chain(surplus) {
            self.registry.retire(instance);
        }
    }
}

#[cfg(test)]
mod tests;
