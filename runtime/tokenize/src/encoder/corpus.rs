//! The texts that a fast tokenizer must encode exactly as the reference does before it is used.
//!
//! The texts are the same each time. The written ones hold what tokenizers are known to differ in. The mixed ones join
//! pieces of the written ones. The last ones put the model's added tokens into text. All texts have about 50 kB, so
//! encoding them twice takes tens of milliseconds.

/// Number of mixed texts.
const MIXED: u32 = 200;
/// Pieces in each mixed text.
const PIECES_IN_A_TEXT: u32 = 24;
/// Added tokens checked at the beginning of the vocabulary's list, and as many at its end. Models have up to a thousand
/// added tokens, most of them reserved and alike. The used ones come first or, if they were added later, last.
const ADDED_AT_EITHER_END: usize = 24;

/// Words, numbers, code and scripts. Each entry is a text, and the mixed texts are made of their pieces.
const WRITTEN: &[&str] = &[
    "",
    " ",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog, doesn't it?",
    "the router sends every prompt to the worker that holds its prefix",
    " leading and trailing space ",
    "I'm you're he'd we'll they've it's DON'T I'LL WE'VE she'S 'tis rock'n'roll ''s '",
    "’s don’t l’été “quoted” ‘single’ «guillemets» … — –",
    "camelCaseAndPascalCase snake_case SCREAMING_CASE kebab-case HTTPServer2Go iPhone",
    "antidisestablishmentarianism Donaudampfschifffahrtsgesellschaftskapitän",
    "0 1 12 123 1234 12345 1234567890 3.14159 1,000,000.00 -273.15 1e-9 0xDEADBEEF 2024-02-29T23:59:59Z",
    "v1.2.3 10.0.0.1 +44 20 7946 0958 50% $9.99 €5 №7 1st 2nd a1b2c3 ½ ² ① ٣٤٥ १२३ 〇 Ⅷ 𝟙𝟚",
    "fn main() {\n    let x: Vec<u32> = (0..10).map(|i| i * i).collect();\n    println!(\"{x:?}\");\n}\n",
    "def f(a, *args, **kw):\n\treturn {'k': [a, *args], \"n\": None}  # comment\n\n\n\nclass A:\n\tpass\n",
    "SELECT * FROM t WHERE a <> 'b' AND c >= 10; -- done\r\n<a href=\"x?y=1&z=2#top\">link</a>\r\n",
    "{\"key\": [1, 2.5, true, null], \"nested\": {\"a\\\"b\": \"\\u00e9\\n\"}}",
    "if (a!=b&&c||!d) { return x->y[0]::z; } // ==== ---- **** ____ ####",
    "https://example.com/a/b.html?q=1&r=%20#f user@example.org C:\\path\\to\\file.txt /usr/bin/env",
    "| a | b |\n|---|:-:|\n| 1 | 2 |\n\n# Title\n\n- item\n  - item\n1. one\n\n```rust\ncode\n```\n",
    "!!! ??? ... ,,, ;;; ::: (((( )))) [[]] {{}} <<>> //// \\\\ @@ ## $$ %% ^^ && ** ~~ `` ++ == -_-",
    "\n",
    "\n\n\n",
    "\r\n\r\n\r",
    "\t\t\tx\t \t",
    "  two   three    four     five      six       seven        eight",
    "line\n  indented\n\n    more \n \n\t\n  \r\n end   ",
    "a\u{a0}b\u{2003}c\u{3000}d\u{200b}e\u{feff}f\u{85}g\u{2028}h\u{2029}i\u{b}j\u{c}k\u{1680}l\u{180e}m\u{202f}n\u{205f}o",
    "\0\u{1}\u{7f}\u{9f}\u{1b}[31mred\u{1b}[0m",
    "中文分词很难，没有空格。我们在2024年测试。",
    "日本語のテキストを、トークンに分ける。カタカナ・ひらがな・漢字ー〜",
    "한국어 문장을 토큰으로 나눕니다. \u{1112}\u{1161}\u{11ab}",
    "Привет, как дела? Ёлка, ЙОГУРТ, и\u{306}",
    "Γειά σου Κόσμε, ΑΣ ας",
    "مرحبا بالعالم، كيف الحال؟ \u{202b}rtl\u{202c} ١٢٣",
    "שלום עולם, מה שלומך? \u{5e9}\u{5c1}\u{5b8}",
    "नमस्ते दुनिया, क्षत्रिय। தமிழ் ไทยไม่มีช่องว่าง ខ្មែរ မြန်မာ",
    "Zażółć gęślą jaźń, Čeština, İstanbul ıI, ǅ ǆ, Straße, ﬁ ﬂ ﬀ, Ⅻ, ㎏, ﷺ",
    "e\u{301}\u{302}\u{323} a\u{30a} \u{e9} \u{1e69} q\u{307}\u{323} \u{212b} \u{2126} \u{f900} \u{1f71} \u{958}",
    "Z\u{351}\u{36b}\u{343}a\u{33b}\u{32a}l\u{321}g\u{322}\u{489}o\u{300}\u{301}\u{302}\u{303}\u{304}",
    "😀😃 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 ❤️ 1️⃣ ☃ ✈︎ 🫠🪿 text😀text",
    "𝕳𝖊𝖑𝖑𝖔 𐍈 𒀀 𠀀𠮷 🜁 \u{e0001}\u{e0061}\u{e007f} \u{10ffff} \u{e000} \u{fdd0} \u{fffe}",
    "\u{fffd}\u{fffd} broken \u{fffd}(\u{fffd} \u{c3}\u{a9} Ã© â€™",
    "<|im_start|> <|im_end|> <|endoftext|> <s> </s> <unk> <pad> [INST] [/INST] <<SYS>> <|eot_id|> <think>",
    "<|im_start <|im_end| |> <| im_end |> <|<|im_end|>|> < | > ▁a▁▁b Ġword Ċ <0x0A> ##ing",
];

