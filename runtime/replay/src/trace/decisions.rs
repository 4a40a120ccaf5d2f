//! Recorded decisions as a trace: the traffic that a live cluster had.
//!
//! A router's records have the hashes of each prompt's KV blocks, so that the replay's prompts share prefixes as the real ones
//! did. A request that came after the end of its session's previous answer follows that answer in the replay, too: another
//! policy's answers end at other times.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::BufRead,
    time::Duration,
};

use hashbrown::HashMap;
use serde::Serialize;
use signalbox_router::RecordedDecision;

use super::{Arrival, BlockContent, LineFault, MAX_FAULTS, Trace, TraceError, TraceRequest};

/// Scope of the tokens of prompts whose KV blocks are unknown. No session has this number.
const UNKNOWN: u64 = u64::MAX - 1;

/// The resolution of the clock of records: a request that is sent at the end of an answer may seem that much earlier.
const CLOCK: Duration = Duration::from_millis(1);

/// The cluster that made recorded decisions, and what became of its requests.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RecordedCluster {
    /// The KV blocks of each worker, by its name.
    pub kv_blocks: BTreeMap<String, u32>,
    /// Tokens per KV block.
    pub block_size: u32,
    /// Incarnations of routers that decided.
    pub routers: usize,
    /// The share of its decisions that were recorded: the least of all routers.
    pub sample: f64,
    /// Requests that were answered in full.
    pub completed: usize,
    /// Mean time from the decision to the first token of these, in milliseconds.
    pub mean_ttft_ms: f64,
    /// Share of the prompt tokens of these that engines found in their KV caches.
    pub prefix_reuse: f64,
}

impl Trace {
    /// Reads recorded decisions about `model`; about the only model that there is, if none is named.
    ///
    /// # Errors
    /// A line cannot be read or is faulty, there is no request, or the decisions are about several models or have several
    /// block sizes.
    pub fn read_decisions(
        input: impl BufRead,
        model: Option<&str>,
    ) -> Result<(Self, RecordedCluster), TraceError> {
        let mut records = read_records(input)?;
        records.retain(|record| model.is_none_or(|model| record.model == model));
        one(
            "models",
            "choose one of them",
            records.iter().map(|record| &record.model),
        )?;
        let sizes = records.iter().map(|record| record.features.block_size);
        one("block sizes", "a replay has one", sizes)?;
        records.sort_by_key(|record| record.at_unix_ms);
        let (Some(start), Some(block_tokens)) = (
            records.first().map(|record| record.at_unix_ms),
            records.first().map(|record| record.features.block_size.max(1)),
        ) else {
            return Err(TraceError::Empty);
        };
        let cluster = cluster_of(&records, block_tokens);
        let requests = requests_of(&records, start, block_tokens);
        if requests.is_empty() {
            return Err(TraceError::Empty);
        }
        let trace = Self {
            block_tokens,
            requests,
        };
        Ok((trace, cluster))
    }
}

fn read_records(input: impl BufRead) -> Result<Vec<RecordedDecision>, TraceError> {
    let (mut records, mut faults, mut more) = (Vec::new(), Vec::new(), 0);
    for (index, text) in input.lines().enumerate() {
        let line = index + 1;
        let text = text.map_err(|source| TraceError::Read { line, source })?;
        if text.trim().is_empty() {
            continue;
        }
        match RecordedDecision::from_line(&text) {
            Ok(record) => records.push(record),
            Err(what) if faults.len() < MAX_FAULTS => faults.push(LineFault { line, what }),
            Err(_) => more += 1,
        }
    }
    if faults.is_empty() {
        return Ok(records);
    }
    Err(TraceError::Faulty { faults, more })
}

/// An error if the values differ.
fn one<T: Ord + ToString>(
    what: &'static str,
    advice: &'static str,
    values: impl Iterator<Item = T>,
) -> Result<(), TraceError> {
    let different: BTreeSet<T> = values.collect();
    if different.len() <= 1 {
        return Ok(());
    }
    let found: Vec<String> = different.iter().map(ToString::to_string).collect();
    Err(TraceError::Several {
        what,
        found: found.join(", "),
        advice,
    })
}

