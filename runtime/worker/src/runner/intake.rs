//! Prepares a request for the engine on the thread where it arrives: checks and hashes it, and creates its sequences.
//! The engine's thread then only steps.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use signalbox_protocol::{
    BlockHasher, Constraint, Endpoint, ErrorKind, GenerateRequest, SamplingParams, WireError, name_hash,
};
use signalbox_tokenize::ModelText;

use super::{choice::Choice, open_requests::OpenRequest, sink::AnswerSink};
use crate::{
    answer::Answer,
    engine::{EngineInfo, NewSequence, SequenceId},
    grammar::{Grammar, GrammarCompiler, compile_later},
    token_limits::TokenLimits,
};

/// Most choices of one request, as in OpenAI's API. Each choice is a sequence with its own KV blocks.
pub const MAX_CHOICES: u32 = 128;

/// Longest time for one answer. Longer deadlines are reduced to it, so that no request stays open for ever.
const MAX_TIME_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Debug)]
pub(super) struct Intake {
    info: EngineInfo,
    model: String,
    text: Arc<ModelText>,
    /// Names the engine and its version. Equal requests with equal seeds and fingerprints get equal answers.
    fingerprint: String,
    next_number: AtomicU64,
}

/// A request that is ready for the engine. If it is dropped before the engine takes it, the engine has stopped, and the
/// request fails with that error.
pub(super) struct PreparedRequest {
    pub(super) number: u64,
    request: Option<OpenRequest>,
    sequences: Vec<NewSequence>,
}

impl PreparedRequest {
    /// The part that the engine's thread keeps, and the sequences for the engine.
    pub(super) fn into_parts(mut self) -> Option<(OpenRequest, Vec<NewSequence>)> {
        self.request
            .take()
            .map(|request| (request, std::mem::take(&mut self.sequences)))
    }

    /// Gives each of its sequences the grammar, behind the tokens that another engine generated. Returns whether nothing can
    /// follow those.
    fn constrain(&mut self, mut grammar: Grammar) -> bool {
        if let Some(first) = self.sequences.first() {
            let generated = first.tokens.len().saturating_sub(first.generated);
            first.tokens[generated..]
                .iter()
                .for_each(|token| grammar.push(*token));
        }
        for sequence in &mut self.sequences {
            sequence.limits.grammar = Some(grammar.clone());
        }
        grammar.is_complete()
    }

    /// Ends a request whose whole answer another worker delivered.
    fn end(mut self) {
        if let Some(request) = self.request.take() {
            let usage = request.usage();
            request.sink.end(usage);
        }
    }

    /// Fails the request before the engine takes it.
    pub(super) fn fail(mut self, error: WireError) {
        if let Some(request) = self.request.take() {
            request.sink.fail(error);
        }
    }
}

impl Drop for PreparedRequest {
    fn drop(&mut self) {
        if let Some(request) = self.request.take() {
            request.sink.fail(engine_stopped());
        }
    }
}

/// The error for requests to an engine that has stopped or failed.
pub(super) fn engine_stopped() -> WireError {
    WireError::new(ErrorKind::Unavailable, "the worker's engine has stopped")
}

impl Intake {
    pub(super) fn new(info: EngineInfo, model: &str, text: Arc<ModelText>) -> Self {
        let fingerprint = format!("fp_signalbox_{}_{}", info.name, env!("CARGO_PKG_VERSION"));
        Self {
            info,
            model: model.to_owned(),
            text,
            fingerprint,
            next_number: AtomicU64::new(0),
        }
    }

    /// Compiles the grammar of a request on another thread, and then passes the request on. If the grammar is refused, or too
    /// many requests wait for theirs, the request fails.
    pub(super) fn constrain(
        &self,
        request: PreparedRequest,
        constraint: Constraint,
        pass_on: impl FnOnce(PreparedRequest) + Send + 'static,
    ) {
        let text = self.text.clone();
        // The job is given back if it cannot wait. Dropped, it would fail its request as one of a stopped engine.
        let waiting = Arc::new(Mutex::new(None));
        let taken = waiting.clone();
        let job = move || {
            let Some(mut request): Option<PreparedRequest> = taken.lock().take() else {
                return;
            };
            match GrammarCompiler::of(&text).compile(&constraint) {
                Ok(grammar) => {
                    if request.constrain(grammar) {
                        request.end();
                    } else {
                        pass_on(request);
                    }
                }
                Err(error) => request.fail(error),
            }
        };
        *waiting.lock() = Some(request);
        if let Err(error) = compile_later(Box::new(job))
            && let Some(request) = waiting.lock().take()
        {
            request.fail(error);
        }
    }

