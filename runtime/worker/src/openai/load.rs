//! The load of one data-parallel rank of an engine: what the engine reports once a second, and between its reports what
//! the adapter has sent and seen end.

use serde::Deserialize;
use signalbox_protocol::LoadReport;

use super::prometheus::{self, Sample};

/// What an engine reports about the load of one rank.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct EngineLoad {
    pub(crate) running: u32,
    pub(crate) waiting: u32,
    /// The part of the KV cache that running sequences use, 0 to 1.
    pub(crate) kv_use: f64,
}

/// The load of one rank.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RankLoad {
    kv_blocks: u32,
    /// The engine's last report, and the adapter's open requests when it came.
    reported: Option<(EngineLoad, u32)>,
}

impl RankLoad {
    /// Of a rank with this many KV blocks, 0 if that is unknown.
    pub(crate) fn new(kv_blocks: u32) -> Self {
        Self {
            kv_blocks,
            reported: None,
        }
    }

    /// Takes a report of the engine. The adapter has `open` requests at the rank.
    pub(crate) fn update(&mut self, reported: EngineLoad, open: u32) {
        self.reported = Some((reported, open));
    }

    /// The load now, with `open` requests of the adapter at the rank, which has sent `pieces` of answers.
    ///
    /// Other clients of the engine show in its reports only. A request in its first step does not show there yet, so the
    /// load is never less than what the adapter has open.
    pub(crate) fn report(&self, open: u32, pieces: u64) -> LoadReport {
        let (reported, open_then) = self.reported.unwrap_or_default();
        let of_others = (reported.running + reported.waiting).saturating_sub(open_then);
        let waiting = reported.waiting.min(open.saturating_add(of_others));
        let used = (reported.kv_use.clamp(0.0, 1.0) * f64::from(self.kv_blocks)).round() as u32;
        LoadReport {
            running: open.saturating_add(of_others) - waiting,
            waiting,
            active_kv_blocks: used,
            // Engines do not report the blocks that they keep for later requests.
            used_kv_blocks: used,
            total_kv_blocks: self.kv_blocks,
            steps_done: pieces,
            // Only routers see how fast an engine next door computes.
            ..LoadReport::default()
        }
    }
}

/// Reads a rank's load from vLLM's metrics; `None` if it is not there.
///
/// vLLM labels its samples with the rank as `engine`. The gauges are set once a step.
pub(crate) fn from_vllm_metrics(text: &str, rank: u32) -> Option<EngineLoad> {
    let rank = rank.to_string();
    let of_rank = |metric: &str| {
        let is_of_rank = |sample: &Sample<'_>| sample.label("engine").is_none_or(|engine| engine == rank);
        prometheus::samples(text, metric)
            .find(is_of_rank)
            .map(|sample| sample.value)
    };
    Some(EngineLoad {
        running: of_rank("vllm:num_requests_running")? as u32,
        waiting: of_rank("vllm:num_requests_waiting")? as u32,
        // The name before vLLM 0.10.
        kv_use: of_rank("vllm:kv_cache_usage_perc").or_else(|| of_rank("vllm:gpu_cache_usage_perc"))?,
    })
}

/// SGLang's answer to `/v1/loads?include=core`.
#[derive(Deserialize)]
struct SglangLoads {
    loads: Vec<SglangLoad>,
}

#[derive(Deserialize)]
struct SglangLoad {
    #[serde(default)]
    dp_rank: u32,
    num_running_reqs: u32,
    num_waiting_reqs: u32,
    #[serde(default)]
    token_usage: f64,
}

/// Reads a rank's load from SGLang's `/v1/loads`; `None` if it is not there.
pub(crate) fn from_sglang_loads(json: &[u8], rank: u32) -> Option<EngineLoad> {
    let answer: SglangLoads = serde_json::from_slice(json).ok()?;
    let load = answer.loads.into_iter().find(|load| load.dp_rank == rank)?;
    Some(EngineLoad {
        running: load.num_running_reqs,
        waiting: load.num_waiting_reqs,
        kv_use: load.token_usage,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(running: u32, waiting: u32, kv_use: f64) -> EngineLoad {
        EngineLoad {
            running,
            waiting,
            kv_use,
        }
    }

    #[test]
    fn requests_of_other_clients_are_added_to_the_adapters_own() {
        let mut load = RankLoad::new(100);
        let counts = |load: &RankLoad, open| {
            let report = load.report(open, 0);
            (report.running, report.waiting, report.active_kv_blocks)
        };
        assert_eq!(counts(&load, 3), (3, 0, 0), "before the first report");
        load.update(reported(5, 2, 0.5), 3);
        assert_eq!(counts(&load, 3), (5, 2, 50));
        assert_eq!(counts(&load, 6), (8, 2, 50));
        assert_eq!(counts(&load, 0), (2, 2, 50));
        load.update(reported(0, 0, 0.0), 4);
        assert_eq!(counts(&load, 4), (4, 0, 0), "requests in their first step");
        load.update(reported(1, 9, 2.0), 10);
        assert_eq!(counts(&load, 0), (0, 0, 100));
    }

    #[test]
    fn loads_of_both_engines_are_read_by_rank() {
        let text = "vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 2.0\n\
            vllm:num_requests_running{engine=\"1\",model_name=\"m\"} 3.0\n\
            vllm:num_requests_waiting{engine=\"0\",model_name=\"m\"} 0.0\n\
            vllm:num_requests_waiting{engine=\"1\",model_name=\"m\"} 7.0\n\
            vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"m\"} 0.0\n\
            vllm:kv_cache_usage_perc{engine=\"1\",model_name=\"m\"} 0.25\n";
        assert_eq!(from_vllm_metrics(text, 0), Some(reported(2, 0, 0.0)));
        assert_eq!(from_vllm_metrics(text, 1), Some(reported(3, 7, 0.25)));
        assert_eq!(from_vllm_metrics("", 0), None);
        let json = br#"{"loads":[{"dp_rank":0,"num_running_reqs":1,"num_waiting_reqs":0,"token_usage":0.1},
            {"dp_rank":1,"num_running_reqs":4,"num_waiting_reqs":5,"token_usage":0.9,"gen_throughput":1.5}]}"#;
        assert_eq!(from_sglang_loads(json, 1), Some(reported(4, 5, 0.9)));
        assert_eq!(from_sglang_loads(json, 2), None);
        assert_eq!(from_sglang_loads(b"{}", 0), None);
    }
}
