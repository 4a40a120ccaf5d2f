//! A whole model's text in a few lines of code, for tests that must not depend on a model file.

use crate::ModelArtifacts;
use crate::artifacts::{SpecialToken, SpecialTokens};
use crate::definition::{AddedToken, Definition, Words};
use crate::pieces::character_of;

/// Written the way Qwen's and SmolLM's templates frame turns.
const CHATML: &str = "{% for message in messages %}\
     {{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}\
     {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
/// Joined in this order; each result is a token, and later rows build on earlier ones.
const MERGES: &[(&str, &str)] = &[
    ("t", "h"),
    ("th", "e"),
    ("Ġ", "the"),
    ("i", "n"),
    ("e", "r"),
    ("a", "n"),
    ("r", "e"),
    ("o", "n"),
    ("Ġ", "a"),
    ("an", "d"),
    ("Ġ", "and"),
    ("e", "n"),
    ("i", "t"),
    ("e", "s"),
    ("o", "r"),
    ("Ġ", "t"),
    ("Ġ", "s"),
    ("Ġ", "w"),
    ("o", "u"),
    ("in", "g"),
    ("s", "t"),
    ("Ġ", "o"),
    ("Ġ", "c"),
    ("l", "l"),
    ("l", "o"),
    ("h", "e"),
    ("he", "ll"),
    ("hell", "o"),
    ("or", "l"),
    ("orl", "d"),
    ("Ġw", "orld"),
    ("Ġ", "Ġ"),
    ("ĠĠ", "ĠĠ"),
    ("s", "er"),
    ("u", "ser"),
    ("i", "st"),
    ("a", "s"),
    ("s", "ist"),
    ("as", "sist"),
    ("assist", "an"),
    ("assistan", "t"),
];

impl ModelArtifacts {
    /// A byte-level tokenizer of exactly 300 tokens (three special ones, every byte, 41 merges) with a ChatML template.
    /// `<|endoftext|>` is 0, `<|im_start|>` 1, `<|im_end|>` 2; 0 and 2 end a generation.
    #[doc(hidden)]
    pub fn byte_level() -> Self {
        let special = SPECIAL.map(str::to_owned).into_iter();
        let bytes = (0..=u8::MAX).map(|byte| character_of(byte).to_string());
        let merged = MERGES.iter().map(|(left, right)| format!("{left}{right}"));
        let tokens: Vec<String> = special.chain(bytes).chain(merged).collect();
        let added = SPECIAL
            .iter()
            .zip(0..)
            .map(|(content, id)| AddedToken::new(id, content, true))
            .collect();
        let definition = Definition::byte_level(
            &tokens,
            MERGES.to_vec(),
            added,
            &Words::DigitsThenGpt2,
            false,
            false,
        );
        let token = |id: u32| {
            Some(SpecialToken {
                id,
                content: SPECIAL[id as usize].to_owned(),
            })
        };
        let special = SpecialTokens {
            bos: token(1),
            eos: token(2),
            pad: token(2),
            end: vec![0, 2],
            ..Default::default()
        };
        Self::assembled(definition.to_json().into(), Some(CHATML.to_owned()), special)
    }
}
