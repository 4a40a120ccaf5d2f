//! Every parameter that the API accepts reaches the engine: the request is answered, and not only checked.
//!
//! `openai_errors.rs` has the values that are refused.

use serde_json::{Value, json};
use signalbox_integration_tests::{Api, Cluster};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// Values other than the default one of each parameter that both routes have.
fn shared() -> Vec<(&'static str, Value)> {
    vec![
        ("temperature", json!(0)),
        ("temperature", json!(1.7)),
        ("top_p", json!(0.3)),
        ("top_k", json!(40)),
        ("top_k", json!(-1)),
        ("seed", json!(i64::MIN)),
        ("seed", json!(i64::MAX)),
        ("stop", json!("\u{1f31f}")),
        ("stop", json!(["\n\n", "\"}", "END", "\u{1f31f}"])),
        ("n", json!(3)),
        ("presence_penalty", json!(-2)),
        ("frequency_penalty", json!(1.25)),
        ("logit_bias", json!({"5": 1, "299": -100, "07": 0.5})),
        ("logit_bias", json!({})),
        ("ignore_eos", json!(true)),
        ("max_tokens", json!(7)),
        ("user", json!("user-1")),
        ("prompt_cache_key", json!("conversation-1")),
        ("cache_salt", json!("tenant \"a\"")),
        ("priority", json!(i32::MIN)),
        ("priority", json!(i32::MAX)),
        ("min_tokens", json!(2)),
        ("stop_token_ids", json!([5, 6])),
        ("bad_words", json!(["never", " so"])),
        ("min_p", json!(0.05)),
        ("repetition_penalty", json!(1.1)),
        ("return_token_ids", json!(true)),
        ("response_format", json!({"type": "text"})),
        ("structured_outputs", json!({"regex": "[ab]{3}"})),
        ("structured_outputs", json!({"choice": ["yes", "no"]})),
        ("structured_outputs", json!({"grammar": "start: \"a\" | \"b\""})),
    ]
}

fn chat_only() -> Vec<(&'static str, Value)> {
    vec![
        ("max_completion_tokens", json!(3)),
        ("echo", json!(false)),
        ("logprobs", json!(true)),
        (
            "messages",
            json!([{"role": "system", "content": "x"}, {"role": "user", "content": [{"type": "text", "text": "y"}]}]),
        ),
        ("tools", json!([{"type": "function", "function": {"name": "f"}}])),
    ]
}

fn completions_only() -> Vec<(&'static str, Value)> {
    vec![
        ("echo", json!(true)),
        ("suffix", json!("")),
        ("best_of", json!(1)),
        ("logprobs", json!(5)),
        ("prompt", json!([5, 6, 7])),
        ("prompt", json!([[5, 6, 7]])),
        ("prompt", json!(["text"])),
    ]
}

/// The answer's choices; fails unless the request succeeded and each choice ended.
async fn choices(api: &Api, path: &str, body: &Value) -> anyhow::Result<usize> {
    let reply = api.post(path, body).await?;
    anyhow::ensure!(reply.status == 200, "{body}: {} {}", reply.status, reply.text());
    let answer = reply.json()?;
    let choices = answer["choices"].as_array().cloned().unwrap_or_default();
    let ended = choices.iter().all(|choice| choice["finish_reason"].is_string());
    anyhow::ensure!(ended, "{body}: {answer}");

    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    let streamed = api.stream(path, &streamed).await?.rest().await?;
    anyhow::ensure!(
        streamed.status == 200 && streamed.is_whole(),
        "{body}, streamed: {} {:?}",
        streamed.status,
        streamed.events.last()
    );
    anyhow::ensure!(
        streamed.usage()?["completion_tokens"] == answer["usage"]["completion_tokens"],
        "{body}: {answer}"
    );
    Ok(choices.len())
}

#[tokio::test]
async fn every_accepted_parameter_is_answered() -> anyhow::Result<()> {
    let cluster = Cluster::sim(&["--workers=1", "--speedup=0"]).await?;
    for (path, own) in [(CHAT, chat_only()), (COMPLETIONS, completions_only())] {
        let plain = || {
            if path == CHAT {
                json!({"model": cluster.model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 5})
            } else {
                json!({"model": cluster.model, "prompt": "x", "max_tokens": 5})
            }
        };
        let mut all = plain();
        for (name, value) in shared().into_iter().chain(own) {
            let mut body = plain();
            body[name] = value.clone();
            all[name] = value;
            let expected = body["n"].as_u64().unwrap_or(1);
            assert_eq!(
                choices(&cluster.api, path, &body).await? as u64,
                expected,
                "{body}"
            );
        }
        // Together: `best_of` is `n`, and an echo excludes logprobs.
        all["best_of"] = if path == CHAT { json!(null) } else { json!(3) };
        all["echo"] = json!(false);
        if path == CHAT {
            all["top_logprobs"] = json!(20);
        }
        assert_eq!(choices(&cluster.api, path, &all).await?, 3, "{all}");
    }
    cluster.idle().await
}
