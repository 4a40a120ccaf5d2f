//! With a real language model: a repeated prompt is faster, parameters have their effect, and answers that have to be JSON or
//! tool calls are.
//!
//! This needs a binary built with `--features llama`, and the model that `make` fetches.

use std::path::PathBuf;

use anyhow::ensure;
use serde_json::json;
use signalbox_integration_tests::{Cluster, Streamed, eventually, workload::Workload, workspace_root};

const CHAT: &str = "/v1/chat/completions";

async fn cluster() -> anyhow::Result<Cluster> {
    let model: PathBuf = workspace_root().join(".local/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    ensure!(
        model.is_file(),
        "{} does not exist; `make model` fetches it",
        model.display()
    );
    Cluster::up(&[
        "--engine=llama",
        "--workers=2",
        "--model",
        &model.display().to_string(),
    ])
    .await
}

async fn chat(cluster: &Cluster, messages: &serde_json::Value, max_tokens: u32) -> anyhow::Result<Streamed> {
    let body = json!({
        "model": cluster.model, "messages": messages, "max_tokens": max_tokens, "temperature": 0, "stream": true,
        "stream_options": {"include_usage": true},
    });
    let streamed = cluster.api.stream(CHAT, &body).await?.rest().await?;
    ensure!(
        streamed.status == 200 && streamed.is_whole(),
        "{} {:?}",
        streamed.status,
        streamed.events.last()
    );
    Ok(streamed)
}

#[tokio::test]
async fn a_repeated_prompt_returns_to_its_worker_and_starts_three_times_sooner() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let mut workload = Workload::new(1);
    let messages = workload.chat(600);
    let first = chat(&cluster, &messages, 8).await?;
    let worker = first.header("x-signalbox-worker").to_owned();
    eventually("the router has the prompt in its index", || async {
        Ok((cluster.index().await?["workers"][&worker]["blocks"].as_u64() > Some(30)).then_some(()))
    })
    .await?;
    cluster.idle().await?;
    let again = chat(&cluster, &messages, 8).await?;
    let usage = again.usage()?;
    println!(
        "{worker}: first token after {:?}, then after {:?}; {usage}",
        first.ttft()?,
        again.ttft()?
    );
    assert_eq!(again.header("x-signalbox-worker"), worker);
    assert_eq!(first.usage()?["prompt_tokens_details"]["cached_tokens"], 0);
    let prompt = usage["prompt_tokens"].as_f64().unwrap();
    assert!(prompt >= 600.0);
    assert!(
        usage["prompt_tokens_details"]["cached_tokens"].as_f64().unwrap() >= 0.9 * prompt,
        "{usage}"
    );
    assert!(again.ttft()? * 3 <= first.ttft()?, "the promised bound");
    assert_eq!(
        again.text(0)?,
        first.text(0)?,
        "greedy sampling: a cached prompt gives the same answer as a computed one"
    );

    cluster.idle().await?;
    let other = chat(&cluster, &workload.chat(600), 8).await?;
    assert_ne!(
        other.header("x-signalbox-worker"),
        worker,
        "a different long prompt goes to the other worker"
    );
    Ok(())
}

#[tokio::test]
async fn greedy_answers_do_not_depend_on_the_worker_or_on_the_batch() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    cluster.activate("round-robin").await?;
    let messages =
        json!([{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]);
    let alone = chat(&cluster, &messages, 24).await?;
    let on_other_worker = chat(&cluster, &messages, 24).await?;
    assert_ne!(
        alone.header("x-signalbox-worker"),
        on_other_worker.header("x-signalbox-worker")
    );
    println!("{}", alone.text(0)?);
    assert!(alone.text(0)?.contains("Paris"), "{}", alone.text(0)?);
    assert_eq!(alone.text(0)?, on_other_worker.text(0)?);
    let mut workload = Workload::new(2);
    let others: Vec<_> = (0..6).map(|_| workload.chat(30)).collect();
    let others = others.iter().map(|messages| chat(&cluster, messages, 24));
    let (in_a_batch, others) = tokio::join!(
        chat(&cluster, &messages, 24),
        futures_util::future::join_all(others)
    );
    for other in others {
        assert!(other?.is_whole());
    }
    // Sums in another order may decide a near tie between two tokens differently, so only the beginnings are compared.
    let prefix = |text: &str| text.chars().take(20).collect::<String>();
    assert_eq!(prefix(&in_a_batch?.text(0)?), prefix(&alone.text(0)?));
    Ok(())
}

#[tokio::test]
async fn a_bias_chooses_the_token() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let plain = json!({"model": cluster.model, "prompt": "The sky is", "max_tokens": 4, "temperature": 0, "logprobs": 1});
    let mut biased = plain.clone();
    biased["logit_bias"] = json!({"777": 100});
    let mut texts = Vec::new();
    for body in [plain, biased] {
        let reply = cluster.api.post("/v1/completions", &body).await?;
        ensure!(reply.status == 200, "{} {}", reply.status, reply.text());
        let tokens = reply.json()?["choices"][0]["logprobs"]["tokens"].clone();
        texts.push(tokens.as_array().cloned().unwrap_or_default());
    }
    let [plain, biased] = texts.as_slice() else {
        anyhow::bail!("two answers")
    };
    assert_eq!((plain.len(), biased.len()), (4, 4));
    assert!(
        biased.iter().all(|token| *token == biased[0]),
        "token 777 each time: {biased:?}"
    );
    assert_ne!(plain, biased);
    Ok(())
}

#[tokio::test]
async fn a_small_model_calls_a_tool() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let weather = json!({"type": "function", "function": {
        "name": "get_weather",
        "description": "The weather in a city now",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 30},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": false,
        },
    }});
    let named = json!({"type": "function", "function": {"name": "get_weather"}});
    for choice in [json!("required"), named] {
        let body = json!({
            "model": cluster.model, "temperature": 0, "max_tokens": 200, "tools": [weather], "tool_choice": choice,
            "parallel_tool_calls": false,
            "messages": [{"role": "user", "content": "What is the weather in Paris, in celsius?"}],
        });
        let reply = cluster.api.post(CHAT, &body).await?;
        ensure!(reply.status == 200, "{} {}", reply.status, reply.text());
        let answer = reply.json()?;
        println!("{answer}");
        let answer = &answer["choices"][0];
        assert_eq!(answer["finish_reason"], "tool_calls", "{answer}");
        assert!(answer["message"]["content"].is_null(), "{answer}");
        let call = &answer["message"]["tool_calls"][0];
        assert_eq!(call["function"]["name"], "get_weather");
        let arguments = call["function"]["arguments"].as_str().unwrap();
        let arguments: serde_json::Value = serde_json::from_str(arguments)?;
        assert!(
            ["celsius", "fahrenheit"].contains(&arguments["unit"].as_str().unwrap()),
            "{arguments}"
        );
        assert!(
            arguments["city"].as_str().unwrap().contains("Paris"),
            "{arguments}"
        );

        let mut streamed = body.clone();
        streamed["stream"] = json!(true);
        let streamed = cluster.api.stream(CHAT, &streamed).await?.rest().await?;
        assert!(streamed.is_whole());
        let chunks = streamed.chunks()?;
        let deltas: Vec<_> = chunks
            .iter()
            .map(|chunk| &chunk["choices"][0]["delta"]["tool_calls"][0]["function"])
            .filter(|function| function.is_object())
            .collect();
        assert_eq!(deltas[0]["name"], "get_weather");
        let joined: String = deltas
            .iter()
            .map(|function| function["arguments"].as_str().unwrap_or_default())
            .collect();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&joined)?, arguments);
    }
    Ok(())
}
