//! A request as the workers of each version of its model would get it, and what follows for a decision among all of them.
//!
//! The candidates of one decision may have KV blocks of different sizes. A policy reads all columns in blocks of one size,
//! that of the first prompt: the columns of the other workers are converted.

use signalbox_kv_index::{OverlapScores, SharedKvIndex};
use signalbox_policy_host::Candidates;
use signalbox_protocol::SequenceHash;

use crate::{
    candidates::NoCandidate,
    context_need::ContextNeed,
    roster::{ModelEntry, ReadyWorkers, VersionId, WorkerEntry},
};

#[cfg(test)]
mod tests;

/// How many tokens of a prompt its key `prefix` covers (`wit/types.wit`): more than a chat template begins with, and fewer
/// than most system prompts have.
const PREFIX_TOKENS: u32 = 256;

/// A request as the workers of one version would get it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct VersionedPrompt<'a> {
    pub(crate) version: VersionId,
    /// Tokens that the engine computes.
    pub(crate) tokens: u32,
    /// The whole KV blocks of the prompt.
    pub(crate) blocks: &'a [SequenceHash],
    pub(crate) context: ContextNeed,
}

impl<'a> VersionedPrompt<'a> {
    /// The prompt for workers of this version; `None` if the request was not made ready for them.
    pub(crate) fn of(prompts: &[Self], version: VersionId) -> Option<&Self> {
        prompts.iter().find(|prompt| prompt.version == version)
    }

    /// The key of how the prompt begins; 0 where it fills no block. A block's hash covers all blocks before it.
    pub(crate) fn prefix_key(&self) -> u64 {
        let wanted = (PREFIX_TOKENS / self.version.block_size.max(1)).max(1) as usize;
        let last = wanted.min(self.blocks.len());
        last.checked_sub(1).map_or(0, |last| self.blocks[last].0)
    }

    /// Whether this prompt suits every worker of the model, so that none has to be looked at: the usual case.
    pub(crate) fn suits_all(&self, model: &ModelEntry) -> bool {
        let [only] = model.versions.as_slice() else {
            return false;
        };
        only.id == self.version && self.context.wanted <= model.workers.shortest_context()
    }
}

/// Which workers of a model suit a request that has these prompts: for each prompt, the workers of its version whose context
/// is as long as this.
pub(crate) struct Suitable<'a> {
    prompts: &'a [VersionedPrompt<'a>],
    /// For each prompt, the longest context of a ready worker of its version.
    longest: Vec<u32>,
}

impl<'a> Suitable<'a> {
    /// # Errors
    /// The request fits the context of no worker, or was made ready for none.
    pub(crate) fn new(prompts: &'a [VersionedPrompt<'a>], model: &ModelEntry) -> Result<Self, NoCandidate> {
        let longest_of = |prompt: &VersionedPrompt<'_>| {
            let version = model.versions.iter().find(|version| version.id == prompt.version);
            version.map_or(0, |version| version.context_length)
        };
        let longest: Vec<u32> = prompts.iter().map(longest_of).collect();
        let fits = |(prompt, longest): (&VersionedPrompt<'_>, &u32)| prompt.context.least <= *longest;
        if model.workers.is_empty() || longest.iter().all(|longest| *longest == 0) {
            return Err(NoCandidate::Unavailable);
        }
        if !prompts.iter().zip(&longest).any(fits) {
            return Err(NoCandidate::TooLong {
                context_length: model.longest_context(),
            });
        }
        Ok(Self { prompts, longest })
    }

    /// Whether the worker has the context that the request wants, or as much of it as any worker has.
    pub(crate) fn has_wanted(&self, worker: &WorkerEntry) -> bool {
        let mut prompts = self.prompts.iter().zip(&self.longest);
        let prompt = prompts.find(|(prompt, _)| prompt.version == worker.version);
        prompt.is_some_and(|(prompt, longest)| worker.card.context_length >= prompt.context.among(*longest))
    }

    /// Whether the worker has the context that the request needs.
    pub(crate) fn has_least(&self, worker: &WorkerEntry) -> bool {
        VersionedPrompt::of(self.prompts, worker.version)
            .is_some_and(|prompt| worker.card.context_length >= prompt.context.least)
    }

    /// Whether workers that have less than the wanted context may take the request, where those that have it cannot for this
    /// reason.
    pub(crate) fn may_take_least(&self, reason: &NoCandidate) -> bool {
        match reason {
            NoCandidate::Unavailable => true,
            NoCandidate::Busy => !self.prompts.iter().any(|prompt| prompt.context.is_limit_set),
            NoCandidate::TooLong { .. }
            | NoCandidate::TooManyChoices { .. }
            | NoCandidate::Unable(_)
            | NoCandidate::Rejected(_) => false,
        }
    }
}

