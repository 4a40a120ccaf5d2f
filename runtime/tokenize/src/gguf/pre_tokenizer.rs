//! The meaning of `tokenizer.ggml.pre`: how each family of byte-level BPE splits text into words.
//!
//! The names are those that llama.cpp registers. The patterns are those of the models' own `tokenizer.json`. Any other
//! name is refused: a wrong pattern gives tokens that the model never saw in training, and nobody would notice.

use crate::ArtifactError;
use crate::definition::Words;

/// How one family splits text into words, and what else its name implies.
pub(crate) struct PreTokenizer {
    names: &'static [&'static str],
    pub(crate) words: Words,
    /// A word that is a token becomes that token, without applying merges.
    pub(crate) ignore_merges: bool,
    /// Whether prompts begin with the beginning-of-sequence token if the file does not state it.
    pub(crate) add_bos: bool,
    /// Whether text is normalised to NFC first.
    pub(crate) nfc: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED_CODER: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &[&str] = &[
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];
const DEEPSEEK_CODER: &[&str] = &[
    r"[\r\n]",
    r"\s?\p{L}+",
    r"\s?\p{P}+",
    "[一-龥ࠀ-一가-퟿]+",
    r"\p{N}",
];
const FALCON: &[&str] = &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"];
const UNNAMED: &[&str] = &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"];

const fn plain(names: &'static [&'static str], words: Words) -> PreTokenizer {
    PreTokenizer {
        names,
        words,
        ignore_merges: false,
        add_bos: false,
        nfc: false,
    }
}

const KNOWN: &[PreTokenizer] = &[
    plain(
        &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        Words::DigitsThenGpt2,
    ),
    plain(
        &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "gigachat",
            "mellum",
            "exaone4",
        ],
        Words::Patterns(&[GPT2]),
    ),
    PreTokenizer {
        nfc: true,
        ..plain(
            &["qwen2", "deepseek-r1-qwen", "megrez"],
            Words::Patterns(&[QWEN2]),
        )
    },
    PreTokenizer {
        nfc: true,
        ..plain(&["qwen35"], Words::Patterns(&[QWEN35]))
    },
    plain(
        &["stablelm2", "hunyuan", "solar-open", "grok-2"],
        Words::Patterns(&[QWEN2]),
    ),
    PreTokenizer {
        ignore_merges: true,
        add_bos: true,
        ..plain(
            &[
                "llama-bpe",
                "llama3",
                "llama-v3",
                "falcon3",
                "falcon-h1",
                "pixtral",
                "midm-2.0",
                "lfm2",
            ],
            Words::Patterns(&[LLAMA3]),
        )
    },
    plain(&["dbrx", "smaug-bpe", "chatglm-bpe"], Words::Patterns(&[LLAMA3])),
    PreTokenizer {
        ignore_merges: true,
        ..plain(&["glm4", "glm5"], Words::Patterns(&[LLAMA3]))
    },
    PreTokenizer {
        ignore_merges: true,
        add_bos: true,
        ..plain(&["tekken"], Words::Patterns(&[TEKKEN]))
    },
    plain(
        &["gpt-4o", "llama4", "kanana2", "minimax-m2"],
        Words::Patterns(&[GPT4O]),
    ),
    plain(
        &["deepseek-v3", "hunyuan-dense", "joyai-llm"],
        Words::Patterns(DEEPSEEK3),
    ),
    plain(&["deepseek-coder"], Words::Patterns(DEEPSEEK_CODER)),
    plain(&["falcon"], Words::Patterns(FALCON)),
    plain(&["seed-coder"], Words::Patterns(&[SEED_CODER])),
    plain(&["default"], Words::Patterns(UNNAMED)),
];

impl PreTokenizer {
    /// The family of this name. A file without a name gets llama.cpp's default, with a warning in the log.
    pub(crate) fn named(name: Option<&str>) -> Result<&'static Self, ArtifactError> {
        let name = name.unwrap_or_else(|| {
            tracing::warn!(
                "the GGUF file has no tokenizer.ggml.pre; llama.cpp's default splits its text into words, which may \
                 give wrong tokens"
            );
            "default"
        });
        KNOWN
            .iter()
            .find(|known| known.names.contains(&name))
            .ok_or_else(|| ArtifactError::Unsupported {
                key: "tokenizer.ggml.pre".to_owned(),
                found: name.to_owned(),
                supported: KNOWN
                    .iter()
                    .flat_map(|known| known.names)
                    .copied()
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }
}

/// All supported names.
#[cfg(test)]
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().flat_map(|known| known.names).copied()
}
