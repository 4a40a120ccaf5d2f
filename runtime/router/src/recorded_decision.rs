//! One decision as a line of JSON: what a router writes of it, and what replays and tests of policies read.
//!
//! `runtime/docs/decisions.md` describes the format. A line has all that the decision read, so that a policy with the same
//! digest and settings makes the same decision from it. It has the hashes of the prompt's KV blocks too, so that a replay of
//! the traffic has prompts with the same shared prefixes.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use signalbox_policy_host::{Candidates, Decision, RequestFeatures};
use signalbox_protocol::SequenceHash;

use crate::selection::select_row;

/// The version of the format. Readers ignore members that they do not know; what changes the meaning of one raises this
/// number.
pub const DECISION_FORMAT: u32 = 1;

/// Hexadecimal digits of a block's hash.
const DIGITS: usize = 16;

/// A decision and what became of the request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordedDecision {
    /// The version of the format.
    pub signalbox_decision: u32,
    /// The incarnation of the router that decided.
    pub router: String,
    /// Its thread.
    pub thread: u32,
    /// The decisions that this thread made before.
    pub number: u64,
    /// The share of decisions that this router writes.
    pub sample: f64,
    /// When it was made, in milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    /// How long it took, in nanoseconds.
    pub took_ns: u32,
    /// The request's id.
    pub request: Option<String>,
    /// The model.
    pub model: String,
    /// `name@version` of the policy that decided; `fallback@…` for the fallback.
    pub policy: String,
    /// SHA-256 of that policy's component, in hexadecimal; `None` for the fallback.
    pub digest: Option<String>,
    /// Its settings: a JSON object as text, empty for the defaults. `None` for the fallback.
    pub settings: Option<String>,
    /// The request as policies see it.
    pub features: RequestFeatures,
    /// The hashes of the prompt's whole KV blocks, in order: 16 hexadecimal digits each.
    #[serde(with = "hex_blocks")]
    pub blocks: Vec<SequenceHash>,
    /// The workers that could take the request: those of the rows of `columns`.
    pub workers: Vec<String>,
    /// What the policy saw of them.
    pub columns: Candidates,
    /// The cost of each worker; `null` rules it out. Empty where the policy picked.
    #[serde(with = "finite_or_null")]
    pub costs: Vec<f32>,
    /// The row that the policy picked; `None` where the costs decide.
    pub pick: Option<u32>,
    /// The row of the worker that got the request.
    pub chosen: usize,
    /// What became of the request there; `None` if the router stopped first.
    pub outcome: Option<DecisionOutcome>,
}

/// What became of a request at the worker that a decision chose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
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

impl RecordedDecision {
    /// Whether a line of text, read as JSON, says that it is one of these.
    #[must_use]
    pub fn is_one(line: &str) -> bool {
        line.contains("\"signalbox_decision\"")
    }

    /// Reads a line.
    ///
    /// # Errors
    /// The line is no such record, or of a later version of the format: a lower-case fragment that says what is wrong.
    pub fn from_line(line: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            signalbox_decision: u32,
        }
        let version = serde_json::from_str::<Version>(line).map_err(|error| error.to_string())?;
        if version.signalbox_decision != DECISION_FORMAT {
            return Err(format!(
                "the record has version {} of the format; this release reads version {DECISION_FORMAT}",
                version.signalbox_decision
            ));
        }
        let record: Self = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let rows = record.columns.len();
        if record.workers.len() != rows || record.chosen >= rows {
            return Err(format!(
                "the record names {} workers, {rows} rows of columns and the chosen row {}",
                record.workers.len(),
                record.chosen
            ));
        }
        Ok(record)
    }

    /// The row that another decision on the same candidates selects: by its pick, or by its costs with ties broken from the
    /// request's seed. `None` if it selects none.
    #[must_use]
    pub fn row_of(&self, decision: &Decision) -> Option<usize> {
        select_row(decision, self.workers.len(), self.features.seed)
    }

    /// The row that the recorded costs or pick select: the row that was chosen.
    #[must_use]
    pub fn recomputed_row(&self) -> Option<usize> {
        self.row_of(&Decision {
            costs: self.costs.clone(),
            pick: self.pick,
            rejection: None,
        })
    }
}

/// Hashes as one string. A list of numbers would lose bits in readers whose numbers are floating-point.
mod hex_blocks {
    use super::*;

