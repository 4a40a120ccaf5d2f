use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex},
    time::{Duration, Instant},
};

use serde_json::Value;
use signalbox_event_plane::EventLog;
use signalbox_protocol::{
    AnswerFormat, Endpoint, FinishReason, RequestId, SamplingParams, StreamSummary, WorkerCapacity,
    WorkerEpoch,
};
use signalbox_request_plane::{CallerGone, PieceTokens};
use signalbox_tokenize::{ModelArtifacts, ModelText};

use super::*;
use crate::{
    engine::{NewSequence, SampledToken, SequenceId, StepEngine, StepOutput, StepStatus, TokenLogprobs},
    sim::{SimConfig, SimEngine, ordinary_tokens},
};

mod continuation;
mod endings;
mod scored;
mod structured;

/// Long enough for a loaded machine: only a hang takes so long.
const HANG: Duration = Duration::from_secs(60);

fn text() -> Arc<ModelText> {
    Arc::new(ModelText::load(&ModelArtifacts::byte_level()).unwrap())
}

fn log() -> EventLog {
    EventLog::new(WorkerEpoch(1))
}

pub(super) fn request(stream: bool, sampling: SamplingParams) -> GenerateRequest {
    GenerateRequest {
        id: RequestId::from_client("r").unwrap(),
        model: "m".into(),
        deadline_ms: HANG.as_millis() as u64,
        lora: String::new(),
        cache_salt: String::new(),
        priority: 0,
        overlap_blocks: 0,
        wants_token_ids: false,
        continuation: None,
        constraint: None,
        sampling,
        format: AnswerFormat {
            endpoint: Endpoint::Chat,
            stream,
            include_usage: false,
            echo: None,
            return_token_ids: false,
            continuous_usage: false,
            tools: None,
            created: 1,
            part: None,
        },
    }
}

fn prompt(length: u32) -> Vec<u32> {
    (0..length).map(|place| 3 + place % 200).collect()
}

/// The record of one answer.
#[derive(Default)]
struct AnswerRecord {
    pieces: Mutex<Pieces>,
    ended: Condvar,
    cancelled: AtomicBool,
    /// The engine's event log, for `batches_before_first`.
    log: Option<EventLog>,
}

#[derive(Default)]
struct Pieces {
    queued: Vec<u8>,
    /// The ids of each piece, and where it ends in `queued`.
    ids: Vec<(Vec<u32>, usize)>,
    tokens: u32,
    queues: u32,
    flushes: u32,
    /// Number of batches of KV events in the log when the first piece was queued.
    batches_before_first: Option<u64>,
    end: Option<Result<StreamSummary, WireError>>,
}

struct TestSink(Arc<AnswerRecord>);

impl AnswerSink for TestSink {
    fn queue(&self, tokens: PieceTokens<'_>, bytes: &[u8]) -> Result<(), CallerGone> {
        let mut pieces = self.0.pieces.lock().unwrap();
        pieces.queued.extend_from_slice(bytes);
        pieces.tokens += match tokens {
            PieceTokens::Count(count) => count,
            PieceTokens::Ids(ids) => {
                let end = pieces.queued.len();
                pieces.ids.push((ids.to_vec(), end));
                ids.len() as u32
            }
        };
        pieces.queues += 1;
        if pieces.batches_before_first.is_none() {
            pieces.batches_before_first = self.0.log.as_ref().map(|log| log.snapshot().next_sequence);
        }
        Ok(())
    }

    fn queue_document(&self, tokens: PieceTokens<'_>, document: &[u8]) -> Result<(), CallerGone> {
        self.queue(tokens, document)
    }

    fn flush(&self) {
        self.0.pieces.lock().unwrap().flushes += 1;
    }

    fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }

    fn end(self: Box<Self>, summary: StreamSummary) {
        self.0.end(Ok(summary));
    }

    fn fail(self: Box<Self>, error: WireError) {
        self.0.end(Err(error));
    }
}

impl AnswerRecord {
    fn end(&self, end: Result<StreamSummary, WireError>) {
        let earlier = self.pieces.lock().unwrap().end.replace(end);
        assert!(earlier.is_none(), "a request ends once");
        self.ended.notify_all();
    }