/// The corpus for a tokenizer with these added tokens.
pub(super) fn texts(added: &[String]) -> impl Iterator<Item = String> {
    let written = WRITTEN.iter().map(|text| (*text).to_owned());
    written
        .chain(long())
        .chain((0..MIXED).map(mixed))
        .chain(with_added(added))
}

/// Runs of one unit, longer than any ordinary word, so that no table of short words covers them.
fn long() -> impl Iterator<Item = String> {
    [
        "a", "ab", "Xy", "7", " ", "\n", "\t ", "=", "é", "字", "🦀", "e\u{301}",
    ]
    .into_iter()
    .flat_map(|unit| [17, 300, 700].map(|times| unit.repeat(times)))
}

/// Pieces of the written texts, cut at any character and joined with and without spaces.
fn mixed(seed: u32) -> String {
    // The generator of Numerical Recipes. Any generator that gives the same numbers each time would do.
    let mut state = seed;
    let mut below = |bound: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % bound
    };
    let mut text = String::new();
    for _ in 0..PIECES_IN_A_TEXT {
        let source = WRITTEN[below(WRITTEN.len())];
        let from = below(source.len() + 1);
        let length = 1 + below(9);
        text.extend(source.chars().skip(from).take(length));
        text.push_str(["", "", "", " ", "  ", "\n", " \n\n", "\t"][below(8)]);
    }
    text
}

/// Added tokens inside words, between spaces, doubled, and without their first character.
fn with_added(added: &[String]) -> impl Iterator<Item = String> {
    let last = added
        .len()
        .saturating_sub(ADDED_AT_EITHER_END)
        .max(ADDED_AT_EITHER_END.min(added.len()));
    let checked = added.iter().take(ADDED_AT_EITHER_END).chain(&added[last..]);
    checked.map(|token| {
        let broken: String = token.chars().skip(1).collect();
        format!("a{token}b {token} c{token}{token}\n{token}\n {broken}{token}.{token}é {token}  \t{token}'s")
    })
}
