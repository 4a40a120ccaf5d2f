//! Tests the promises of the llama engine with a real model.
//!
//! The tests need the model that `runtime/scripts/fetch-model.sh` fetches, or another GGUF file at the path in
//! `SIGNALBOX_TEST_MODEL`.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test and its helpers fail by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use signalbox_protocol::{
    BlockHasher, Constraint, ConstraintKind, ErrorKind, FinishReason, KvEvent, SamplingParams, SequenceHash,
};
use signalbox_tokenize::{ChatPrompt, ModelArtifacts, ModelText};
use signalbox_worker::engine::{NewSequence, SampledToken, SequenceId, StepEngine, StepOutput, StepStatus};
use signalbox_worker::grammar::GrammarCompiler;
use signalbox_worker::llama::{LlamaConfig, LlamaEngine, LlamaError};
use signalbox_worker::token_limits::TokenLimits;

const BLOCK: usize = 16;

fn model() -> PathBuf {
    let fetched = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../.local/models/SmolLM2-135M-Instruct.Q4_1.gguf"
    );
    let path = std::env::var_os("SIGNALBOX_TEST_MODEL").map_or_else(|| PathBuf::from(fetched), PathBuf::from);
    assert!(
        path.is_file(),
        "{} is missing: run runtime/scripts/fetch-model.sh, or set SIGNALBOX_TEST_MODEL to a GGUF file",
        path.display()
    );
    path
}

/// An engine, and the record of its results.
struct Rig {
    engine: LlamaEngine,
    hasher: BlockHasher,
    submitted: u64,
    answers: BTreeMap<SequenceId, Vec<SampledToken>>,
    cached: BTreeMap<SequenceId, u32>,
    finished: BTreeMap<SequenceId, FinishReason>,
    stored: BTreeSet<SequenceHash>,
    removed: usize,
    most_tokens_in_a_step: usize,
}

impl Rig {
    fn new(change: impl FnOnce(&mut LlamaConfig)) -> Self {
        // One thread for each engine: tests run in parallel, and llama.cpp's threads spin while they wait.
        let mut config = LlamaConfig {
            kv_tokens: Some(2048),
            threads: Some(1),
            ..LlamaConfig::new(model())
        };
        change(&mut config);
        Self {
            engine: LlamaEngine::load(&config, |_| ()).unwrap(),
            hasher: BlockHasher::new("m", "", "", BLOCK),
            submitted: 0,
            answers: BTreeMap::new(),
            cached: BTreeMap::new(),
            finished: BTreeMap::new(),
            stored: BTreeSet::new(),
            removed: 0,
            most_tokens_in_a_step: 0,
        }
    }

    fn submit(&mut self, tokens: Vec<u32>, sampling: SamplingParams) -> SequenceId {
        self.submit_with(tokens, sampling, TokenLimits::default())
    }

    fn submit_with(&mut self, tokens: Vec<u32>, sampling: SamplingParams, limits: TokenLimits) -> SequenceId {
        let id = SequenceId(self.submitted);
        self.submitted += 1;
        let blocks = self.hasher.hash(&tokens);
        self.engine
            .submit(NewSequence {
                id,
                tokens,
                generated: 0,
                blocks,
                hasher: self.hasher,
                sampling,
                limits,
            })
            .unwrap();
        id
    }

    fn step(&mut self) -> StepStatus {
        let mut output = StepOutput::default();
        let status = self.engine.step(&mut output);
        assert_eq!(output.failed, []);
        self.most_tokens_in_a_step = self.most_tokens_in_a_step.max(output.tokens.len());
        self.cached.extend(output.prefilled);
        self.finished.extend(output.finished);
        for token in output.tokens {
            self.answers.entry(token.sequence).or_default().push(token);
        }
        for event in output.kv_events {
            match event {
                KvEvent::Stored { parent, blocks, .. } => {
                    assert!(parent.is_none_or(|hash| self.stored.contains(&hash)));
                    blocks
                        .into_iter()
                        .for_each(|hash| assert!(self.stored.insert(hash)));
                }
                KvEvent::Removed { blocks, .. } => {
                    self.removed += blocks.len();
                    blocks.iter().for_each(|hash| assert!(self.stored.remove(hash)));
                }
                KvEvent::Cleared => panic!("the engine emptied its cache"),
            }
        }
        status
    }

