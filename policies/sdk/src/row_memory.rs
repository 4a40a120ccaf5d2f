//! What a policy remembers of each worker, in the order of the rows of the latest decision.
//!
//! The order of the rows may change from one decision to the next, and workers come and go. Mostly they do not: then
//! keeping up costs one comparison a row.

/// A value for each worker.
#[derive(Debug, Clone, Default)]
pub(crate) struct RowMemory<T> {
    rows: Vec<(u64, T)>,
}

impl<T: Copy + Default> RowMemory<T> {
    /// Brings the values into the order of `workers`, which has a number for each row that stays the same while the
    /// worker is present. A worker that was not in the latest decision has the default value.
    pub(crate) fn follow(&mut self, workers: impl ExactSizeIterator<Item = u64> + Clone) {
        let known = self.rows.iter().map(|&(worker, _)| worker);
        if known.eq(workers.clone()) {
            return;
        }
        let mut before = std::mem::take(&mut self.rows);
        before.sort_unstable_by_key(|&(worker, _)| worker);
        let value = |worker| {
            let place = before.binary_search_by_key(&worker, |&(worker, _)| worker);
            place.map_or_else(|_| T::default(), |place| before[place].1)
        };
        self.rows = workers.map(|worker| (worker, value(worker))).collect();
    }

    /// The values, a row each.
    pub(crate) fn values(&self) -> impl ExactSizeIterator<Item = &T> + Clone {
        self.rows.iter().map(|(_, value)| value)
    }

    /// The values, a row each.
    pub(crate) fn values_mut(&mut self) -> impl ExactSizeIterator<Item = &mut T> {
        self.rows.iter_mut().map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_keep_their_values_when_rows_change_places_and_others_come() {
        let mut memory = RowMemory::<u32>::default();
        let mut after = |workers: &[u64], change: u32| {
            memory.follow(workers.iter().copied());
            memory.values_mut().for_each(|value| *value += change);
            memory.values().copied().collect::<Vec<_>>()
        };
        assert_eq!(after(&[7, 8], 1), [1, 1]);
        assert_eq!(after(&[8, 9, 7], 10), [11, 10, 11]);
        assert_eq!(after(&[9], 0), [10]);
        assert_eq!(after(&[7, 9], 0), [0, 10], "worker 7 had left");
    }
}
