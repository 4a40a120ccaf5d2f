//! The candidates of one decision, as the columns a policy sees.

use signalbox_kv_index::{OverlapScores, WorkerSlot};
use signalbox_policy_host::{Candidates, candidate_flags};
use signalbox_protocol::WorkerRole;

use crate::{
    load::{EventState, LoadTable},
    roster::{ModelEntry, WorkerEntry},
};

/// Why a request has no candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoCandidate {
    /// No ready worker serves the model, or none can be reached.
    Unavailable,
    /// Every reachable worker has as many requests as it takes.
    Busy,
}

/// Fills `columns` with the workers of `model` that may be given a request now. `rows[i]` is the place of row `i`'s
/// worker in `model.workers`. `may_use` says whether this request may go to a worker: its link works and it did
/// not fail this request before.
pub(crate) fn assemble(
    model: &ModelEntry,
    load: &LoadTable,
    overlaps: &OverlapScores,
    may_use: impl Fn(&WorkerEntry) -> bool,
    columns: &mut Candidates,
    rows: &mut Vec<usize>,
) -> Result<(), NoCandidate> {
    columns.clear();
    rows.clear();
    let mut is_busy = false;
    for (place, worker) in model.workers.iter().enumerate() {
        if !may_use(worker) {
            continue;
        }
        let now = load.get(worker.slot);
        let capacity = worker.card.capacity;
        if now.requests >= capacity.max_sequences.saturating_add(capacity.max_waiting) {
            is_busy = true;
            continue;
        }
        rows.push(place);
        columns.worker.push(worker.slot.0);
        columns.flags.push(flags(worker, load.event_state(worker.slot)));
        columns.overlap_device.push(at(&overlaps.device, worker.slot));
        columns.overlap_host.push(at(&overlaps.host, worker.slot));
        columns.overlap_disk.push(at(&overlaps.disk, worker.slot));
        columns.prefill_tokens.push(now.prefill_tokens);
        columns.decode_blocks.push(now.decode_blocks);
        columns.requests.push(now.requests);
        let all = now.of_all_routers();
        columns.prefill_tokens_all.push(all.prefill_tokens);
        columns.decode_blocks_all.push(all.decode_blocks);
        columns.requests_all.push(all.requests);
        columns.kv_blocks_total.push(capacity.kv_blocks);
        columns.kv_blocks_used.push(now.reported_used_blocks);
        columns.queue_depth.push(now.reported_waiting);
    }
    match (rows.is_empty(), is_busy) {
        (false, _) => Ok(()),
        (true, true) => Err(NoCandidate::Busy),
        (true, false) => Err(NoCandidate::Unavailable),
    }
}

fn at(column: &[u32], worker: WorkerSlot) -> u32 {
    column.get(worker.0 as usize).copied().unwrap_or(0)
}

fn flags(worker: &WorkerEntry, events: EventState) -> u32 {
    let role = match worker.card.role {
        WorkerRole::Aggregated => candidate_flags::PREFILL | candidate_flags::DECODE,
        WorkerRole::Prefill => candidate_flags::PREFILL,
        WorkerRole::Decode => candidate_flags::DECODE,
    };
    let certainty = if events == EventState::Resyncing {
        candidate_flags::PARTIAL
    } else {
        0
    };
    role | certainty
}
