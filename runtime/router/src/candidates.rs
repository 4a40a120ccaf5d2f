//! The candidates of one decision, as the columns that a policy reads.

use itertools::izip;
use signalbox_kv_index::{OverlapScores, WorkerSlot};
use signalbox_policy_host::{Candidates, Rejection, Wanted, candidate_traits};
use signalbox_protocol::{Ability, WorkerRole};

use crate::{
    affinity::AffinityTable,
    health::HealthTable,
    latency::LatencyTable,
    load::{EventState, LoadTable},
    roster::{ReadyWorkers, WorkerColumns, WorkerEntry},
};

/// Why a decision gives no worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoCandidate {
    /// No ready worker of the model can be reached, or each one that can has failed this request.
    Unavailable,
    /// Every ready worker that can be reached has as many requests as it takes.
    Busy,
    /// No ready worker of the model honours a part of the request.
    Unable(Ability),
    /// The request has more choices than any ready worker of the model takes at once.
    TooManyChoices {
        /// The request's choices.
        choices: u32,
        /// The most that a worker takes.
        most: u32,
    },
    /// The prompt does not fit into the context of any ready worker.
    TooLong {
        /// The longest of these contexts, in tokens.
        context_length: u32,
    },
    /// The policy rejects the request.
    Rejected(Rejection),
}

/// Fills `columns` with a row for each worker that can take the request now, and `rows` with the place of each row's
/// worker in `workers`.
///
/// A worker is left out if it has as many requests as it takes, or if `may_use` returns false for it: its link is
/// down, or it already failed this request. `None` allows every worker. An ejected worker is left out unless every worker
/// that may be used is ejected. The failures of the others count as load.
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
    let health = load.health();
    let has_marks = health.has_marks();
    if may_use.is_some() || has_marks || any_busy(&columns.requests, most_requests) {
        let may_use = |place: usize| may_use.as_ref().is_none_or(|may_use| may_use(&workers[place]));
        rows.retain(|&place| columns.requests[place] < most_requests[place] && may_use(place));
        if has_marks {
            let is_well = |place: usize| !health.mark(workers[place].slot).is_ejected;
            if (0..workers.len()).any(|place| is_well(place) && may_use(place)) {
                rows.retain(|&place| is_well(place));
            }
        }
        if rows.is_empty() && (0..workers.len()).any(may_use) {
            return Err(NoCandidate::Busy);
        }
        columns.keep_rows(rows);
    }
    if has_marks {
        count_failures(health, columns);
    }
    if rows.is_empty() {
        Err(NoCandidate::Unavailable)
    } else {
        Ok(())
    }
}

/// Fills `columns` with a row for each worker. Each pass walks few columns, so that its pointers stay in registers
/// and the compiler turns much of it into vector instructions.
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
        // The roster gives out no slot past the end of the table, so the default is never taken.
        let (own, used_blocks) = load.own(WorkerSlot(slot)).unwrap_or_default();
        (*prefill, *decode, *requests) = (own.prefill_tokens, own.decode_blocks, own.requests);
        *used = used_blocks;
    }
}

/// Adds the failures that count as load.
fn count_failures(health: &HealthTable, columns: &mut Candidates) {
    for (&slot, prefill, requests) in izip!(
        &columns.worker,
        &mut columns.prefill_tokens,
        &mut columns.requests
    ) {
        let mark = health.mark(WorkerSlot(slot));
        *prefill = prefill.saturating_add(mark.prefill_tokens);
        *requests = requests.saturating_add(mark.failures);
    }
}

/// Fills `column` with the overlaps of the workers in `slots`. `overlaps` is empty if no worker holds a block on that
/// tier, which is usual for host and disk.
fn gather(overlaps: &[u32], slots: &[u32], column: &mut [u32]) {
    if overlaps.is_empty() {
        return column.fill(0);
    }
    for (overlap, &slot) in column.iter_mut().zip(slots) {
        *overlap = overlaps.get(slot as usize).copied().unwrap_or(0);
    }
}

/// Whether a worker has as many requests as it takes. The loop does not stop at the first such worker, so that the
/// compiler turns it into vector instructions.
fn any_busy(requests: &[u32], most_requests: &[u32]) -> bool {
    requests
        .iter()
        .zip(most_requests)
        .fold(false, |busy, (requests, most)| busy | (requests >= most))
}

/// What the other columns are filled from.
pub(crate) struct Sources<'a> {
    pub(crate) workers: &'a ReadyWorkers,
    pub(crate) load: &'a LoadTable,
    pub(crate) latency: &'a LatencyTable,
    pub(crate) affinity: &'a AffinityTable,
    /// The place of each row's worker in `workers`.
    pub(crate) rows: &'a [usize],
    pub(crate) session: u64,
    pub(crate) now_ms: u64,
}

