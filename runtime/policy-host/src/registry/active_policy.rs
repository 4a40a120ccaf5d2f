//! Who decides for one model, now and before.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, Guard};
use metrics::counter;
use parking_lot::Mutex;

use crate::{component::PolicyComponent, instance::PolicyInstance};

/// Blamed faults within [`FAULT_WINDOW`] that put a version in quarantine. A fault may cost a request up to twice the
/// decision budget, so few are forgiven; one can be bad luck.
const FAULTS_TO_QUARANTINE: usize = 3;
/// How long a fault is held against a version.
const FAULT_WINDOW: Duration = Duration::from_secs(60);
/// Activations a model can be rolled back through.
const MAX_EARLIER: usize = 8;

/// The version that decides for a model from some moment on.
#[derive(Debug)]
pub struct Activation {
    /// Counts the swaps of its model, from 1.
    pub number: u64,
    /// `name@version`, ready as a header value.
    pub label: Arc<str>,
    /// What decides, with its settings.
    pub component: Arc<PolicyComponent>,
    /// False when the version is in quarantine and nothing could take its place: the fallback decides.
    decides: bool,
    /// Instances started before publication, for the runners to take.
    warm: Mutex<Vec<PolicyInstance>>,
    faults: Mutex<FaultWindow>,
}

impl Activation {
    /// Whether its component is asked, rather than the fallback.
    pub(crate) const fn decides(&self) -> bool {
        self.decides
    }

    /// Whether this is what decides, with these settings.
    pub(crate) fn is(&self, label: &str, component: &PolicyComponent) -> bool {
        self.decides && *self.label == *label && self.component.settings_json() == component.settings_json()
    }

    /// The stored name of the policy: the label up to its `@`.
    pub(crate) fn policy(&self) -> &str {
        self.label.split('@').next().unwrap_or_default()
    }

    /// An instance started ahead, while there are any.
    pub(crate) fn take_warm(&self) -> Option<PolicyInstance> {
        self.warm.lock().pop()
    }

    #[cfg(test)]
    pub(crate) fn warm_left(&self) -> usize {
        self.warm.lock().len()
    }

    /// Notes a fault; true when the version is to be quarantined for it.
    pub(crate) fn fault_is_one_too_many(&self, now: Instant) -> bool {
        self.faults.lock().note(now)
    }
}

/// Who decides for one model, in succession. Runners read it, the registry changes it.
#[derive(Debug)]
pub(crate) struct ActivePolicy {
    active: ArcSwap<Activation>,
    /// What decided before, latest last; their instances are gone.
    earlier: Mutex<VecDeque<Arc<Activation>>>,
    runners: AtomicUsize,
}

impl ActivePolicy {
    /// An active policy that begins with this policy.
    pub(crate) fn new(label: Arc<str>, component: Arc<PolicyComponent>, decides: bool) -> Self {
        let first = Activation {
            number: 1,
            label,
            component,
            decides,
            warm: Mutex::default(),
            faults: Mutex::default(),
        };
        Self {
            active: ArcSwap::from_pointee(first),
            earlier: Mutex::default(),
            runners: AtomicUsize::new(0),
        }
    }

    pub(crate) fn active(&self) -> Arc<Activation> {
        self.active.load_full()
    }

    /// What decides now, when it is another than `known`: an atomic load and a comparison.
    pub(crate) fn newer_than(&self, known: &Arc<Activation>) -> Option<Arc<Activation>> {
        let active = self.active.load();
        if Arc::ptr_eq(&active, known) {
            None
        } else {
            Some(Guard::into_inner(active))
        }
    }

    /// Lets another policy decide and answers with what did so far, which `remember` keeps for a rollback. Callers
    /// hold the registry's lock.
    pub(crate) fn publish(
        &self,
        label: Arc<str>,
        component: Arc<PolicyComponent>,
        warm: Vec<PolicyInstance>,
        remember: bool,
    ) -> Arc<Activation> {
        counter!("signalbox_policy_swaps_total", "policy" => label.to_string()).increment(1);
        self.succeed(label, component, warm, true, remember)
    }

