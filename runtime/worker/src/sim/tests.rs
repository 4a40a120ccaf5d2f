use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;
use signalbox_protocol::{BlockHasher, FinishReason, KvEvent, SamplingParams, SequenceHash};

use super::*;
use crate::{engine::NewSequence, token_limits::TokenLimits};

const BLOCK_SIZE: u32 = 4;

fn config() -> SimConfig {
    SimConfig {
        block_size: BLOCK_SIZE,
        kv_blocks: 64,
        context_length: 256,
        max_sequences: 8,
        max_waiting: 32,
        max_batched_tokens: 16,
        speedup: 0.0,
        seed: 7,
        fatal_token: None,
    }
}

fn engine(config: SimConfig) -> SimEngine {
    SimEngine::new(config, (1000..1100).collect()).unwrap()
}

fn sequence(request: u64, tokens: Vec<u32>, max_tokens: u32) -> NewSequence {
    let hasher = BlockHasher::new("m", "", "", BLOCK_SIZE as usize);
    NewSequence {
        id: SequenceId::new(request, 0),
        blocks: hasher.hash(&tokens),
        tokens,
        generated: 0,
        hasher,
        sampling: SamplingParams {
            max_tokens,
            ..SamplingParams::default()
        },
        limits: TokenLimits::default(),
    }
}

fn prompt(first: u32, length: u32) -> Vec<u32> {
    (first..first + length).collect()
}

/// The results of an engine over several steps.
#[derive(Debug, Default)]
struct Results {
    answers: BTreeMap<SequenceId, Vec<u32>>,
    cached: BTreeMap<SequenceId, u32>,
    finished: Vec<SequenceId>,
    /// The cached blocks according to the KV events.
    content: HashSet<SequenceHash>,
}

impl Results {
    fn take(&mut self, output: StepOutput) {
        assert!(output.failed.is_empty());
        let mut in_step = HashSet::new();
        for token in output.tokens {
            assert!(
                in_step.insert(token.sequence),
                "at most one token a sequence and step"
            );
            self.answers.entry(token.sequence).or_default().push(token.token);
        }
        for (id, cached) in output.prefilled {
            assert!(
                self.cached.insert(id, cached).is_none(),
                "prefill is reported once"
            );
        }
        self.finished.extend(output.finished.iter().map(|(id, _)| *id));
        for event in output.kv_events {
            match event {
                KvEvent::Stored { blocks, .. } => assert!(blocks.into_iter().all(|b| self.content.insert(b))),
                KvEvent::Removed { blocks, .. } => assert!(blocks.iter().all(|b| self.content.remove(b))),
                KvEvent::Cleared => self.content.clear(),
            }
        }
    }

    fn run(&mut self, engine: &mut SimEngine) {
        for _ in 0..100_000 {
            let mut output = StepOutput::default();
            let status = engine.step(&mut output);
            self.take(output);
            if status == StepStatus::Idle {
                return;
            }
        }
        panic!("the engine never became idle");
    }

    fn answer(&self, request: u64) -> &[u32] {
        &self.answers[&SequenceId::new(request, 0)]
    }

    fn cached(&self, request: u64) -> u32 {
        self.cached[&SequenceId::new(request, 0)]
    }
}

#[test]
fn a_repeated_prompt_is_found_in_the_cache_except_its_last_token() {
    let mut engine = engine(config());
    let mut results = Results::default();
    for request in 0..2 {
        engine.submit(sequence(request, prompt(0, 40), 5)).unwrap();
        results.run(&mut engine);
    }
    assert_eq!((results.cached(0), results.cached(1)), (0, 36));
    assert_eq!(results.answer(0), results.answer(1));
    assert_eq!(results.answer(0).len(), 5);
    assert!(results.answer(0).iter().all(|token| (1000..1100).contains(token)));
    let answered = [prompt(0, 40), results.answer(0).to_vec()].concat();
    engine.submit(sequence(2, answered, 1)).unwrap();
    results.run(&mut engine);
    assert_eq!(results.cached(2), 44, "generated blocks are cached too");
}

#[test]
fn forbidden_tokens_are_not_generated() {
    let answer = |limits: TokenLimits| {
        let mut engine = engine(config());
        engine
            .submit(NewSequence {
                limits,
                ..sequence(0, prompt(0, 4), 60)
            })
            .unwrap();
        let mut results = Results::default();
        results.run(&mut engine);
        results.answers.remove(&SequenceId::new(0, 0)).unwrap()
    };
    let plain = answer(TokenLimits::default());
    assert_eq!(plain.len(), 60);
    let ends: Arc<[u32]> = plain[..3].into();
    let least = answer(TokenLimits {
        end_tokens: ends.clone(),
        min_tokens: 30,
        ..TokenLimits::default()
    });
    assert!(least[..30].iter().all(|token| !ends.contains(token)));
    assert_eq!(least[30..], plain[30..], "from then on as without");
    let words = answer(TokenLimits {
        bad_words: [plain[..2].to_vec()].into(),
        ..TokenLimits::default()
    });
    assert_eq!(words[0], plain[0]);
    assert_ne!(words[1], plain[1]);
}