    fn run(&mut self) {
        while self.step() != StepStatus::Idle {}
        let load = self.engine.load();
        assert_eq!((load.running, load.waiting, load.active_kv_blocks), (0, 0, 0));
        assert_eq!(
            load.used_kv_blocks as usize,
            self.stored.len(),
            "the events give the cached blocks"
        );
    }

    fn answer(&self, id: SequenceId) -> Vec<u32> {
        self.answers[&id].iter().map(|sampled| sampled.token).collect()
    }
}

/// Asserts that two distributions are of the same text. llama.cpp's sums differ a little with the number of tokens
/// computed together. The distributions of different texts have few likely tokens in common.
fn assert_near(a: &SampledToken, b: &SampledToken) {
    let [a, b] = [a, b].map(|sampled| &sampled.logprobs.as_ref().expect("requested").top);
    let other: BTreeMap<_, _> = b.iter().copied().collect();
    let common: Vec<_> = a
        .iter()
        .filter_map(|(token, here)| Some((here, other.get(token)?)))
        .collect();
    assert!(
        common.len() >= 15,
        "{} of the 20 likeliest tokens are the same",
        common.len()
    );
    assert!(
        common.iter().all(|(here, there)| (*here - *there).abs() < 0.5),
        "{common:?}"
    );
}

fn greedy_with_logprobs(max_tokens: u32) -> SamplingParams {
    SamplingParams {
        logprobs: Some(20),
        ..greedy(max_tokens)
    }
}

fn greedy(max_tokens: u32) -> SamplingParams {
    SamplingParams {
        max_tokens,
        temperature: 0.0,
        ..SamplingParams::default()
    }
}

/// Ordinary tokens in an order that depends on the seed.
fn text(seed: u32, len: u32) -> Vec<u32> {
    (0..len)
        .map(|place| 300 + (seed * 7_919 + place * 131) % 40_000)
        .collect()
}

#[test]
fn eight_sequences_run_in_one_batch_and_a_repeated_prompt_is_cached() {
    let mut rig = Rig::new(|_| ());
    let submitted: Vec<_> = (0..8)
        .map(|seed| rig.submit(text(seed, 40 + seed), greedy(12)))
        .collect();
    rig.run();
    assert_eq!(rig.most_tokens_in_a_step, 8);
    for id in &submitted {
        assert_eq!(
            (rig.answer(*id).len(), rig.finished[id], rig.cached[id]),
            (12, FinishReason::Length, 0)
        );
    }

    let long = text(50, 300);
    let first = rig.submit(long.clone(), greedy_with_logprobs(1));
    rig.run();
    let again = rig.submit(long.clone(), greedy_with_logprobs(1));
    rig.run();
    assert_eq!(rig.cached[&first], 0);
    assert!(
        rig.cached[&again] >= 270,
        "{} of 300 tokens were found",
        rig.cached[&again]
    );
    assert_near(&rig.answers[&first][0], &rig.answers[&again][0]);

    // With another cache salt the same text is not found.
    rig.hasher = BlockHasher::new("m", "", "salt", BLOCK);
    let other = rig.submit(long, greedy(1));
    rig.run();
    assert_eq!(rig.cached[&other], 0);
}

