//! The candidates of a decision as columns, and the one table of those columns.
//!
//! # To add a column
//!
//! First consider a signal (`signals.rs`). A signal changes no interface, so existing components keep running. It is
//! computed from the existing columns and the request only: a value from elsewhere needs a column.
//!
//! Before the first release, a column raises the version of the interface. After it, a column needs a new interface
//! beside the old one, because a released interface never changes (`wit/policy.wit`).
//!
//! 1. The source of the value. Load of this router: `router/src/load.rs`. Load of all routers: also `ReplicaLoad` in
//!    `protocol/src/load.rs` and `WorkerShare::digest` in `protocol/src/replica_message.rs`, where routers of two releases
//!    must agree. A value that the worker measures: a field of `LoadReport` in `protocol/src/load.rs`, and each engine
//!    that makes the report. A property of the worker: the card (`protocol/src/worker_card.rs`), filled in
//!    `worker/src/service.rs`, and `WorkerColumns` with its `FromIterator` in `router/src/roster.rs`. Every column holds
//!    `u32`.
//! 2. `wit/types.wit`: a flag in `columns` and a field in `candidates`.
//! 3. The version, wherever it stands: `wit/policy.wit`; here `bindings.rs`, `ROUTING` and `TYPES` in `admission.rs`,
//!    and `admission/tests.rs`; the command in `policies/README.md`.
//! 4. `for_each_column!` below: one entry. The struct and its methods (in this file), the conversion (`convert.rs`) and
//!    the trial values (`admission/trial.rs`) are generated from it.
//! 5. `router/src/candidates.rs`: the router fills a required column in `fill`, an optional one in `fill_optional`.
//! 6. `policies/sdk`: generate the bindings again (`policies/README.md`), and add the field in `src/candidates.rs`.
//! 7. The built components: `make policies` writes `policies/built` and `integration-tests/guests`.
//! 8. The recorded trial values, in `runtime/policy-host`: `cargo run --example snapshots > tests/snapshots.jsonl`.

use serde::{Deserialize, Serialize};

/// Calls the macro `$generate` with all columns beside `worker`. An entry is:
///
/// ```text
/// /// What a row holds.
/// PRESENCE FIELD: FLAG, trial VALUE;
/// ```
///
/// `PRESENCE` is a [`Presence`]. `FIELD` names the column here and in the WIT, `FLAG` in the WIT's `columns`. `VALUE`
/// is a closure over the `Trial` of `admission/trial.rs` that returns a row's value in trial decisions. It can use the
/// values of the columns above it. The order of the entries decides which trial values a column gets, and nothing else.
macro_rules! for_each_column {
    ($generate:ident) => {
        $generate! {
            /// Leading KV blocks of the prompt in device memory.
            Required overlap_device: OVERLAP_DEVICE, trial |trial| trial.overlap();
            /// KV blocks of the prompt after those, in host memory.
            Required overlap_host: OVERLAP_HOST, trial |trial| trial.overlap();
            /// KV blocks of the prompt after those two, on disk.
            Required overlap_disk: OVERLAP_DISK, trial |trial| trial.overlap();
            /// Prompt tokens of this router's requests that wait for their first output token.
            Required prefill_tokens: PREFILL_TOKENS, trial |trial| trial.own_load(100_000);
            /// KV blocks of this router's requests.
            Required decode_blocks: DECODE_BLOCKS, trial |trial| trial.own_load(20_000);
            /// This router's requests in flight.
            Required requests: REQUESTS, trial |trial| trial.own_load(256);
            /// Bits of [`candidate_traits`].
            Optional traits: TRAITS, trial |trial| trial.traits();
            /// As `prefill_tokens`, for all routers together, this one included.
            Optional prefill_tokens_all: PREFILL_TOKENS_ALL,
                trial |trial| trial.load_of_all(trial.row.prefill_tokens, 100_000);
            /// As `decode_blocks`, for all routers together, this one included.
            Optional decode_blocks_all: DECODE_BLOCKS_ALL,
                trial |trial| trial.load_of_all(trial.row.decode_blocks, 20_000);
            /// As `requests`, for all routers together, this one included.
            Optional requests_all: REQUESTS_ALL, trial |trial| trial.load_of_all(trial.row.requests, 256);
            /// KV blocks that fit in the device memory; 0 when unknown.
            Required kv_blocks_total: KV_BLOCKS_TOTAL, trial |trial| trial.up_to(1) * 30_000;
            /// KV blocks in use, as the worker last reported.
            Required kv_blocks_used: KV_BLOCKS_USED, trial |trial| trial.up_to(30_000);
            /// Requests that wait in the engine, as the worker last reported.
            Optional queue_depth: QUEUE_DEPTH, trial |trial| trial.up_to(100);
        }
    };
}

