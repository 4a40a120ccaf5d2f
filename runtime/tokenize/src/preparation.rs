//! How an engine turns a request's messages into the input of the chat template.
//!
//! Engines differ in this: in how they join the parts of a message, in which members of a message they pass on, in
//! what they do with the role `developer` or with the arguments of a tool call that are no object. A router computes
//! the tokens that the engine computes only if it prepares the messages in the same way. The preparation is therefore
//! part of a model's artifacts: the worker beside the engine sets it.

use serde::{Deserialize, Serialize};

/// The engine whose preparation of messages is followed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessagePreparation {
    /// That of this repository's own engines, as `transformers` renders: members of a message reach the template as
    /// the client sent them, and a request that would be rendered by guessing is refused.
    #[default]
    Signalbox,
    /// That of vLLM 0.32: `renderers/chat_utils.py`, `renderers/hf.py` and the request's schema.
    Vllm,
    /// That of SGLang 0.5: `serving_chat.py` and `jinja_template_utils.py`.
    Sglang,
}

impl MessagePreparation {
    /// Whether the engine reads the client's request itself, and refuses what is wrong with it.
    pub(crate) fn is_of_another_engine(self) -> bool {
        self != Self::Signalbox
    }

    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A way to write chats as tokens that engines have in their code. There is no template that gives the same tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CodedChat {
    /// OpenAI's Harmony format (gpt-oss).
    Harmony,
    /// DeepSeek V3.2.
    DeepseekV32,
    /// DeepSeek V4.
    DeepseekV4,
    /// Mistral's own library, for models that come with `tekken.json`.
    MistralCommon,
}

impl CodedChat {
    /// The coded format that vLLM uses for a model, by the `model_type` and `architectures` of its `config.json`.
    pub(crate) fn of_model(model_type: Option<&str>, architectures: &[&str]) -> Option<Self> {
        let named = |model_type_wanted: &str, architecture: &str| {
            model_type == Some(model_type_wanted) || architectures.contains(&architecture)
        };
        if named("gpt_oss", "GptOssForCausalLM") {
            Some(Self::Harmony)
        } else if named("deepseek_v32", "DeepseekV32ForCausalLM") {
            Some(Self::DeepseekV32)
        } else if named("deepseek_v4", "DeepseekV4ForCausalLM") {
            Some(Self::DeepseekV4)
        } else {
            None
        }
    }

    /// The coded format of a tokenizer whose special tokens have these names. Only Harmony is recognised so: its
    /// tokens belong to no other format.
    pub(crate) fn of_tokens(names: &[&str]) -> Option<Self> {
        let harmony = [
            "<|start|>",
            "<|channel|>",
            "<|message|>",
            "<|return|>",
            "<|call|>",
        ];
        harmony
            .iter()
            .all(|name| names.contains(name))
            .then_some(Self::Harmony)
    }

    /// The format in words, for messages.
    pub(crate) fn description(self) -> &'static str {
        match self {
            Self::Harmony => "the Harmony format",
            Self::DeepseekV32 => "the format of DeepSeek V3.2",
            Self::DeepseekV4 => "the format of DeepSeek V4",
            Self::MistralCommon => "the format of mistral-common",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_without_a_template_are_recognised_by_their_configuration_or_tokens() {
        assert_eq!(
            CodedChat::of_model(Some("gpt_oss"), &[]),
            Some(CodedChat::Harmony)
        );
        assert_eq!(
            CodedChat::of_model(None, &["DeepseekV32ForCausalLM"]),
            Some(CodedChat::DeepseekV32)
        );
        assert_eq!(
            CodedChat::of_model(Some("deepseek_v4"), &[]),
            Some(CodedChat::DeepseekV4)
        );
        assert_eq!(CodedChat::of_model(Some("qwen3"), &["Qwen3ForCausalLM"]), None);
        let harmony = [
            "<|start|>",
            "<|end|>",
            "<|message|>",
            "<|channel|>",
            "<|return|>",
            "<|call|>",
        ];
        assert_eq!(CodedChat::of_tokens(&harmony), Some(CodedChat::Harmony));
        assert_eq!(CodedChat::of_tokens(&["<|start|>", "<|end|>"]), None);
    }

    #[test]
    fn the_names_in_artifacts_never_change() {
        for (preparation, name) in [
            (MessagePreparation::Signalbox, "\"signalbox\""),
            (MessagePreparation::Vllm, "\"vllm\""),
            (MessagePreparation::Sglang, "\"sglang\""),
        ] {
            assert_eq!(serde_json::to_string(&preparation).unwrap(), name);
        }
        assert_eq!(
            serde_json::to_string(&CodedChat::DeepseekV32).unwrap(),
            "\"deepseek_v32\""
        );
    }
}
