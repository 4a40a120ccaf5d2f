//! What a request generates: worked out before its first token is sent, because the "model" has nothing to wait for.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    cache::CacheKey,
    engine::{Engine, Running},
    request::{Refusal, Sampling},
    text::Text,
};

/// A request, ready to run.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) rank: usize,
    pub(super) key: CacheKey,
    pub(super) prompts: Vec<Vec<u32>>,
    /// The answers to the first prompt, then those to the second one.
    pub(super) answers: Vec<Answer>,
}

/// One answer of a request.
#[derive(Debug, Clone, Default)]
pub(super) struct Answer {
    /// The prompt it answers.
    pub(super) prompt: usize,
    pub(super) tokens: Vec<u32>,
    /// The text of each token.
    pub(super) pieces: Vec<String>,
    pub(super) finish: &'static str,
    /// The stop string or token that ended it.
    pub(super) stop_reason: Value,
}

/// The token counts of a request.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    pub(super) prompt: usize,
    pub(super) completion: usize,
    /// Prompt tokens from the cache.
    pub(super) cached: usize,
    /// Prompt tokens in blocks that were not cached before.
    pub(super) created: usize,
}

impl Job {
    /// Works out the answers to `prompts`. `forced` is the text of every answer, if it is not up to the "model".
    pub(super) fn new(
        engine: &Engine,
        rank: usize,
        adapter: Option<String>,
        prompts: Vec<Vec<u32>>,
        sampling: &Sampling,
        forced: Option<&str>,
    ) -> Result<Self, Refusal> {
        let context = engine.options.context_length as usize;
        let mut answers = Vec::new();
        for (number, prompt) in prompts.iter().enumerate() {
            let most = room(context, prompt.len(), sampling.most)?;
            for choice in 0..sampling.choices {
                answers.push(Answer {
                    prompt: number,
                    ..Answer::new(&engine.text, prompt, choice, sampling, most, forced)
                });
            }
        }
        let job = Self {
            rank,
            key: CacheKey {
                adapter,
                salt: sampling.salt.clone(),
            },
            prompts,
            answers,
        };
        let block = engine.options.block_size as usize;
        let blocks: usize = job
            .sequences()
            .iter()
            .map(|(prompt, more)| (prompt.len() + more).div_ceil(block))
            .sum();
        if blocks > engine.options.kv_blocks as usize {
            return Err(Refusal::bad(format!(
                "the request needs {blocks} KV blocks, and the engine has {}",
                engine.options.kv_blocks
            )));
        }
        Ok(job)
    }

    /// Runs the request up to its first token.
    pub(super) async fn begin(&self, engine: &Arc<Engine>) -> Option<Running> {
        Running::begin(engine.clone(), self.rank, self.sequences(), &self.key).await
    }

    /// The counts, once it runs.
    pub(super) fn usage(&self, engine: &Engine, running: &Running, completion: usize) -> Usage {
        let block = engine.options.block_size as usize;
        let mut usage = Usage {
            completion,
            ..Usage::default()
        };
        for (number, prompt) in self.prompts.iter().enumerate() {
            let first = self.answers.iter().position(|answer| answer.prompt == number);
            let cached = first.map_or(0, |first| running.cached(first));
            usage.prompt += prompt.len();
            usage.cached += cached;
            usage.created += prompt.len() / block * block - cached.min(prompt.len() / block * block);
        }
        usage
    }

    pub(super) fn completion_tokens(&self) -> usize {
        self.answers.iter().map(|answer| answer.tokens.len()).sum()
    }

    /// Tokens of the longest answer.
    pub(super) fn longest_answer(&self) -> usize {
        let lengths = self.answers.iter().map(|answer| answer.tokens.len());
        lengths.max().unwrap_or(0)
    }

    fn sequences(&self) -> Vec<(Vec<u32>, usize)> {
        let sequence = |answer: &Answer| (self.prompts[answer.prompt].clone(), answer.tokens.len());
        self.answers.iter().map(sequence).collect()
    }
}

impl Usage {
    /// The counts of a whole answer. `reports` is whether the engine reports cached tokens.
    pub(super) fn document(self, reports: bool, is_chat: bool) -> Value {
        let details = reports.then(|| {
            json!({
                "cached_tokens": self.cached,
                "created_cache_tokens": is_chat.then_some(self.created),
                "multimodal_tokens": null,
            })
        });
        json!({
            "prompt_tokens": self.prompt,
            "total_tokens": self.prompt + self.completion,
            "completion_tokens": self.completion,
            "prompt_tokens_details": details,
            "completion_tokens_details": null,
        })
    }

    /// In the last event of a stream.
    pub(super) fn last(self, reports: bool, is_chat: bool) -> Value {
        let mut usage = json!({
            "prompt_tokens": self.prompt,
            "total_tokens": self.prompt + self.completion,
            "completion_tokens": self.completion,
        });
        if reports {
            usage["prompt_tokens_details"] = json!({"cached_tokens": self.cached});
            if is_chat {
                usage["prompt_tokens_details"]["created_cache_tokens"] = json!(self.created);
            }
        }
        usage
    }

    /// In every event of a stream (`continuous_usage_stats`).
    pub(super) fn running(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "total_tokens": self.prompt + self.completion,
            "completion_tokens": self.completion,
            "completion_tokens_details": null,
        })
    }
}

/// How many tokens may follow a prompt.
fn room(context: usize, prompt: usize, most: Option<usize>) -> Result<usize, Refusal> {
    if prompt >= context {
        let counted = prompt.min(context + 1);
        let message = format!(
            "This model's maximum context length is {context} tokens. However, your prompt contains at least {counted} \
             input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input \
             prompt."
        );
        return Err(Refusal::of_member("input_tokens", counted, &message));
    }
    let Some(most) = most else {
        return Ok(context - prompt);
    };
    Ok(most.min(context - prompt))
}

