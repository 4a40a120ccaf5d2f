//! Why each request went where it went: what a decision saw and chose, and what became of the request.
//!
//! Each thread that decides has a ring of its latest decisions. Recording allocates nothing once the ring's buffers have
//! grown to the size of the cluster: each record is written over the oldest one. Among many candidates only some decisions
//! keep all rows, so that recording costs a small share of a decision. The admin API reads all rings.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Map, Value};
use signalbox_policy_host::{Candidates, Decision, RequestFeatures};
use signalbox_protocol::{RequestId, WorkerId};

/// Decisions that a thread keeps. With 64 candidates each takes some 4 KB.
const MAX_RECORDS: usize = 256;
/// Most candidates of a decision that always keeps all rows. Copying more costs more than 0.3 µs.
const MAX_ROWS: usize = 128;
/// Of the decisions among more candidates, one in 16 keeps all rows.
const SAMPLED: u64 = 16;

/// The rings of all threads. Clone = handle.
#[derive(Debug, Clone, Default)]
pub(crate) struct DecisionLogs(Arc<Mutex<Vec<DecisionLog>>>);

/// The latest decisions of one thread. Clone = handle.
#[derive(Debug, Clone, Default)]
pub(crate) struct DecisionLog(Arc<Mutex<Ring>>);

#[derive(Debug, Default)]
struct Ring {
    records: Vec<Record>,
    /// Decisions recorded so far.
    written: u64,
}

/// One decision. The buffers are kept when the record is written over.
#[derive(Debug, Default)]
struct Record {
    number: u64,
    at_unix_ms: u64,
    took_ns: u32,
    request: Option<RequestId>,
    model: Arc<str>,
    policy: Arc<str>,
    features: RequestFeatures,
    /// The ids of all workers of the model, and the place of each row's worker among them.
    ids: Arc<[WorkerId]>,
    rows: Vec<usize>,
    candidates: usize,
    chosen: Option<WorkerId>,
    chosen_row: usize,
    /// Empty where the rows were not kept.
    columns: Candidates,
    costs: Vec<f32>,
    outcome: Option<DecisionOutcome>,
}

/// What a decision saw and chose.
pub(crate) struct Decided<'a> {
    pub(crate) took_ns: u32,
    pub(crate) request: Option<&'a RequestId>,
    pub(crate) model: &'a Arc<str>,
    pub(crate) policy: &'a Arc<str>,
    pub(crate) features: RequestFeatures,
    pub(crate) ids: &'a Arc<[WorkerId]>,
    pub(crate) rows: &'a [usize],
    pub(crate) columns: &'a Candidates,
    pub(crate) decision: &'a Decision,
    pub(crate) chosen: &'a WorkerId,
    pub(crate) chosen_row: usize,
}

/// The record of one decision, for its outcome.
#[derive(Debug, Clone)]
pub(crate) struct DecisionTicket {
    log: DecisionLog,
    number: u64,
}

/// What became of a request at the worker that a decision chose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct DecisionOutcome {
    /// Whether it was answered in full there.
    pub completed: bool,
    /// Milliseconds from the decision to the first output token; `None` if none came.
    pub ttft_ms: Option<f32>,
    /// Milliseconds from the decision to the end.
    pub total_ms: f32,
    /// Output tokens that the worker sent.
    pub output_tokens: u32,
    /// Prompt tokens that the engine found in its KV cache; `None` if the answer was not completed.
    pub cached_tokens: Option<u32>,
}

/// Which decisions to show.
#[derive(Debug, Clone, Default)]
pub struct DecisionFilter {
    /// Of this model.
    pub model: Option<String>,
    /// That chose this worker.
    pub worker: Option<String>,
    /// By this policy: its name, or `name@version`.
    pub policy: Option<String>,
    /// About this request.
    pub request: Option<String>,
    /// Most decisions to show; the latest come first.
    pub limit: usize,
}

