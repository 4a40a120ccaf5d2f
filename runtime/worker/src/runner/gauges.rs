//! What an engine tells of itself in `/metrics`: of several in a process, whichever spoke last.

use std::time::Duration;

use metrics::{Gauge, Histogram, describe_gauge, describe_histogram, gauge, histogram};
use signalbox_protocol::LoadReport;

pub(super) struct Gauges {
    running: Gauge,
    waiting: Gauge,
    kv_blocks_used: Gauge,
    step_seconds: Histogram,
}

impl Gauges {
    /// Registers with the recorder that is installed now.
    pub(super) fn new() -> Self {
        describe_gauge!("signalbox_worker_running", "Sequences in prefill or decode.");
        describe_gauge!("signalbox_worker_waiting", "Sequences not started.");
        describe_gauge!(
            "signalbox_worker_kv_blocks_used",
            "KV blocks that hold anything, cached ones included."
        );
        describe_histogram!(
            "signalbox_worker_step_seconds",
            metrics::Unit::Seconds,
            "Time of one engine step; of a simulated one, the time it stands for."
        );
        Self {
            running: gauge!("signalbox_worker_running"),
            waiting: gauge!("signalbox_worker_waiting"),
            kv_blocks_used: gauge!("signalbox_worker_kv_blocks_used"),
            step_seconds: histogram!("signalbox_worker_step_seconds"),
        }
    }

    pub(super) fn step(&self, time: Duration) {
        self.step_seconds.record(time);
    }

    pub(super) fn load(&self, load: LoadReport) {
        self.running.set(load.running);
        self.waiting.set(load.waiting);
        self.kv_blocks_used.set(load.used_kv_blocks);
    }
}