#[test]
fn choices_of_one_prompt_are_prefilled_once() {
    let mut rig = Rig::new(|_| ());
    let prompt = text(1, 100);
    let choices: Vec<_> = (0..4)
        .map(|_| rig.submit(prompt.clone(), greedy_with_logprobs(20)))
        .collect();
    rig.run();
    assert_eq!(
        choices.iter().map(|id| rig.cached[id]).collect::<Vec<_>>(),
        [0, 96, 96, 96]
    );
    for id in &choices {
        assert_eq!(rig.answers[id].len(), 20);
        assert_near(&rig.answers[id][0], &rig.answers[&choices[0]][0]);
    }
}

#[test]
fn a_small_cache_evicts_the_least_recently_used_blocks_and_answers_stay_right() {
    let mut rig = Rig::new(|config| config.kv_tokens = Some(256));
    let prompts: Vec<_> = (0..6).map(|seed| text(seed, 100)).collect();
    let mut first = Vec::new();
    for prompt in &prompts {
        first.push(rig.submit(prompt.clone(), greedy_with_logprobs(6)));
        rig.run();
    }
    assert!(rig.removed > 0, "six prompts of 100 tokens do not fit 256 cells");
    for (prompt, before) in prompts.iter().zip(first).rev() {
        let id = rig.submit(prompt.clone(), greedy_with_logprobs(6));
        rig.run();
        assert_near(&rig.answers[&id][0], &rig.answers[&before][0]);
    }
    assert_eq!(
        rig.cached[&SequenceId(6)],
        96,
        "the newest prompt is still cached"
    );
    assert_eq!(rig.cached[&SequenceId(11)], 0, "the oldest prompt is not");
}

#[test]
fn sequences_that_together_exceed_the_cache_all_finish() {
    let mut rig = Rig::new(|config| config.kv_tokens = Some(256));
    let submitted: Vec<_> = (0..4)
        .map(|seed| rig.submit(text(seed, 40), greedy_with_logprobs(100)))
        .collect();
    rig.run();
    for (id, seed) in submitted.iter().zip(0..) {
        assert_eq!(
            (rig.answers[id].len(), rig.finished[id]),
            (100, FinishReason::Length)
        );
        // The token after the 90th of the answer, generated beside others and with preemptions, is the one that an
        // engine with this sequence alone generates.
        let mut so_far = text(seed, 40);
        so_far.extend(&rig.answer(*id)[..90]);
        let mut alone = Rig::new(|config| config.kv_tokens = Some(256));
        let next = alone.submit(so_far, greedy_with_logprobs(1));
        alone.run();
        assert_near(&alone.answers[&next][0], &rig.answers[id][90]);
    }
}

#[test]
fn a_cancelled_sequence_frees_its_blocks_at_once_and_they_stay_cached() {
    let mut rig = Rig::new(|_| ());
    let prompt = text(3, 200);
    let id = rig.submit(prompt.clone(), greedy(1000));
    let waiting: Vec<_> = (0..9)
        .map(|seed| rig.submit(text(10 + seed, 30), greedy(1000)))
        .collect();
    for _ in 0..6 {
        rig.step();
    }
    assert_eq!((rig.engine.load().running, rig.engine.load().waiting), (8, 2));
    rig.engine.cancel(id);
    waiting.iter().for_each(|id| rig.engine.cancel(*id));
    rig.engine.cancel(SequenceId(999));
    let load = rig.engine.load();
    assert_eq!((load.running, load.waiting, load.active_kv_blocks), (0, 0, 0));
    assert_eq!(rig.step(), StepStatus::Idle);
    let again = rig.submit(prompt, greedy(4));
    rig.run();
    assert_eq!(rig.cached[&again], 192);
}

#[test]
fn the_same_seed_gives_the_same_answer_and_another_seed_another() {
    let sampled = |seed| SamplingParams {
        max_tokens: 24,
        temperature: 1.0,
        top_p: 0.95,
        top_k: 100,
        seed: Some(seed),
        presence_penalty: 0.5,
        frequency_penalty: 0.5,
        ..SamplingParams::default()
    };
    let mut rig = Rig::new(|_| ());
    // The first answer is not compared: its prompt is not cached, and the last digits of the sums depend on that.
    let [_, a, b, c] = [1, 1, 1, 2].map(|seed| {
        let id = rig.submit(text(1, 50), sampled(seed));
        rig.run();
        rig.answer(id)
    });
    assert_eq!(a, b);
    assert_ne!(a, c);
}

