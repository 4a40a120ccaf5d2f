//! Measures the time to encode, render and decode a prompt: `cargo bench -p signalbox-tokenize [-- PATH]`.
//!
//! PATH is an absolute path to a GGUF file or a tokenizer folder; without it the built-in byte-level tokenizer is
//! measured. All prompts are different and made of common English words, so the tokenizer's table of words is as full
//! as in service.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench prints its figures and stops at the first error"
)]

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use signalbox_tokenize::{ChatPrompt, ModelArtifacts, ModelText, TokenDecoder};
use tokenizers::Tokenizer;

const WORDS: &[&str] = &[
    "the",
    "of",
    "and",
    "a",
    "to",
    "in",
    "is",
    "you",
    "that",
    "it",
    "he",
    "was",
    "for",
    "on",
    "are",
    "as",
    "with",
    "his",
    "they",
    "I",
    "at",
    "be",
    "this",
    "have",
    "from",
    "or",
    "one",
    "had",
    "by",
    "word",
    "but",
    "not",
    "what",
    "all",
    "were",
    "when",
    "your",
    "can",
    "said",
    "there",
    "use",
    "each",
    "which",
    "she",
    "do",
    "how",
    "their",
    "if",
    "will",
    "up",
    "other",
    "about",
    "out",
    "many",
    "then",
    "them",
    "these",
    "so",
    "some",
    "her",
    "would",
    "make",
    "like",
    "him",
    "into",
    "time",
    "has",
    "look",
    "two",
    "more",
    "write",
    "go",
    "see",
    "number",
    "no",
    "way",
    "could",
    "people",
    "my",
    "than",
    "first",
    "water",
    "been",
    "call",
    "who",
    "oil",
    "its",
    "now",
    "find",
    "long",
    "down",
    "day",
    "did",
    "get",
    "come",
    "made",
    "may",
    "part",
    "signal",
    "railway",
    "inference",
    "throughput",
    "scheduler",
    "cache",
    "prefix",
    "worker",
    "latency,",
    "tokens.",
    "2024",
    "model's",
];
const ROUNDS: usize = 300;

/// A text of exactly `bytes` bytes, different for each `seed`.
fn prompt(bytes: usize, mut seed: u64) -> String {
    let mut text = String::new();
    while text.len() < bytes {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        text.push_str(WORDS[(seed >> 33) as usize % WORDS.len()]);
        text.push(' ');
    }
    text.truncate(bytes);
    text
}

/// Prints the times of the tokenizers behind `ModelText` for the same texts, in µs a prompt. The texts are chats.
fn compare(artifacts: &ModelArtifacts) {
    let reference = Tokenizer::from_bytes(artifacts.tokenizer_json()).unwrap();
    let definition = || serde_json::from_slice(artifacts.tokenizer_json()).unwrap();
    let start = Instant::now();
    let Ok(fast) = fastokens::Tokenizer::from_json(definition()) else {
        return println!("the fast tokenizer does not support this kind");
    };
    println!("fast tokenizer loaded in {:.0?}", start.elapsed());
    let mut cached = fastokens::Tokenizer::from_json(definition()).unwrap();
    cached.enable_segment_cache(32 << 20);
    let turn = |bytes, seed| format!("<|im_start|>user\n{}<|im_end|>\n", prompt(bytes, seed));
    // Each case makes the prompt of a round. The part that all rounds share has a fixed seed.
    let chat = |turns: u64, round: u64| -> String {
        (0..turns)
            .map(|number| turn(1_000, 7 + number))
            .chain([turn(1_000, round)])
            .collect()
    };
    type Make<'a> = &'a dyn Fn(u64) -> String;
    let cases: [(&str, Make<'_>); 4] = [
        ("2,000 bytes", &|round| turn(2_000, 1_000 + round)),
        ("16,000 bytes", &|round| turn(16_000, 2_000 + round)),
        ("16,000 bytes, 14,000 shared", &|round| {
            turn(14_000, 1) + &turn(2_000, 3_000 + round)
        }),
        ("10 turns of 1,000, one new", &|round| chat(9, 4_000 + round)),
    ];
    for (case, make) in cases {
        let prompts: Vec<_> = (0..ROUNDS as u64).map(make).collect();
        let prompt = |round: u64| &*prompts[round as usize];
        let cold = std::thread::scope(|scope| {
            let first = || {
                let start = Instant::now();
                drop(black_box(fast.encode(prompt(0))));
                start.elapsed()
            };
            scope.spawn(first).join().unwrap()
        });
        println!(
            "{case}: reference {:.1}, fast {:.1} (a thread's first {:.0}), fast with cached segments {:.1}",
            rounds(|round| drop(black_box(reference.encode_fast(prompt(round), false).unwrap()))),
            rounds(|round| drop(black_box(fast.encode(prompt(round)).unwrap()))),
            cold.as_secs_f64() * 1e6,
            rounds(|round| drop(black_box(cached.encode(prompt(round)).unwrap()))),
        );
    }
}

/// The time, in µs, that a tenth of the rounds stay below. Other work on the machine only adds time, so the quickest
/// rounds are the least disturbed.
fn quick_round(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 10].as_secs_f64() * 1e6
}

fn rounds(mut round: impl FnMut(u64)) -> f64 {
    let time = |seed| {
        let start = Instant::now();
        round(seed);
        start.elapsed()
    };
    quick_round((0..ROUNDS as u64).map(time).collect())
}

fn main() {
    let model = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with("--"));
    let start = Instant::now();
    let artifacts = match model.as_deref().map(Path::new) {
        Some(folder) if folder.is_dir() => ModelArtifacts::from_hf_folder(folder).unwrap(),
        Some(file) => ModelArtifacts::from_gguf(file).unwrap(),
        None => ModelArtifacts::byte_level(),
    };
    let read = start.elapsed();
    let text = ModelText::load(&artifacts).unwrap();
    let loaded = start.elapsed() - read;
    println!(
        "{}: {} tokens, read in {read:.0?}, loaded in {loaded:.0?}",
        model.as_deref().unwrap_or("byte-level tokenizer"),
        text.vocab_size()
    );
    let fast = text.wait_until_encoder_chosen();
    println!(
        "fast tokenizer {}, checked after {:.0?} more",
        if fast { "used" } else { "not used" },
        start.elapsed() - read - loaded
    );
    compare(&artifacts);
    for bytes in [2_000, 16_000] {
        let prompts: Vec<_> = (0..ROUNDS as u64).map(|seed| prompt(bytes, seed)).collect();
        let encode = rounds(|seed| drop(black_box(text.encode_prompt(&prompts[seed as usize]))));
        let tokens = text.encode_prompt(&prompts[0]).unwrap();
        let chats: Vec<_> = prompts
            .iter()
            .map(|prompt| json!([{"role": "user", "content": prompt}]))
            .collect();
        println!(
            "{bytes:>6} bytes, {:>5} tokens: encode {encode:>7.1} µs",
            tokens.len()
        );
        if text.has_chat_template() {
            let render = rounds(|seed| {
                drop(black_box(
                    text.render_chat(&ChatPrompt::new(&chats[seed as usize])),
                ))
            });
            println!("{bytes:>6} bytes: render {render:.1} µs");
        }
        let decode = rounds(|_| {
            let mut out = String::new();
            let mut decoder = TokenDecoder::default();
            tokens
                .iter()
                .for_each(|token| decoder.push(&text, *token, &mut out));
            decoder.finish(&text, &mut out);
            black_box(out);
        });
        println!(
            "{bytes:>6} bytes: decode {:.1} ns a token",
            decode * 1e3 / tokens.len() as f64
        );
    }
}
