//! The candidates of one decision, as the columns a policy sees.

use itertools::izip;
use signalbox_kv_index::OverlapScores;
use signalbox_policy_host::{Candidates, candidate_flags};
use signalbox_protocol::WorkerRole;

use crate::{
    load::{EventState, LoadTable},
    roster::{ReadyWorkers, WorkerEntry},
};

/// Why a request has no candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoCandidate {
    /// No ready worker serves the model, or none can be reached.
    Unavailable,
    /// Every reachable worker has as many requests as it takes.
    Busy,
}

/// Fills `columns` with those of `workers` that may be given a request now. `rows[i]` is the place of row `i`'s worker
/// in `workers`. `may_use` says whether this request may go to a worker: its link works and it did not fail this
/// request before.
pub(crate) fn assemble(
    workers: &ReadyWorkers,
    load: &LoadTable,
    overlaps: &OverlapScores,
    may_use: impl Fn(&WorkerEntry) -> bool,
    columns: &mut Candidates,
    rows: &mut Vec<usize>,
) -> Result<(), NoCandidate> {
    rows.clear();
    rows.extend(0..workers.len());
    let left_out = fill(workers, load, overlaps, &may_use, columns);
    if left_out {
        let is_free = |place: usize| {
            may_use(&workers[place]) && columns.requests[place] < workers.traits()[place].most_requests
        };
        rows.retain(|&place| is_free(place));
        columns.keep_rows(rows);
    }
    if !rows.is_empty() {
        return Ok(());
    }
    if workers.iter().any(may_use) {
        Err(NoCandidate::Busy)
    } else {
        Err(NoCandidate::Unavailable)
    }
}

/// A row for each worker; whether there are workers that must not have one. It mostly is the only pass over a thousand of
/// them: columns walked side by side need no bounds checks, which took more time than what they guarded.
fn fill(
    workers: &ReadyWorkers,
    load: &LoadTable,
    overlaps: &OverlapScores,
    may_use: impl Fn(&WorkerEntry) -> bool,
    columns: &mut Candidates,
) -> bool {
    columns.resize(workers.len());
    let mut left_out = false;
    for (entry, traits, worker, device, host, disk, prefill, decode, requests, total, used) in izip!(
        workers.iter(),
        workers.traits(),
        &mut columns.worker,
        &mut columns.overlap_device,
        &mut columns.overlap_host,
        &mut columns.overlap_disk,
        &mut columns.prefill_tokens,
        &mut columns.decode_blocks,
        &mut columns.requests,
        &mut columns.kv_blocks_total,
        &mut columns.kv_blocks_used,
    ) {
        let Some((own, kv_blocks_used)) = load.own(traits.slot) else {
            (*requests, left_out) = (u32::MAX, true);
            continue;
        };
        left_out |= own.requests >= traits.most_requests || !may_use(entry);
        *worker = traits.slot.0;
        *device = overlaps.device(traits.slot);
        *host = overlaps.host(traits.slot);
        *disk = overlaps.disk(traits.slot);
        (*prefill, *decode, *requests) = (own.prefill_tokens, own.decode_blocks, own.requests);
        *total = traits.kv_blocks;
        *used = kv_blocks_used;
    }
    left_out
}

/// The columns that few policies want, for the rows there are.
pub(crate) fn fill_further(
    workers: &ReadyWorkers,
    load: &LoadTable,
    rows: &[usize],
    columns: &mut Candidates,
) {
    columns.resize_further();
    for (&place, flags, prefill, decode, requests, queue) in izip!(
        rows,
        &mut columns.flags,
        &mut columns.prefill_tokens_all,
        &mut columns.decode_blocks_all,
        &mut columns.requests_all,
        &mut columns.queue_depth,
    ) {
        let traits = workers.traits()[place];
        let now = load.get(traits.slot);
        let all = now.of_all_routers();
        *flags = role_flags(traits.role) | certainty_flags(now.event_state);
        (*prefill, *decode, *requests) = (all.prefill_tokens, all.decode_blocks, all.requests);
        *queue = now.reported_waiting;
    }
}

fn role_flags(role: WorkerRole) -> u32 {
    match role {
        WorkerRole::Aggregated => candidate_flags::PREFILL | candidate_flags::DECODE,
        WorkerRole::Prefill => candidate_flags::PREFILL,
        WorkerRole::Decode => candidate_flags::DECODE,
    }
}

fn certainty_flags(events: EventState) -> u32 {
    if events == EventState::Resyncing {
        candidate_flags::PARTIAL
    } else {
        0
    }
}