pub(crate) use for_each_column;

/// Whether the router fills a column for every policy.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Presence {
    /// The router fills the column for every decision.
    Required,
    /// The router fills the column only for a policy that wants an optional column: few do.
    Optional,
}

impl Presence {
    pub(crate) const fn is_required(self) -> bool {
        matches!(self, Self::Required)
    }
}

macro_rules! define_candidates {
    ($($(#[$doc:meta])* $presence:ident $column:ident: $flag:ident, trial $value:expr;)*) => {
        /// The candidates as flat columns of one length: row i of each column is candidate i. A caller keeps one of
        /// these and fills it again for each decision, so that it allocates the buffers once.
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        pub struct Candidates {
            /// The worker's number, the same for as long as the worker is present.
            pub worker: Vec<u32>,
            $($(#[$doc])* pub $column: Vec<u32>,)*
        }

        impl Candidates {
            /// Gives `worker` and every required column `rows` rows. Existing rows stay, new rows are 0. Empties the
            /// optional columns: to fill them, call [`Candidates::resize_optional`]. Keeps the buffers.
            pub fn resize(&mut self, rows: usize) {
                self.worker.resize(rows, 0);
                $(if Presence::$presence.is_required() {
                    self.$column.resize(rows, 0);
                } else {
                    self.$column.clear();
                })*
            }

            /// Gives every optional column a row for each candidate: `traits`, the load of all routers, and
            /// `queue_depth`.
            pub fn resize_optional(&mut self) {
                let rows = self.len();
                $(if !Presence::$presence.is_required() {
                    self.$column.resize(rows, 0);
                })*
            }

            /// Keeps the rows at these places, which ascend, in `worker` and the required columns, and drops all
            /// other rows. The optional columns stay as they are: fill them afterwards.
            pub fn keep_rows(&mut self, places: &[usize]) {
                keep(&mut self.worker, places);
                $(if Presence::$presence.is_required() {
                    keep(&mut self.$column, places);
                })*
            }

            /// The name and the length of the first column that does not have a row for each candidate. Checks the
            /// optional columns only `with_optional`.
            pub(crate) fn uneven_column(&self, with_optional: bool) -> Option<(&'static str, usize)> {
                let rows = self.len();
                $(if (with_optional || Presence::$presence.is_required()) && self.$column.len() != rows {
                    return Some((stringify!($column), self.$column.len()));
                })*
                None
            }

            /// All columns beside `worker`.
            #[cfg(test)]
            pub(crate) fn columns_mut(&mut self) -> [&mut Vec<u32>; Self::COLUMNS] {
                [$(&mut self.$column),*]
            }

            /// The number of columns beside `worker`.
            #[cfg(test)]
            pub(crate) const COLUMNS: usize = [$(stringify!($column)),*].len();
        }
    };
}

for_each_column!(define_candidates);

impl Candidates {
    /// The number of candidates.
    #[must_use]
    pub fn len(&self) -> usize {
        self.worker.len()
    }

    /// Whether there is no candidate.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.worker.is_empty()
    }
}

fn keep(column: &mut Vec<u32>, places: &[usize]) {
    for (row, &place) in places.iter().enumerate() {
        column[row] = column[place];
    }
    column.truncate(places.len());
}

/// Bits of [`Candidates::traits`].
pub mod candidate_traits {
    /// The worker takes prefills.
    pub const PREFILL: u32 = 1;
    /// The worker takes decodes.
    pub const DECODE: u32 = 2;
    /// The overlap is approximate: the router does not use the worker's KV events, and learned it from its own decisions.
    pub const APPROXIMATE: u32 = 4;
    /// The router is rebuilding its index of the worker, so the overlap may be too low.
    pub const PARTIAL: u32 = 8;
}
