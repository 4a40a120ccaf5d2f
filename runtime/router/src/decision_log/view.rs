//! What the admin API shows of a recorded decision.

use serde::Serialize;
use serde_json::{Map, Value};
use signalbox_policy_host::RequestFeatures;

use super::record::Record;
use crate::recorded_decision::DecisionOutcome;

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
    /// The decision in words, from its costs.
    pub explanation: String,
    /// The reason in the policy's own words, if they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_explanation: Option<String>,
    /// Why there are no such words, though they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_explained: Option<String>,
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

impl Record {
    /// What to show of it. With `explained`, its policy is asked for the reason, which takes up to some 100 ms.
    pub(super) fn view(&self, explained: bool) -> DecisionView {
        let columns = serde_json::to_value(&self.columns).unwrap_or_default();
        let candidate = |row: usize| CandidateView {
            worker: self.worker(row).to_owned(),
            cost: self.costs.get(row).copied().filter(|cost| cost.is_finite()),
            columns: columns_of(&columns, row),
        };
        let words = explained.then(|| self.policy_words());
        let (policy_explanation, not_explained) = match words {
            Some(Ok(words)) => (Some(words), None),
            Some(Err(reason)) => (None, Some(reason)),
            None => (None, None),
        };
        DecisionView {
            at_unix_ms: self.at_unix_ms,
            request: self.request.as_ref().map(|id| id.as_str().to_owned()),
            model: self.model.to_string(),
            policy: self.policy.to_string(),
            worker: self.chosen_worker().to_owned(),
            explanation: self.explanation(),
            policy_explanation,
            not_explained,
            took_us: self.took_ns as f32 / 1e3,
            features: self.features.clone(),
            candidate_count: self.candidates,
            candidates: self.ranked().into_iter().map(candidate).collect(),
            outcome: self.outcome,
        }
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
