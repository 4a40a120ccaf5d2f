//! Judges routing policies on a day of traffic, in seconds: a whole cluster in virtual time.
//!
//! ```text
//! trace or workload ─▶ cluster (routers, engines, virtual time) ─▶ record ─▶ figures ─▶ comparison, report
//! ```
//!
//! - [`Trace`] is the traffic: read from a file, or made by a [`Workload`].
//! - [`replay`] runs it on the cluster of a [`ClusterConfig`] with a [`ReplayPolicy`], and returns a [`RunRecord`].
//! - [`Search`] looks for the settings of a policy that reach an aim best.
//! - [`run_all`] does so for several policies and seeds. [`Figures`] says what a run meant for clients and workers,
//!   [`Comparison`] how two policies differ.
//!
//! Routers decide with the code, the state and the policy components of `runtime serve`
//! ([`OfflineRouter`](signalbox_router::OfflineRouter)), and workers compute with the engine of `runtime worker --engine
//! sim`. The crate promises that equal arguments give equal results on every machine: it has no clock, no random
//! numbers but those of the seed, no order that depends on addresses, and no function of the C library's mathematics.
//! How long decisions took is measured apart, and part of no comparison.

mod cluster;
mod comparison;
mod figures;
mod html;
mod policy;
mod prompt;
mod report;
mod runs;
mod trace;
mod tune;
mod workload;

pub use cluster::{
    Change, ClusterConfig, DecisionRecord, MembershipChange, ReplayError, RequestOutcome, RequestRecord,
    RunRecord, TokenGaps, WorkerRecord, WorkerShape, replay,
};
pub use comparison::{Comparison, Difference};
pub use figures::{Figures, ServiceLimits, Times};
pub use html::html;
pub use policy::{PolicyChoice, PolicyError, ReplayPolicy};
pub use report::{Report, table};
pub use runs::{Plan, Run, run_all};
pub use trace::{
    Arrival, BlockContent, BlockScope, LineFault, RecordedCluster, Trace, TraceError, TraceRequest,
};
pub use tune::{Goal, Guards, Outcome, Search, SettingRange, Trial, TuneError, Tuned, halves, tune_table};
pub use workload::{Workload, WorkloadError};