/// Looks up the prompts after the first, and gives the workers of their versions their own overlaps. `scores` has those of
/// the first prompt; each worker's are in blocks of its own size.
pub(crate) fn look_up_others(
    index: &SharedKvIndex,
    others: &[VersionedPrompt<'_>],
    workers: &ReadyWorkers,
    scratch: &mut OverlapScores,
    scores: &mut OverlapScores,
) {
    for prompt in others {
        index.read(|index| index.overlaps(prompt.blocks, scratch));
        for worker in workers.iter().filter(|worker| worker.version == prompt.version) {
            let place = worker.slot.0 as usize;
            set(&mut scores.device, place, scratch.device(worker.slot));
            set(&mut scores.host, place, scratch.host(worker.slot));
            set(&mut scores.disk, place, scratch.disk(worker.slot));
        }
    }
}

/// Sets a value of a column whose values past its end are 0.
fn set(column: &mut Vec<u32>, place: usize, value: u32) {
    if place >= column.len() {
        if value == 0 {
            return;
        }
        column.resize(place + 1, 0);
    }
    column[place] = value;
}

/// Converts the required columns that count KV blocks into blocks of `block_size` tokens.
pub(crate) fn convert_blocks(
    workers: &ReadyWorkers,
    rows: &[usize],
    block_size: u32,
    columns: &mut Candidates,
) {
    for (row, size) in other_sizes(workers, rows, block_size) {
        for column in [
            &mut columns.overlap_device,
            &mut columns.overlap_host,
            &mut columns.overlap_disk,
            &mut columns.decode_blocks,
            &mut columns.kv_blocks_total,
            &mut columns.kv_blocks_used,
        ] {
            column[row] = converted(column[row], size, block_size);
        }
    }
}

/// Converts the columns that the policy wants and that count KV blocks, after [`convert_blocks`]: of the load of all
/// routers, this router's part is converted already. Columns that were not filled are empty.
pub(crate) fn convert_wanted_blocks(
    workers: &ReadyWorkers,
    rows: &[usize],
    block_size: u32,
    columns: &mut Candidates,
) {
    for (row, size) in other_sizes(workers, rows, block_size) {
        let own = columns.decode_blocks[row];
        if let Some(all) = columns.decode_blocks_all.get_mut(row) {
            *all = own.saturating_add(converted(all.saturating_sub(own), size, block_size));
        }
        for column in [&mut columns.kv_blocks_active, &mut columns.kv_blocks_evictable] {
            if let Some(blocks) = column.get_mut(row) {
                *blocks = converted(*blocks, size, block_size);
            }
        }
    }
}

/// The rows whose workers have blocks of another size, with that size.
fn other_sizes(
    workers: &ReadyWorkers,
    rows: &[usize],
    block_size: u32,
) -> impl Iterator<Item = (usize, u32)> {
    let size_of = move |&place: &usize| workers[place].version.block_size;
    let sizes = rows.iter().map(size_of).enumerate();
    sizes.filter(move |(_, size)| *size != block_size)
}

/// A number of blocks of `from` tokens, in blocks of `to` tokens.
fn converted(blocks: u32, from: u32, to: u32) -> u32 {
    let tokens = u64::from(blocks) * u64::from(from);
    u32::try_from(tokens / u64::from(to.max(1))).unwrap_or(u32::MAX)
}