#[test]
fn sampling_parameters_have_their_effect() {
    let mut rig = Rig::new(|_| ());
    let prompt = text(1, 50);
    let with_logprobs = rig.submit(
        prompt.clone(),
        SamplingParams {
            logprobs: Some(5),
            ..greedy(8)
        },
    );
    rig.run();
    for sampled in &rig.answers[&with_logprobs] {
        let logprobs = sampled.logprobs.as_ref().unwrap();
        assert_eq!(logprobs.top.len(), 5);
        assert_eq!(
            logprobs.top[0],
            (sampled.token, logprobs.chosen),
            "greedy picks the likeliest"
        );
        assert!(logprobs.top.is_sorted_by(|a, b| a.1 >= b.1) && logprobs.chosen <= 0.0);
    }
    let plain = rig.answer(with_logprobs);

    let answer = |rig: &mut Rig, sampling| {
        let id = rig.submit(prompt.clone(), sampling);
        rig.run();
        rig.answer(id)
    };
    let hot = SamplingParams {
        max_tokens: 8,
        temperature: 2.0,
        seed: Some(3),
        ..SamplingParams::default()
    };
    assert_eq!(
        answer(
            &mut rig,
            SamplingParams {
                top_k: 1,
                ..hot.clone()
            }
        ),
        plain,
        "top_k leaves one token"
    );
    assert_eq!(
        answer(
            &mut rig,
            SamplingParams {
                top_p: 1e-6,
                ..hot.clone()
            }
        ),
        plain,
        "top_p leaves one token"
    );
    let banned = SamplingParams {
        logit_bias: [(plain[0], -100.0)].into(),
        ..greedy(8)
    };
    assert!(!answer(&mut rig, banned).contains(&plain[0]));
    let forced = SamplingParams {
        logit_bias: [(777, 100.0)].into(),
        ..greedy(8)
    };
    assert_eq!(answer(&mut rig, forced), [777; 8]);
    // The token wins by its bias until the penalties, 2 for each repetition, exceed the bias.
    let penalised = SamplingParams {
        logit_bias: [(777, 40.0)].into(),
        frequency_penalty: 2.0,
        ..greedy(60)
    };
    let tokens = answer(&mut rig, penalised);
    assert_eq!(tokens[0], 777);
    assert!(
        tokens.iter().any(|token| *token != 777),
        "frequency_penalty stops the repetition"
    );
}

#[test]
fn an_answer_ends_at_the_context_length() {
    let mut rig = Rig::new(|config| config.kv_tokens = Some(256));
    assert_eq!(rig.engine.info().context_length, 256);
    let id = rig.submit(text(1, 250), greedy(100));
    rig.run();
    assert_eq!(
        (rig.answer(id).len(), rig.finished[&id]),
        (6, FinishReason::Length)
    );
}

#[test]
fn an_invalid_request_is_refused_with_the_parameter() {
    let mut rig = Rig::new(|config| config.kv_tokens = Some(256));
    let mut refused = |tokens: Vec<u32>, sampling| {
        let blocks = rig.hasher.hash(&tokens);
        let id = SequenceId(0);
        rig.engine
            .submit(NewSequence {
                id,
                tokens,
                generated: 0,
                blocks,
                hasher: rig.hasher,
                sampling,
                limits: TokenLimits::default(),
            })
            .unwrap_err()
    };
    assert_eq!(
        refused(vec![4_000_000], greedy(1)).param.as_deref(),
        Some("prompt")
    );
    assert_eq!(refused(vec![], greedy(1)).kind, ErrorKind::InvalidRequest);
    assert_eq!(
        refused(text(1, 256), greedy(1)).kind,
        ErrorKind::ContextLengthExceeded
    );
    let biased = SamplingParams {
        logit_bias: [(4_000_000, 1.0)].into(),
        ..greedy(1)
    };
    assert_eq!(refused(text(1, 9), biased).param.as_deref(), Some("logit_bias"));
}

