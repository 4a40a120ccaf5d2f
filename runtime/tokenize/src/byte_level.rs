//! The built-in byte-level tokenizer, with its chat template.
//!
//! A worker with a simulated engine serves it when it has no model file. Tests and benches use it in place of a
//! model's tokenizer, so that they need no file. An engine next door whose tokenizer is not found has it too: its prompts
//! are then routed by their bytes. Text is split as GPT-2 splits it and in no other way, which the fast tokenizer does
//! without regular expressions.

use crate::ModelArtifacts;
use crate::artifacts::{SpecialToken, SpecialTokens};
use crate::definition::{AddedToken, Definition, Words};
use crate::pieces::character_of;

/// Marks turns as the templates of Qwen and SmolLM do.
const CHATML: &str = "{% for message in messages %}\
     {{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}\
     {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
/// Merges in the order of their ranks. The result of each merge is a token, and later merges use earlier results.
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
    /// The built-in byte-level tokenizer, with a ChatML template: what a simulated engine serves without a model file.
    ///
    /// It has exactly 300 tokens: three special ones, one for every byte, and the results of 41 merges.
    /// `<|endoftext|>` is 0, `<|im_start|>` 1 and `<|im_end|>` 2; tokens 0 and 2 end a generation.
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
        let definition = Definition::byte_level(&tokens, MERGES.to_vec(), added, &Words::Gpt2, false, false);
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