    pub(super) fn info(&self) -> &EngineInfo {
        &self.info
    }

    /// Checks a request and creates its sequences. `None` if another worker delivered the whole answer already, and only
    /// its end is missing, which `sink` then gets.
    ///
    /// # Errors
    /// The engine can never answer the request. Returns the sink and the reason.
    pub(super) fn prepare(
        &self,
        request: &GenerateRequest,
        tokens: Vec<u32>,
        sink: Box<dyn AnswerSink>,
    ) -> Result<Option<PreparedRequest>, (Box<dyn AnswerSink>, WireError)> {
        let delivered = request.continuation.as_ref();
        let generated = delivered.map_or(0, |delivered| delivered.delivered_tokens as usize);
        let prompt_tokens = tokens.len().saturating_sub(generated);
        let checked = check_endpoint(request.format.endpoint)
            .and_then(|()| self.check(request, &tokens, prompt_tokens));
        if let Err(error) = checked {
            return Err((sink, error));
        }
        let sampling = &request.sampling;
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let hasher = BlockHasher::new(
            &self.model,
            &request.lora,
            &request.cache_salt,
            self.info.block_size as usize,
        );
        let answer = Answer::new(request, &self.fingerprint, &tokens[..prompt_tokens]);
        let writer = |index| answer.choice(index, sampling.logprobs.is_some());
        let stop_tokens: Arc<[u32]> = sampling.stop_token_ids.as_slice().into();
        let mut choices: Vec<_> = (0..sampling.n)
            .map(|index| {
                let choice = Choice::new(writer(index), sampling, stop_tokens.clone());
                match &request.format.tools {
                    Some(output) => choice.with_calls(output, call_id(request, index)),
                    None => choice,
                }
            })
            .collect();
        let limits = token_limits(sampling, &self.text);
        let left = sampling.max_tokens.saturating_sub(generated as u32);
        let mut is_whole = false;
        if let ([choice], Some(_)) = (&mut choices[..], delivered) {
            is_whole = choice.resume(&self.text, &tokens[prompt_tokens..]) || left == 0;
        }
        let first = NewSequence {
            id: SequenceId::new(number, 0),
            blocks: hasher.hash(&tokens),
            tokens,
            generated,
            hasher,
            sampling: SamplingParams {
                max_tokens: left,
                ..sampling.clone()
            },
            limits,
        };
        let mut sequences = Vec::with_capacity(sampling.n as usize);
        sequences.extend((1..sampling.n as u16).map(|choice| NewSequence {
            id: SequenceId::new(number, choice),
            // Each choice has its own seed, so that the choices differ.
            sampling: SamplingParams {
                seed: sampling.seed.map(|seed| seed.wrapping_add(u64::from(choice))),
                ..first.sampling.clone()
            },
            ..first.clone()
        }));
        sequences.insert(0, first);
        let request = OpenRequest {
            sink,
            answer,
            choices,
            accepted_at: Instant::now(),
            time_limit: Duration::from_millis(request.deadline_ms).min(MAX_TIME_LIMIT),
            prompt_tokens: prompt_tokens as u32,
            cached_tokens: None,
            completion_tokens: generated as u32,
            uncounted_tokens: 0,
            uncounted_ids: request.wants_token_ids.then(Vec::new),
            piece: Vec::new(),
            caller_gone: false,
            needs_flush: false,
        };
        if is_whole {
            let usage = request.usage();
            request.sink.end(usage);
            return Ok(None);
        }
        Ok(Some(PreparedRequest {
            number,
            request: Some(request),
            sequences,
        }))
    }

