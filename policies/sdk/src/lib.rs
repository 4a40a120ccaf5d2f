//! Write a routing policy in Rust: implement [`Policy`] and name the type in [`export_policy!`]; `cargo build
//! --release` then makes the component.
//!
//! ```
//! use signalbox_policy_sdk::{Candidates, Count, Decision, Info, Policy, Request};
//!
//! /// Sends each request to the worker with the fewest requests in flight.
//! #[derive(Debug, Default)]
//! struct FewestRequests;
//!
//! impl Policy for FewestRequests {
//!     fn describe(&self) -> Info {
//!         Info::new("fewest-requests", "1.0.0").counts([Count::RequestsAll])
//!     }
//!
//!     fn decide(&mut self, _: &Request, candidates: &Candidates) -> Decision {
//!         let requests = candidates.counts(Count::RequestsAll);
//!         Decision::Costs(requests.iter().map(|&requests| requests as f32).collect())
//!     }
//! }
//!
//! signalbox_policy_sdk::export_policy!(FewestRequests);
//! ```
//!
//! The trait is ordinary Rust, so ordinary unit tests test a policy, on any machine. `wit/` says what each value means
//! and what the host promises.

use std::fmt::Debug;

pub use bindings::policy::signalbox::policy::types::{Decision, Outcome, Pair, Rejection};
pub use candidates::Candidates;
pub use columns::{Count, Key, Number, RequestCount, RequestKey, RequestNumber, traits};
pub use draw::{DEFAULT_SPREAD, draw_among_near_ties};
pub use draws::Draws;
pub use explain::explain_costs;
pub use kv_cost::{KvCost, Load};
pub use load_measure::LoadMeasure;
pub use predicted_ttft::{RequestLength, StepCurves, TtftCost, WorkerRows};
pub use recent_placements::RecentPlacements;
pub use rendezvous::{bounded_load, rendezvous};
pub use request::{NamedValues, Request};
pub use settings::Settings;
pub use worker_speed::{MeasuredRows, WorkerSpeeds};

#[doc(hidden)]
pub mod bindings;
mod candidates;
mod columns;
mod draw;
mod draws;
mod explain;
#[doc(hidden)]
pub mod guest;
mod kv_cost;
mod load_measure;
pub mod log;
mod predicted_ttft;
mod recent_placements;
mod rendezvous;
mod request;
mod row_memory;
mod settings;
mod ttft_settings;
mod worker_speed;

/// A routing policy. Each instance holds one value of this type; each router thread has an instance for as long as the
/// policy is active.
///
/// A decision has a budget of 2 ms and usually takes less than 5 µs. The host stops a loop at most 12 ms after the
/// budget (`wit/routing.wit`). WebAssembly without imports is deterministic: the same calls in the same order return
/// the same decisions, so a recorded decision can be replayed.
pub trait Policy: Debug + Default + 'static {
    /// Returns the policy's name and version, and what it reads. Called after `configure`, on each instance.
    fn describe(&self) -> Info;

    /// Takes the settings: read each setting that the policy has. The SDK refuses settings that were not read.
    ///
    /// # Errors
    /// A sentence for the person who wrote the settings. An error refuses the settings.
    fn configure(&mut self, settings: &mut Settings) -> Result<(), String> {
        let _ = settings;
        Ok(())
    }

    /// Chooses among the candidates. There is at least one. The order of their rows means nothing.
    fn decide(&mut self, request: &Request, candidates: &Candidates) -> Decision;

    /// Receives what became of requests. Needs an export with `learning`.
    fn observe(&mut self, outcomes: &[Outcome]) {
        let _ = outcomes;
    }

    /// Returns what the next version takes over; empty for nothing. Needs an export with `learning`.
    fn snapshot(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Takes over the snapshot of an earlier version. Needs an export with `learning`.
    ///
    /// # Errors
    /// A sentence that says why the snapshot cannot be used. The policy then starts without it.
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), String> {
        let _ = snapshot;
        Ok(())
    }

    /// Returns one sentence on why the candidate in row `chosen` has the request. Needs an export with `explaining`.
    fn explain(&self, request: &Request, candidates: &Candidates, chosen: usize) -> String {
        let _ = (request, candidates, chosen);
        String::new()
    }
}