fn cluster_of(records: &[RecordedDecision], block_size: u32) -> RecordedCluster {
    let mut kv_blocks = BTreeMap::new();
    for record in records {
        for (worker, blocks) in record.workers.iter().zip(&record.columns.kv_blocks_total) {
            kv_blocks.insert(worker.clone(), *blocks);
        }
    }
    let answered = records.iter().filter_map(|record| {
        let outcome = record.outcome.filter(|outcome| outcome.completed)?;
        Some((record, outcome))
    });
    let (mut completed, mut ttft_ms, mut prompt, mut cached) = (0, 0.0, 0.0, 0.0);
    for (record, outcome) in answered {
        completed += 1;
        ttft_ms += f64::from(outcome.ttft_ms.unwrap_or_default());
        prompt += f64::from(record.features.prompt_tokens);
        cached += f64::from(outcome.cached_tokens.unwrap_or_default());
    }
    let routers: BTreeSet<&str> = records.iter().map(|record| &*record.router).collect();
    RecordedCluster {
        kv_blocks,
        block_size,
        routers: routers.len(),
        sample: records.iter().map(|record| record.sample).fold(1.0, f64::min),
        completed,
        mean_ttft_ms: ttft_ms / f64::max(completed as f64, 1.0),
        prefix_reuse: cached / f64::max(prompt, 1.0),
    }
}

/// The latest request of a session.
struct Latest {
    index: usize,
    ended_at: Duration,
}

fn requests_of(records: &[RecordedDecision], start: u64, block_tokens: u32) -> Vec<TraceRequest> {
    let mut requests: Vec<TraceRequest> = Vec::new();
    let mut sessions: HashMap<u64, Latest> = HashMap::new();
    // Where a request is that a later decision moves to another worker.
    let mut by_id: HashMap<&str, usize> = HashMap::new();
    for record in records {
        let at = Duration::from_millis(record.at_unix_ms - start);
        let outcome = record.outcome.unwrap_or_default();
        let ended_at =
            at + Duration::from_micros((f64::from(outcome.total_ms.max(0.0)) * 1e3).round() as u64);
        let output_tokens = outcome.output_tokens;
        if record.features.attempt > 0 {
            let first = record.request.as_deref().and_then(|id| by_id.get(id));
            if let Some(&index) = first {
                let request = &mut requests[index];
                request.output_tokens = request.output_tokens.max(output_tokens);
                if let Some(latest) = sessions.get_mut(&request.session)
                    && latest.index == index
                {
                    latest.ended_at = ended_at;
                }
            }
            continue;
        }
        let index = requests.len();
        let session = record.features.keys.session;
        let mut arrival = Arrival::At(at);
        if session != 0 {
            let latest = Latest { index, ended_at };
            if let Some(before) = sessions.insert(session, latest)
                && at + CLOCK >= before.ended_at
            {
                let (previous, delay) = (before.index, at.saturating_sub(before.ended_at));
                arrival = Arrival::After { previous, delay };
            }
        }
        if let Some(id) = &record.request {
            by_id.insert(id, index);
        }
        requests.push(TraceRequest {
            arrival,
            input_tokens: record.features.prompt_tokens.max(1),
            output_tokens: output_tokens.max(1),
            blocks: blocks_of(record, index, block_tokens),
            session,
        });
    }
    requests
}

