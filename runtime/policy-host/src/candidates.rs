//! The candidates of a decision as columns, and the one table of those columns.
//!
//! # To add a column
//!
//! A new name changes no interface, so existing components keep running. A value that can be computed from other columns
//! and the request is a case of `NumberSource` in `names.rs`.
//!
//! 1. The source of the value. Load of this router: `router/src/load.rs`. Load of all routers: also `ReplicaLoad` in
//!    `protocol/src/load.rs` and `WorkerShare::digest` in `protocol/src/replica_message.rs`, where routers of two releases
//!    must agree. A value that the worker measures: a field of `LoadReport` in `protocol/src/load.rs`, and each engine
//!    that makes the report. A property of the worker: the card (`protocol/src/worker_card.rs`), filled in
//!    `worker/src/service.rs`, and `WorkerColumns` with its `FromIterator` in `router/src/roster/view.rs`.
//! 2. `wit/types.wit`: its name and meaning in `info`.
//! 3. `for_each_column!` below: one entry. The struct and its methods, the look-up of names (`names.rs`) and the trial
//!    values (`admission/trial.rs`) are generated from it.
//! 4. `router/src/candidates.rs` fills it, with the other columns of its group.
//! 5. `policies/sdk/src/columns.rs`: a case of `Count`, `Number` or `Key`.
//! 6. The recorded trial values, in `runtime/policy-host`: `cargo run --example snapshots > tests/snapshots.jsonl`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Calls the macro `$generate` with all columns beside `worker`. An entry is:
///
/// ```text
/// /// What a row holds.
/// GROUP SPACE FIELD: NAME, trial VALUE;
/// ```
///
/// `GROUP` is a [`Group`]: the columns of a group are filled together. `SPACE` is `Counts` (`u32`), `Numbers` (`f32`) or
/// `Keys` (`u64`). `FIELD` names the column here, `NAME` in `wit/types.wit`. `VALUE` is a closure over the `Trial` of
/// `admission/trial.rs` that returns a row's value in trial decisions. It can use the values of the columns above it. The
/// order of the entries decides which trial values a column gets, and nothing else.
macro_rules! for_each_column {
    ($generate:ident) => {
        $generate! {
            /// Leading KV blocks of the prompt in device memory.
            Required Counts overlap_device: "overlap-device", trial |trial| trial.overlap();
            /// KV blocks of the prompt after those, in host memory.
            Required Counts overlap_host: "overlap-host", trial |trial| trial.overlap();
            /// KV blocks of the prompt after those two, on disk.
            Required Counts overlap_disk: "overlap-disk", trial |trial| trial.overlap();
            /// Prompt tokens of this router's requests that wait for their first output token.
            Required Counts prefill_tokens: "prefill-tokens", trial |trial| trial.own_load(100_000);
            /// KV blocks of this router's requests.
            Required Counts decode_blocks: "decode-blocks", trial |trial| trial.own_load(20_000);
            /// This router's requests in flight.
            Required Counts requests: "requests", trial |trial| trial.own_load(256);
            /// Bits of [`candidate_traits`].
            Load Counts traits: "traits", trial |trial| trial.traits();
            /// As `prefill_tokens`, for all routers together, this one included.
            Load Counts prefill_tokens_all: "prefill-tokens-all",
                trial |trial| trial.load_of_all(trial.row.prefill_tokens, 100_000);
            /// As `decode_blocks`, for all routers together, this one included.
            Load Counts decode_blocks_all: "decode-blocks-all",
                trial |trial| trial.load_of_all(trial.row.decode_blocks, 20_000);
            /// As `requests`, for all routers together, this one included.
            Load Counts requests_all: "requests-all",
                trial |trial| trial.load_of_all(trial.row.requests, 256);
            /// KV blocks that fit in the device memory; 0 when unknown.
            Required Counts kv_blocks_total: "kv-blocks-total", trial |trial| trial.up_to(1) * 30_000;
            /// KV blocks in use, as the worker last reported.
            Required Counts kv_blocks_used: "kv-blocks-used", trial |trial| trial.up_to(30_000);
            /// Requests that wait in the engine, as the worker last reported.
            Load Counts queue_depth: "queue-depth", trial |trial| trial.up_to(100);
            /// Sequences in prefill or decode, as the worker last reported.
            Report Counts running: "running", trial |trial| trial.up_to(256);
            /// KV blocks of running sequences, as the worker last reported.
            Report Counts kv_blocks_active: "kv-blocks-active",
                trial |trial| trial.up_to(trial.row.kv_blocks_used);
            /// KV blocks in use that no running sequence needs, as the worker last reported.
            Report Counts kv_blocks_evictable: "kv-blocks-evictable",
                trial |trial| trial.row.kv_blocks_used - trial.row.kv_blocks_active;
            /// Milliseconds since the worker's last report; 0 before the first.
            Report Numbers report_age_ms: "report-age-ms", trial |trial| trial.up_to(2_000) as f32;
            /// Prompt tokens that the worker computes in a second of prefill.
            Measured Numbers prefill_tokens_per_s: "prefill-tokens-per-s",
                trial |trial| trial.up_to(1) as f32 * 20_000.0;
            /// The mean prompt tokens of the steps that this rate was measured on.
            Measured Numbers prefill_step_tokens: "prefill-step-tokens", trial |trial| trial.up_to(8_192) as f32;
            /// How long one of its decode steps takes, in ms.
            Measured Numbers decode_step_ms: "decode-step-ms", trial |trial| trial.up_to(60) as f32;
            /// The mean KV blocks of running sequences in those steps.
            Measured Numbers decode_step_blocks: "decode-step-blocks",
                trial |trial| trial.up_to(trial.row.kv_blocks_used) as f32;
            /// The mean time to the first token over this router's latest streams, in ms.
            Measured Numbers ttft_ms: "ttft-ms", trial |trial| trial.up_to(4_000) as f32;
            /// The mean prompt tokens that were computed for it.
            Measured Numbers uncached_prompt_tokens: "uncached-prompt-tokens",
                trial |trial| trial.up_to(8_000) as f32;
            /// The mean time between two tokens of an answer, in ms.
            Measured Numbers itl_ms: "itl-ms", trial |trial| trial.up_to(80) as f32;
            /// Milliseconds since this router last placed a request of the same session on the worker; 0 for never.
            Affinity Numbers affinity_age_ms: "affinity-age-ms", trial |trial| trial.up_to(600_000) as f32;
            /// Sequences that the worker computes at once.
            Card Counts max_running: "max-running", trial |trial| trial.up_to(256);
            /// Requests that it takes, running and waiting together.
            Card Counts max_requests: "max-requests", trial |trial| trial.up_to(2_048);
            /// Tokens of its context.
            Card Counts context_length: "context-length", trial |trial| trial.up_to(131_072);
            /// The hash of the worker's id.
            Card Keys worker_key: "worker", trial |trial| trial.key();
            /// The hash of its label `zone`; 0 for none.
            Card Keys zone: "zone", trial |trial| trial.key();
        }
    };
}

