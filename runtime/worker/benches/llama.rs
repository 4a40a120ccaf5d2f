//! Measures the tokens per second of the llama engine, or prints its answers: one line of JSON each.
//!
//! ```text
//! cargo bench -p signalbox-worker --features llama --bench llama                    prefill 512, decode 128, 8 at once
//! cargo bench -p signalbox-worker --features llama --bench llama -- greedy FILE     FILE: a JSON array of token arrays
//! ```
//!
//! Options: `--model PATH`, `--threads N`, `--batch N`, `--kv N`, `--no-flash`, `--rounds N`, `--tokens N`,
//! `--full-cache` (decode once more when all cells are used; filling them takes minutes). `llama_oracle.py` beside this
//! file runs the same work with llama-cpp-python and compares.

#![expect(clippy::print_stdout, reason = "a bench prints its figures")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use signalbox_protocol::{BlockHasher, SamplingParams};
use signalbox_worker::engine::{NewSequence, SequenceId, StepEngine, StepOutput, StepStatus};
use signalbox_worker::llama::{LlamaConfig, LlamaEngine};
use signalbox_worker::token_limits::TokenLimits;

type Failure = Box<dyn std::error::Error>;

/// Where `runtime/scripts/fetch-model.sh` puts the model.
const MODEL: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../.local/models/SmolLM2-135M-Instruct.Q4_1.gguf"
);

struct Options {
    config: LlamaConfig,
    rounds: u32,
    tokens: u32,
    full_cache: bool,
    greedy: Option<PathBuf>,
}

fn main() -> Result<(), Failure> {
    let options = options()?;
    let mut bench = Bench {
        engine: LlamaEngine::load(&options.config, |_| ())?,
        next: 0,
    };
    if let Some(file) = options.greedy {
        let prompts: Vec<Vec<u32>> = serde_json::from_slice(&std::fs::read(file)?)?;
        for prompt in prompts {
            let answer = bench.answer(prompt, options.tokens)?;
            println!("{}", serde_json::to_string(&answer)?);
        }
        return Ok(());
    }
    for round in 0..options.rounds {
        let prefill = bench.prefill(512)?;
        let decode = bench.decode(1, 32, options.tokens)?;
        let eight = bench.decode(8, 32, options.tokens)?;
        println!(
            "{{\"round\":{round},\"prefill_tok_s\":{prefill:.1},\"decode_tok_s\":{decode:.1},\"decode_8_tok_s\":{eight:.1}}}"
        );
    }
    if options.full_cache {
        let decode = bench.decode_beside_full_cache(options.tokens)?;
        println!("{{\"decode_full_cache_tok_s\":{decode:.1}}}");
    }
    Ok(())
}

fn options() -> Result<Options, Failure> {
    let mut options = Options {
        config: LlamaConfig::new(MODEL),
        rounds: 3,
        tokens: 128,
        full_cache: false,
        greedy: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(option) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{option} needs a value"));
        match option.as_str() {
            "--bench" => {}
            "--model" => options.config.model_path = value()?.into(),
            "--threads" => options.config.threads = Some(value()?.parse()?),
            "--batch" => options.config.batch_tokens = value()?.parse()?,
            "--kv" => options.config.kv_tokens = Some(value()?.parse()?),
            "--no-flash" => options.config.flash_attention = false,
            "--full-cache" => options.full_cache = true,
            "--rounds" => options.rounds = value()?.parse()?,
            "--tokens" => options.tokens = value()?.parse()?,
            "greedy" => options.greedy = Some(value()?.into()),
            _ => {
                return Err(
                    format!("{option} is not an option; the head of benches/llama.rs lists them").into(),
                );
            }
        }
    }
    Ok(options)
}

struct Bench {
    engine: LlamaEngine,
    next: u64,
}

impl Bench {
    /// Tokens per second of the prefill of a prompt that is not cached.
    fn prefill(&mut self, tokens: u32) -> Result<f64, Failure> {
        let prompt = self.fresh_prompt(tokens);
        self.submit(prompt, 1)?;
        let (elapsed, _) = self.run()?;
        Ok(f64::from(tokens) / elapsed.as_secs_f64())
    }

    /// Tokens per second of `sequences` answers together, after their prefills.
    fn decode(&mut self, sequences: u32, prompt: u32, tokens: u32) -> Result<f64, Failure> {
        for _ in 0..sequences {
            let prompt = self.fresh_prompt(prompt);
            self.submit(prompt, tokens)?;
        }
        let mut output = StepOutput::default();
        let mut prefilled = 0;
        while prefilled < sequences {
            self.step(&mut output)?;
            prefilled += output.prefilled.len() as u32;
        }
        let (elapsed, count) = self.run()?;
        Ok(count as f64 / elapsed.as_secs_f64())
    }

    /// As [`Self::decode`] of one sequence, while nearly all cells of the cache hold other prompts.
    fn decode_beside_full_cache(&mut self, tokens: u32) -> Result<f64, Failure> {
        let info = self.engine.info();
        while self.engine.load().used_kv_blocks + info.context_length.min(2048) / info.block_size
            < info.capacity.kv_blocks
        {
            let prompt = self.fresh_prompt(info.context_length.min(2048) - 1);
            self.submit(prompt, 1)?;
            self.run()?;
        }
        self.decode(1, 32, tokens)
    }

    fn answer(&mut self, prompt: Vec<u32>, tokens: u32) -> Result<Vec<u32>, Failure> {
        self.submit(prompt, tokens)?;
        let mut output = StepOutput::default();
        let mut answer = Vec::new();
        while self.step(&mut output)? {
            answer.extend(output.tokens.iter().map(|sampled| sampled.token));
        }
        answer.extend(output.tokens.iter().map(|sampled| sampled.token));
        Ok(answer)
    }

    fn submit(&mut self, tokens: Vec<u32>, max_tokens: u32) -> Result<(), Failure> {
        let hasher = BlockHasher::new("bench", "", "", self.engine.info().block_size as usize);
        let sampling = SamplingParams {
            max_tokens,
            temperature: 0.0,
            ..SamplingParams::default()
        };
        let id = SequenceId(self.next);
        self.next += 1;
        let blocks = hasher.hash(&tokens);
        Ok(self.engine.submit(NewSequence {
            id,
            tokens,
            generated: 0,
            blocks,
            hasher,
            sampling,
            limits: TokenLimits::default(),
        })?)
    }

    /// Steps until the engine is idle. Returns the time it took and the number of generated tokens.
    fn run(&mut self) -> Result<(Duration, usize), Failure> {
        let start = Instant::now();
        let mut output = StepOutput::default();
        let mut tokens = 0;
        loop {
            let more = self.step(&mut output)?;
            tokens += output.tokens.len();
            if !more {
                return Ok((start.elapsed(), tokens));
            }
        }
    }

    fn step(&mut self, output: &mut StepOutput) -> Result<bool, Failure> {
        *output = StepOutput::default();
        let status = self.engine.step(output);
        match output.failed.first() {
            Some((_, error)) => Err(error.clone().into()),
            None => Ok(status != StepStatus::Idle),
        }
    }

    /// A prompt that no earlier prompt shares a prefix with. Its tokens are ordinary ones: the first few hundred tokens
    /// of a vocabulary are special.
    fn fresh_prompt(&mut self, tokens: u32) -> Vec<u32> {
        let vocab = self.engine.facts().vocab_size;
        let seed = self.next as u32 + 1;
        (0..tokens)
            .map(|place| 300 + (seed.wrapping_mul(7_919) + place.wrapping_mul(104_729)) % (vocab - 300))
            .collect()
    }
}
