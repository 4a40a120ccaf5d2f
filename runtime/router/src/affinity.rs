//! Which workers each session's latest requests went to, for policies that read `affinity-age-ms`.
//!
//! The process has one table. A decision looks up and notes a session only where the policy that decides reads that
//! column. What the table holds is bounded: where sessions are many, those that have been quiet longest are forgotten.

use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::Mutex;
use signalbox_kv_index::WorkerSlot;

/// How long a session is remembered after its last request (`wit/types.wit`): ten minutes.
const REMEMBERED_MS: u64 = 600_000;
/// Parts of the table, each with a lock of its own: threads that decide at once seldom meet.
const SHARDS: usize = 16;
/// Most sessions of one half of a shard, some 100 bytes each: together 65,536 sessions and 7 MB.
const MAX_SESSIONS: usize = 2_048;
/// Workers that are remembered of one session.
const MAX_WORKERS_PER_SESSION: usize = 4;

/// The sessions of all threads. Clone = handle.
#[derive(Debug, Clone, Default)]
pub(crate) struct AffinityTable(Arc<[Mutex<Shard>; SHARDS]>);

/// Sessions in two halves: the newer half is noted in. When it is full it becomes the older one, which is dropped.
#[derive(Debug, Default)]
struct Shard {
    newer: HashMap<u64, Session>,
    older: HashMap<u64, Session>,
}

/// The workers of a session with the time of their last request; slots are free where the time is 0.
#[derive(Debug, Clone, Copy)]
struct Session([(WorkerSlot, u64); MAX_WORKERS_PER_SESSION]);

impl Default for Session {
    fn default() -> Self {
        Self([(WorkerSlot(0), 0); MAX_WORKERS_PER_SESSION])
    }
}

impl AffinityTable {
    /// Fills `ages` for the workers in `slots`: milliseconds since the session's last request there, at least 1, and 0 for
    /// none in the last ten minutes.
    pub(crate) fn fill(&self, session: u64, now_ms: u64, slots: &[u32], ages: &mut [f32]) {
        ages.fill(0.0);
        if session == 0 {
            return;
        }
        let known = {
            let shard = self.shard(session).lock();
            shard
                .newer
                .get(&session)
                .or_else(|| shard.older.get(&session))
                .copied()
        };
        for (worker, at_ms) in known.unwrap_or_default().0 {
            let age = now_ms.saturating_sub(at_ms);
            if at_ms == 0 || age >= REMEMBERED_MS {
                continue;
            }
            if let Some(row) = slots.iter().position(|slot| *slot == worker.0) {
                ages[row] = age.max(1) as f32;
            }
        }
    }

    /// A request of this session was placed on this worker at `now_ms`.
    pub(crate) fn note(&self, session: u64, worker: WorkerSlot, now_ms: u64) {
        if session == 0 {
            return;
        }
        let mut shard = self.shard(session).lock();
        if shard.newer.len() >= MAX_SESSIONS {
            shard.older = std::mem::take(&mut shard.newer);
        }
        let known = shard.older.remove(&session).unwrap_or_default();
        let Session(workers) = shard.newer.entry(session).or_insert(known);
        let place = workers
            .iter()
            .position(|(known, at_ms)| *at_ms != 0 && *known == worker);
        let oldest = || (0..workers.len()).min_by_key(|place| workers[*place].1);
        if let Some(place) = place.or_else(oldest) {
            workers[place] = (worker, now_ms.max(1));
        }
    }

    /// Forgets a worker, so that another one can get its slot.
    pub(crate) fn forget(&self, worker: WorkerSlot) {
        for shard in self.0.iter() {
            let mut shard = shard.lock();
            let Shard { newer, older } = &mut *shard;
            for Session(workers) in newer.values_mut().chain(older.values_mut()) {
                for (known, at_ms) in workers {
                    if *known == worker {
                        *at_ms = 0;
                    }
                }
            }
        }
    }

    fn shard(&self, session: u64) -> &Mutex<Shard> {
        // A key is a hash already.
        &self.0[session as usize % SHARDS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ages(table: &AffinityTable, session: u64, now_ms: u64) -> [f32; 3] {
        let mut ages = [9.0; 3];
        table.fill(session, now_ms, &[5, 6, 7], &mut ages);
        ages
    }

    #[test]
    fn a_session_is_remembered_for_ten_minutes_where_it_was_placed() {
        let table = AffinityTable::default();
        table.note(1, WorkerSlot(6), 1_000);
        table.note(1, WorkerSlot(7), 3_000);
        assert_eq!(ages(&table, 1, 3_000), [0.0, 2_000.0, 1.0]);
        assert_eq!(ages(&table, 2, 3_000), [0.0; 3], "another session");
        assert_eq!(ages(&table, 1, 1_000 + REMEMBERED_MS), [0.0, 0.0, 598_000.0]);
        table.forget(WorkerSlot(7));
        assert_eq!(ages(&table, 1, 4_000), [0.0, 3_000.0, 0.0]);
        table.note(0, WorkerSlot(6), 1);
        assert_eq!(ages(&table, 0, 2), [0.0; 3], "requests without a session");
    }

    #[test]
    fn the_workers_of_a_session_and_the_sessions_are_bounded() {
        let table = AffinityTable::default();
        for slot in 0..10 {
            table.note(1, WorkerSlot(slot), 100 + u64::from(slot));
        }
        assert_eq!(ages(&table, 1, 200), [0.0, 94.0, 93.0], "the last four are kept");
        for session in 0..200_000 {
            table.note(session, WorkerSlot(5), 300);
        }
        let kept = |shard: &Mutex<Shard>| {
            let shard = shard.lock();
            shard.newer.len() + shard.older.len()
        };
        let kept: usize = table.0.iter().map(kept).sum();
        assert!(kept <= 2 * SHARDS * MAX_SESSIONS, "{kept}");
        assert_eq!(ages(&table, 199_999, 400)[0], 100.0);
        assert_eq!(ages(&table, 3, 400), [0.0; 3], "the quiet ones are forgotten");
    }
}
