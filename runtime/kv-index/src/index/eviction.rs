//! Which blocks a full index gives up for new ones.
//!
//! The unit is a strand: it is what takes memory, and it holds the blocks of one prompt or two. Each strand has the time
//! of its last use: the store or the lookup that last touched it, on a clock that counts stores. For each eviction some
//! strands are compared, and the one of the least worth is retired. With sixteen compared, an eviction takes a strand of
//! the older half but for once in 65,000 times, and no order of all strands has to be kept.
//!
//! Two things make a strand worth less: the time since its last use, and that its only holder holds more than the mean
//! of all workers. A worker that reports block after block, and seldom a removal, so displaces its own blocks before
//! those of others.
//!
//! A sixteenth of the memory is kept free, so that a store evicts a strand or two at a time, and mostly finds room.

use super::{KvIndex, WorkerSlot};

/// The index evicts while it has less than this part of its memory free.
const KEPT_FREE: usize = 16;
/// Strands evicted before one step of a store. A step adds at most 32 blocks, and so many strands of one block take more
/// memory than they.
const EVICTED_AT_ONCE: usize = 8;
/// Strands compared for one eviction.
const COMPARED: usize = 16;
/// Numbers tried to find them. Up to three in four may be retired strands whose numbers the place map still has.
const TRIED: usize = 4 * COMPARED;

impl KvIndex {
    /// Evicts some strands if the index is nearly full.
    pub(super) fn evict_if_nearly_full(&mut self) {
        for _ in 0..EVICTED_AT_ONCE {
            let kept_free = self.max_bytes / KEPT_FREE;
            if self.room() >= kept_free || !self.evict() {
                return;
            }
        }
    }

    /// Evicts a strand. False if none was found that the present store has not used.
    pub(super) fn evict(&mut self) -> bool {
        let Some(id) = self.least_worth() else {
            return false;
        };
        for worker in self.strands[id].workers() {
            let change = self.change_strand(id, |strand| strand.remove_worker(worker));
            self.evicted += change.memberships.iter().sum::<usize>() as u64;
            self.count_removed(worker, change);
            self.unlist_strand(worker, id);
            self.workers[worker.0 as usize].is_partial = true;
        }
        self.reclaim(id);
        true
    }

    /// Of some strands, the one of the least worth. The strands of the present store are not among them: to evict the
    /// beginning of a chain for its end would help nobody.
    fn least_worth(&mut self) -> Option<usize> {
        let mean = self.memberships.iter().sum::<usize>() / self.holding.max(1);
        let (mut found, mut compared) = (None, 0);
        for _ in 0..TRIED {
            let Some(id) = self.next_sample() else {
                continue;
            };
            let strand = &self.strands[id];
            let age = strand.age(self.clock);
            if age == 0 {
                continue;
            }
            let held = strand
                .single_holder()
                .map_or(mean, |worker| self.blocks_of(worker).max(mean));
            let lack_of_worth = u128::from(age) * held as u128;
            if found.is_none_or(|(least, _)| lack_of_worth > least) {
                found = Some((lack_of_worth, id));
            }
            compared += 1;
            if compared == COMPARED {
                break;
            }
        }
        found.map(|(_, id)| id)
    }

    /// Counts blocks that a worker stored and the index does not credit.
    pub(super) fn refuse(&mut self, worker: WorkerSlot, blocks: usize) {
        self.refused_stores += blocks as u64;
        if let Some(holdings) = self.workers.get_mut(worker.0 as usize) {
            holdings.is_partial = true;
        }
    }

    fn next_sample(&mut self) -> Option<usize> {
        let number = self.next_random();
        self.strands.sample(number)
    }

    /// Xorshift (Marsaglia 2003), with the multiplication that spreads its upper bits.
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}