fn blocks_of(record: &RecordedDecision, index: usize, block_tokens: u32) -> Box<[BlockContent]> {
    let whole = (record.features.prompt_tokens / block_tokens) as usize;
    let known = record.blocks.iter().map(|block| BlockContent {
        scope: 0,
        id: block.0,
    });
    let unknown = (0..).map(|place| BlockContent {
        scope: UNKNOWN,
        id: (index as u64) << 32 | place,
    });
    known.chain(unknown).take(whole).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn line(request: &str, at_ms: u64, attempt: u32, session: u64, blocks: &str) -> Value {
        let tokens = blocks.len() as u64 / 16 * 4 + 3;
        json!({
            "signalbox_decision": 1, "router": "r-1", "thread": 0, "number": 0, "sample": 1.0,
            "at_unix_ms": 1_000_000 + at_ms, "took_ns": 1, "request": request, "model": "m",
            "policy": "p@1", "digest": null, "settings": null,
            "features": {
                "prompt_tokens": tokens, "block_size": 4, "attempt": attempt, "keys": {"session": session},
            },
            "blocks": blocks,
            "workers": ["w0", "w1"],
            "columns": {"worker": [0, 1], "kv_blocks_total": [100, 200]},
            "costs": [1.0, null], "pick": null, "chosen": 0,
            "outcome": {
                "completed": attempt > 0 || request != "moved", "ttft_ms": 20.0, "total_ms": 100.0,
                "output_tokens": 5 + attempt, "cached_tokens": 4,
            },
        })
    }

    fn read(lines: &[Value]) -> Result<(Trace, RecordedCluster), TraceError> {
        let text: Vec<String> = lines.iter().map(Value::to_string).collect();
        Trace::read_decisions(text.join("\n").as_bytes(), None)
    }

    const A: &str = "00000000000000aa";
    const B: &str = "00000000000000bb";

    #[test]
    fn requests_arrive_as_recorded_and_share_the_blocks_that_they_shared() {
        // A file has the lines in the order in which the requests ended.
        let lines = [
            line("later", 30, 0, 0, &format!("{A}{B}")),
            line("first", 0, 0, 0, A),
        ];
        let (trace, cluster) = read(&lines).unwrap();
        assert_eq!(trace.block_tokens, 4);
        let [first, later] = trace.requests.as_slice() else {
            panic!("two requests: {trace:?}")
        };
        assert_eq!(first.arrival, Arrival::At(Duration::ZERO));
        assert_eq!(later.arrival, Arrival::At(Duration::from_millis(30)));
        assert_eq!((first.input_tokens, later.input_tokens), (7, 11));
        assert_eq!(first.output_tokens, 5);
        assert_eq!(first.blocks[0], later.blocks[0]);
        assert_eq!((first.blocks.len(), later.blocks.len()), (1, 2));
        assert_eq!(
            cluster.kv_blocks,
            BTreeMap::from([("w0".into(), 100), ("w1".into(), 200)])
        );
        assert_eq!(
            (cluster.completed, cluster.mean_ttft_ms, cluster.routers),
            (2, 20.0, 1)
        );
        assert_eq!(cluster.prefix_reuse, 8.0 / 18.0);
    }

    #[test]
    fn a_sessions_next_request_follows_the_answer_before_it_and_overlapping_ones_their_clock() {
        let lines = [
            line("a", 0, 0, 7, A),
            line("b", 150, 0, 7, A),
            line("c", 200, 0, 7, A),
        ];
        let (trace, _) = read(&lines).unwrap();
        let arrivals: Vec<_> = trace.requests.iter().map(|request| request.arrival).collect();
        let after = Arrival::After {
            previous: 0,
            delay: Duration::from_millis(50),
        };
        let overlapping = Arrival::At(Duration::from_millis(200));
        assert_eq!(arrivals, [Arrival::At(Duration::ZERO), after, overlapping]);
    }

    #[test]
    fn a_moved_request_is_one_request() {
        let lines = [
            line("moved", 0, 0, 3, A),
            line("moved", 40, 1, 3, A),
            line("next", 140, 0, 3, A),
        ];
        let (trace, cluster) = read(&lines).unwrap();
        assert_eq!(trace.requests.len(), 2);
        assert_eq!(trace.requests[0].output_tokens, 6, "of the worker that answered");
        assert_eq!(
            trace.requests[1].arrival,
            Arrival::After {
                previous: 0,
                delay: Duration::ZERO
            },
            "after the second worker's answer"
        );
        assert_eq!(cluster.completed, 2);
    }

    #[test]
    fn prompts_without_known_blocks_share_nothing() {
        let mut lines = [line("a", 0, 0, 0, ""), line("b", 1, 0, 0, "")];
        for line in &mut lines {
            line["features"]["prompt_tokens"] = json!(9);
        }
        let (trace, _) = read(&lines).unwrap();
        let [a, b] = trace.requests.as_slice() else {
            panic!("two requests")
        };
        assert_eq!((a.blocks.len(), b.blocks.len()), (2, 2));
        assert!(a.blocks.iter().all(|block| !b.blocks.contains(block)));
    }

    #[test]
    fn several_models_or_faulty_lines_are_refused_with_their_names() {
        let mut other = line("b", 0, 0, 0, A);
        other["model"] = json!("other");
        let lines = [line("a", 0, 0, 0, A), other];
        let error = read(&lines).unwrap_err().to_string();
        assert!(error.contains("m, other"), "{error}");
        let text: Vec<String> = lines.iter().map(Value::to_string).collect();
        let (trace, _) = Trace::read_decisions(text.join("\n").as_bytes(), Some("other")).unwrap();
        assert_eq!(trace.requests.len(), 1);
        let error = Trace::read_decisions(&b"\n{}\n"[..], None)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("line 2") && error.contains("signalbox_decision"),
            "{error}"
        );
        assert!(matches!(
            Trace::read_decisions(&b""[..], None),
            Err(TraceError::Empty)
        ));
    }
}
