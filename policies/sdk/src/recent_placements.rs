//! What was placed on each worker lately: an exponentially weighted sum, by decisions and not by time.
//!
//! A worker that took in much lately is likely to get the next turns of the same conversations, and its cache has
//! younger blocks to evict. The load columns do not show that: they count what is in flight now.

use crate::row_memory::RowMemory;

/// Decisions per worker after which a placement has a third of its weight. Long enough for the pause between two turns
/// of an agent, short enough to forget a conversation that has ended.
const MEMORY: f32 = 3.0;

/// The recent placements of all workers, in KV blocks.
#[derive(Debug, Clone, Default)]
pub struct RecentPlacements {
    blocks: RowMemory<f32>,
}

impl RecentPlacements {
    /// For each worker what it got lately over the mean of all, or 1 where nothing is known. `workers` has a number for
    /// each row that stays the same while the worker is present.
    pub fn shares(&mut self, workers: impl ExactSizeIterator<Item = u64> + Clone) -> Vec<f32> {
        self.blocks.follow(workers);
        let blocks = self.blocks.values();
        let mean = self.blocks.values().sum::<f32>() / blocks.len().max(1) as f32;
        if mean > 0.0 {
            let over_mean = 1.0 / mean;
            blocks.map(|recent| recent * over_mean).collect()
        } else {
            vec![1.0; blocks.len()]
        }
    }

    /// A request of `blocks` was placed on the row of lowest cost. Rows of equal lowest cost get equal parts: the host
    /// breaks ties.
    pub fn place(&mut self, costs: &[f32], blocks: f32) {
        let lowest = costs
            .iter()
            .copied()
            .fold(f32::INFINITY, |a, b| if b < a { b } else { a });
        let equal = costs.iter().filter(|&&cost| cost == lowest).count().max(1);
        let part = blocks / equal as f32;
        let kept = 1.0 - 1.0 / (MEMORY * costs.len().max(1) as f32);
        for (recent, &cost) in self.blocks.values_mut().zip(costs) {
            *recent *= kept;
            if cost == lowest {
                *recent += part;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(recent: &mut RecentPlacements, workers: &[u64]) -> Vec<f32> {
        recent.shares(workers.iter().copied())
    }

    #[test]
    fn a_placement_raises_the_share_of_its_worker_and_fades() {
        let mut recent = RecentPlacements::default();
        assert_eq!(shares(&mut recent, &[7, 8]), [1.0, 1.0]);
        recent.place(&[2.0, 1.0], 10.0);
        assert_eq!(shares(&mut recent, &[7, 8]), [0.0, 2.0]);
        recent.place(&[1.0, 2.0], 10.0);
        let later = shares(&mut recent, &[7, 8]);
        assert!(later[0] > later[1] && later[1] > 0.8, "{later:?}");
        for _ in 0..100 {
            recent.place(&[1.0, 2.0], 10.0);
        }
        assert!(shares(&mut recent, &[7, 8])[1] < 1e-3);
    }

    #[test]
    fn equal_costs_share_a_placement() {
        let mut recent = RecentPlacements::default();
        shares(&mut recent, &[1, 2, 3]);
        recent.place(&[1.0, 5.0, 1.0], 4.0);
        assert_eq!(shares(&mut recent, &[1, 2, 3]), [1.5, 0.0, 1.5]);
        assert_eq!(shares(&mut recent, &[2, 1, 3]), [0.0, 1.5, 1.5]);
    }
}
