//! Compares the tokens of whole families of models with those that vLLM computes.
//!
//! `oracle/parity/FAMILY.jsonl` has chats with the tokens of vLLM 0.32, and raw texts with those of the reference;
//! `oracle/parity.py` says where they come from. The tokenizers are fetched, because they are large:
//! `runtime/scripts/fetch-tokenizer.sh` puts them where this test looks, unless `SIGNALBOX_TEST_TOKENIZERS` names another
//! folder. `SIGNALBOX_TEST_VECTORS` names another folder of vectors.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use signalbox_tokenize::{ChatPrompt, MessagePreparation, ModelArtifacts, ModelText};

fn folder(variable: &str, default: &str) -> PathBuf {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join(default);
    std::env::var_os(variable).map_or(default, PathBuf::from)
}

fn artifacts(family: &str) -> ModelArtifacts {
    let path = folder("SIGNALBOX_TEST_TOKENIZERS", "../../.local/tokenizers").join(family);
    assert!(
        path.join("tokenizer.json").is_file(),
        "no tokenizer at {}: run `make test`, which fetches it, or set SIGNALBOX_TEST_TOKENIZERS",
        path.display()
    );
    ModelArtifacts::from_hf_folder(&path).unwrap()
}

fn vectors(family: &str) -> Vec<Map<String, Value>> {
    let path = folder("SIGNALBOX_TEST_VECTORS", "tests/oracle/parity").join(format!("{family}.jsonl"));
    let lines = fs::read_to_string(path).unwrap();
    lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The chat of a vector as a request: `kwargs` are the arguments of the reference's call, of which some are members of
/// a request and the others variables of the template.
fn request(vector: &Map<String, Value>) -> Map<String, Value> {
    let mut request = vector.clone();
    let mut kwargs = match request.remove("kwargs") {
        Some(Value::Object(kwargs)) => kwargs,
        _ => Map::new(),
    };
    for name in ["add_generation_prompt", "continue_final_message"] {
        if let Some(flag) = kwargs.remove(name) {
            request.insert(name.to_owned(), flag);
        }
    }
    request.insert("chat_template_kwargs".to_owned(), kwargs.into());
    request
}

fn ids(vector: &Map<String, Value>, name: &str) -> Option<Vec<u32>> {
    serde_json::from_value(vector.get(name)?.clone()).unwrap()
}

/// Compares all vectors of a family and returns how many there are.
fn compare(family: &str, text: &ModelText) -> (usize, usize) {
    let mut differing = Vec::new();
    let (mut chats, mut prompts) = (0, 0);
    for vector in vectors(family) {
        let expected = ids(&vector, "vllm").or_else(|| ids(&vector, "ids")).unwrap();
        let (name, tokens) = if let Some(Value::String(prompt)) = vector.get("prompt") {
            prompts += 1;
            (format!("{prompt:?}"), text.encode_prompt(prompt))
        } else {
            chats += 1;
            let request = request(&vector);
            let tokens = ChatPrompt::of_request(&request).and_then(|chat| text.encode_chat(&chat));
            (vector["name"].to_string(), tokens)
        };
        match tokens {
            Ok(tokens) if tokens == expected => {}
            Ok(tokens) => {
                let got = text.decode(&tokens).unwrap_or_default();
                let want = text.decode(&expected).unwrap_or_default();
                differing.push(format!("{name}: got {got:?}, want {want:?}"));
            }
            Err(error) => differing.push(format!("{name}: refused: {error}")),
        }
    }
    assert!(
        differing.is_empty(),
        "{family}: {} of {} differ:\n{}",
        differing.len(),
        chats + prompts,
        differing.join("\n")
    );
    (chats, prompts)
}

/// vLLM 0.32 runs transformers 5, which takes the tokens around a prompt from `tokenizer.json`. `add_bos` overrides what
/// the family's `tokenizer_config.json` says.
fn check(family: &str, add_bos: Option<bool>) {
    let mut artifacts = artifacts(family).with_preparation(MessagePreparation::Vllm);
    if let Some(add_bos) = add_bos {
        artifacts = artifacts.with_add_bos(add_bos);
    }
    let (chats, prompts) = compare(family, &ModelText::load(&artifacts).unwrap());
    assert!(chats > 80 && prompts > 100, "{chats} chats, {prompts} prompts");
}

#[test]
fn qwen3_is_tokenized_as_by_vllm() {
    check("qwen3", None);
}

#[test]
fn llama3_is_tokenized_as_by_vllm() {
    check("llama3", None);
}

#[test]
fn llama3_1_is_tokenized_as_by_vllm() {
    check("llama3_1", None);
}

#[test]
fn gemma3_is_tokenized_as_by_vllm() {
    check("gemma3", None);
}

#[test]
fn gemma2_is_tokenized_as_by_vllm() {
    check("gemini", None);
}

#[test]
fn deepseek_v3_is_tokenized_as_by_vllm() {
    check("deepseek_v3", Some(false));
}

#[test]
fn own_engines_print_tools_as_the_client_sent_them() {
    let text = ModelText::load(&artifacts("qwen3")).unwrap();
    let mut compared = 0;
    for vector in vectors("qwen3") {
        let Some(expected) = ids(&vector, "own") else {
            continue;
        };
        let request = request(&vector);
        let chat = ChatPrompt::of_request(&request).unwrap();
        assert_eq!(text.encode_chat(&chat).unwrap(), expected, "{}", vector["name"]);
        compared += 1;
    }
    assert!(
        compared > 0,
        "no vector has tokens of its own for the tools as sent"
    );
}

#[test]
fn sglang_encodes_a_continued_message_by_itself() {
    let artifacts = artifacts("qwen3").with_preparation(MessagePreparation::Sglang);
    let text = ModelText::load(&artifacts).unwrap();
    let user = json!({"role": "user", "content": "Hi"});
    let messages = json!([user, {"role": "assistant", "content": "Hello, my"}]);
    let mut chat = ChatPrompt::new(&messages);
    chat.continue_final_message = true;
    let question = json!([user]);
    let mut expected = text.encode_chat(&ChatPrompt::new(&question)).unwrap();
    expected.extend(text.encode_prompt("Hello, my").unwrap());
    assert_eq!(text.encode_chat(&chat).unwrap(), expected);
}