#[test]
fn a_truncated_model_is_refused_with_its_path() {
    let bytes = std::fs::read(model()).unwrap();
    let path = std::env::temp_dir().join(format!("signalbox-truncated-{}.gguf", std::process::id()));
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = LlamaEngine::load(&LlamaConfig::new(&path), |_| ()).err();
    std::fs::remove_file(&path).unwrap();
    assert!(
        matches!(&error, Some(LlamaError::Refused { path: named, .. }) if *named == path),
        "{error:?}"
    );
}

#[test]
fn a_cache_larger_than_the_memory_is_refused_before_loading() {
    let config = LlamaConfig {
        kv_tokens: Some(1 << 31),
        ..LlamaConfig::new(model())
    };
    let error = LlamaEngine::load(&config, |_| ()).err();
    assert!(
        matches!(error, Some(LlamaError::TooLittleMemory { .. })),
        "{error:?}"
    );
}

#[test]
fn the_engine_has_the_facts_of_its_model() {
    let rig = Rig::new(|_| ());
    let (facts, info) = (rig.engine.facts(), rig.engine.info());
    assert_eq!(
        (info.name, info.block_size, info.capacity.kv_blocks),
        ("llama", 16, 128)
    );
    assert!(facts.vocab_size > 0 && facts.parameters > 0 && facts.kv_bytes_per_token > 0);
    assert_eq!(info.context_length, facts.trained_context.min(2048));
}

#[test]
fn limits_and_penalties_have_their_effect() {
    let mut rig = Rig::new(|_| ());
    let prompt = text(1, 50);
    let mut answer = |sampling: SamplingParams, limits: TokenLimits| {
        let id = rig.submit_with(prompt.clone(), sampling, limits);
        rig.run();
        rig.answer(id)
    };
    let plain = answer(greedy(8), TokenLimits::default());
    let late = TokenLimits {
        end_tokens: plain.clone().into(),
        min_tokens: 4,
        ..TokenLimits::default()
    };
    let delayed = answer(greedy(8), late);
    assert!(
        delayed[..4].iter().all(|token| !plain.contains(token)),
        "{delayed:?} {plain:?}"
    );
    let words = TokenLimits {
        bad_words: [plain[..2].to_vec()].into(),
        ..TokenLimits::default()
    };
    let other = answer(greedy(8), words);
    assert!(
        other[0] == plain[0] && other[1] != plain[1],
        "{other:?} {plain:?}"
    );

    let hot = SamplingParams {
        temperature: 2.0,
        seed: Some(3),
        ..greedy(8)
    };
    assert_ne!(answer(hot.clone(), TokenLimits::default()), plain);
    let likely = SamplingParams { min_p: 1.0, ..hot };
    assert_eq!(
        answer(likely, TokenLimits::default()),
        plain,
        "min_p leaves the likeliest token"
    );

    let repeating = SamplingParams {
        logit_bias: [(777, 100.0)].into(),
        ..greedy(8)
    };
    assert_eq!(answer(repeating.clone(), TokenLimits::default()), [777; 8]);
    let penalised = SamplingParams {
        repetition_penalty: 100.0,
        ..repeating
    };
    let tokens = answer(penalised, TokenLimits::default());
    assert!(tokens[0] == 777 && !tokens[1..].contains(&777), "{tokens:?}");
}

/// The model's text, and an engine for chats with it.
fn chat_rig() -> (std::sync::Arc<ModelText>, Rig) {
    let artifacts = ModelArtifacts::from_gguf(&model()).unwrap();
    let text = ModelText::load(&artifacts).unwrap();
    (std::sync::Arc::new(text), Rig::new(|_| ()))
}