/// A recorded decision.
#[derive(Debug, Clone, Serialize)]
pub struct DecisionView {
    /// When it was made, in milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    /// The request's id.
    pub request: Option<String>,
    /// The model.
    pub model: String,
    /// `name@version` of the policy that decided; `fallback@…` for the fallback.
    pub policy: String,
    /// The chosen worker.
    pub worker: String,
    /// The decision in words.
    pub explanation: String,
    /// How long it took, in microseconds.
    pub took_us: f32,
    /// The request as policies see it.
    pub features: RequestFeatures,
    /// How many workers could take the request.
    pub candidate_count: usize,
    /// What the policy saw of each of them and its cost, the chosen one first, then by cost. Empty where the rows of a
    /// decision among many candidates were not kept.
    pub candidates: Vec<CandidateView>,
    /// `None` while the request is under way.
    pub outcome: Option<DecisionOutcome>,
}

/// A candidate of a recorded decision.
#[derive(Debug, Clone, Serialize)]
pub struct CandidateView {
    /// The worker.
    pub worker: String,
    /// Its cost; `None` where the policy picked, or ruled it out.
    pub cost: Option<f32>,
    /// The values of the columns that were filled, by name.
    #[serde(flatten)]
    pub columns: Map<String, Value>,
}

impl DecisionLogs {
    /// The ring of one more thread.
    pub(crate) fn add(&self) -> DecisionLog {
        let log = DecisionLog::default();
        self.0.lock().push(log.clone());
        log
    }

    /// The recorded decisions that the filter lets pass, the latest first.
    pub(crate) fn find(&self, filter: &DecisionFilter) -> Vec<DecisionView> {
        let logs = self.0.lock().clone();
        let mut found = Vec::new();
        for log in &logs {
            let ring = log.0.lock();
            let mut latest: Vec<&Record> = ring
                .records
                .iter()
                .filter(|record| filter.passes(record))
                .collect();
            latest.sort_by_key(|record| std::cmp::Reverse(record.number));
            found.extend(latest.into_iter().take(filter.limit).map(Record::view));
        }
        found.sort_by_key(|view| std::cmp::Reverse(view.at_unix_ms));
        found.truncate(filter.limit);
        found
    }
}

impl DecisionLog {
    /// Records a decision.
    pub(crate) fn record(&self, decided: Decided<'_>) -> DecisionTicket {
        let mut ring = self.0.lock();
        let number = ring.written;
        ring.written += 1;
        let place = number as usize % MAX_RECORDS;
        if place >= ring.records.len() {
            ring.records.push(Record::default());
        }
        ring.records[place].write(number, decided);
        DecisionTicket {
            log: self.clone(),
            number,
        }
    }
}

impl DecisionTicket {
    /// The request has ended at the worker that was chosen.
    pub(crate) fn ended(&self, outcome: DecisionOutcome) {
        let mut ring = self.log.0.lock();
        let place = self.number as usize % MAX_RECORDS;
        if let Some(record) = ring.records.get_mut(place)
            && record.number == self.number
        {
            record.outcome = Some(outcome);
        }
    }
}

impl Record {
    fn write(&mut self, number: u64, decided: Decided<'_>) {
        let Decided {
            took_ns,
            request,
            model,
            policy,
            features,
            ids,
            rows,
            columns,
            decision,
            chosen,
            chosen_row,
        } = decided;
        self.number = number;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.at_unix_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        self.took_ns = took_ns;
        self.request = request.cloned();
        self.model = model.clone();
        self.policy = policy.clone();
        self.features = features;
        self.ids = ids.clone();
        self.candidates = rows.len();
        self.chosen = Some(chosen.clone());
        self.chosen_row = chosen_row;
        self.outcome = None;
        self.rows.clear();
        self.costs.clear();
        if rows.len() <= MAX_ROWS || number.is_multiple_of(SAMPLED) {
            self.rows.extend_from_slice(rows);
            self.costs.extend_from_slice(&decision.costs);
            self.columns.copy_from(columns);
        }
    }