#[test]
fn the_choices_of_one_request_compute_the_prompt_once() {
    let mut engine = engine(config());
    for choice in 0..4 {
        let id = SequenceId::new(1, choice);
        engine
            .submit(NewSequence {
                id,
                ..sequence(1, prompt(0, 41), 1)
            })
            .unwrap();
    }
    let mut results = Results::default();
    results.run(&mut engine);
    let cached: Vec<u32> = results.cached.values().copied().collect();
    assert_eq!(cached, [0, 40, 40, 40]);
    let answers: HashSet<_> = results.answers.values().collect();
    assert!(answers.len() > 1, "each choice has its own answer");
}

#[test]
fn long_prompts_are_computed_in_chunks_while_others_decode() {
    let mut engine = engine(config());
    engine.submit(sequence(0, prompt(0, 4), 20)).unwrap();
    let mut output = StepOutput::default();
    engine.step(&mut output);
    engine.submit(sequence(1, prompt(100, 40), 1)).unwrap();
    for step in 0..2 {
        let mut output = StepOutput::default();
        engine.step(&mut output);
        assert_eq!(output.tokens[0].sequence, SequenceId::new(0, 0));
        // 15 tokens of budget are left beside the decoding one: chunks of 15, then the last 10.
        assert_eq!(output.prefilled.len(), 0, "step {step}");
    }
    let mut output = StepOutput::default();
    engine.step(&mut output);
    assert_eq!(output.prefilled, [(SequenceId::new(1, 0), 0)]);
    assert_eq!(output.finished, [(SequenceId::new(1, 0), FinishReason::Length)]);
}

#[test]
fn running_and_waiting_sequences_are_bounded() {
    let mut engine = engine(SimConfig {
        max_sequences: 2,
        max_waiting: 1,
        ..config()
    });
    for request in 0..3 {
        engine.submit(sequence(request, prompt(0, 4), 3)).unwrap();
    }
    let refused = engine.submit(sequence(3, prompt(0, 4), 3)).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Overloaded);
    engine.step(&mut StepOutput::default());
    assert_eq!((engine.load().running, engine.load().waiting), (2, 1));
    let mut results = Results::default();
    results.run(&mut engine);
    assert_eq!(results.finished.len(), 3);
}

#[test]
fn a_sequence_that_can_never_run_is_refused_with_the_numbers() {
    let mut engine = engine(SimConfig {
        kv_blocks: 4,
        ..config()
    });
    assert_eq!(
        engine.info().context_length,
        16,
        "the context length is reduced to what the cache holds"
    );
    let refused = engine.submit(sequence(0, prompt(0, 16), 1)).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::ContextLengthExceeded);
    assert!(refused.message.contains("16"), "{refused}");
    assert_eq!(
        engine.submit(sequence(0, vec![], 1)).unwrap_err().kind,
        ErrorKind::InvalidRequest
    );
}

#[test]
fn a_cancelled_sequence_releases_its_blocks_at_once_and_they_stay_cached() {
    let mut engine = engine(config());
    engine.submit(sequence(0, prompt(0, 16), 50)).unwrap();
    engine.submit(sequence(1, prompt(0, 16), 50)).unwrap();
    engine.step(&mut StepOutput::default());
    for request in 0..2 {
        engine.cancel(SequenceId::new(request, 0));
    }
    engine.cancel(SequenceId::new(9, 9));
    let load = engine.load();
    assert_eq!((load.running, load.waiting, load.active_kv_blocks), (0, 0, 0));
    assert!(load.used_kv_blocks >= 4);
    assert_eq!(engine.step(&mut StepOutput::default()), StepStatus::Idle);
}