#[test]
fn answers_obey_a_json_schema() {
    let (text, mut rig) = chat_rig();
    let schema = serde_json::json!({
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 20},
            "country": {"type": "string", "maxLength": 20},
            "population": {"type": "integer", "minimum": 0, "maximum": 50_000_000},
            "coast": {"type": "boolean"},
            "kind": {"enum": ["capital", "town", "village"]},
        },
        "required": ["city", "country", "population", "coast", "kind"],
        "additionalProperties": false,
    });
    let constraint = Constraint {
        param: "response_format".into(),
        kind: ConstraintKind::JsonSchema(schema.to_string()),
    };
    let compiler = GrammarCompiler::of(&text);
    // SIGNALBOX_TEST_ANSWERS=100 takes minutes on a busy machine.
    let answers = std::env::var_os("SIGNALBOX_TEST_ANSWERS");
    let answers = answers.map_or(16, |count| count.to_str().unwrap().parse::<u64>().unwrap());
    let mut cut = 0;
    for batch in 0..answers.div_ceil(8) {
        let count = 8.min(answers - batch * 8);
        let ids: Vec<_> = (0..count)
            .map(|seed| {
                let ask = format!(
                    "Describe a city whose name begins with {} as JSON.",
                    (b'A' + (batch * 8 + seed) as u8 % 26) as char
                );
                let messages = serde_json::json!([{"role": "user", "content": ask}]);
                let sampling = SamplingParams {
                    max_tokens: 120,
                    seed: Some(batch * 8 + seed),
                    ..SamplingParams::default()
                };
                let limits = TokenLimits {
                    grammar: Some(compiler.compile(&constraint).unwrap()),
                    ..TokenLimits::default()
                };
                rig.submit_with(
                    text.encode_chat(&ChatPrompt::new(&messages)).unwrap(),
                    sampling,
                    limits,
                )
            })
            .collect();
        rig.run();
        for id in ids {
            let answer = text.decode(&rig.answer(id)).unwrap();
            if rig.finished[&id] == FinishReason::Length {
                cut += 1;
                continue;
            }
            let value: serde_json::Value = serde_json::from_str(&answer).expect(&answer);
            assert!(value["city"].as_str().unwrap().chars().count() <= 20, "{answer}");
            assert!(
                (0..=50_000_000).contains(&value["population"].as_i64().unwrap()),
                "{answer}"
            );
            assert!(
                value["coast"].is_boolean() && value["country"].is_string(),
                "{answer}"
            );
            assert!(
                ["capital", "town", "village"].contains(&value["kind"].as_str().unwrap()),
                "{answer}"
            );
            assert_eq!(value.as_object().unwrap().len(), 5, "{answer}");
        }
    }
    assert_eq!(cut, 0, "answers that max_tokens cut");
}

#[test]
fn sequences_with_and_without_a_grammar_share_steps() {
    let (text, mut rig) = chat_rig();
    let prompt = text.encode_prompt("The answer is").unwrap();
    let constraint = Constraint {
        param: "structured_outputs.choice".into(),
        kind: ConstraintKind::Choice(vec!["yes, certainly".into(), "no, never".into()]),
    };
    let plain = rig.submit(prompt.clone(), greedy(12));
    rig.run();
    let limits = TokenLimits {
        grammar: Some(GrammarCompiler::of(&text).compile(&constraint).unwrap()),
        ..TokenLimits::default()
    };
    let free = rig.submit(prompt.clone(), greedy(12));
    let chosen = rig.submit_with(prompt, greedy(12), limits);
    rig.run();
    assert_eq!(rig.answer(free)[0], rig.answer(plain)[0]);
    assert_eq!(rig.finished[&chosen], FinishReason::Stop);
    let answer = text.decode(&rig.answer(chosen)).unwrap();
    assert!(["yes, certainly", "no, never"].contains(&&*answer), "{answer}");
    assert_eq!(rig.most_tokens_in_a_step, 2);
}