    /// Lets the fallback decide in place of the active policy.
    pub(crate) fn suspend(&self) {
        let active = self.active();
        self.succeed(
            Arc::clone(&active.label),
            Arc::clone(&active.component),
            Vec::new(),
            false,
            false,
        );
    }

    fn succeed(
        &self,
        label: Arc<str>,
        component: Arc<PolicyComponent>,
        warm: Vec<PolicyInstance>,
        decides: bool,
        remember: bool,
    ) -> Arc<Activation> {
        let number = self.active.load().number + 1;
        let next = Activation {
            number,
            label,
            component,
            decides,
            warm: Mutex::new(warm),
            faults: Mutex::default(),
        };
        let before = self.active.swap(Arc::new(next));
        // Instances no runner came for would keep their places for as long as this is remembered.
        drop(std::mem::take(&mut *before.warm.lock()));
        if remember && before.decides {
            let mut earlier = self.earlier.lock();
            if earlier.len() == MAX_EARLIER {
                earlier.pop_front();
            }
            earlier.push_back(Arc::clone(&before));
        }
        before
    }

    /// Takes the latest earlier activation that `may_return` off the record; those after it are forgotten.
    pub(crate) fn predecessor(&self, may_return: impl Fn(&str) -> bool) -> Option<Arc<Activation>> {
        let mut earlier = self.earlier.lock();
        while let Some(activation) = earlier.pop_back() {
            if may_return(&activation.label) {
                return Some(activation);
            }
        }
        None
    }

    /// Forgets the latest earlier activation of this version and those after it, if there is one.
    pub(crate) fn forget_since(&self, label: &str) {
        let mut earlier = self.earlier.lock();
        if let Some(latest) = earlier.iter().rposition(|activation| *activation.label == *label) {
            earlier.truncate(latest);
        }
    }

    /// Whether this version decides here, or is what a rollback would bring back.
    pub(crate) fn needs(&self, label: &str) -> bool {
        *self.active.load().label == *label
            || self
                .earlier
                .lock()
                .back()
                .is_some_and(|latest| *latest.label == *label)
    }

    pub(crate) fn runners(&self) -> usize {
        self.runners.load(Relaxed)
    }

    pub(crate) fn runner_started(&self) {
        self.runners.fetch_add(1, Relaxed);
    }

    pub(crate) fn runner_stopped(&self) {
        self.runners.fetch_sub(1, Relaxed);
    }
}

/// The latest faults of an activation.
#[derive(Debug, Default)]
struct FaultWindow(VecDeque<Instant>);

impl FaultWindow {
    /// Notes a fault; true when the last [`FAULTS_TO_QUARANTINE`] lie within [`FAULT_WINDOW`].
    fn note(&mut self, now: Instant) -> bool {
        if self.0.len() == FAULTS_TO_QUARANTINE {
            self.0.pop_front();
        }
        self.0.push_back(now);
        let oldest = self.0.front().copied().unwrap_or(now);
        self.0.len() == FAULTS_TO_QUARANTINE && now.saturating_duration_since(oldest) <= FAULT_WINDOW
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_third_fault_within_a_minute_is_one_too_many() {
        let start = Instant::now();
        let mut window = FaultWindow::default();
        let mut at = |seconds| window.note(start + Duration::from_secs(seconds));
        assert_eq!(
            [at(0), at(30), at(61), at(91), at(100)],
            [false, false, false, false, true]
        );
    }

    proptest! {
        /// Against the definition: some fault is one too many exactly when it and the two before it fit in a window.
        #[test]
        fn agrees_with_looking_back(gaps in prop::collection::vec(0..90_u64, 0..40)) {
            let start = Instant::now();
            let mut window = FaultWindow::default();
            let mut times = Vec::new();
            for gap in gaps {
                times.push(times.last().unwrap_or(&0) + gap);
                let looking_back = times.len() >= 3 && times[times.len() - 1] - times[times.len() - 3] <= 60;
                let now = start + Duration::from_secs(times[times.len() - 1]);
                prop_assert_eq!(window.note(now), looking_back);
            }
        }
    }
}