#[test]
fn steps_take_the_time_of_the_timing_model() {
    let mut engine = engine(SimConfig {
        speedup: 2.0,
        ..config()
    });
    engine.submit(sequence(0, prompt(0, 10), 2)).unwrap();
    let cache_tokens = u64::from(config().kv_blocks * BLOCK_SIZE);
    let work = StepWork {
        prefill_tokens: 10,
        ..StepWork::default()
    };
    let expected = StepStatus::BusyFor(work.pace(cache_tokens, 2.0).unwrap());
    assert_eq!(engine.step(&mut StepOutput::default()), expected);
    let work = StepWork {
        decoding: 1,
        context_tokens: 11,
        ..StepWork::default()
    };
    let expected = StepStatus::BusyFor(work.pace(cache_tokens, 2.0).unwrap());
    assert_eq!(engine.step(&mut StepOutput::default()), expected);
    assert_eq!(engine.step(&mut StepOutput::default()), StepStatus::Idle);
}

#[test]
fn invalid_settings_are_named() {
    let new = |config| {
        SimEngine::new(config, [1].into())
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    assert!(
        new(SimConfig {
            kv_blocks: 0,
            ..config()
        })
        .contains("kv_blocks")
    );
    assert!(
        new(SimConfig {
            max_batched_tokens: 7,
            ..config()
        })
        .contains("max_batched_tokens")
    );
    assert!(
        new(SimConfig {
            speedup: -1.0,
            ..config()
        })
        .contains("speedup")
    );
    assert_eq!(
        SimEngine::new(config(), [].into()).unwrap_err(),
        SimError::EmptyVocabulary
    );
}

proptest! {
    /// Requests are mixed, split into chunks and preempted. Each still ends with the answer that it gets alone, and the
    /// events give the content of the cache.
    #[test]
    fn every_request_gets_the_answer_that_it_gets_alone(
        requests in prop::collection::vec((0..3u32, 1..60u32, 1..40u32, 0..6usize), 1..12),
        kv_blocks in 25..40u32,
        cancelled in 0..12u64,
    ) {
        let config = SimConfig { kv_blocks, context_length: 100, max_sequences: 4, max_batched_tokens: 8, ..config() };
        let mut together = engine(config.clone());
        let mut results = Results::default();
        for (request, (first, length, max_tokens, steps)) in requests.iter().enumerate() {
            together.submit(sequence(request as u64, prompt(*first, *length), *max_tokens)).unwrap();
            for _ in 0..*steps {
                let mut output = StepOutput::default();
                together.step(&mut output);
                results.take(output);
                let load = together.load();
                prop_assert!(load.running <= 4 && load.active_kv_blocks <= load.used_kv_blocks);
                prop_assert!(load.used_kv_blocks <= kv_blocks);
            }
        }
        together.cancel(SequenceId::new(cancelled, 0));
        results.run(&mut together);
        for (request, (first, length, max_tokens, _)) in requests.iter().enumerate() {
            if request as u64 == cancelled {
                continue;
            }
            let mut alone = Results::default();
            let mut engine = engine(config.clone());
            engine.submit(sequence(request as u64, prompt(*first, *length), *max_tokens)).unwrap();
            alone.run(&mut engine);
            prop_assert_eq!(results.answer(request as u64), alone.answer(request as u64));
            prop_assert_eq!(alone.answer(request as u64).len() as u32, *max_tokens);
            prop_assert!(results.cached(request as u64) < *length);
        }
        let load = together.load();
        prop_assert_eq!((load.running, load.waiting, load.active_kv_blocks), (0, 0, 0));
        prop_assert_eq!(results.content.len() as u32, load.used_kv_blocks, "only sealed blocks stay cached after their sequences");
    }
}

/// Measures the time that a simulated token takes, beside the time it simulates. Run with
/// `cargo test --release -p signalbox-worker -- --ignored --nocapture the_cost_of_a_simulated_token`.
#[test]
#[ignore = "prints a measurement, asserts nothing"]
fn the_cost_of_a_simulated_token() {
    let config = SimConfig {
        speedup: 0.0,
        ..SimConfig::default()
    };
    let mut engine = SimEngine::new(config, (0..1_000).collect()).unwrap();
    let hasher = BlockHasher::new("m", "", "", 16);
    for request in 0..128 {
        let tokens = prompt(request as u32 * 1_000, 500);
        let blocks = hasher.hash(&tokens);
        engine
            .submit(NewSequence {
                blocks,
                hasher,
                ..sequence(request, tokens, 2_000)
            })
            .unwrap();
    }
    let mut output = StepOutput::default();
    let (mut tokens, start) = (0, std::time::Instant::now());
    while engine.step(&mut output) != StepStatus::Idle {
        tokens += output.tokens.len();
        output = StepOutput {
            tokens: output.tokens,
            ..StepOutput::default()
        };
        output.tokens.clear();
    }
    println!(
        "{tokens} tokens, {:.0} ns each",
        start.elapsed().as_nanos() as f64 / tokens as f64
    );
}
