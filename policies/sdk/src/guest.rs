//! Implements the generated `Guest` traits with a [`Policy`]; [`export_policy!`](crate::export_policy) builds on it.

use std::rc::Rc;

use crate::{
    Candidates, Info, Policy, Request, Settings,
    bindings::{
        explaining::exports::signalbox::policy::explainer,
        learning::exports::signalbox::policy::{observer, state},
        policy::{exports::signalbox::policy::routing, signalbox::policy::types},
    },
    columns::Layout,
    log,
};

/// A component with its one policy value.
pub trait Hosted {
    /// The policy that the component runs.
    type Policy: Policy;

    /// Calls `call` with the policy value. A component has one thread and its calls do not nest.
    fn with<R>(call: impl FnOnce(&mut Running<Self::Policy>) -> R) -> R;
}

/// A policy value, and where it finds what it reads.
#[derive(Debug, Default)]
pub struct Running<P> {
    policy: P,
    layout: Rc<Layout>,
}

impl<P: Policy> Running<P> {
    /// Configures the policy. The host does this before any other call.
    fn configure(&mut self, text: &str) -> Result<(), String> {
        // A panic ends the instance; its message goes to the log and into the fault.
        std::panic::set_hook(Box::new(|panic| log::warn(&panic.to_string())));
        let mut settings = Settings::parse(text)?;
        self.policy.configure(&mut settings)?;
        settings.refuse_unread()?;
        self.layout = Rc::new(Layout::new(&self.policy.describe()));
        Ok(())
    }

    fn received(&self, request: types::Request, candidates: types::Candidates) -> (Request, Candidates) {
        (
            Request::new(request, &self.layout),
            Candidates::new(candidates, &self.layout),
        )
    }
}

impl<T: Hosted> routing::Guest for T {
    fn configure(text: String) -> Result<(), String> {
        Self::with(|running| running.configure(&text))
    }

    fn describe() -> types::Info {
        let Info {
            name,
            version,
            counts,
            numbers,
            keys,
            request_counts,
            request_numbers,
            request_keys,
            optional,
        } = Self::with(|running| running.policy.describe());
        types::Info {
            name,
            version,
            counts,
            numbers,
            keys,
            request_counts,
            request_numbers,
            request_keys,
            optional,
        }
    }

    fn decide(request: types::Request, candidates: types::Candidates) -> types::Decision {
        Self::with(|running| {
            let (request, candidates) = running.received(request, candidates);
            running.policy.decide(&request, &candidates)
        })
    }
}

impl<T: Hosted> observer::Guest for T {
    fn observe(outcomes: Vec<types::Outcome>) {
        Self::with(|running| running.policy.observe(&outcomes));
    }
}

impl<T: Hosted> state::Guest for T {
    fn snapshot() -> Vec<u8> {
        Self::with(|running| running.policy.snapshot())
    }

    fn restore(snapshot: Vec<u8>) -> Result<(), String> {
        Self::with(|running| running.policy.restore(&snapshot))
    }
}

impl<T: Hosted> explainer::Guest for T {
    fn explain(request: types::Request, candidates: types::Candidates, chosen: u32) -> String {
        Self::with(|running| {
            let (request, candidates) = running.received(request, candidates);
            running.policy.explain(&request, &candidates, chosen as usize)
        })
    }
}
