//! The metrics of an engine. If a process has several engines, the gauges show the one that stepped last.

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
    /// Registers the metrics with the recorder that is installed now.
    pub(super) fn new() -> Self {
        describe_gauge!("signalbox_worker_running", "Sequences in prefill or decode.");
        describe_gauge!("signalbox_worker_waiting", "Sequences in the waiting queue.");
        describe_gauge!(
            "signalbox_worker_kv_blocks_used",
            "KV blocks with content, idle ones included."
        );
        describe_histogram!(
            "signalbox_worker_step_seconds",
            metrics::Unit::Seconds,
            "Time of one engine step. For a simulated engine, the time that the step stands for."
        );
        Self {
            running: gauge!("signalbox_worker_running"),
            waiting: gauge!("signalbox_worker_waiting"),
            kv_blocks_used: gauge!("signalbox_worker_kv_blocks_used"),
            step_seconds: histogram!("signalbox_worker_step_seconds"),
        }
    }

    pub(super) fn record_step(&self, time: Duration) {
        self.step_seconds.record(time);
    }

    pub(super) fn set_load(&self, load: LoadReport) {
        self.running.set(load.running);
        self.waiting.set(load.waiting);
        self.kv_blocks_used.set(load.used_kv_blocks);
    }
}
