//! The load of a worker.

use serde::{Deserialize, Serialize};

use crate::{KvDigest, LoraAdapter, Parity};

/// The load of a worker, by its own count. A router counts its own requests separately.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadReport {
    /// Sequences in prefill or decode.
    pub running: u32,
    /// Requests that have not started.
    pub waiting: u32,
    /// KV blocks of running sequences; a block that several sequences share counts once.
    pub active_kv_blocks: u32,
    /// KV blocks in use, cached blocks included.
    pub used_kv_blocks: u32,
    /// KV blocks of the engine in all.
    pub total_kv_blocks: u32,
    /// Prompt tokens that the engine computes in a second of prefill, as the worker measured it lately; 0 when unknown.
    #[serde(default)]
    pub prefill_tokens_per_s: u32,
    /// How long a decode step takes, in microseconds, as the worker measured it lately; 0 when unknown.
    #[serde(default)]
    pub decode_step_us: u32,
    /// The mean prompt tokens of the steps that `prefill_tokens_per_s` was measured on: longer steps have a higher rate. 0
    /// when unknown.
    #[serde(default)]
    pub prefill_step_tokens: u32,
    /// The mean KV blocks of running sequences in the steps that `decode_step_us` was measured on: steps with more of them
    /// take longer.
    #[serde(default)]
    pub decode_step_blocks: u32,
    /// Steps that the engine has done, or pieces of answers that it has sent, since the worker started. While they grow, the
    /// engine is alive; one that has requests and does no step is stuck. 0 before the first, and where they are unknown.
    #[serde(default)]
    pub steps_done: u64,
}

/// One piece of the answer to [`Call::WatchLoad`](crate::Call::WatchLoad), in JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerReport {
    /// The load.
    #[serde(flatten)]
    pub load: LoadReport,
    /// Sequence of the worker's next KV event batch. A router that does not receive the batch before it has missed
    /// events, whichever transport carries them.
    #[serde(default)]
    pub next_kv_batch: u64,
    /// What the worker holds by the batches before `next_kv_batch`, so that a router finds blocks that it credits the worker
    /// with and the worker does not hold. `None`: the worker does not state it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_digest: Option<KvDigest>,
    /// How exact the routers' knowledge of the worker's KV cache is.
    #[serde(default)]
    pub parity: Parity,
    /// The LoRA adapters that the worker's engine has loaded now: in the first report of a call, and after each change.
    /// `None`: as in the report before; in the first report, none. They are not on the worker's card, because engines load
    /// and unload them while they run, and a card stays as it is for an incarnation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapters: Option<Vec<LoraAdapter>>,
}

/// The load that one or more routers have in flight on a worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaLoad {
    /// Prompt tokens still to be computed.
    pub prefill_tokens: u32,
    /// KV blocks of the requests in flight.
    pub decode_blocks: u32,
    /// Requests in flight.
    pub requests: u32,
}

impl ReplicaLoad {
    /// The sum of both; each number saturates.
    pub fn saturating_add(self, other: Self) -> Self {
        Self {
            prefill_tokens: self.prefill_tokens.saturating_add(other.prefill_tokens),
            decode_blocks: self.decode_blocks.saturating_add(other.decode_blocks),
            requests: self.requests.saturating_add(other.requests),
        }
    }

    /// Whether nothing is in flight.
    pub fn is_idle(self) -> bool {
        self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_an_older_worker_states_no_adapters() {
        let older =
            r#"{"running":1,"waiting":0,"active_kv_blocks":0,"used_kv_blocks":0,"total_kv_blocks":0}"#;
        let report: WorkerReport = serde_json::from_str(older).unwrap();
        assert_eq!((report.load.running, report.adapters), (1, None));
    }

    #[test]
    fn the_end_of_the_last_adapter_is_not_silence() {
        let report = WorkerReport {
            adapters: Some(Vec::new()),
            ..WorkerReport::default()
        };
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<WorkerReport>(&json).unwrap(), report);
    }
}