    fn wait(&self) -> Result<StreamSummary, WireError> {
        let pieces = self.pieces.lock().unwrap();
        let (pieces, timeout) = self
            .ended
            .wait_timeout_while(pieces, HANG, |pieces| pieces.end.is_none())
            .unwrap();
        assert!(!timeout.timed_out(), "the request never ended");
        pieces.end.clone().unwrap()
    }

    /// The text of choice `index` of a chat stream, and its finish reason.
    fn choice(&self, index: u64) -> (String, String) {
        let (mut text, mut finish) = (String::new(), String::new());
        for event in self
            .events()
            .iter()
            .filter(|event| event["choices"][0]["index"] == index)
        {
            let choice = &event["choices"][0];
            text += choice["delta"]["content"].as_str().unwrap_or_default();
            finish += choice["finish_reason"].as_str().unwrap_or_default();
        }
        (text, finish)
    }

    fn events(&self) -> Vec<Value> {
        let bytes = self.pieces.lock().unwrap().queued.clone();
        let text = String::from_utf8(bytes).unwrap();
        let events = text.strip_suffix("data: [DONE]\n\n").unwrap();
        let json = |event: &str| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
        events.split_terminator("\n\n").map(json).collect()
    }
}

fn submit(runner: &RunnerHandle, request: &GenerateRequest, tokens: Vec<u32>) -> Arc<AnswerRecord> {
    let answer = Arc::new(AnswerRecord::default());
    runner.submit(request, tokens, TestSink(answer.clone()));
    answer
}

fn start(engine: impl StepEngine) -> RunnerHandle {
    let thread = EngineThread::start("test").unwrap();
    thread.run(Box::new(engine), "m", text(), log())
}

fn sim(config: SimConfig) -> SimEngine {
    SimEngine::new(config, ordinary_tokens(&text())).unwrap()
}

fn fast() -> SimConfig {
    SimConfig {
        speedup: 0.0,
        ..SimConfig::default()
    }
}

/// An engine that generates the same given tokens for every sequence, or panics in its first step.
#[derive(Default)]
struct ScriptedEngine {
    tokens: Vec<u32>,
    logprobs: bool,
    panics: bool,
    /// The running sequences with the tokens left to generate.
    running: Vec<(SequenceId, VecDeque<u32>)>,
    cancelled: Arc<Mutex<Vec<SequenceId>>>,
}

impl ScriptedEngine {
    fn generating(pieces: &[&str]) -> Self {
        let text = text();
        let tokens = pieces.iter().flat_map(|piece| match *piece {
            "<eos>" => vec![2],
            piece => text.encode_prompt(piece).unwrap(),
        });
        Self {
            tokens: tokens.collect(),
            ..Self::default()
        }
    }
}

impl StepEngine for ScriptedEngine {
    fn info(&self) -> EngineInfo {
        let capacity = WorkerCapacity {
            kv_blocks: 64,
            max_sequences: 8,
            max_waiting: 8,
        };
        EngineInfo {
            name: "scripted",
            block_size: 4,
            context_length: 1_000,
            capacity,
        }
    }

    fn submit(&mut self, sequence: NewSequence) -> Result<(), WireError> {
        let left = self.tokens.iter().copied().skip(sequence.generated);
        self.running.push((sequence.id, left.collect()));
        Ok(())
    }

    fn cancel(&mut self, id: SequenceId) {
        self.running.retain(|(running, _)| *running != id);
        self.cancelled.lock().unwrap().push(id);
    }

    fn step(&mut self, output: &mut StepOutput) -> StepStatus {
        assert!(!self.panics, "the scripted engine panics");
        for (id, tokens) in &mut self.running {
            let Some(token) = tokens.pop_front() else { continue };
            let logprobs = self.logprobs.then(|| TokenLogprobs {
                chosen: -0.5,
                top: vec![],
            });
            output.tokens.push(SampledToken {
                sequence: *id,
                token,
                logprobs,
            });
            if tokens.is_empty() {
                output.finished.push((*id, FinishReason::Length));
            }
        }
        self.running.retain(|(_, tokens)| !tokens.is_empty());
        if self.running.is_empty() {
            StepStatus::Idle
        } else {
            StepStatus::Busy
        }
    }