    /// `tokens` are `prompt_tokens` of the prompt, and then those that another worker generated.
    fn check(
        &self,
        request: &GenerateRequest,
        tokens: &[u32],
        prompt_tokens: usize,
    ) -> Result<(), WireError> {
        let sampling = &request.sampling;
        if prompt_tokens == 0 {
            return Err(WireError::new(
                ErrorKind::InvalidRequest,
                "the prompt is empty; give at least one token",
            ));
        }
        let vocabulary = self.text.vocab_size();
        if let Some(token) = tokens.iter().find(|token| **token >= vocabulary) {
            let message = format!(
                "the prompt has token {token}; the model has tokens 0 to {}",
                vocabulary.saturating_sub(1)
            );
            return Err(WireError::invalid_param("prompt", message));
        }
        if !(1..=MAX_CHOICES).contains(&sampling.n) {
            let message = format!("n is {}; give 1 to {MAX_CHOICES}", sampling.n);
            return Err(WireError::invalid_param("n", message));
        }
        if sampling.max_tokens == 0 && request.format.echo.is_none() {
            return Err(WireError::invalid_param(
                "max_tokens",
                "max_tokens is 0; give 1 or more, or set echo to score the prompt",
            ));
        }
        if let Some(token) = sampling.stop_token_ids.iter().find(|token| **token >= vocabulary) {
            let message = format!(
                "stop_token_ids has token {token}; the model has tokens 0 to {}",
                vocabulary.saturating_sub(1)
            );
            return Err(WireError::invalid_param("stop_token_ids", message));
        }
        if sampling.prompt_logprobs && (sampling.logprobs.is_none() || request.continuation.is_some()) {
            let message = "log probabilities of a prompt are reported with those of a whole answer";
            return Err(WireError::invalid_param("logprobs", message));
        }
        if tokens.len() > prompt_tokens && sampling.n != 1 {
            let message = format!("n is {}; only an answer of one choice is continued", sampling.n);
            return Err(WireError::invalid_param("n", message));
        }
        let (prompt, answer) = (prompt_tokens as u64, u64::from(sampling.max_tokens));
        let context = u64::from(self.info.context_length);
        if prompt + answer > context {
            let message = format!(
                // Client libraries look for "this model's maximum context length is".
                "the prompt has {prompt} tokens and max_tokens asks for {answer}, {} in all; this model's maximum \
                 context length is {context} tokens; shorten the prompt or lower max_tokens",
                prompt + answer
            );
            return Err(WireError {
                param: Some("max_tokens".into()),
                ..WireError::new(ErrorKind::ContextLengthExceeded, message)
            });
        }
        Ok(())
    }
}

/// What the ids of a choice's tool calls begin with: equal for the same request, so that another worker continues with them.
fn call_id(request: &GenerateRequest, choice: u32) -> String {
    format!("call_{:016x}_", name_hash(&format!("{}/{choice}", request.id)))
}

/// The tokens that `sampling` forbids.
fn token_limits(sampling: &SamplingParams, text: &ModelText) -> TokenLimits {
    let eos = text.eos_tokens().iter().filter(|_| !sampling.ignore_eos);
    TokenLimits {
        end_tokens: eos.chain(&sampling.stop_token_ids).copied().collect(),
        min_tokens: sampling.min_tokens,
        bad_words: bad_words(&sampling.bad_words, text),
        grammar: None,
    }
}

/// The tokens of each word: at the beginning of a text, and behind another word, where most tokenizers have other tokens for
/// it. As in vLLM, the second way counts if it has as many tokens and begins with another one.
fn bad_words(words: &[String], text: &ModelText) -> Arc<[Vec<u32>]> {
    let mut all: Vec<Vec<u32>> = Vec::with_capacity(2 * words.len());
    for word in words {
        let word = word.trim_start();
        // A tokenizer without tokens for the word cannot generate it.
        let encode = |word: &str| {
            text.encode_prompt_with(word, false)
                .ok()
                .filter(|ids| !ids.is_empty())
        };
        let Some(first) = encode(word) else { continue };
        let behind = encode(&format!(" {word}"));
        let behind = behind.filter(|ids| ids[0] != first[0] && ids.len() == first.len());
        all.push(first);
        all.extend(behind);
    }
    all.into()
}

/// Refuses requests of routes that only engines with an API of their own answer.
fn check_endpoint(endpoint: Endpoint) -> Result<(), WireError> {
    match endpoint {
        Endpoint::Chat | Endpoint::Completions => Ok(()),
        other => {
            let message = format!(
                "this model has no {}; it answers chats and completions",
                other.path()
            );
            Err(WireError::new(ErrorKind::NotFound, message))
        }
    }
}
