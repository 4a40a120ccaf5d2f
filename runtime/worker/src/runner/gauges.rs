//! The metrics of the engines of a process: the gauges show the sum over all of them.

use std::time::Duration;

use metrics::{Gauge, Histogram, describe_gauge, describe_histogram, gauge, histogram};
use signalbox_protocol::LoadReport;

pub(super) struct Gauges {
    running: Gauge,
    waiting: Gauge,
    kv_blocks_used: Gauge,
    step_seconds: Histogram,
    /// The part of this engine in the gauges.
    shown: LoadReport,
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
            shown: LoadReport::default(),
        }
    }

    pub(super) fn record_step(&self, time: Duration) {
        self.step_seconds.record(time);
    }

    pub(super) fn set_load(&mut self, load: LoadReport) {
        let before = std::mem::replace(&mut self.shown, load);
        let change =
            |gauge: &Gauge, now: u32, before: u32| gauge.increment(f64::from(now) - f64::from(before));
        change(&self.running, load.running, before.running);
        change(&self.waiting, load.waiting, before.waiting);
        change(&self.kv_blocks_used, load.used_kv_blocks, before.used_kv_blocks);
    }
}

impl Drop for Gauges {
    /// An engine that is gone has no load.
    fn drop(&mut self) {
        self.set_load(LoadReport::default());
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn the_gauges_show_the_sum_of_the_engines_that_run() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let _running = metrics::with_local_recorder(&recorder, || {
            let load = |running| LoadReport {
                running,
                used_kv_blocks: 10 * running,
                ..LoadReport::default()
            };
            let (mut one, mut other) = (Gauges::new(), Gauges::new());
            one.set_load(load(3));
            other.set_load(load(4));
            one.set_load(load(1));
            drop(other);
            one
        });
        let text = recorder.handle().render();
        for line in ["signalbox_worker_running 1", "signalbox_worker_kv_blocks_used 10"] {
            assert!(text.lines().any(|shown| shown == line), "{text}");
        }
    }
}
