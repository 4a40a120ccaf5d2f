//! Runs routing policies: WebAssembly components that choose the worker for a request.
//!
//! A policy is foreign code on the path of every request. This crate promises:
//!
//! - **P-1** A decision names only the candidates it was given: every answer of a policy is checked.
//! - **P-2** A swap never interrupts a call, and each decision is by exactly one version. A [`PolicyRunner`] reads the
//!   current [`Activation`] once, at the start of a decision. The next version is compiled, tried and started before
//!   it is published.
//! - **P-3** No policy can stop the service: not by a trap, a loop, its memory, its size or an invalid answer. Each of
//!   these is a [`PolicyFault`], and the native [`Fallback`] decides instead. Three faults within a minute put a
//!   version in quarantine, and the previous version decides again.
//!
//! To read on: [`PolicyEngine::admit`] (which components are admitted), [`PolicyInstance::decide`] (one call),
//! [`PolicyRegistry`] (the stored versions, and the active policy of each model), [`Candidates`] (the columns of a
//! decision, and how to add one), [`PolicyLimits`] (the limits, and when a loop is stopped), `Sandbox::arm` (the
//! deadlines of a call). `wit/` is the contract with the guests.

pub use admission::{AdmissionError, MAX_SETTINGS_BYTES, trial_requests};
pub use builtin::builtin_policies;
pub use candidates::{Candidates, ColumnGroups, LabelColumn, Wanted, candidate_traits};
pub use component::PolicyComponent;
pub use convert::Opinion;
pub use engine::{EngineError, PolicyEngine};
pub use fallback::Fallback;
pub use fault::PolicyFault;
pub use features::{Decision, Outcome, Rejection, RequestFeatures, RequestKeys};
pub use instance::PolicyInstance;
pub use limits::{MAX_INSTANCES_PER_THREAD, PolicyLimits};
pub use registry::{
    Activation, PolicyRecord, PolicyRegistry, PreparedPolicy, RegistryError, RegistryEvent, Succession,
    UploadedPolicy,
};
pub use runner::{Decided, PolicyRunner};

mod admission;
mod bindings;
mod builtin;
mod candidates;
mod component;
mod convert;
mod description;
mod diagnostics;
mod engine;
mod fallback;
mod fault;
mod features;
mod instance;
mod limits;
mod names;
mod registry;
mod runner;
mod sandbox;
#[cfg(test)]
mod test_support;
mod ticker;