pub(crate) use for_each_column;

/// The type of the values in a space.
macro_rules! value_of {
    (Counts) => {
        u32
    };
    (Numbers) => {
        f32
    };
    (Keys) => {
        u64
    };
}

pub(crate) use value_of;

/// Columns that the router fills together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Group {
    /// Filled for every decision: the fallback reads them.
    Required = 0,
    Load = 1,
    Report = 2,
    Measured = 4,
    Affinity = 8,
    Card = 16,
}

/// The groups of columns that a policy reads, beside those that are filled for every decision.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ColumnGroups(u8);

impl ColumnGroups {
    /// Every group.
    pub const ALL: Self = Self(0xff);

    pub(crate) fn add(&mut self, group: Group) {
        self.0 |= group as u8;
    }

    const fn has(self, group: Group) -> bool {
        self.0 & group as u8 == group as u8
    }

    /// Whether any group is wanted.
    #[must_use]
    pub const fn is_any(self) -> bool {
        self.0 != 0
    }

    /// The load of all routers, `traits` and `queue_depth`.
    #[must_use]
    pub const fn load(self) -> bool {
        self.has(Group::Load)
    }

    /// What the worker last reported.
    #[must_use]
    pub const fn report(self) -> bool {
        self.has(Group::Report)
    }

    /// Measured times and rates.
    #[must_use]
    pub const fn measured(self) -> bool {
        self.has(Group::Measured)
    }

    /// `affinity_age_ms`.
    #[must_use]
    pub const fn affinity(self) -> bool {
        self.has(Group::Affinity)
    }

    /// What the worker's card states.
    #[must_use]
    pub const fn card(self) -> bool {
        self.has(Group::Card)
    }
}

/// What the policy that decides wants beside the required columns.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The groups of columns.
    pub groups: ColumnGroups,
    /// The labels of workers that it reads as keys.
    pub labels: &'a [Arc<str>],
    /// The labels of workers that it reads as numbers.
    pub number_labels: &'a [Arc<str>],
}

/// A label of all candidates: its name, and a row for each candidate.
pub type LabelColumn<T> = (Arc<str>, Vec<T>);

