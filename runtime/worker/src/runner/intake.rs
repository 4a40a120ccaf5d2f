//! A request on its way to the engine: checked, hashed and cut into sequences where it arrives, so that the engine's
//! thread only steps.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use signalbox_protocol::{BlockHasher, ErrorKind, GenerateRequest, SamplingParams, WireError};
use signalbox_tokenize::ModelText;

use super::{choice::Choice, open_requests::OpenRequest, sink::AnswerSink};
use crate::{
    answer::Answer,
    engine::{EngineInfo, NewSequence, SequenceId},
};

/// Most choices of one request, as with OpenAI. Each is a sequence with its own KV blocks.
pub const MAX_CHOICES: u32 = 128;

/// Longest time an answer may take. Deadlines beyond it are this one, so that nothing is open for ever.
const MAX_PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Debug)]
pub(super) struct Intake {
    info: EngineInfo,
    model: String,
    text: Arc<ModelText>,
    /// What equal answers to equal seeds depend on beside the request.
    fingerprint: String,
    next_number: AtomicU64,
}

/// A request ready for the engine. Dropped before the engine has it, it fails: the engine is gone then.
pub(super) struct Job {
    pub(super) number: u64,
    request: Option<OpenRequest>,
    sequences: Vec<NewSequence>,
}

impl Job {
    /// What the engine's thread keeps, and what the engine gets.
    pub(super) fn open(mut self) -> Option<(OpenRequest, Vec<NewSequence>)> {
        self.request
            .take()
            .map(|request| (request, std::mem::take(&mut self.sequences)))
    }

    /// Ends it without the engine.
    pub(super) fn fail(mut self, error: WireError) {
        if let Some(request) = self.request.take() {
            request.sink.fail(error);
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Some(request) = self.request.take() {
            request.sink.fail(engine_is_gone());
        }
    }
}

pub(super) fn engine_is_gone() -> WireError {
    WireError::new(ErrorKind::Unavailable, "The engine of this worker has stopped.")
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

    pub(super) fn info(&self) -> &EngineInfo {
        &self.info
    }

    /// # Errors
    /// The request can never be answered here; the sink comes back with the reason.
    pub(super) fn prepare(
        &self,
        request: &GenerateRequest,
        tokens: Vec<u32>,
        sink: Box<dyn AnswerSink>,
    ) -> Result<Job, (Box<dyn AnswerSink>, WireError)> {
        if let Err(error) = self.check(&request.sampling, &tokens) {
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
        let answer = Answer::new(request, &self.fingerprint);
        let writer = |index| answer.choice(index, sampling.logprobs.is_some());
        let choices = (0..sampling.n)
            .map(|index| Choice::new(writer(index), &sampling.stop))
            .collect();
        let prompt_tokens = tokens.len() as u32;
        let first = NewSequence {
            id: SequenceId::new(number, 0),
            blocks: hasher.hash(&tokens),
            tokens,
            hasher,
            sampling: sampling.clone(),
        };
        let mut sequences = Vec::with_capacity(sampling.n as usize);
        sequences.extend((1..sampling.n as u16).map(|choice| NewSequence {
            id: SequenceId::new(number, choice),
            // Another seed for each choice: they are to differ.
            sampling: SamplingParams {
                seed: sampling.seed.map(|seed| seed.wrapping_add(u64::from(choice))),
                ..sampling.clone()
            },
            ..first.clone()
        }));
        sequences.insert(0, first);
        let request = OpenRequest {
            sink,
            answer,
            choices,
            accepted: Instant::now(),
            patience: Duration::from_millis(request.deadline_ms).min(MAX_PATIENCE),
            ignore_eos: sampling.ignore_eos,
            prompt_tokens,
            cached: None,
            completion_tokens: 0,
            uncounted: 0,
            gone: false,
            unflushed: false,
        };
        Ok(Job {
            number,
            request: Some(request),
            sequences,
        })
    }

    fn check(&self, sampling: &SamplingParams, tokens: &[u32]) -> Result<(), WireError> {
        if tokens.is_empty() {
            return Err(WireError::new(
                ErrorKind::InvalidRequest,
                "The prompt is empty; give at least one token.",
            ));
        }
        let vocabulary = self.text.vocab_size();
        if let Some(token) = tokens.iter().find(|token| **token >= vocabulary) {
            let message = format!("Token {token} is not in the model's vocabulary of {vocabulary}.");
            return Err(WireError::invalid_param("prompt", message));
        }
        if !(1..=MAX_CHOICES).contains(&sampling.n) {
            let message = format!("n is {}; it must be 1 to {MAX_CHOICES}.", sampling.n);
            return Err(WireError::invalid_param("n", message));
        }
        if sampling.max_tokens == 0 {
            return Err(WireError::invalid_param(
                "max_tokens",
                "max_tokens is 0; give 1 or more.",
            ));
        }
        let (prompt, answer) = (tokens.len() as u64, u64::from(sampling.max_tokens));
        let context = u64::from(self.info.context_length);
        if prompt + answer > context {
            let message = format!(
                "This model's maximum context length is {context} tokens. The prompt has {prompt} and up to {answer} \
                 were asked for as the answer, {} in all. Shorten the prompt or lower max_tokens.",
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
