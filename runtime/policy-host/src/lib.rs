//! Runs routing policies: WebAssembly components that choose the worker for a request.
//!
//! A policy is code from elsewhere on the path of every request, so this crate promises what it cannot do:
//!
//! - **P-1** A decision names only candidates of its own snapshot: answers are checked before anybody sees them.
//! - **P-2** A swap never interrupts a call, and each decision is by exactly one version: a [`PolicyRunner`] looks which
//!   [`Activation`] is active once, at the start of a decision, and the next one is compiled, tried and started before
//!   it is published.
//! - **P-3** No policy can stop the service: not by trapping, looping, hoarding, size or nonsense. Each of these is a
//!   [`PolicyFault`] and the native [`Fallback`] decides in its place; three faults within a minute put a version in
//!   quarantine and bring the previous one back.
//!
//! Read on in [`PolicyEngine::admit`] (what is accepted), [`PolicyInstance::decide`] (one call), [`PolicyRegistry`]
//! (versions and who decides for which model). `wit/` is the contract with the guests; `bindings.rs` and `convert.rs`
//! are all that knows its types.

pub use admission::{AdmissionError, trial_requests};
pub use builtin::builtin_policies;
pub use component::PolicyComponent;
pub use engine::PolicyEngine;
pub use fallback::Fallback;
pub use fault::PolicyFault;
pub use features::{Candidates, Decision, Outcome, RequestFeatures, candidate_traits};
pub use instance::PolicyInstance;
pub use limits::PolicyLimits;
pub use registry::{Activation, PolicyRecord, PolicyRegistry, PreparedPolicy, RegistryError, Succession};
pub use runner::{Decided, PolicyRunner};

mod admission;
mod bindings;
mod builtin;
mod component;
mod convert;
mod engine;
mod fallback;
mod fault;
mod features;
mod instance;
mod limits;
mod registry;
mod runner;
mod sandbox;
mod signals;
#[cfg(test)]
mod test_support;
mod ticker;
