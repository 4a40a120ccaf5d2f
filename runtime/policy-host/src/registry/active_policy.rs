//! The active policy of one model, and the activations before it.

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

/// Faults within [`FAULT_WINDOW`] that put a version in quarantine. A fault can delay a request by 14 ms (`limits.rs`),
/// so the number is low. It is more than 1, since a single fault can come from an overloaded machine.
const FAULTS_TO_QUARANTINE: usize = 3;
/// How long a fault counts.
const FAULT_WINDOW: Duration = Duration::from_secs(60);
/// Most earlier activations of a model: those that a rollback can return to.
const MAX_EARLIER: usize = 8;

/// A version that decides for a model, from its publication to the next swap.
#[derive(Debug)]
pub struct Activation {
    /// The number of this activation among the model's activations, from 1.
    pub number: u64,
    /// `name@version`, ready as a header value.
    pub label: Arc<str>,
    /// The component with its settings.
    pub component: Arc<PolicyComponent>,
    /// False when the version is in quarantine and no other version can decide: the fallback decides.
    decides: bool,
    /// Instances that were started before publication; each runner takes one.
    warm: Mutex<Vec<PolicyInstance>>,
    faults: Mutex<FaultWindow>,
}

impl Activation {
    /// Whether the component decides, and not the fallback.
    pub(crate) const fn decides(&self) -> bool {
        self.decides
    }

    /// Whether it decides, with this version and these settings.
    pub(crate) fn decides_by(&self, label: &str, component: &PolicyComponent) -> bool {
        self.decides && *self.label == *label && self.component.settings_json() == component.settings_json()
    }

    /// The stored name of the policy: the label up to its `@`.
    pub(crate) fn policy(&self) -> &str {
        self.label.split('@').next().unwrap_or_default()
    }

    /// Takes an instance that was started before publication, while there is one.
    pub(crate) fn take_warm(&self) -> Option<PolicyInstance> {
        self.warm.lock().pop()
    }

    #[cfg(test)]
    pub(crate) fn warm_left(&self) -> usize {
        self.warm.lock().len()
    }

    /// Notes a fault. True when it puts the version in quarantine.
    pub(crate) fn note_fault(&self, now: Instant) -> bool {
        self.faults.lock().note(now)
    }
}

/// The succession of activations of one model. Runners read it, the registry changes it.
#[derive(Debug)]
pub(crate) struct ActivePolicy {
    current: ArcSwap<Activation>,
    /// Earlier activations without their instances, the latest at the end.
    earlier: Mutex<VecDeque<Arc<Activation>>>,
    /// Runners of the model: each takes an instance at a swap.
    runners: AtomicUsize,
}

impl ActivePolicy {
    /// A succession that begins with this version.
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
            current: ArcSwap::from_pointee(first),
            earlier: Mutex::default(),
            runners: AtomicUsize::new(0),
        }
    }

    pub(crate) fn current(&self) -> Arc<Activation> {
        self.current.load_full()
    }

    /// The current activation if it is not `known`: one atomic load and one comparison.
    pub(crate) fn newer_than(&self, known: &Arc<Activation>) -> Option<Arc<Activation>> {
        let current = self.current.load();
        if Arc::ptr_eq(&current, known) {
            None
        } else {
            Some(Guard::into_inner(current))
        }
    }

    /// Makes this version the active one and returns the activation before it. With `remember`, a rollback can return
    /// to that activation. The caller holds the registry's lock.
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

    /// Lets the fallback decide instead of the active version.
    pub(crate) fn suspend(&self) {
        let current = self.current();
        self.succeed(
            Arc::clone(&current.label),
            Arc::clone(&current.component),
            Vec::new(),
            false,
            false,
        );
    }

    fn succeed(
        &self,
        label: Arc<str>,
        component: Arc<PolicyComponent>,
        mut warm: Vec<PolicyInstance>,
        decides: bool,
        remember: bool,
    ) -> Arc<Activation> {
        let number = self.current.load().number + 1;
        // Runners may have stopped since these were started.
        warm.truncate(self.runners());
        let next = Activation {
            number,
            label,
            component,
            decides,
            warm: Mutex::new(warm),
            faults: Mutex::default(),
        };
        let before = self.current.swap(Arc::new(next));
        // Instances that no runner took would keep their places in the pool for as long as the activation is
        // remembered.
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

    /// Removes and returns the latest earlier activation that `may_return`, and forgets those after it.
    pub(crate) fn predecessor(&self, may_return: impl Fn(&str) -> bool) -> Option<Arc<Activation>> {
        let mut earlier = self.earlier.lock();
        while let Some(activation) = earlier.pop_back() {
            if may_return(&activation.label) {
                return Some(activation);
            }
        }
        None
    }

    /// Forgets the latest earlier activation of this version, if there is one, and those after it.
    pub(crate) fn forget_since(&self, label: &str) {
        let mut earlier = self.earlier.lock();
        if let Some(latest) = earlier.iter().rposition(|activation| *activation.label == *label) {
            earlier.truncate(latest);
        }
    }

    /// Whether this version decides for the model, or a rollback returns to it.
    pub(crate) fn needs(&self, label: &str) -> bool {
        *self.current.load().label == *label
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

    /// Returns an instance that was started for the runner and that it did not take.
    pub(crate) fn runner_stopped(&self) -> Option<PolicyInstance> {
        let left = self.runners.fetch_sub(1, Relaxed).saturating_sub(1);
        let current = self.current.load();
        let mut warm = current.warm.lock();
        if warm.len() > left { warm.pop() } else { None }
    }
}

/// The latest faults of an activation.
#[derive(Debug, Default)]
struct FaultWindow(VecDeque<Instant>);

impl FaultWindow {
    /// Notes a fault. True when the last [`FAULTS_TO_QUARANTINE`] faults are within [`FAULT_WINDOW`].
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
    fn the_third_fault_within_a_minute_puts_a_version_in_quarantine() {
        let start = Instant::now();
        let mut window = FaultWindow::default();
        let mut note = |seconds| window.note(start + Duration::from_secs(seconds));
        assert_eq!(
            [note(0), note(30), note(61), note(91), note(100)],
            [false, false, false, false, true]
        );
    }

    proptest! {
        /// Compares with the definition: a fault counts as the third when it and the two before it are within a window.
        #[test]
        fn the_window_agrees_with_its_definition(gaps in prop::collection::vec(0..90_u64, 0..40)) {
            let start = Instant::now();
            let mut window = FaultWindow::default();
            let mut times = Vec::new();
            for gap in gaps {
                times.push(times.last().unwrap_or(&0) + gap);
                let expected = times.len() >= 3 && times[times.len() - 1] - times[times.len() - 3] <= 60;
                let now = start + Duration::from_secs(times[times.len() - 1]);
                prop_assert_eq!(window.note(now), expected);
            }
        }
    }
}
