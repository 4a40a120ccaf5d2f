//! The latency of each worker, as this router measures it from its own streams.
//!
//! Each figure is an exponentially weighted mean. Whole answers are not measured: their first bytes are their last ones.
//! The latency between tokens includes the time in which a slow client does not read.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use metrics::{Gauge, Unit, describe_gauge, gauge};
use signalbox_kv_index::WorkerSlot;
use signalbox_protocol::{StreamSummary, WorkerCard};
use tokio::time::Instant;

use crate::load::MAX_WORKERS;

/// Weight of the newest sample: the last twenty samples have nearly nine tenths of the weight of all.
const NEWEST: f32 = 0.1;

/// The latencies of all workers, by slot. Streams on every HTTP thread write it, without a lock, once at their first
/// bytes and once at their end. Clone = handle.
#[derive(Debug, Clone)]
pub(crate) struct LatencyTable(Arc<[WorkerLatency]>);

#[derive(Debug, Default)]
struct WorkerLatency {
    /// The mean seconds to the first token, and the mean of the prompt tokens that were computed for them: the bits of
    /// two `f32`. 0 before the first sample. One number, so that both means are of the same samples.
    prefill: AtomicU64,
    /// The mean seconds between two tokens: the bits of an `f32`. 0 before the first sample.
    itl: AtomicU32,
}

/// The measured latency of a worker. `None` before its first sample.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct MeasuredLatency {
    /// Milliseconds from the time the router sent a request to the first bytes of its answer.
    pub ttft_ms: Option<f32>,
    /// Prompt tokens of those requests beyond the KV blocks that the router credited the worker with.
    pub uncached_prompt_tokens: Option<f32>,
    /// Milliseconds between two tokens of one choice.
    pub itl_ms: Option<f32>,
}

/// Measures one stream, from its first bytes on.
#[derive(Debug)]
pub(crate) struct StreamTimer {
    table: LatencyTable,
    worker: WorkerSlot,
    first_bytes: Instant,
    choices: u32,
}

impl Default for LatencyTable {
    fn default() -> Self {
        Self((0..MAX_WORKERS).map(|_| WorkerLatency::default()).collect())
    }
}

impl LatencyTable {
    /// The first bytes of a stream of `choices` sequences have arrived, for a request that was sent at `sent`.
    pub(crate) fn first_bytes(
        &self,
        worker: WorkerSlot,
        sent: Instant,
        uncached_prompt_tokens: u32,
        choices: u32,
    ) -> StreamTimer {
        let first_bytes = Instant::now();
        if let Some(latency) = self.0.get(worker.0 as usize) {
            let sample = (
                first_bytes.duration_since(sent).as_secs_f32(),
                uncached_prompt_tokens as f32,
            );
            latency.add_prefill(sample);
        }
        StreamTimer {
            table: self.clone(),
            worker,
            first_bytes,
            choices,
        }
    }

    /// The measured latency of a worker.
    pub(crate) fn get(&self, worker: WorkerSlot) -> MeasuredLatency {
        let Some(latency) = self.0.get(worker.0 as usize) else {
            return MeasuredLatency::default();
        };
        let prefill = Some(latency.prefill.load(Relaxed)).filter(|bits| *bits != 0);
        let prefill = prefill.map(unpack);
        let itl = Some(latency.itl.load(Relaxed)).filter(|bits| *bits != 0);
        MeasuredLatency {
            ttft_ms: prefill.map(|(ttft, _)| ttft * 1e3),
            uncached_prompt_tokens: prefill.map(|(_, tokens)| tokens),
            itl_ms: itl.map(|bits| f32::from_bits(bits) * 1e3),
        }
    }

    /// Counts one stream whose times the caller knows, in seconds: the time to its first token, and the prompt
    /// tokens that were computed for it.
    pub(crate) fn add_ttft(&self, worker: WorkerSlot, seconds: f32, uncached_prompt_tokens: u32) {
        if let Some(latency) = self.0.get(worker.0 as usize) {
            latency.add_prefill((seconds, uncached_prompt_tokens as f32));
        }
    }

    /// As [`LatencyTable::add_ttft`], the mean time between two of its tokens.
    pub(crate) fn add_itl(&self, worker: WorkerSlot, seconds: f32) {
        if let Some(latency) = self.0.get(worker.0 as usize) {
            latency.add_itl(seconds);
        }
    }

    /// Forgets a worker, so that another one can get its slot.
    pub(crate) fn forget(&self, worker: WorkerSlot) {
        if let Some(latency) = self.0.get(worker.0 as usize) {
            latency.prefill.store(0, Relaxed);
            latency.itl.store(0, Relaxed);
        }
    }
}

impl WorkerLatency {
    fn add_prefill(&self, (ttft, tokens): (f32, f32)) {
        // A change that meets another thread's is made again, so that no sample is lost.
        let _ = self.prefill.fetch_update(Relaxed, Relaxed, |bits| {
            let mean = match bits {
                0 => (ttft, tokens),
                bits => {
                    let (ttft_mean, tokens_mean) = unpack(bits);
                    (mean(ttft_mean, ttft), mean(tokens_mean, tokens))
                }
            };
            Some(pack(mean))
        });
    }