impl Answer {
    fn new(
        text: &Text,
        prompt: &[u32],
        choice: usize,
        sampling: &Sampling,
        most: usize,
        forced: Option<&str>,
    ) -> Self {
        let mut tokens = match forced {
            Some(forced) => text.encode(forced, false).unwrap_or_default(),
            None => text.generate(prompt, choice, sampling.least, most, sampling.may_end),
        };
        let is_whole = forced.is_some() && tokens.len() < most;
        tokens.truncate(most);
        let mut pieces: Vec<String> = tokens.iter().map(|token| text.piece(*token)).collect();
        let ends = tokens.last().is_some_and(|token| text.is_end(*token));
        let (mut finish, mut stop_reason) = if ends || is_whole {
            ("stop", Value::Null)
        } else {
            ("length", Value::Null)
        };
        if let Some((length, reason)) = stopped_at(&tokens, &pieces, sampling) {
            tokens.truncate(length);
            cut(&mut pieces, length, &reason);
            (finish, stop_reason) = ("stop", reason);
        }
        hold_back(&mut pieces, &sampling.stop);
        Self {
            prompt: 0,
            tokens,
            pieces,
            finish,
            stop_reason,
        }
    }

    /// The whole text.
    pub(super) fn text(&self) -> String {
        self.pieces.concat()
    }
}

/// How many tokens there are when the first stop string or stop token is complete, and which one it is.
fn stopped_at(tokens: &[u32], pieces: &[String], sampling: &Sampling) -> Option<(usize, Value)> {
    let mut text = String::new();
    for (number, (token, piece)) in tokens.iter().zip(pieces).enumerate() {
        if sampling.stop_tokens.contains(token) {
            return Some((number + 1, json!(token)));
        }
        text.push_str(piece);
        if let Some(stop) = sampling
            .stop
            .iter()
            .find(|stop| !stop.is_empty() && text.contains(*stop))
        {
            return Some((number + 1, json!(stop)));
        }
    }
    None
}

/// Leaves the stop string, or the stop token's text, out of the text.
fn cut(pieces: &mut Vec<String>, length: usize, reason: &Value) {
    pieces.truncate(length);
    let text = pieces.concat();
    let keep = match reason {
        Value::String(stop) => text.find(stop.as_str()).unwrap_or(text.len()),
        _ => text.len() - pieces.last().map_or(0, String::len),
    };
    let mut left = keep;
    for piece in pieces {
        let mut end = piece.len().min(left);
        while !piece.is_char_boundary(end) {
            end -= 1;
        }
        piece.truncate(end);
        left -= end;
    }
}

/// Delays text that may turn out to be the beginning of a stop string, as vLLM does: all but one of as many characters
/// as the longest one has. Tokens may have no text, and the last one has all that is left.
fn hold_back(pieces: &mut [String], stop: &[String]) {
    let held = stop.iter().map(|stop| stop.chars().count()).max().unwrap_or(0);
    if held < 2 {
        return;
    }
    let all: Vec<char> = pieces.concat().chars().collect();
    let (mut sent, mut known) = (0, 0);
    let last = pieces.len().saturating_sub(1);
    for (number, piece) in pieces.iter_mut().enumerate() {
        known += piece.chars().count();
        let end = if number == last {
            all.len()
        } else {
            sent.max((known + 1).saturating_sub(held))
        };
        *piece = all[sent..end].iter().collect();
        sent = end;
    }
}

#[cfg(test)]
mod tests {
    use signalbox_tokenize::ModelArtifacts;

    use super::*;

    fn sampling() -> Sampling {
        Sampling::read(
            &json!({"ignore_eos": true, "max_tokens": 60}),
            &["max_tokens"],
            None,
            4096,
        )
        .unwrap()
    }

    #[test]
    fn an_answer_ends_before_its_stop_string() {
        let text = Text::load(&ModelArtifacts::byte_level()).unwrap();
        let prompt = text.encode("Hello", true).unwrap();
        let whole = Answer::new(&text, &prompt, 0, &sampling(), 60, None);
        assert_eq!((whole.tokens.len(), whole.finish), (60, "length"));
        let all = whole.text();
        let stop: String = all.chars().skip(20).take(3).collect();
        let stopped = Answer::new(
            &text,
            &prompt,
            0,
            &Sampling {
                stop: vec![stop.clone()],
                ..sampling()
            },
            60,
            None,
        );
        assert_eq!(stopped.text(), all[..all.find(&stop).unwrap()]);
        assert_eq!((stopped.finish, &stopped.stop_reason), ("stop", &json!(stop)));
        assert_eq!(stopped.tokens, whole.tokens[..stopped.tokens.len()]);
    }

    /// Captured from vLLM 0.32: "The sky blue" with the stop string " blue".
    #[test]
    fn text_that_may_begin_a_stop_string_is_held_back() {
        let mut pieces = ["The", " sky", ""].map(String::from);
        hold_back(&mut pieces, &[" blue".into()]);
        assert_eq!(pieces, ["", "The", " sky"]);
    }

    #[test]
    fn a_prompt_without_room_is_refused_in_vllms_words() {
        let refusal = room(4096, 5000, None).unwrap_err();
        assert_eq!(
            refusal.message,
            "This model's maximum context length is 4096 tokens. However, your prompt contains at least 4097 input tokens, \
             which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. \
             (parameter=input_tokens, value=4097)"
        );
        assert_eq!(room(4096, 4000, None).unwrap(), 96);
        assert_eq!(room(4096, 4000, Some(97)).unwrap(), 96);
    }
}
