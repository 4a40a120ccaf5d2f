//! The result of a lookup, as columns.

use crate::WorkerSlot;

/// The overlap of each worker with a prompt: columns indexed by [`WorkerSlot`]. The overlap of a slot past a column's end
/// is 0. `host` and `disk` are empty while the index holds no block below the device tier.
///
/// The columns add up: a worker holds `device + host + disk` leading blocks of the prompt, each on some tier.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct OverlapScores {
    /// Leading blocks on the device.
    pub device: Vec<u32>,
    /// Blocks after those of `device`, without a hole, on device or host.
    pub host: Vec<u32>,
    /// Blocks after those of `host`, without a hole, on any tier.
    pub disk: Vec<u32>,
}

impl OverlapScores {
    /// Leading blocks on the device; 0 for a slot past the column's end.
    pub fn device(&self, worker: WorkerSlot) -> u32 {
        at(&self.device, worker)
    }

    /// Blocks after those of `device`, on device or host; 0 for a slot past the column's end.
    pub fn host(&self, worker: WorkerSlot) -> u32 {
        at(&self.host, worker)
    }

    /// Blocks after those of `host`, on any tier; 0 for a slot past the column's end.
    pub fn disk(&self, worker: WorkerSlot) -> u32 {
        at(&self.disk, worker)
    }

    /// Sets the device column to `slots` zeroes, and the two others to `slots_below` zeroes.
    pub(crate) fn reset(&mut self, slots: usize, slots_below: usize) {
        for (column, rows) in [
            (&mut self.device, slots),
            (&mut self.host, slots_below),
            (&mut self.disk, slots_below),
        ] {
            column.clear();
            column.resize(rows, 0);
        }
    }
}

fn at(column: &[u32], worker: WorkerSlot) -> u32 {
    column.get(worker.0 as usize).copied().unwrap_or(0)
}