    pub(super) fn serialize<S: Serializer>(blocks: &[SequenceHash], to: S) -> Result<S::Ok, S::Error> {
        use std::fmt::Write as _;
        let mut text = String::with_capacity(blocks.len() * DIGITS);
        for block in blocks {
            // Writing to a string does not fail.
            let _ = write!(text, "{:016x}", block.0);
        }
        to.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<SequenceHash>, D::Error> {
        let text = String::deserialize(from)?;
        let hashes = text.as_bytes().chunks(DIGITS).map(|digits| {
            let digits = std::str::from_utf8(digits)
                .ok()
                .filter(|digits| digits.len() == DIGITS);
            let hash = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
            hash.map(SequenceHash)
        });
        let hashes: Option<Vec<_>> = hashes.collect();
        hashes.ok_or_else(|| D::Error::custom("`blocks` is not 16 hexadecimal digits for each block"))
    }
}

/// JSON has no infinity, which rules a candidate out.
mod finite_or_null {
    use super::*;

    pub(super) fn serialize<S: Serializer>(costs: &[f32], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(costs.iter().map(|cost| cost.is_finite().then_some(*cost)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<f32>, D::Error> {
        let costs = Vec::<Option<f32>>::deserialize(from)?;
        Ok(costs
            .into_iter()
            .map(|cost| cost.unwrap_or(f32::INFINITY))
            .collect())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A record with these costs, in which the row of the lowest one was chosen.
    pub(crate) fn record(costs: &[f32], seed: u64) -> RecordedDecision {
        let decision = Decision {
            costs: costs.to_vec(),
            ..Decision::default()
        };
        RecordedDecision {
            signalbox_decision: DECISION_FORMAT,
            router: "router-1".into(),
            thread: 0,
            number: 3,
            sample: 1.0,
            at_unix_ms: 1_700_000_000_000,
            took_ns: 2_000,
            request: Some("r".into()),
            model: "m".into(),
            policy: "p@1".into(),
            digest: Some("0a".into()),
            settings: Some(String::new()),
            features: RequestFeatures {
                seed,
                ..RequestFeatures::default()
            },
            blocks: vec![SequenceHash(u64::MAX), SequenceHash(1)],
            workers: (0..costs.len()).map(|row| format!("w{row}")).collect(),
            columns: Candidates {
                worker: (0..costs.len() as u32).collect(),
                ..Candidates::default()
            },
            costs: costs.to_vec(),
            pick: None,
            chosen: select_row(&decision, costs.len(), seed).unwrap(),
            outcome: Some(DecisionOutcome::default()),
        }
    }

    #[test]
    fn lines_of_another_version_and_damaged_ones_are_refused_with_the_reason() {
        let line = serde_json::to_string(&record(&[1.0, 2.0], 0)).unwrap();
        assert!(RecordedDecision::is_one(&line));
        assert!(
            line.contains(r#""blocks":"ffffffffffffffff0000000000000001""#),
            "{line}"
        );
        let refusal = |from: &str, to: &str| {
            let changed = line.replacen(from, to, 1);
            assert_ne!(changed, line, "{from}");
            RecordedDecision::from_line(&changed).unwrap_err()
        };
        let later = refusal(r#""signalbox_decision":1"#, r#""signalbox_decision":2"#);
        assert!(
            later.contains("version 2") && later.contains("reads version 1"),
            "{later}"
        );
        assert!(refusal("ffffffffffffffff", "ffff").contains("16 hexadecimal digits"));
        assert!(refusal(r#""chosen":0"#, r#""chosen":2"#).contains("chosen row 2"));
        assert!(refusal(r#""workers":["w0","#, r#""workers":["#).contains("1 workers"));
        assert!(!RecordedDecision::is_one(r#"{"timestamp":0,"hash_ids":[]}"#));
        // A member of a later release is ignored.
        let more = line.replacen('{', r#"{"zone":"eu","#, 1);
        assert!(RecordedDecision::from_line(&more).is_ok());
    }

    proptest! {
        /// What is read is what was written, to the bit, so that ties stay ties and the pick is the same.
        #[test]
        fn a_record_survives_its_line_and_its_costs_recompute_to_the_pick(
            whole in proptest::collection::vec(0_u16..9, 1..80),
            scale in 0.001_f32..1_000.0,
            seed in any::<u64>(),
        ) {
            let mut costs: Vec<f32> = whole.iter().map(|cost| f32::from(*cost) * scale).collect();
            costs.push(f32::INFINITY);
            let written = record(&costs, seed);
            let read = RecordedDecision::from_line(&serde_json::to_string(&written).unwrap()).unwrap();
            prop_assert_eq!(&read, &written);
            prop_assert_eq!(read.recomputed_row(), Some(written.chosen));
        }
    }
}