    fn view(&self) -> DecisionView {
        let mut rows: Vec<usize> = (0..self.rows.len()).collect();
        let cost = |row: &usize| self.costs.get(*row).copied().unwrap_or(0.0);
        rows.sort_by(|a, b| cost(a).total_cmp(&cost(b)));
        rows.sort_by_key(|row| *row != self.chosen_row);
        let columns = serde_json::to_value(&self.columns).unwrap_or_default();
        let candidate = |row: &usize| CandidateView {
            worker: self.worker(*row),
            cost: self.costs.get(*row).copied().filter(|cost| cost.is_finite()),
            columns: columns_of(&columns, *row),
        };
        DecisionView {
            at_unix_ms: self.at_unix_ms,
            request: self.request.as_ref().map(|id| id.as_str().to_owned()),
            model: self.model.to_string(),
            policy: self.policy.to_string(),
            worker: self.chosen.as_ref().map(ToString::to_string).unwrap_or_default(),
            explanation: self.explanation(&rows),
            took_us: self.took_ns as f32 / 1e3,
            features: self.features.clone(),
            candidate_count: self.candidates,
            candidates: rows.iter().map(candidate).collect(),
            outcome: self.outcome,
        }
    }

    fn worker(&self, row: usize) -> String {
        let id = self.rows.get(row).and_then(|place| self.ids.get(*place));
        id.map(ToString::to_string).unwrap_or_default()
    }

    /// The decision in words. `ranked` has the chosen row, then the others by cost.
    fn explanation(&self, ranked: &[usize]) -> String {
        let chosen = self.chosen.as_ref().map(ToString::to_string).unwrap_or_default();
        let among = match self.candidates {
            1 => "the only candidate".to_owned(),
            many => format!("one of {many} candidates"),
        };
        let begin = format!("{} chose {chosen}, {among}", self.policy);
        let Some(&cost) = self.costs.get(self.chosen_row) else {
            return match self.rows.is_empty() {
                true => format!("{begin}; the costs of this decision were not kept"),
                false => format!("{begin}; it picked it without a cost"),
            };
        };
        let begin = format!("{begin}, at a cost of {cost:.1}");
        let Some(&next) = ranked.get(1).filter(|row| self.costs[**row].is_finite()) else {
            return begin;
        };
        let ties = self.costs.iter().filter(|other| **other == cost).count() - 1;
        if ties > 0 {
            return format!("{begin}; {ties} others cost the same, and the request's seed chose among them");
        }
        let (worker, other) = (self.worker(next), self.costs[next]);
        format!(
            "{begin}; the next best, {worker}, costs {other:.1}, {:.1} more",
            other - cost
        )
    }
}

/// The values of a row in all columns that have it.
fn columns_of(columns: &Value, row: usize) -> Map<String, Value> {
    let all = columns.as_object().into_iter().flatten();
    let filled = all.filter(|(name, _)| !matches!(name.as_str(), "worker" | "labels" | "number_labels"));
    let value = |(name, column): (&String, &Value)| Some((name.clone(), column.get(row)?.clone()));
    let mut values: Map<String, Value> = filled.filter_map(value).collect();
    for (list, prefix) in [("labels", "label:"), ("number_labels", "number:")] {
        for label in columns[list].as_array().into_iter().flatten() {
            if let (Some(name), Some(value)) = (label[0].as_str(), label[1].get(row)) {
                values.insert(format!("{prefix}{name}"), value.clone());
            }
        }
    }
    values
}