/// Fills the columns that the policy wants beside the required ones, for the rows that `columns` has.
pub(crate) fn fill_wanted(wanted: Wanted<'_>, sources: &Sources<'_>, columns: &mut Candidates) {
    let groups = wanted.groups;
    columns.resize_groups(groups);
    if groups.load() {
        fill_load(sources, columns);
    }
    if groups.report() {
        fill_reports(sources, columns);
    }
    if groups.measured() {
        fill_measured(sources, columns);
    }
    if groups.affinity() {
        let Sources { session, now_ms, .. } = *sources;
        let (slots, ages) = (&columns.worker, &mut columns.affinity_age_ms);
        sources.affinity.fill(session, now_ms, slots, ages);
    }
    let (workers, rows) = (sources.workers, sources.rows);
    if groups.card() {
        let card = workers.columns();
        take(&card.max_sequences, rows, &mut columns.max_running);
        take(&card.most_requests, rows, &mut columns.max_requests);
        take(&card.context_lengths, rows, &mut columns.context_length);
        take(&card.keys, rows, &mut columns.worker_key);
        take(&card.zones, rows, &mut columns.zone);
    }
    for label in wanted.labels {
        let (keys, _) = workers.label(label);
        let column = rows.iter().map(|&place| keys[place]).collect();
        columns.labels.push((label.clone(), column));
    }
    for label in wanted.number_labels {
        let (_, numbers) = workers.label(label);
        let column = rows.iter().map(|&place| numbers[place]).collect();
        columns.number_labels.push((label.clone(), column));
    }
}

/// Fills `column` with what `all` has at the places of the rows.
fn take<T: Copy>(all: &[T], rows: &[usize], column: &mut [T]) {
    if rows.len() == all.len() {
        // Every worker is a candidate, and the places ascend.
        return column.copy_from_slice(all);
    }
    for (value, &place) in column.iter_mut().zip(rows) {
        *value = all[place];
    }
}

/// The load of all routers, and the traits.
fn fill_load(sources: &Sources<'_>, columns: &mut Candidates) {
    let &Sources {
        workers, load, rows, ..
    } = sources;
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
        *traits = role_traits(roles[place]) | event_traits(load.event_state(WorkerSlot(slot)));
    }
}

fn fill_reports(sources: &Sources<'_>, columns: &mut Candidates) {
    for (&slot, running, active, evictable, age) in izip!(
        &columns.worker,
        &mut columns.running,
        &mut columns.kv_blocks_active,
        &mut columns.kv_blocks_evictable,
        &mut columns.report_age_ms,
    ) {
        let last = sources.load.last_report(WorkerSlot(slot)).unwrap_or_default();
        (*running, *active) = (last.running, last.active_blocks);
        *evictable = last.used_blocks.saturating_sub(last.active_blocks);
        *age = match last.at_ms {
            0 => 0.0,
            at_ms => sources.now_ms.saturating_sub(at_ms) as f32,
        };
    }
}

/// What the worker measured, or else this router.
fn fill_measured(sources: &Sources<'_>, columns: &mut Candidates) {
    for (&slot, rate, step_tokens, step, step_blocks, ttft, uncached, itl) in izip!(
        &columns.worker,
        &mut columns.prefill_tokens_per_s,
        &mut columns.prefill_step_tokens,
        &mut columns.decode_step_ms,
        &mut columns.decode_step_blocks,
        &mut columns.ttft_ms,
        &mut columns.uncached_prompt_tokens,
        &mut columns.itl_ms,
    ) {
        let slot = WorkerSlot(slot);
        let last = sources.load.last_report(slot).unwrap_or_default();
        let measured = sources.latency.get(slot);
        *ttft = measured.ttft_ms.unwrap_or(0.0);
        *uncached = measured.uncached_prompt_tokens.unwrap_or(0.0);
        *itl = measured.itl_ms.unwrap_or(0.0);
        *rate = match last.prefill_tokens_per_s {
            0 if *ttft > 0.0 => *uncached / *ttft * 1e3,
            reported => reported as f32,
        };
        *step_tokens = match last.prefill_step_tokens {
            0 => *uncached,
            reported => reported as f32,
        };
        *step_blocks = last.decode_step_blocks as f32;
        *step = match last.decode_step_us {
            0 => *itl,
            reported => reported as f32 / 1e3,
        };
    }
}

fn role_traits(role: WorkerRole) -> u32 {
    match role {
        WorkerRole::Aggregated => candidate_traits::PREFILL | candidate_traits::DECODE,
        WorkerRole::Prefill => candidate_traits::PREFILL,
        WorkerRole::Decode => candidate_traits::DECODE,
    }
}

fn event_traits(events: EventState) -> u32 {
    match events {
        EventState::Resyncing => candidate_traits::PARTIAL,
        EventState::Approximate => candidate_traits::APPROXIMATE,
        EventState::None | EventState::Following => 0,
    }
}

#[cfg(test)]
mod tests;
