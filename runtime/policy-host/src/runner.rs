//! One thread's place at a model's policy: it asks whatever version is active, and something always answers.

use std::sync::Arc;

use crate::{
    candidates::Candidates,
    fallback::{self, Fallback},
    fault::PolicyFault,
    features::{Decision, Outcome, RequestFeatures},
    instance::PolicyInstance,
    registry::{Activation, ActivePolicy, PolicyRegistry},
};

/// One thread's instance of whatever activation is active for one model.
#[derive(Debug)]
pub struct PolicyRunner {
    registry: PolicyRegistry,
    model: Arc<str>,
    active_policy: Arc<ActivePolicy>,
    activation: Arc<Activation>,
    /// Absent after a fault, until the next decision.
    instance: Option<PolicyInstance>,
    fallback: Arc<str>,
}

/// Who decided, and what went wrong where a policy could not.
#[derive(Debug, Clone)]
pub struct Decided {
    /// `name@version` of the policy, or `fallback@…`.
    pub by: Arc<str>,
    /// Why the fallback decided, unless no policy was asked.
    pub fault: Option<PolicyFault>,
}

impl PolicyRunner {
    pub(crate) fn new(registry: PolicyRegistry, model: &str, active_policy: Arc<ActivePolicy>) -> Self {
        active_policy.runner_started();
        let activation = active_policy.active();
        let mut runner = Self {
            registry,
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

    /// Leaves a decision on the candidates in `decision` and says whose it is. Never fails: a policy that faults is
    /// counted, perhaps quarantined, and the fallback decides.
    ///
    /// `candidates` gives them once it is known who is asked: it is told whether that policy wants the optional columns
    /// ([`Candidates::resize_optional`]).
    pub fn decide<'a>(
        &mut self,
        request: &RequestFeatures,
        candidates: impl FnOnce(bool) -> &'a Candidates,
        decision: &mut Decision,
    ) -> Decided {
        self.follow();
        let candidates = candidates(self.activation.component.wants_optional());
        let fault = match self.ask(|instance| instance.decide(request, candidates, decision)) {
            Some(Ok(())) => {
                return Decided {
                    by: Arc::clone(&self.activation.label),
                    fault: None,
                };
            }
            Some(Err(fault)) => Some(fault),
            None => None,
        };
        Fallback.decide(request, candidates, decision);
        Decided {
            by: Arc::clone(&self.fallback),
            fault,
        }
    }

    /// Whether the policy in this runner wants to hear of outcomes; otherwise there is no use in gathering them.
    #[must_use]
    pub fn observes(&self) -> bool {
        self.instance.as_ref().is_some_and(PolicyInstance::observes)
    }

    /// Tells the policy what became of requests it placed, oldest first. Call it in batches, after answering.
    pub fn observe(&mut self, outcomes: &[Outcome]) {
        self.follow();
        self.ask(|instance| instance.observe(outcomes));
    }

    /// The policy's own words on why the candidate in row `chosen` has the request; call it right after
    /// [`PolicyRunner::decide`], with the same arguments. `None` when it does not explain itself.
    pub fn explain(
        &mut self,
        request: &RequestFeatures,
        candidates: &Candidates,
        chosen: u32,
    ) -> Option<String> {
        self.ask(|instance| instance.explain(request, candidates, chosen))?
            .ok()?
    }

    /// What decides in this runner since its last call.
    #[must_use]
    pub const fn activation(&self) -> &Arc<Activation> {
        &self.activation
    }

    /// Calls the instance, started if need be; `None` when no policy is to be asked. A fault is noted and ends the
    /// instance.
    fn ask<R>(
        &mut self,
        call: impl FnOnce(&mut PolicyInstance) -> Result<R, PolicyFault>,
    ) -> Option<Result<R, PolicyFault>> {
        if !self.activation.decides() {
            return None;
        }
        let called = match self.instance.as_mut() {
            Some(instance) => call(instance),
            None => self
                .activation
                .component
                .instantiate()
                .and_then(|instance| call(self.instance.insert(instance))),
        };
        if let Err(fault) = &called {
            self.note(fault);
            if let Some(instance) = self.instance.take() {
                self.registry.retire(instance);
            }
        }
        Some(called)
    }

    /// Changes over to the active activation, if it is another: takes an instance that was started for it, hands over
    /// what the old one learnt, and leaves the old one to the reaper.
    fn follow(&mut self) {
        let Some(next) = self.active_policy.newer_than(&self.activation) else {
            return;
        };
        let before = std::mem::replace(&mut self.activation, next);
        let old = std::mem::replace(&mut self.instance, self.activation.take_warm());
        if let Some(mut old) = old {
            if self.activation.decides() && self.activation.policy() == before.policy() {
                self.inherit(&before, &mut old);
            }
            self.registry.retire(old);
        }
        self.registry.retire(before);
    }

    /// Hands over what `old` learnt to the present instance, if both keep state. It starts without where that fails.
    fn inherit(&mut self, before: &Activation, old: &mut PolicyInstance) {
        let snapshot = match old.snapshot() {
            Ok(Some(snapshot)) => snapshot,
            Ok(None) => return,
            Err(fault) => {
                self.registry.note_fault(&self.model, before, &fault);
                return;
            }
        };
        if let Some(Ok(Err(refusal))) = self.ask(|instance| instance.restore(&snapshot)) {
            let (from, to) = (&*before.label, &*self.activation.label);
            tracing::info!(
                from,
                to,
                model = &*self.model,
                "policy starts without what its last version knew: {refusal}"
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
        self.active_policy.runner_stopped();
    }
}

#[cfg(test)]
mod tests;
