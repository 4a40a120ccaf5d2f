//! Prompts like those of real traffic: different ones, or ones with a shared prefix. The same seed gives the same
//! prompts.

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

/// Common words: a tokenizer makes one or two tokens of each, a byte-level one more.
const WORDS: [&str; 48] = [
    "signal", "track", "train", "lever", "station", "points", "driver", "morning", "freight", "platform",
    "whistle", "bridge", "tunnel", "junction", "the", "a", "of", "under", "over", "through", "between",
    "slowly", "quickly", "quietly", "passes", "waits", "leaves", "arrives", "carries", "follows", "red",
    "green", "yellow", "narrow", "long", "early", "late", "heavy", "light", "north", "south", "river",
    "valley", "town", "coal", "grain", "mail", "clock",
];

/// A source of prompts.
#[derive(Debug)]
pub struct Workload {
    random: StdRng,
}

impl Workload {
    /// The same seed gives the same prompts in the same order.
    pub fn new(seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
        }
    }

    /// A text of `words` words, which has at least as many tokens. No two texts are equal.
    pub fn text(&mut self, words: usize) -> String {
        let mut text = String::with_capacity(words * 8);
        for number in 0..words {
            if number > 0 {
                text.push(' ');
            }
            text.push_str(WORDS[self.random.random_range(0..WORDS.len())]);
        }
        text
    }

    /// A conversation of one user message of `words` words.
    pub fn chat(&mut self, words: usize) -> Value {
        json!([{"role": "user", "content": self.text(words)}])
    }

    /// Conversations that share a system message of `shared` words, each with a user message of `own` words.
    pub fn chats_with_shared_prefix(&mut self, count: usize, shared: usize, own: usize) -> Vec<Value> {
        let system = self.text(shared);
        let mut chat =
            || json!([{"role": "system", "content": system}, {"role": "user", "content": self.text(own)}]);
        (0..count).map(|_| chat()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_text_and_another_seed_does_not() {
        assert_eq!(Workload::new(1).text(50), Workload::new(1).text(50));
        assert_ne!(Workload::new(1).text(50), Workload::new(2).text(50));
        let chats = Workload::new(3).chats_with_shared_prefix(3, 20, 20);
        assert!(chats.iter().all(|chat| chat[0] == chats[0][0]));
        assert_ne!(chats[0][1], chats[1][1]);
    }
}
