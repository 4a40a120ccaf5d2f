//! The decision about a request, and its way from arrival to end.
//!
//! ```text
//! discovery ──▶ WorkerRoster ──▶ WorkerSession: control link, load watch, KvSource ──▶ KV index
//!                    │ publishes                                                        │ read
//!                    ▼                                                                  ▼
//! http ──route──▶ RouterReplica: candidates ─▶ policy ─▶ verdict ─▶ reservation ─▶ worker link ──▶ AnswerStream
//! ```
//!
//! [`Router`] is what all threads share: the roster's view, the KV index, the load table, the policies. Each
//! HTTP thread has a replica of its own ([`ReplicaHandle`]) with its links and policy instances. So a request is
//! decided and streamed on the thread that accepted it, and no token crosses threads. [`PolicyReplicatorHandle`]
//! changes policies on all routers. [`ActorHandle`] starts a long-running actor again when it fails.
//!
//! `KvSource` chooses what fills the index for a worker: an `EventStream` with the worker's KV events, or the
//! `BlockLearner` with what this router learns from its own decisions (`approximate.rs`).
//!
//! Workers of one model may differ in context length, tokenizer and block size: `versioned_prompt.rs` says what that means
//! for a decision, `context_need.rs` which workers a prompt fits.
//!
//! [`ReplicaHandle`] leads to `Decider::decide`, which chooses the worker; `select_row` chooses the row.
//!
//! This crate keeps R-1 (load counts exactly from reservation to end), R-2 (no token is sent twice: before its first
//! bytes a request moves to another worker, after them another worker continues its answer), P-1 (a decision names a
//! candidate it was given), K-1 and K-2 (the index holds what present workers hold, in order).

mod affinity;
mod answer;
mod approximate;
mod attempt_report;
mod attempts;
mod audit;
#[cfg(feature = "bench-support")]
pub mod bench_support;
mod block_learner;
mod breaker;
mod candidates;
mod client_errors;
mod context_need;
mod continuation;
mod decide;
mod decision_log;
mod event_stream;
mod fetch;
mod health;
mod index_figures;
mod kv_source;
mod latency;
mod links;
mod load;
mod offline;
mod outcome;
mod parity;
mod patience;
mod policy_replicator;
mod prepared_request;
mod probe;
mod publish_pace;
mod recorded_decision;
mod replica;
mod replica_sync;
mod retries;
mod rivals;
mod roster;
mod roster_listeners;
mod route_request;
mod router;
mod runners;
mod selection;
mod supervisor;
mod tokenizer_loads;
mod unix_time;
mod versioned_prompt;
mod worker_roster;
mod worker_session;

#[cfg(test)]
mod test_support;

pub use answer::{AnswerStream, RoutedAnswer};
pub use audit::{AuditLog, AuditRecord};
pub use breaker::{BreakerConfig, BreakerState};
pub use candidates::NoCandidate;
pub use decision_log::{
    CandidateView, DecisionFeed, DecisionFilter, DecisionSampler, DecisionView, NextDecision, decision_feed,
};
pub use health::WorkerHealth;
pub use latency::MeasuredLatency;
pub use load::EventState;
pub use offline::{OfflinePlacement, OfflineRequest, OfflineRouter};
pub use patience::TokenTimeouts;
pub use policy_replicator::{
    ChangeAction, ChangeNote, ChangeRequest, HistoryItem, PolicyChange, PolicyChangeError,
    PolicyReplicatorHandle, QuarantineEvent,
};
pub use recorded_decision::{DECISION_FORMAT, DecisionOutcome, RecordedDecision};
pub use replica::ReplicaHandle;
pub use replica_sync::ReplicaConfig;
pub use rivals::IdConflict;
pub use roster::{PromptForm, WorkerPhase};
pub use route_request::RouteRequest;
pub use router::{AdapterView, IndexView, IndexedWorkerView, InstanceView, ModelView, Router, RouterConfig};
/// The policies' lifecycle, for the admin API.
pub use signalbox_policy_host as policies;
pub use signalbox_policy_host::RequestKeys;
/// Why the policy store refused or failed.
pub use signalbox_policy_store::StoreError;
pub use supervisor::ActorHandle;
