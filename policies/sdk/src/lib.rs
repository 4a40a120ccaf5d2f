//! Write a routing policy in Rust: implement [`Policy`], name it in [`export_policy!`], and `cargo build --release`
//! makes the component.
//!
//! ```
//! use signalbox_policy_sdk::{Candidates, Columns, Decision, Info, Policy, Request};
//!
//! /// Sends each request to the worker with the fewest requests under way.
//! #[derive(Debug, Default)]
//! struct FewestRequests;
//!
//! impl Policy for FewestRequests {
//!     fn describe(&self) -> Info {
//!         Info::new("fewest-requests", "1.0.0", Columns::REQUESTS_ALL)
//!     }
//!
//!     fn decide(&mut self, _: &Request, candidates: &Candidates) -> Decision {
//!         Decision::Costs(candidates.requests_all.iter().map(|&requests| requests as f32).collect())
//!     }
//! }
//!
//! signalbox_policy_sdk::export_policy!(FewestRequests);
//! ```
//!
//! The trait is ordinary Rust, so a policy is tested by ordinary unit tests, on any machine. What each value means
//! and promises stands in `wit/`; the types here are those of `wit/types.wit`, absent columns being empty.

use std::fmt::Debug;

pub use bindings::policy::signalbox::policy::types::{Columns, Decision, Outcome, Request};
pub use candidates::{Candidates, traits};
pub use kv_cost::{KvCost, Load};
pub use settings::Settings;

#[doc(hidden)]
pub mod bindings;
mod candidates;
#[doc(hidden)]
pub mod guest;
mod kv_cost;
mod settings;

/// A routing policy. One value of it lives in each instance: one per router thread, for as long as it is active.
///
/// A decision has 2 ms; 5 µs are the habit. WebAssembly without imports is deterministic, so equal calls in equal order
/// have equal answers, and a decision can be replayed.
pub trait Policy: Debug + Default + 'static {
    /// Its name and version, and the columns it wants to see. Asked once, after `configure`.
    fn describe(&self) -> Info;

    /// Takes its settings. Read each setting it knows; those it did not read are refused for it.
    ///
    /// # Errors
    /// A sentence for whoever wrote the settings; it refuses them.
    fn configure(&mut self, settings: &mut Settings) -> Result<(), String> {
        let _ = settings;
        Ok(())
    }

    /// Chooses among the candidates, of which there is at least one.
    fn decide(&mut self, request: &Request, candidates: &Candidates) -> Decision;

    /// Hears what became of requests. Called for policies exported with `learning`.
    fn observe(&mut self, outcomes: &[Outcome]) {
        let _ = outcomes;
    }

    /// What the next version shall inherit; empty for nothing. Called for policies exported with `learning`.
    fn snapshot(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Takes over what an earlier version left. Called for policies exported with `learning`.
    ///
    /// # Errors
    /// A sentence on why it cannot be used; the policy then starts without.
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), String> {
        let _ = snapshot;
        Ok(())
    }

    /// One sentence on why the candidate in row `chosen` has the request. Called for policies exported with
    /// `explaining`, when somebody asks.
    fn explain(&self, request: &Request, candidates: &Candidates, chosen: usize) -> String {
        let _ = (request, candidates, chosen);
        String::new()
    }
}

/// What a policy says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Its name: lower-case letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Its version, such as `1.2.0`.
    pub version: String,
    /// The columns it wants; the others are empty.
    pub columns: Columns,
    /// Further signals by name (`wit/types.wit` lists them): [`Candidates::extra`] has them in this order.
    pub extra: Vec<String>,
}

impl Info {
    /// Without extra signals.
    #[must_use]
    pub fn new(name: &str, version: &str, columns: Columns) -> Self {
        Self {
            name: name.into(),
            version: version.into(),
            columns,
            extra: Vec::new(),
        }
    }
}

/// Makes the crate a policy component around a type that implements [`Policy`].
///
/// `export_policy!(MyPolicy)` is an ordinary policy. One that is to hear of outcomes and to hand its memory to its
/// next version says so, `export_policy!(MyPolicy, learning)`; one that can explain itself likewise,
/// `export_policy!(MyPolicy, explaining)`, or both: `export_policy!(MyPolicy, learning, explaining)`.
/// Off WebAssembly it expands to nothing, so that tests link.
#[macro_export]
macro_rules! export_policy {
    ($policy:ty $(, $world:ident)* $(,)?) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            /// The component: one policy value behind exported functions.
            struct Component;
            impl $crate::guest::Hosted for Component {
                type Policy = $policy;
                fn with<R>(call: impl FnOnce(&mut $policy) -> R) -> R {
                    ::std::thread_local! {
                        static POLICY: ::std::cell::RefCell<$policy> = ::std::default::Default::default();
                    }
                    POLICY.with_borrow_mut(call)
                }
            }
            $crate::bindings::policy::export!(Component with_types_in $crate::bindings::policy);
            $($crate::bindings::$world::export!(Component with_types_in $crate::bindings::$world);)*
        };
    };
}
