//! Implements the generated `Guest` traits with a [`Policy`]; [`export_policy!`](crate::export_policy) builds on it.

use crate::{
    Candidates, Info, Policy, Settings,
    bindings::{
        explaining::exports::signalbox::policy::explainer,
        learning::exports::signalbox::policy::{observer, state},
        policy::{exports::signalbox::policy::routing, signalbox::policy::types},
    },
};

/// A component with its one policy value.
pub trait Hosted {
    /// The policy that the component runs.
    type Policy: Policy;

    /// Calls `call` with the policy value. A component has one thread and its calls do not nest.
    fn with<R>(call: impl FnOnce(&mut Self::Policy) -> R) -> R;
}

impl<T: Hosted> routing::Guest for T {
    fn configure(text: String) -> Result<(), String> {
        let mut settings = Settings::parse(&text)?;
        Self::with(|policy| policy.configure(&mut settings))?;
        settings.refuse_unread()
    }

    fn describe() -> types::Info {
        let Info {
            name,
            version,
            columns,
            extra,
        } = Self::with(|policy| policy.describe());
        types::Info {
            name,
            version,
            columns,
            extra,
        }
    }

    fn decide(request: types::Request, candidates: types::Candidates) -> types::Decision {
        Self::with(|policy| policy.decide(&request, &Candidates::from(candidates)))
    }
}

impl<T: Hosted> observer::Guest for T {
    fn observe(outcomes: Vec<types::Outcome>) {
        Self::with(|policy| policy.observe(&outcomes));
    }
}

impl<T: Hosted> state::Guest for T {
    fn snapshot() -> Vec<u8> {
        Self::with(|policy| policy.snapshot())
    }

    fn restore(snapshot: Vec<u8>) -> Result<(), String> {
        Self::with(|policy| policy.restore(&snapshot))
    }
}

impl<T: Hosted> explainer::Guest for T {
    fn explain(request: types::Request, candidates: types::Candidates, chosen: u32) -> String {
        Self::with(|policy| policy.explain(&request, &Candidates::from(candidates), chosen as usize))
    }
}
