//! The candidates of one decision, as the columns a policy sees.

use itertools::izip;
use signalbox_kv_index::{OverlapScores, WorkerSlot};
use signalbox_policy_host::{Candidates, candidate_traits};
use signalbox_protocol::WorkerRole;

use crate::{
    load::{EventState, LoadTable},
    roster::{ReadyWorkers, WorkerColumns, WorkerEntry},
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
/// request before; `None` where it may go to all of them.
pub(crate) fn assemble(
    workers: &ReadyWorkers,
    load: &LoadTable,
    overlaps: &OverlapScores,
    may_use: Option<impl Fn(&WorkerEntry) -> bool>,
    columns: &mut Candidates,
    rows: &mut Vec<usize>,
) -> Result<(), NoCandidate> {
    fill(workers, load, overlaps, columns);
    rows.clear();
    rows.extend(0..workers.len());
    let most_requests = &workers.columns().most_requests;
    if may_use.is_some() || any_busy(&columns.requests, most_requests) {
        let may_use = |place: usize| may_use.as_ref().is_none_or(|may_use| may_use(&workers[place]));
        rows.retain(|&place| columns.requests[place] < most_requests[place] && may_use(place));
        if rows.is_empty() && (0..workers.len()).any(may_use) {
            return Err(NoCandidate::Busy);
        }
        columns.keep_rows(rows);
    }
    if rows.is_empty() {
        Err(NoCandidate::Unavailable)
    } else {
        Ok(())
    }
}

/// A row for each worker. Few columns a pass: what a pass walks along stays in registers then, and much of it becomes
/// vector instructions.
fn fill(workers: &ReadyWorkers, load: &LoadTable, overlaps: &OverlapScores, columns: &mut Candidates) {
    columns.resize(workers.len());
    let WorkerColumns { slots, kv_blocks, .. } = workers.columns();
    columns.worker.copy_from_slice(slots);
    columns.kv_blocks_total.copy_from_slice(kv_blocks);
    gather(&overlaps.device, slots, &mut columns.overlap_device);
    gather(&overlaps.host, slots, &mut columns.overlap_host);
    gather(&overlaps.disk, slots, &mut columns.overlap_disk);
    for (&slot, prefill, decode, requests, used) in izip!(
        slots,
        &mut columns.prefill_tokens,
        &mut columns.decode_blocks,
        &mut columns.requests,
        &mut columns.kv_blocks_used,
    ) {
        // Nobody past the table's end has a slot.
        let (own, used_blocks) = load.own(WorkerSlot(slot)).unwrap_or_default();
        (*prefill, *decode, *requests) = (own.prefill_tokens, own.decode_blocks, own.requests);
        *used = used_blocks;
    }
}

/// The overlaps of the workers in `slots`; 0 where nobody holds anything, as mostly below the device.
fn gather(overlaps: &[u32], slots: &[u32], column: &mut [u32]) {
    if overlaps.is_empty() {
        return column.fill(0);
    }
    for (overlap, &slot) in column.iter_mut().zip(slots) {
        *overlap = overlaps.get(slot as usize).copied().unwrap_or(0);
    }
}

/// Without a way out in the middle, so that it is vector instructions.
fn any_busy(requests: &[u32], most_requests: &[u32]) -> bool {
    requests
        .iter()
        .zip(most_requests)
        .fold(false, |busy, (requests, most)| busy | (requests >= most))
}

/// The columns that few policies want, for the rows there are.
pub(crate) fn fill_optional(
    workers: &ReadyWorkers,
    load: &LoadTable,
    rows: &[usize],
    columns: &mut Candidates,
) {
    columns.resize_optional();
    for (&slot, prefill, decode, requests, queue) in izip!(
        &columns.worker,
        &mut columns.prefill_tokens_all,
        &mut columns.decode_blocks_all,
        &mut columns.requests_all,
        &mut columns.queue_depth,
    ) {
        let (others, waiting) = load.others(WorkerSlot(slot)).unwrap_or_default();
        (*prefill, *decode, *requests) = (others.prefill_tokens, others.decode_blocks, others.requests);
        *queue = waiting;
    }
    for (all, own) in [
        (&mut columns.prefill_tokens_all, &columns.prefill_tokens),
        (&mut columns.decode_blocks_all, &columns.decode_blocks),
        (&mut columns.requests_all, &columns.requests),
    ] {
        for (all, own) in all.iter_mut().zip(own) {
            *all = all.saturating_add(*own);
        }
    }
    let roles = &workers.columns().roles;
    for (traits, &place, &slot) in izip!(&mut columns.traits, rows, &columns.worker) {
        *traits = role_traits(roles[place]) | certainty_traits(load.event_state(WorkerSlot(slot)));
    }
}

fn role_traits(role: WorkerRole) -> u32 {
    match role {
        WorkerRole::Aggregated => candidate_traits::PREFILL | candidate_traits::DECODE,
        WorkerRole::Prefill => candidate_traits::PREFILL,
        WorkerRole::Decode => candidate_traits::DECODE,
    }
}

fn certainty_traits(events: EventState) -> u32 {
    if events == EventState::Resyncing {
        candidate_traits::PARTIAL
    } else {
        0
    }
}
