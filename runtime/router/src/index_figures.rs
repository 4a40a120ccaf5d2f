//! The size of the KV index as metrics, and a warning when it is full for the first time.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};
use signalbox_kv_index::{IndexStats, SharedKvIndex};
use tracing::warn;

/// Time between two exports. Each reads the index for a microsecond.
pub(crate) const EXPORT_INTERVAL: Duration = Duration::from_secs(2);

/// Exports the figures of one index.
#[derive(Debug, Default)]
pub(crate) struct IndexFigures {
    warned: bool,
}

impl IndexFigures {
    /// Exports the figures now.
    pub(crate) fn export(&mut self, index: &SharedKvIndex) {
        let stats = index.read(|index| index.stats());
        gauge!("signalbox_kv_index_bytes").set(stats.bytes as f64);
        gauge!("signalbox_kv_index_blocks").set(stats.blocks as f64);
        counter!("signalbox_kv_index_evicted_total").absolute(stats.evicted);
        counter!("signalbox_kv_index_refused_total").absolute(stats.refused_stores);
        if self.is_full_for_the_first_time(&stats) {
            warn!(
                bytes = stats.bytes,
                blocks = stats.blocks,
                "the KV index is full: blocks that were not used for longest are no longer credited to their workers. \
                 --index-mib sets its size"
            );
        }
    }

    fn is_full_for_the_first_time(&mut self, stats: &IndexStats) -> bool {
        let is_full = stats.evicted > 0 || stats.refused_stores > 0;
        is_full && !std::mem::replace(&mut self.warned, true)
    }
}

/// Gives the installed recorder the help text of each metric of this file.
pub(crate) fn describe_metrics() {
    describe_gauge!(
        "signalbox_kv_index_bytes",
        Unit::Bytes,
        "Memory of the KV index, which --index-mib limits"
    );
    describe_gauge!(
        "signalbox_kv_index_blocks",
        "Different KV blocks that the index credits any worker with"
    );
    describe_counter!(
        "signalbox_kv_index_evicted_total",
        "Blocks that were credited to a worker and no longer are, to make room for newer ones, once for each worker"
    );
    describe_counter!(
        "signalbox_kv_index_refused_total",
        "Blocks that a worker stored and the KV index had no room for"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_warning_comes_once() {
        let mut figures = IndexFigures::default();
        let warned = [0, 0, 3, 3, 9].map(|evicted| {
            figures.is_full_for_the_first_time(&IndexStats {
                evicted,
                ..IndexStats::default()
            })
        });
        assert_eq!(warned, [false, false, true, false, false]);
    }
}
