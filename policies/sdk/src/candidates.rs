//! The candidates as a policy reads them: columns.

use std::rc::Rc;

use crate::{Count, Key, Number, bindings::policy::signalbox::policy::types, columns::Layout};

/// The workers that can take the request, as columns: row i of each column is candidate i. There is at least one row.
/// The order of the rows means nothing and may differ from one decision to the next. Only columns that the policy names in
/// its [`Info`](crate::Info) are there; `wit/types.wit` says what each one holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Candidates {
    rows: usize,
    layout: Rc<Layout>,
    counts: Vec<u32>,
    numbers: Vec<f32>,
    keys: Vec<u64>,
}

impl Candidates {
    pub(crate) fn new(candidates: types::Candidates, layout: &Rc<Layout>) -> Self {
        Self {
            rows: candidates.count as usize,
            layout: Rc::clone(layout),
            counts: candidates.counts,
            numbers: candidates.numbers,
            keys: candidates.keys,
        }
    }

    /// The number of candidates: at least 1 in a decision.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there is no candidate: never in a decision.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// A column of whole numbers.
    ///
    /// # Panics
    /// The policy did not name it; so do the following. Admission tries a policy, so it refuses one that forgot a name.
    #[must_use]
    pub fn counts(&self, name: Count) -> &[u32] {
        self.rows_at(&self.counts, self.layout.count(name))
    }

    /// A column of whole numbers by its name, for one that a later host has.
    #[must_use]
    pub fn counts_named(&self, name: &str) -> &[u32] {
        self.rows_at(&self.counts, self.layout.count_named(name))
    }

    /// A column of numbers.
    #[must_use]
    pub fn numbers(&self, name: Number) -> &[f32] {
        self.rows_at(&self.numbers, self.layout.number(name))
    }

    /// A column of numbers by its name, such as `number:price`.
    #[must_use]
    pub fn numbers_named(&self, name: &str) -> &[f32] {
        self.rows_at(&self.numbers, self.layout.number_named(name))
    }

    /// A column of keys.
    #[must_use]
    pub fn keys(&self, name: Key) -> &[u64] {
        self.rows_at(&self.keys, self.layout.key(name))
    }

    /// A column of keys by its name, such as `label:gpu`.
    #[must_use]
    pub fn keys_named(&self, name: &str) -> &[u64] {
        self.rows_at(&self.keys, self.layout.key_named(name))
    }

    /// This many candidates without columns: for tests.
    #[must_use]
    pub fn of(rows: usize) -> Self {
        Self {
            rows,
            ..Self::default()
        }
    }

    /// The same candidates with this column: for tests.
    #[must_use]
    pub fn with_counts(mut self, name: Count, column: &[u32]) -> Self {
        assert_eq!(
            column.len(),
            self.rows,
            "`{}` needs a row for each candidate",
            name.name()
        );
        Rc::make_mut(&mut self.layout).add_count(name.name());
        self.counts.extend(column);
        self
    }

    /// The same candidates with this column: for tests.
    #[must_use]
    pub fn with_numbers(self, name: Number, column: &[f32]) -> Self {
        self.with_numbers_named(name.name(), column)
    }

    /// The same candidates with the column of this name: for tests.
    #[must_use]
    pub fn with_numbers_named(mut self, name: &str, column: &[f32]) -> Self {
        assert_eq!(column.len(), self.rows, "`{name}` needs a row for each candidate");
        Rc::make_mut(&mut self.layout).add_number(name);
        self.numbers.extend(column);
        self
    }

    /// The same candidates with this column: for tests.
    #[must_use]
    pub fn with_keys(self, name: Key, column: &[u64]) -> Self {
        self.with_keys_named(name.name(), column)
    }

    /// The same candidates with the column of this name: for tests.
    #[must_use]
    pub fn with_keys_named(mut self, name: &str, column: &[u64]) -> Self {
        assert_eq!(column.len(), self.rows, "`{name}` needs a row for each candidate");
        Rc::make_mut(&mut self.layout).add_key(name);
        self.keys.extend(column);
        self
    }

    fn rows_at<'a, T>(&self, columns: &'a [T], place: usize) -> &'a [T] {
        &columns[place * self.rows..][..self.rows]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_column_is_found_by_its_name() {
        let candidates = Candidates::of(2)
            .with_counts(Count::Requests, &[1, 2])
            .with_counts(Count::OverlapDevice, &[3, 4])
            .with_numbers_named("number:price", &[0.1, 0.2])
            .with_numbers(Number::KvUse, &[0.3, 0.4])
            .with_keys(Key::Worker, &[7, 8]);
        assert_eq!(candidates.counts(Count::OverlapDevice), [3, 4]);
        assert_eq!(candidates.counts(Count::Requests), [1, 2]);
        assert_eq!(candidates.numbers(Number::KvUse), [0.3, 0.4]);
        assert_eq!(candidates.numbers_named("number:price"), [0.1, 0.2]);
        assert_eq!(candidates.keys(Key::Worker), [7, 8]);
    }

    #[test]
    #[should_panic(expected = "reads `queue-depth`, which its `describe` does not name")]
    fn a_column_that_was_not_named_is_a_clear_panic() {
        let _ = Candidates::of(1).counts(Count::QueueDepth);
    }
}