/// A policy's description of itself: what it is called, and what it reads by name. `wit/types.wit` (`info`) has the names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Info {
    /// Its name: lower-case letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Its version, such as `1.2.0`.
    pub version: String,
    /// Columns of whole numbers.
    pub counts: Vec<String>,
    /// Columns of numbers.
    pub numbers: Vec<String>,
    /// Columns of keys.
    pub keys: Vec<String>,
    /// Whole numbers of the request.
    pub request_counts: Vec<String>,
    /// Numbers of the request.
    pub request_numbers: Vec<String>,
    /// Keys of the request.
    pub request_keys: Vec<String>,
    /// Those of all names that it can do without: a host that does not know one sends zeroes.
    pub optional: Vec<String>,
}

impl Info {
    /// A description of a policy that reads nothing but the fixed values of a request.
    #[must_use]
    pub fn new(name: &str, version: &str) -> Self {
        Self {
            name: name.into(),
            version: version.into(),
            ..Self::default()
        }
    }

    /// It reads these columns, too.
    #[must_use]
    pub fn counts<T: Into<String>>(mut self, names: impl IntoIterator<Item = T>) -> Self {
        self.counts.extend(names.into_iter().map(Into::into));
        self
    }

    /// It reads these columns, too: a [`Number`], or a name such as `number:price`.
    #[must_use]
    pub fn numbers<T: Into<String>>(mut self, names: impl IntoIterator<Item = T>) -> Self {
        self.numbers.extend(names.into_iter().map(Into::into));
        self
    }

    /// It reads these columns, too: a [`Key`], or a name such as `label:gpu`.
    #[must_use]
    pub fn keys<T: Into<String>>(mut self, names: impl IntoIterator<Item = T>) -> Self {
        self.keys.extend(names.into_iter().map(Into::into));
        self
    }

    /// It reads these numbers of the request, too.
    #[must_use]
    pub fn request_counts<T: Into<String>>(mut self, names: impl IntoIterator<Item = T>) -> Self {
        self.request_counts.extend(names.into_iter().map(Into::into));
        self
    }

    /// It reads these numbers of the request, too.
    #[must_use]
    pub fn request_numbers<T: Into<String>>(mut self, names: impl IntoIterator<Item = T>) -> Self {
        self.request_numbers.extend(names.into_iter().map(Into::into));
        self
    }

    /// It reads these keys of the request, too: a [`RequestKey`], or a name such as `header:x-team`.
    #[must_use]
    pub fn request_keys<T: Into<String>>(mut self, names: impl IntoIterator<Item = T>) -> Self {
        self.request_keys.extend(names.into_iter().map(Into::into));
        self
    }

    /// It can do without these of the names above.
    #[must_use]
    pub fn optional<T: Into<String>>(mut self, names: impl IntoIterator<Item = T>) -> Self {
        self.optional.extend(names.into_iter().map(Into::into));
        self
    }
}

/// Makes the crate a policy component around a type that implements [`Policy`].
///
/// `export_policy!(MyPolicy)` exports an ordinary policy. `export_policy!(MyPolicy, learning)` exports one that
/// receives outcomes and passes its memory to its next version; `export_policy!(MyPolicy, explaining)` one that
/// explains its decisions; `export_policy!(MyPolicy, learning, explaining)` one that does both. The macro expands to
/// nothing on any target but WebAssembly, so that tests link.
#[macro_export]
macro_rules! export_policy {
    ($policy:ty $(, $world:ident)* $(,)?) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            /// The component: one policy value behind exported functions.
            struct Component;
            impl $crate::guest::Hosted for Component {
                type Policy = $policy;
                fn with<R>(call: impl FnOnce(&mut $crate::guest::Running<$policy>) -> R) -> R {
                    ::std::thread_local! {
                        static POLICY: ::std::cell::RefCell<$crate::guest::Running<$policy>> =
                            ::std::default::Default::default();
                    }
                    POLICY.with_borrow_mut(call)
                }
            }
            $crate::bindings::policy::export!(Component with_types_in $crate::bindings::policy);
            $($crate::bindings::$world::export!(Component with_types_in $crate::bindings::$world);)*
        };
    };
}
