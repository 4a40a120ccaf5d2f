//! The answer of a lookup, as columns.

use crate::WorkerSlot;

/// Columns indexed by [`WorkerSlot`]; a worker past a column's end holds nothing there. `host` and `disk` are empty where
/// the index knows of no block below the device.
///
/// The three columns of a worker add up: `device + host + disk` leading blocks of the prompt are held on some tier.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct OverlapScores {
    /// Leading blocks of the prompt on the device of the worker.
    pub device: Vec<u32>,
    /// Further blocks continuing that prefix, found on device or host.
    pub host: Vec<u32>,
    /// Further ones continuing it, found on any tier.
    pub disk: Vec<u32>,
}

impl OverlapScores {
    /// Leading blocks on the device; 0 for a slot past the end.
    pub fn device(&self, worker: WorkerSlot) -> u32 {
        at(&self.device, worker)
    }

    /// Further blocks on device or host; 0 for a slot past the end.
    pub fn host(&self, worker: WorkerSlot) -> u32 {
        at(&self.host, worker)
    }

    /// Further blocks on any tier; 0 for a slot past the end.
    pub fn disk(&self, worker: WorkerSlot) -> u32 {
        at(&self.disk, worker)
    }

    /// Zeroes the columns, at so many rows on the device and below.
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