impl DecisionFilter {
    fn passes(&self, record: &Record) -> bool {
        let is =
            |wanted: &Option<String>, value: &str| wanted.as_deref().is_none_or(|wanted| wanted == value);
        let policy = self.policy.as_deref();
        let name = record.policy.split('@').next().unwrap_or_default();
        is(&self.model, &record.model)
            && is(&self.worker, record.chosen.as_ref().map_or("", WorkerId::as_str))
            && is(
                &self.request,
                record.request.as_ref().map_or("", RequestId::as_str),
            )
            && policy.is_none_or(|policy| policy == &*record.policy || policy == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(log: &DecisionLog, request: &str, costs: &[f32], chosen_row: usize) -> DecisionTicket {
        let rows: Vec<usize> = (0..costs.len()).collect();
        let ids: Arc<[WorkerId]> = rows
            .iter()
            .map(|row| format!("w{row}").parse().unwrap())
            .collect();
        let columns = Candidates {
            worker: vec![0; costs.len()],
            requests: (0..costs.len() as u32).collect(),
            labels: vec![("gpu".into(), vec![7; costs.len()])],
            ..Candidates::default()
        };
        let decision = Decision {
            costs: costs.to_vec(),
            ..Decision::default()
        };
        log.record(Decided {
            took_ns: 1_500,
            request: RequestId::from_client(request).as_ref(),
            model: &"m".into(),
            policy: &"p@1".into(),
            features: RequestFeatures::default(),
            ids: &ids,
            rows: &rows,
            columns: &columns,
            decision: &decision,
            chosen: &ids[chosen_row],
            chosen_row,
        })
    }

    fn all(logs: &DecisionLogs) -> Vec<DecisionView> {
        logs.find(&DecisionFilter {
            limit: usize::MAX,
            ..DecisionFilter::default()
        })
    }

    #[test]
    fn a_decision_is_told_in_words_with_the_next_best() {
        let logs = DecisionLogs::default();
        let log = logs.add();
        decide(&log, "a", &[9.0, 5.0, 7.5], 1);
        let view = &all(&logs)[0];
        assert_eq!(
            view.explanation,
            "p@1 chose w1, one of 3 candidates, at a cost of 5.0; the next best, w2, costs 7.5, 2.5 more"
        );
        let order: Vec<_> = view
            .candidates
            .iter()
            .map(|candidate| &*candidate.worker)
            .collect();
        assert_eq!(order, ["w1", "w2", "w0"]);
        let columns = &view.candidates[0].columns;
        assert_eq!(
            (&columns["requests"], &columns["label:gpu"]),
            (&1.into(), &7.into())
        );
        decide(&log, "b", &[5.0, 5.0, f32::INFINITY], 0);
        let tied = logs.find(&DecisionFilter {
            request: Some("b".into()),
            limit: 1,
            ..DecisionFilter::default()
        });
        assert!(
            tied[0]
                .explanation
                .ends_with("1 others cost the same, and the request's seed chose among them")
        );
        assert_eq!(tied[0].candidates[2].cost, None, "ruled out");
    }

    #[test]
    fn the_ring_keeps_the_latest_decisions_and_an_outcome_finds_its_own() {
        let logs = DecisionLogs::default();
        let (log, _other) = (logs.add(), logs.add());
        let first = decide(&log, "first", &[1.0], 0);
        let second = decide(&log, "second", &[1.0], 0);
        let outcome = DecisionOutcome {
            completed: true,
            output_tokens: 3,
            ..DecisionOutcome::default()
        };
        second.ended(outcome);
        for _ in 0..MAX_RECORDS - 1 {
            decide(&log, "later", &[1.0], 0);
        }
        // The record of the first decision has been written over.
        first.ended(outcome);
        let kept = all(&logs);
        assert_eq!(kept.len(), MAX_RECORDS);
        let ended: Vec<_> = kept.iter().filter(|view| view.outcome.is_some()).collect();
        assert_eq!(ended.len(), 1);
        assert_eq!(ended[0].request.as_deref(), Some("second"));
    }

    #[test]
    fn among_many_candidates_some_decisions_keep_their_rows() {
        let logs = DecisionLogs::default();
        let log = logs.add();
        for _ in 0..SAMPLED {
            decide(&log, "x", &vec![1.0; MAX_ROWS + 1], 0);
        }
        let kept = all(&logs);
        let with_rows = kept.iter().filter(|view| !view.candidates.is_empty()).count();
        assert_eq!((kept.len(), with_rows), (SAMPLED as usize, 1));
        assert!(kept.iter().all(|view| view.candidate_count == MAX_ROWS + 1));
    }
}
