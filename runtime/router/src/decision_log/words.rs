//! A decision in words.

use signalbox_policy_host::Decision;

use super::record::Record;

impl Record {
    /// The rows, the chosen one first, then by cost.
    pub(super) fn ranked(&self) -> Vec<usize> {
        let mut rows: Vec<usize> = (0..self.rows.len()).collect();
        let cost = |row: &usize| self.costs.get(*row).copied().unwrap_or(0.0);
        rows.sort_by(|a, b| cost(a).total_cmp(&cost(b)));
        rows.sort_by_key(|row| *row != self.chosen_row);
        rows
    }

    /// The decision in one sentence, from its costs: which worker it chose, and the next best with the difference.
    pub(super) fn explanation(&self) -> String {
        let among = match self.candidates {
            1 => "the only candidate".to_owned(),
            many => format!("one of {many} candidates"),
        };
        let begin = format!("{} chose {}, {among}", self.policy, self.chosen_worker());
        let Some(&cost) = self.costs.get(self.chosen_row) else {
            return match self.has_rows() {
                false => format!("{begin}; the costs of this decision were not kept"),
                true => format!("{begin}; it picked it without a cost"),
            };
        };
        let begin = format!("{begin}, at a cost of {cost:.1}");
        let ranked = self.ranked();
        let Some(&next) = ranked.get(1).filter(|row| self.costs[**row].is_finite()) else {
            return begin;
        };
        let ties = self.costs.iter().filter(|other| **other == cost).count() - 1;
        match ties {
            0 => {
                let (worker, other) = (self.worker(next), self.costs[next]);
                let more = other - cost;
                format!("{begin}; the next best, {worker}, costs {other:.1}, {more:.1} more")
            }
            1 => format!(
                "{begin}; {} costs the same, and the request's seed chose between the two",
                self.worker(next)
            ),
            ties => format!("{begin}; {ties} others cost the same, and the request's seed chose among them"),
        }
    }

    /// The reason in the policy's own words. An instance of its own decides once more on the recorded snapshot, and then
    /// explains it. The error says why there are no such words.
    pub(super) fn policy_words(&self) -> Result<String, String> {
        if !self.has_rows() {
            return Err("what the policy saw was not kept for this decision".into());
        }
        let component = self.component.upgrade().ok_or_else(|| {
            if self.policy.starts_with("fallback@") {
                "the fallback decided, which explains nothing beyond its costs"
            } else {
                "this version of the policy is not loaded any more"
            }
        })?;
        let mut instance = component.instantiate().map_err(|fault| fault.to_string())?;
        if !instance.explains() {
            return Err("the policy does not explain its decisions".into());
        }
        let (features, columns) = (&self.features, &self.columns);
        let row = u32::try_from(self.chosen_row).map_err(|error| error.to_string())?;
        instance
            .decide(features, columns, &mut Decision::default())
            .and_then(|_| instance.explain(features, columns, row))
            .map(Option::unwrap_or_default)
            .map_err(|fault| format!("the policy failed to explain: it {fault}"))
    }
}
