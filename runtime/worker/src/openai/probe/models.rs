//! The answer to `GET /v1/models`.

use std::collections::HashSet;

use serde::Deserialize;
use signalbox_protocol::LoraAdapter;

/// Most adapters of an engine that a worker reports to routers. With the longest names and roots, a report of all of them
/// still fits one piece of an answer (1 MiB).
const MAX_ADAPTERS: usize = 500;

/// Longest name and longest root of an adapter, in bytes. A root is most often a path.
const MAX_TEXT_BYTES: usize = 512;

/// The models that an engine serves: one base model, and its LoRA adapters.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ModelList {
    pub(crate) base: Model,
    pub(crate) adapters: Vec<LoraAdapter>,
    pub(crate) owned_by: Option<String>,
}

/// One model. vLLM and SGLang state more than OpenAI's API has.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Model {
    pub(crate) id: String,
    pub(crate) root: Option<String>,
    parent: Option<String>,
    pub(crate) max_model_len: Option<u32>,
    owned_by: Option<String>,
}

#[derive(Deserialize)]
struct Answer {
    data: Vec<Model>,
}

impl ModelList {
    /// `None` if the answer is none, or has no model.
    pub(crate) fn parse(json: &[u8]) -> Option<Self> {
        let answer: Answer = serde_json::from_slice(json).ok()?;
        let (bases, adapters): (Vec<_>, Vec<_>) =
            answer.data.into_iter().partition(|model| model.parent.is_none());
        // A request that names a base model gets it, also if an adapter has the same name.
        let mut taken: HashSet<String> = bases.iter().map(|base| base.id.clone()).collect();
        // Further names of the same model follow the first.
        let base = bases.into_iter().next()?;
        let adapters = adapters
            .into_iter()
            .filter(|adapter| is_usable(&adapter.id) && taken.insert(adapter.id.clone()))
            .map(|adapter| LoraAdapter {
                name: adapter.id,
                root: adapter.root.filter(|root| is_usable(root)),
            })
            .take(MAX_ADAPTERS)
            .collect();
        Some(Self {
            owned_by: base.owned_by.clone(),
            adapters,
            base,
        })
    }
}

/// Whether a name or a root is passed on. A control character would take six bytes of a report.
fn is_usable(text: &str) -> bool {
    (1..=MAX_TEXT_BYTES).contains(&text.len()) && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use signalbox_protocol::WorkerReport;

    use super::*;

    fn parse(models: &serde_json::Value) -> Vec<LoraAdapter> {
        let json = json!({"data": models}).to_string();
        ModelList::parse(json.as_bytes()).unwrap().adapters
    }

    #[test]
    fn adapters_that_no_request_can_mean_are_left_out() {
        let (long, path) = ("x".repeat(MAX_TEXT_BYTES + 1), "/a".repeat(MAX_TEXT_BYTES));
        let adapters = parse(&json!([
            {"id": "m"},
            {"id": "alias"},
            {"id": "sql", "root": "/a/sql", "parent": "m"},
            {"id": "sql", "root": "/a/sql-2", "parent": "m"},
            {"id": "m", "parent": "m"},
            {"id": "alias", "parent": "m"},
            {"id": "", "parent": "m"},
            {"id": "a\nb", "parent": "m"},
            {"id": long, "parent": "m"},
            {"id": "far", "root": path, "parent": "m"},
        ]));
        let adapter = |name: &str, root: Option<&str>| LoraAdapter {
            name: name.into(),
            root: root.map(Into::into),
        };
        assert_eq!(adapters, [adapter("sql", Some("/a/sql")), adapter("far", None)]);
    }

    #[test]
    fn a_report_of_the_most_adapters_fits_one_piece() {
        let models: Vec<_> = (0..=MAX_ADAPTERS)
            .map(|number| {
                let text = format!("{number:\"<MAX_TEXT_BYTES$}");
                json!({"id": text, "root": text, "parent": "m"})
            })
            .collect();
        let adapters = parse(&json!(
            [[json!({"id": "m"})].as_slice(), models.as_slice()].concat()
        ));
        assert_eq!(adapters.len(), MAX_ADAPTERS);
        let report = WorkerReport {
            adapters: Some(adapters),
            ..WorkerReport::default()
        };
        let json = serde_json::to_vec(&report).unwrap();
        assert!(
            json.len() <= signalbox_request_plane::MAX_PIECE_BYTES,
            "{}",
            json.len()
        );
    }
}