macro_rules! define_candidates {
    ($($(#[$doc:meta])* $group:ident $space:ident $column:ident: $name:literal, trial $value:expr;)*) => {
        /// The candidates as flat columns of one length: row i of each column is candidate i. A caller keeps one of
        /// these and fills it again for each decision, so that it allocates the buffers once.
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Candidates {
            /// The worker's number in this router, the same for as long as the worker is present. No policy sees it.
            pub worker: Vec<u32>,
            $($(#[$doc])* #[serde(skip_serializing_if = "Vec::is_empty")] pub $column: Vec<value_of!($space)>,)*
            /// The hashes of the labels that the policy reads.
            #[serde(skip_serializing_if = "Vec::is_empty")]
            pub labels: Vec<LabelColumn<u64>>,
            /// The labels that it reads as numbers.
            #[serde(skip_serializing_if = "Vec::is_empty")]
            pub number_labels: Vec<LabelColumn<f32>>,
        }

        impl Candidates {
            /// Gives `worker` and every required column `rows` rows. Existing rows stay, new rows are 0. Empties the
            /// other columns: to fill them, call [`Candidates::resize_groups`]. Keeps the buffers.
            pub fn resize(&mut self, rows: usize) {
                self.worker.resize(rows, 0);
                $(if matches!(Group::$group, Group::Required) {
                    self.$column.resize(rows, Default::default());
                } else {
                    self.$column.clear();
                })*
                self.labels.clear();
                self.number_labels.clear();
            }

            /// Gives every column of these groups a row for each candidate.
            pub fn resize_groups(&mut self, groups: ColumnGroups) {
                let rows = self.len();
                $(if !matches!(Group::$group, Group::Required) && groups.has(Group::$group) {
                    self.$column.resize(rows, Default::default());
                })*
            }

            /// Keeps the rows at these places, which ascend, in `worker` and the required columns, and drops all
            /// other rows. The other columns stay as they are: fill them afterwards.
            pub fn keep_rows(&mut self, places: &[usize]) {
                keep(&mut self.worker, places);
                $(if matches!(Group::$group, Group::Required) {
                    keep(&mut self.$column, places);
                })*
            }

            /// Takes over all columns of `other`. Keeps the buffers.
            pub fn copy_from(&mut self, other: &Self) {
                self.worker.clone_from(&other.worker);
                $(self.$column.clone_from(&other.$column);)*
                copy_labels(&mut self.labels, &other.labels);
                copy_labels(&mut self.number_labels, &other.number_labels);
            }

            /// The name and the length of the first column among the required ones and these groups that does not have
            /// a row for each candidate.
            pub(crate) fn uneven_column(&self, groups: ColumnGroups) -> Option<(&'static str, usize)> {
                let rows = self.len();
                $(if groups.has(Group::$group) && self.$column.len() != rows {
                    return Some(($name, self.$column.len()));
                })*
                None
            }

            /// Appends a row with these values to all columns.
            #[cfg(test)]
            pub(crate) fn push_row(&mut self, mut value: impl FnMut() -> u32) {
                self.worker.push(self.worker.len() as u32);
                $(self.$column.push(value() as value_of!($space));)*
            }
        }

        /// The column of this name in this space, with its group.
        pub(crate) fn column_named(space: Space, name: &str) -> Option<(Group, Column)> {
            $(if space == Space::$space && name == $name {
                return Some((Group::$group, Column::$space(|candidates| &candidates.$column)));
            })*
            None
        }

        /// The names of a space's columns.
        pub(crate) fn column_names(space: Space) -> Vec<&'static str> {
            [$((Space::$space, $name)),*]
                .into_iter()
                .filter_map(|(of, name)| (of == space).then_some(name))
                .collect()
        }
    };
}

/// The type of a column's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    Counts,
    Numbers,
    Keys,
}

/// Where a column is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Column {
    Counts(fn(&Candidates) -> &[u32]),
    Numbers(fn(&Candidates) -> &[f32]),
    Keys(fn(&Candidates) -> &[u64]),
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

/// A tuple's `clone_from` would not keep the buffers.
fn copy_labels<T: Copy>(columns: &mut Vec<LabelColumn<T>>, from: &[LabelColumn<T>]) {
    columns.truncate(from.len());
    let (known, new) = from.split_at(columns.len());
    for ((name, rows), (other_name, other_rows)) in columns.iter_mut().zip(known) {
        name.clone_from(other_name);
        rows.clone_from(other_rows);
    }
    columns.extend_from_slice(new);
}

fn keep<T: Copy>(column: &mut Vec<T>, places: &[usize]) {
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
