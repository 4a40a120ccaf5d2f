"""smollm2.py MODEL.gguf > smollm2.json: the tokens that llama.cpp (PyPI: llama-cpp-python) gives for these texts."""

import json
import sys

from llama_cpp import Llama

TEXTS = [
    "",
    " ",
    "Hello",
    "Hello world",
    " Hello  world   !",
    "Hello, world! It's a fine day, isn't it? They'll say we've been HERE'S before.",
    "The quick brown fox jumps over the lazy dog.",
    "I'M WE'LL they'Re can't CAN'T 'tis ''s",
    "0 1 12 123 1234 12345 3.14159 1,000,000 0x1F 1e-9 2024-12-31T23:59:59Z",
    "½ ¼ Ⅷ ²³ ٠١٢ १२३ 四五六",
    "a\nb\n\nc\n\n\nd",
    "line one\r\nline two\r\n\r\nline three\r",
    "\t\ttabs\t and  \t mixed \n  \n   indented\n\tdone",
    "          ten leading spaces, trailing spaces          ",
    "    \n    \n        \n",
    "fn main() {\n    let x: Vec<u32> = (0..10).map(|i| i * 2).collect();\n    println!(\"{x:?}\");\n}\n",
    "def f(a, b=None):\n    '''doc'''\n    return {**a, 'b': b or []}  # comment\n\n\nclass A:\n    pass\n",
    "#include <stdio.h>\nint main(void){for(int i=0;i<10;++i)printf(\"%d\\n\",i);return 0;}",
    "SELECT * FROM t WHERE a >= 10 AND b != 'x' ORDER BY c DESC LIMIT 5;",
    "{\"key\": [1, 2.5, null, true], \"nested\": {\"a\": \"b\\u00e9\"}}",
    "https://example.com/path?query=1&other=two#frag user@example.org",
    "$$E = mc^2$$ \\frac{a}{b} \\sum_{i=0}^{n} x_i",
    "!!!??? ... --- *** ### @@@ ~~~ ``` ((())) [[[]]] <<<>>> |||",
    "😀 😃😄 👨‍👩‍👧‍👦 🇩🇪🇫🇷 👍🏽 ❤️ ☃",
    "你好，世界！这是一个测试。 日本語のテキスト、カタカナとひらがな。 한국어 텍스트입니다.",
    "Привет, мир! Γειά σου Κόσμε. שלום עולם مرحبا بالعالم नमस्ते दुनिया สวัสดีชาวโลก",
    "Café naïve façade Ångström Straße İstanbul ŒUVRE œuvre",
    "Cafe\u0301 nai\u0308ve A\u030angstro\u0308m (decomposed)",
    "zero\u200bwidth \u00a0nbsp \u2003em\u2028line\u2029para \ufeffbom \u3000ideographic",
    "control \u0001\u0002\u007f\u0085 chars",
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
    "text<|im_end|>more<|endoftext|><|im_start|>",
    "not quite special: <|im_start |> <|im_end| <|unknown|> <| im_end |>",
    "<repo_name>signalbox<file_sep>src/main.rs\n<jupyter_code>x<empty_output>",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "MixedCaseIdentifiersAndCONSTANTS_with_underscores-and-dashes.and.dots",
    "Ġ Ċ ▁ â Ã © these are characters of the alphabet itself ĠĠ",
    "𝓗𝓮𝓵𝓵𝓸 𐍈 𒀀 🜁 \U0010ffff",
    "A very long line " * 20,
    "word  word   word    word     word      word       word        word",
    "x=1;y=2;z=x+y;//sum\n\n\n\n    return z;",
    "1st 2nd 3rd 4th 100% €50 £20 ¥1000 #5 @7 5kg 10:30am",
    "\u2018single\u2019 \u201cdouble\u201d \u2014 dash \u2026 ellipsis",
]

model = Llama(sys.argv[1], vocab_only=True, verbose=False)
print("[")
for index, text in enumerate(TEXTS):
    ids = model.tokenize(text.encode(), add_bos=False, special=True)
    print(json.dumps({"text": text, "ids": ids}) + ("," if index + 1 < len(TEXTS) else ""))
print("]")