    fn add_itl(&self, itl: f32) {
        let _ = self.itl.fetch_update(Relaxed, Relaxed, |bits| {
            let mean = match bits {
                0 => itl,
                bits => mean(f32::from_bits(bits), itl),
            };
            Some(mean.to_bits())
        });
    }
}

fn mean(mean: f32, sample: f32) -> f32 {
    mean + NEWEST * (sample - mean)
}

fn pack((first, second): (f32, f32)) -> u64 {
    u64::from(first.to_bits()) << 32 | u64::from(second.to_bits())
}

fn unpack(bits: u64) -> (f32, f32) {
    (f32::from_bits((bits >> 32) as u32), f32::from_bits(bits as u32))
}

impl StreamTimer {
    /// The stream has ended without an error.
    pub(crate) fn ended(self, summary: StreamSummary) {
        // Choices are generated in parallel: the latency between the tokens of one choice counts.
        let gaps = (summary.completion_tokens / self.choices.max(1)).saturating_sub(1);
        let took: Duration = self.first_bytes.elapsed();
        if let Some(latency) = self.table.0.get(self.worker.0 as usize)
            && gaps > 0
        {
            latency.add_itl((took / gaps).as_secs_f32());
        }
    }
}

/// Gives the installed recorder the help text of each metric of this file.
pub(crate) fn describe_metrics() {
    describe_gauge!(
        "signalbox_worker_ttft_seconds",
        Unit::Seconds,
        "Mean time to a worker's first bytes, over this router's latest streams; 0 before the first"
    );
    describe_gauge!(
        "signalbox_worker_uncached_prompt_tokens",
        "Mean prompt tokens of those streams beyond the KV blocks credited to the worker"
    );
    describe_gauge!(
        "signalbox_worker_itl_seconds",
        Unit::Seconds,
        "Mean time between two tokens of a worker, over this router's latest streams; 0 before the first"
    );
}

/// The gauges of one worker's measured latency; 0 before the first sample and after the worker left.
pub(crate) struct LatencyGauges {
    ttft_seconds: Gauge,
    uncached_prompt_tokens: Gauge,
    itl_seconds: Gauge,
}

impl std::fmt::Debug for LatencyGauges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LatencyGauges").finish_non_exhaustive()
    }
}

impl LatencyGauges {
    pub(crate) fn new(card: &WorkerCard) -> Self {
        let labels = || [("worker", card.id.to_string()), ("model", card.model.clone())];
        Self {
            ttft_seconds: gauge!("signalbox_worker_ttft_seconds", &labels()),
            uncached_prompt_tokens: gauge!("signalbox_worker_uncached_prompt_tokens", &labels()),
            itl_seconds: gauge!("signalbox_worker_itl_seconds", &labels()),
        }
    }

    pub(crate) fn set(&self, latency: MeasuredLatency) {
        let value = |measured: Option<f32>| f64::from(measured.unwrap_or(0.0));
        self.ttft_seconds.set(value(latency.ttft_ms) / 1e3);
        self.uncached_prompt_tokens
            .set(value(latency.uncached_prompt_tokens));
        self.itl_seconds.set(value(latency.itl_ms) / 1e3);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKER: WorkerSlot = WorkerSlot(3);

    fn generated(tokens: u32) -> StreamSummary {
        StreamSummary {
            completion_tokens: tokens,
            ..StreamSummary::default()
        }
    }

    fn milliseconds(value: Option<f32>) -> u32 {
        value.unwrap().round() as u32
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_sample_moves_the_mean_by_a_tenth() {
        let table = LatencyTable::default();
        assert_eq!(table.get(WORKER), MeasuredLatency::default());
        for (wait, tokens) in [(100, 1_000), (200, 3_000)] {
            let sent = Instant::now();
            tokio::time::advance(Duration::from_millis(wait)).await;
            drop(table.first_bytes(WORKER, sent, tokens, 1));
        }
        let measured = table.get(WORKER);
        assert_eq!(milliseconds(measured.ttft_ms), 110);
        assert_eq!(measured.uncached_prompt_tokens, Some(1_200.0));
        assert_eq!(measured.itl_ms, None, "no stream has ended");
        table.forget(WORKER);
        assert_eq!(table.get(WORKER), MeasuredLatency::default());
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_between_tokens_is_that_of_one_choice() {
        let table = LatencyTable::default();
        let timer = table.first_bytes(WORKER, Instant::now(), 0, 2);
        tokio::time::advance(Duration::from_millis(90)).await;
        timer.ended(generated(20));
        assert_eq!(milliseconds(table.get(WORKER).itl_ms), 10);
        let single = table.first_bytes(WORKER, Instant::now(), 0, 1);
        tokio::time::advance(Duration::from_millis(500)).await;
        single.ended(generated(1));
        assert_eq!(
            milliseconds(table.get(WORKER).itl_ms),
            10,
            "one token has no gap after it"
        );
    }

    #[test]
    fn samples_of_many_threads_all_count() {
        let latency = WorkerLatency::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1_000).for_each(|_| latency.add_itl(2.0)));
            }
        });
        assert_eq!(f32::from_bits(latency.itl.load(Relaxed)), 2.0);
    }
}
