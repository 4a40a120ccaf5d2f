//! The description that a worker publishes of itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::{WorkerEpoch, WorkerId};

/// The description of a worker: sent in the request plane's hello and published with discovery.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerCard {
    /// The worker's name, stable over restarts.
    pub id: WorkerId,
    /// The epoch of this incarnation.
    pub epoch: WorkerEpoch,
    /// The model, under the name that clients use.
    pub model: String,
    /// `host:port` of the request plane, or `nats:<worker>` for a worker reached over NATS.
    pub address: String,
    /// The kind of engine: `llama`, `sim`, `vllm`, `sglang`, or `openai` for another one that speaks the OpenAI API.
    pub engine: String,
    /// The engine's version, if it states one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub engine_version: String,
    /// Whether the engine reads the client's body itself. Routers then check only what routing needs, and also send it
    /// requests of other routes than chats and completions.
    #[serde(default)]
    pub reads_body: bool,
    /// Whether the worker continues answers that another worker began ([`Continuation`](crate::Continuation)).
    #[serde(default)]
    pub continues_answers: bool,
    /// What the worker honours that earlier workers ignored. A request that needs more goes to another worker.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "known_abilities"
    )]
    pub abilities: Vec<Ability>,
    /// Tokens per KV block.
    pub block_size: u32,
    /// Most tokens of prompt and answer together; [`u32::MAX`] if the engine does not state it.
    pub context_length: u32,
    /// SHA-256, in hex, of the model's tokenizer and chat template. Routers fetch them from the worker by this digest.
    pub artifacts_digest: String,
    /// The worker's part in a disaggregated deployment.
    pub role: WorkerRole,
    /// What the worker can hold.
    pub capacity: WorkerCapacity,
    /// Whether the worker publishes KV events. If not, each router learns from its own decisions what the worker holds.
    pub kv_events: bool,
    /// Labels set by the operator, such as zone, hardware or price. At most 32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Members of a request that a worker honours, and that workers of an earlier release would ignore. An engine that reads the
/// client's body itself has all of them: it refuses what it does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ability {
    /// The sampling parameters from `min_tokens` on, token ids in the answer, and its token counts in each event.
    SamplingLimits,
    /// Constraints of the answer's text.
    Constraints,
    /// Tool calls in the answer.
    ToolCalls,
    /// An answer that is a part of one, whose request has several prompts.
    AnswerParts,
    /// The log probabilities of a prompt's tokens, and no answer behind them.
    PromptLogprobs,
}

impl Ability {
    /// What a client asks for that needs the ability.
    pub fn asked(self) -> &'static str {
        match self {
            Self::SamplingLimits => {
                "min_tokens, stop_token_ids, bad_words, min_p, repetition_penalty, return_token_ids or \
                 continuous_usage_stats"
            }
            Self::Constraints => {
                "structured output (response_format, structured_outputs or a tool that must be called)"
            }
            Self::ToolCalls => "tool calls",
            Self::AnswerParts => "several prompts in one request",
            Self::PromptLogprobs => {
                "the log probabilities of a prompt (echo with logprobs, or max_tokens of 0)"
            }
        }
    }
}

impl WorkerCard {
    /// Whether the worker honours every part of a request that needs `abilities`.
    pub fn has_all(&self, mut abilities: impl Iterator<Item = Ability>) -> bool {
        self.reads_body || abilities.all(|ability| self.abilities.contains(&ability))
    }
}

/// Skips the abilities of later releases.
fn known_abilities<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Ability>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum MaybeKnown {
        Known(Ability),
        Other(serde::de::IgnoredAny),
    }
    let all = Vec::<MaybeKnown>::deserialize(deserializer)?;
    Ok(all
        .into_iter()
        .filter_map(|ability| match ability {
            MaybeKnown::Known(ability) => Some(ability),
            MaybeKnown::Other(_) => None,
        })
        .collect())
}

/// The phases of a request that a worker computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerRole {
    /// Prefill and decode.
    #[default]
    Aggregated,
    /// Prefill only.
    Prefill,
    /// Decode only.
    Decode,
}

/// What a worker can hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerCapacity {
    /// KV blocks on the device.
    pub kv_blocks: u32,
    /// Sequences decoded at the same time.
    pub max_sequences: u32,
    /// Requests that may wait beyond those. The worker fails more requests as overloaded.
    pub max_waiting: u32,
}

impl WorkerCapacity {
    /// The most sequences that the worker takes, running and waiting together.
    pub fn most_requests(self) -> u32 {
        self.max_sequences.saturating_add(self.max_waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(abilities: &str) -> WorkerCard {
        let json = format!(
            r#"{{"id":"w","epoch":1,"model":"m","address":"a:1","engine":"sim","block_size":16,"context_length":9,
            "artifacts_digest":"","role":"aggregated","capacity":{{"kv_blocks":1,"max_sequences":1,"max_waiting":1}},
            "kv_events":true{abilities}}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn abilities_of_other_releases_are_none_or_skipped() {
        let needs = || [Ability::SamplingLimits].into_iter();
        assert!(!card("").has_all(needs()), "a worker of an earlier release");
        let later = card(r#","abilities":["of_a_later_release","sampling_limits"]"#);
        assert_eq!(later.abilities, [Ability::SamplingLimits]);
        assert!(later.has_all(needs()));
        let engine = WorkerCard {
            reads_body: true,
            ..card("")
        };
        assert!(
            engine.has_all(needs()),
            "an engine that reads bodies refuses what it does not know"
        );
    }
}