    fn load(&self) -> LoadReport {
        LoadReport {
            running: self.running.len() as u32,
            ..LoadReport::default()
        }
    }
}

#[test]
fn a_streamed_answer_and_a_whole_one_have_the_same_text() {
    let runner = start(sim(fast()));
    let sampling = SamplingParams {
        max_tokens: 40,
        n: 3,
        ..SamplingParams::default()
    };
    let stream = submit(&runner, &request(true, sampling.clone()), prompt(50));
    let summary = stream.wait().unwrap();
    assert_eq!(
        summary,
        StreamSummary {
            prompt_tokens: 50,
            cached_tokens: 0,
            completion_tokens: 120
        }
    );
    let whole = submit(&runner, &request(false, sampling), prompt(50));
    assert_eq!(whole.wait().unwrap().cached_tokens, 48);
    let pieces = whole.pieces.lock().unwrap();
    assert_eq!(
        (pieces.queues, pieces.tokens),
        (3, 120),
        "reports of 3 and 66 tokens without bytes, and one document at the end"
    );
    let document: Value = serde_json::from_slice(&pieces.queued).unwrap();
    assert_eq!(document["usage"]["prompt_tokens_details"]["cached_tokens"], 48);
    for index in 0..3 {
        let choice = &document["choices"][index as usize];
        let content = choice["message"]["content"].as_str().unwrap().to_owned();
        assert!(!content.is_empty());
        assert_eq!(stream.choice(index), (content, "length".to_owned()));
    }
    assert_eq!(
        stream.pieces.lock().unwrap().tokens,
        120,
        "the pieces account for every token"
    );
}

#[test]
fn a_step_is_flushed_once_a_request() {
    let runner = start(sim(fast()));
    let sampling = SamplingParams {
        max_tokens: 10,
        n: 4,
        ..SamplingParams::default()
    };
    let answer = submit(&runner, &request(true, sampling), prompt(4));
    answer.wait().unwrap();
    assert_eq!(
        answer.pieces.lock().unwrap().flushes,
        9,
        "the end of the answer flushes the last step"
    );
}

#[tokio::test]
async fn a_stop_text_ends_the_answer_and_frees_the_engine() {
    let script = ScriptedEngine::generating(&["hello ", "wor", "ld\n", "\nuser: and ", "so on"]);
    let cancelled = script.cancelled.clone();
    let runner = start(script);
    let sampling = SamplingParams {
        max_tokens: 50,
        stop: vec!["\n\nuser".into()],
        ..SamplingParams::default()
    };
    let answer = submit(&runner, &request(true, sampling), prompt(4));
    answer.wait().unwrap();
    assert_eq!(answer.choice(0), ("hello world".to_owned(), "stop".to_owned()));
    runner.stop().await;
    assert_eq!(*cancelled.lock().unwrap(), [SequenceId::new(0, 0)]);
}

#[test]
fn the_end_of_sequence_token_ends_the_answer_unless_it_is_ignored() {
    for (ignore_eos, text, reason) in [(false, "hell", "stop"), (true, "hello", "length")] {
        let runner = start(ScriptedEngine::generating(&["hell", "<eos>", "o"]));
        let sampling = SamplingParams {
            max_tokens: 50,
            ignore_eos,
            ..SamplingParams::default()
        };
        let answer = submit(&runner, &request(true, sampling), prompt(4));
        answer.wait().unwrap();
        assert_eq!(answer.choice(0), (text.to_owned(), reason.to_owned()));
    }
}

