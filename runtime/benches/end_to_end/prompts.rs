//! The prompts of each load, made of common English words. They are the same in every run.

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use signalbox_integration_tests::workload::Workload;

/// Different prompts in a load. Enough that no prompt is still in a KV cache when it is sent again.
const DISTINCT: usize = 3_000;

/// Chats that run in parallel, as many as there are connections, and the turns of each.
const CHATS_AT_ONCE: usize = 32;
const TURNS: usize = 10;
/// Bytes of each message, the user's and the assistant's.
const MESSAGE_BYTES: usize = 400;

/// Parameters that all requests of a load share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) stream: bool,
    pub(crate) tokens: u32,
}

/// Request bodies whose prompts have `bytes` bytes, of which the first `shared` are equal in all of them. If `shared`
/// is 0, they differ from the first word on.
pub(crate) fn bodies(model: &str, shape: Shape, bytes: usize, shared: usize) -> Vec<String> {
    let mut words = Words::new(7);
    let beginning = words.bytes(shared);
    let prompt = |number: usize, words: &mut Words| {
        let head = if shared > 0 {
            beginning.clone()
        } else {
            format!("{number} {}", words.number())
        };
        let rest = words.bytes(bytes.saturating_sub(head.len() + 1).max(1));
        format!("{head} {rest}")
    };
    (0..DISTINCT)
        .map(|number| {
            body(
                model,
                shape,
                &json!([message("user", &prompt(number, &mut words))]),
            )
        })
        .collect()
}

/// Chats of ten turns. Each request contains all earlier turns of its chat; the turns of different chats are
/// interleaved.
pub(crate) fn chats(model: &str, shape: Shape) -> Vec<String> {
    let mut words = Words::new(11);
    let mut bodies = Vec::with_capacity(DISTINCT);
    while bodies.len() < DISTINCT {
        let mut chats = vec![Vec::new(); CHATS_AT_ONCE];
        for _ in 0..TURNS {
            for chat in &mut chats {
                chat.push(message("user", &words.bytes(MESSAGE_BYTES)));
                bodies.push(body(model, shape, &json!(chat)));
                chat.push(message("assistant", &words.bytes(MESSAGE_BYTES)));
            }
        }
    }
    bodies
}

fn message(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

fn body(model: &str, shape: Shape, messages: &Value) -> String {
    json!({"model": model, "messages": messages, "max_tokens": shape.tokens, "stream": shape.stream})
        .to_string()
}

struct Words {
    text: Workload,
    random: StdRng,
}

impl Words {
    fn new(seed: u64) -> Self {
        Self {
            text: Workload::new(seed),
            random: StdRng::seed_from_u64(seed),
        }
    }

    /// English text of exactly `bytes` bytes. A word has at least one byte, and a space follows it.
    fn bytes(&mut self, bytes: usize) -> String {
        let mut text = self.text.text(bytes / 2 + 1);
        text.truncate(bytes);
        text
    }

    fn number(&mut self) -> f64 {
        self.random.random()
    }
}