#[test]
fn text_held_back_for_a_stop_text_keeps_its_log_probabilities() {
    let mut script = ScriptedEngine::generating(&["a", "\n", "b", "é", "\n", "\n", "c"]);
    script.logprobs = true;
    let runner = start(script);
    let stop = vec!["\n\n".to_owned()];
    let sampling = SamplingParams {
        max_tokens: 50,
        stop,
        logprobs: Some(0),
        ..SamplingParams::default()
    };
    let answer = submit(&runner, &request(true, sampling), prompt(4));
    answer.wait().unwrap();
    let mut bytes = Vec::new();
    for event in answer.events() {
        let Some(content) = event["choices"][0]["logprobs"]["content"].as_array().cloned() else {
            continue;
        };
        let piece: Vec<u8> = content
            .iter()
            .flat_map(|token| token["bytes"].as_array().unwrap())
            .map(|byte| byte.as_u64().unwrap() as u8)
            .collect();
        assert_eq!(
            piece,
            event["choices"][0]["delta"]["content"]
                .as_str()
                .unwrap()
                .as_bytes()
        );
        bytes.extend(piece);
    }
    assert_eq!(bytes, "a\nbé".as_bytes());
}

#[test]
fn kv_events_are_published_before_the_tokens_of_their_step() {
    let log = log();
    let thread = EngineThread::start("test").unwrap();
    let runner = thread.run(Box::new(sim(fast())), "m", text(), log.clone());
    let answer = Arc::new(AnswerRecord {
        log: Some(log.clone()),
        ..AnswerRecord::default()
    });
    runner.submit(
        &request(true, SamplingParams::default()),
        prompt(64),
        TestSink(answer.clone()),
    );
    answer.wait().unwrap();
    assert_eq!(answer.pieces.lock().unwrap().batches_before_first, Some(1));
    assert!(!log.snapshot().stored.is_empty());
}

#[test]
fn a_request_that_cannot_be_answered_is_refused_with_the_reason() {
    let runner = start(sim(SimConfig {
        max_sequences: 1,
        max_waiting: 1,
        speedup: 1e-3,
        ..SimConfig::default()
    }));
    let refused = |sampling: SamplingParams, tokens: Vec<u32>| {
        submit(&runner, &request(true, sampling), tokens)
            .wait()
            .unwrap_err()
    };
    let params = SamplingParams::default;
    let error = refused(
        SamplingParams {
            max_tokens: 32_760,
            ..params()
        },
        prompt(9),
    );
    assert_eq!(error.kind, ErrorKind::ContextLengthExceeded);
    assert!(
        ["32768", "32760", "32769", " 9 "]
            .iter()
            .all(|n| error.message.contains(n)),
        "{error}"
    );
    assert_eq!(refused(params(), vec![]).kind, ErrorKind::InvalidRequest);
    assert_eq!(refused(params(), vec![300]).param.as_deref(), Some("prompt"));
    assert_eq!(
        refused(SamplingParams { n: 129, ..params() }, prompt(4))
            .param
            .as_deref(),
        Some("n")
    );
    assert_eq!(
        refused(
            SamplingParams {
                max_tokens: 0,
                ..params()
            },
            prompt(4)
        )
        .param
        .as_deref(),
        Some("max_tokens")
    );
    // Three choices are one more than may run and wait. The request fails as a whole and leaves no sequence behind.
    let error = refused(SamplingParams { n: 3, ..params() }, prompt(4));
    assert_eq!(error.kind, ErrorKind::Overloaded);
    assert!(error.message.starts_with("n is 3"), "{error}");
    assert_eq!(runner.load().borrow().running, 0);
}

/// Measures the time of a streamed token from the engine to the network: simulated step, decoding, SSE event. Run with
/// `cargo test --release -p signalbox-worker -- --ignored --nocapture the_cost_of_a_streamed_token`.
#[test]
#[ignore = "prints a measurement, asserts nothing"]
fn the_cost_of_a_streamed_token() {
    let runner = start(sim(fast()));
    let sampling = SamplingParams {
        max_tokens: 2_000,
        ..SamplingParams::default()
    };
    let start = Instant::now();
    let open: Vec<_> = (0..128)
        .map(|_| submit(&runner, &request(true, sampling.clone()), prompt(50)))
        .collect();
    let tokens: u32 = open
        .iter()
        .map(|answer| answer.wait().unwrap().completion_tokens)
        .sum();
    println!(
        "{tokens} tokens, {:.0} ns each",
        start.elapsed().as_nanos() as f64 / f64::from(tokens)
    );
}
