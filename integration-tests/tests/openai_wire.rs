//! Answers of OpenAI's API to valid requests.

use serde_json::{Value, json};
use signalbox_integration_tests::{Api, Cluster, workload::Workload};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// A simulated GPU that answers without waiting.
async fn cluster() -> anyhow::Result<Cluster> {
    Cluster::sim(&["--workers=1", "--speedup=0"]).await
}

/// Sends a POST; fails unless the answer is 200.
async fn ok(api: &Api, path: &str, body: &Value) -> anyhow::Result<Value> {
    let reply = api.post(path, body).await?;
    anyhow::ensure!(reply.status == 200, "{} {}", reply.status, reply.text());
    reply.json()
}

#[tokio::test]
async fn a_chat_is_answered_whole() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let body = json!({"model": cluster.model, "messages": Workload::new(1).chat(20), "max_tokens": 7});
    let reply = cluster.api.post(CHAT, &body).await?;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.header("content-type"), "application/json");
    let answer = reply.json()?;
    assert!(
        answer["id"].as_str().unwrap().starts_with("chatcmpl-"),
        "{answer}"
    );
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], cluster.model);
    assert!(
        answer["created"].as_u64().unwrap() > 1_700_000_000,
        "seconds since 1970"
    );
    let choice = &answer["choices"][0];
    assert_eq!(answer["choices"].as_array().unwrap().len(), 1);
    assert_eq!(choice["index"], 0);
    assert_eq!(choice["message"]["role"], "assistant");
    assert!(!choice["message"]["content"].as_str().unwrap().is_empty());
    assert_eq!(
        choice["finish_reason"], "length",
        "the simulated model never stops by itself"
    );
    let usage = &answer["usage"];
    assert_eq!(usage["completion_tokens"], 7);
    assert!(usage["prompt_tokens"].as_u64().unwrap() >= 20);
    let sum = usage["prompt_tokens"].as_u64().unwrap() + 7;
    assert_eq!(usage["total_tokens"], sum);
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);
    Ok(())
}

#[tokio::test]
async fn a_stream_has_the_same_text_as_the_whole_answer() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    for (path, prompt) in [(CHAT, "messages"), (COMPLETIONS, "prompt")] {
        let mut workload = Workload::new(2);
        let content = if path == CHAT {
            workload.chat(20)
        } else {
            json!(workload.text(20))
        };
        let mut body = json!({"model": cluster.model, prompt: content, "max_tokens": 9, "seed": 5});
        let whole = ok(&cluster.api, path, &body).await?;
        body["stream"] = json!(true);
        let streamed = cluster.api.stream(path, &body).await?;
        assert_eq!(streamed.status, 200);
        assert_eq!(streamed.header("content-type"), "text/event-stream");
        let streamed = streamed.rest().await?;
        assert!(streamed.is_whole(), "{:?}", streamed.events.last());
        let choice = &whole["choices"][0];
        let text = if path == CHAT {
            &choice["message"]["content"]
        } else {
            &choice["text"]
        };
        assert_eq!(streamed.text(0)?, text.as_str().unwrap());
        assert_eq!(
            streamed.finish_reason(0)?.as_deref(),
            choice["finish_reason"].as_str()
        );
        for chunk in streamed.chunks()? {
            let object = if path == CHAT {
                "chat.completion.chunk"
            } else {
                "text_completion"
            };
            assert_eq!(chunk["object"], object);
            assert_eq!(chunk["id"], streamed.chunks()?[0]["id"], "one answer, one id");
            assert!(
                chunk.get("usage").is_none_or(Value::is_null),
                "the request did not ask for usage"
            );
        }
        if path == CHAT {
            assert_eq!(streamed.chunks()?[0]["choices"][0]["delta"]["role"], "assistant");
        }
    }
    Ok(())
}

#[tokio::test]
async fn tokens_arrive_one_by_one_and_not_at_the_end() -> anyhow::Result<()> {
    let cluster = Cluster::sim(&["--workers=1", "--speedup=1"]).await?;
    let body = json!({"model": cluster.model, "messages": Workload::new(3).chat(5), "max_tokens": 40, "stream": true});
    let mut stream = cluster.api.stream(CHAT, &body).await?;
    stream.next().await?.unwrap();
    // When the first token arrives, the worker still has the request.
    let busy: u64 = cluster
        .workers()
        .await?
        .iter()
        .map(|worker| worker["requests"].as_u64().unwrap())
        .sum();
    assert_eq!(busy, 1);
    assert!(stream.rest().await?.is_whole());
    cluster.idle().await
}

#[tokio::test]
async fn usage_comes_last_in_a_stream_that_asks_for_it() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let body = json!({
        "model": cluster.model, "messages": Workload::new(4).chat(20), "max_tokens": 5, "stream": true,
        "stream_options": {"include_usage": true},
    });
    let streamed = cluster.api.stream(CHAT, &body).await?.rest().await?;
    let chunks = streamed.chunks()?;
    let (last, others) = chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 5);
    assert!(last["usage"]["prompt_tokens"].as_u64().unwrap() >= 20);
    assert!(
        others
            .iter()
            .all(|chunk| chunk["usage"].is_null() && chunk.get("usage").is_some()),
        "null, as at OpenAI"
    );
    assert!(streamed.is_whole());
    Ok(())
}

#[tokio::test]
async fn cached_tokens_are_those_of_full_blocks_already_computed() -> anyhow::Result<()> {
    let cluster = Cluster::sim(&["--workers=1", "--speedup=0", "--block-size=16"]).await?;
    let body = json!({"model": cluster.model, "messages": Workload::new(5).chat(100), "max_tokens": 1});
    let cached = |answer: &Value| {
        answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
    };
    let first = ok(&cluster.api, CHAT, &body).await?;
    assert_eq!(cached(&first), 0);
    let again = ok(&cluster.api, CHAT, &body).await?;
    let prompt = again["usage"]["prompt_tokens"].as_u64().unwrap();
    // At least one token is always computed, since its logits are needed for the first token of the answer.
    assert_eq!(cached(&again), (prompt - 1) / 16 * 16);
    assert_eq!(
        again["choices"], first["choices"],
        "a cached prompt is answered like a computed one"
    );
    Ok(())
}

#[tokio::test]
async fn several_choices_have_their_indexes_and_are_counted_together() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let mut body =
        json!({"model": cluster.model, "messages": Workload::new(6).chat(20), "max_tokens": 8, "n": 2});
    let whole = ok(&cluster.api, CHAT, &body).await?;
    let choices = whole["choices"].as_array().unwrap();
    assert_eq!(
        choices
            .iter()
            .map(|choice| choice["index"].as_u64().unwrap())
            .collect::<Vec<_>>(),
        [0, 1]
    );
    assert_ne!(choices[0]["message"]["content"], choices[1]["message"]["content"]);
    assert_eq!(whole["usage"]["completion_tokens"], 16);
    body["stream"] = json!(true);
    let streamed = cluster.api.stream(CHAT, &body).await?.rest().await?;
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(
            streamed.text(index as u64)?,
            choice["message"]["content"].as_str().unwrap()
        );
        assert_eq!(streamed.finish_reason(index as u64)?.as_deref(), Some("length"));
    }
    assert!(streamed.is_whole());
    Ok(())
}

#[tokio::test]
async fn log_probabilities_come_with_every_token() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let chat = json!({
        "model": cluster.model, "messages": Workload::new(7).chat(10), "max_tokens": 6, "logprobs": true,
        "top_logprobs": 3,
    });
    let answer = ok(&cluster.api, CHAT, &chat).await?;
    let tokens = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(tokens.len(), 6);
    let text: String = tokens
        .iter()
        .map(|token| token["token"].as_str().unwrap())
        .collect();
    assert_eq!(text, answer["choices"][0]["message"]["content"]);
    for token in tokens {
        assert!(token["logprob"].as_f64().unwrap() <= 0.0);
        assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 3);
        assert_eq!(
            token["bytes"].as_array().unwrap().len(),
            token["token"].as_str().unwrap().len()
        );
    }
    let completion =
        json!({"model": cluster.model, "prompt": "Signals and points", "max_tokens": 6, "logprobs": 2});
    let answer = ok(&cluster.api, COMPLETIONS, &completion).await?;
    let logprobs = &answer["choices"][0]["logprobs"];
    for field in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(
            logprobs[field].as_array().map(Vec::len),
            Some(6),
            "{field} of {logprobs}"
        );
    }
    assert_eq!(logprobs["text_offset"][0], 0);
    Ok(())
}

#[tokio::test]
async fn a_stop_text_ends_the_answer_and_is_not_part_of_it() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let mut body =
        json!({"model": cluster.model, "messages": Workload::new(8).chat(10), "max_tokens": 60, "seed": 1});
    let free = ok(&cluster.api, CHAT, &body).await?;
    let text = free["choices"][0]["message"]["content"]
        .as_str()
        .unwrap()
        .to_owned();
    let characters: Vec<char> = text.chars().collect();
    let stop: String = characters[20..23].iter().collect();
    let before = &text[..text.find(&stop).unwrap()];
    body["stop"] = json!([stop]);
    let stopped = ok(&cluster.api, CHAT, &body).await?;
    assert_eq!(stopped["choices"][0]["message"]["content"], before);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert!(stopped["usage"]["completion_tokens"].as_u64() < free["usage"]["completion_tokens"].as_u64());
    body["stream"] = json!(true);
    let streamed = cluster.api.stream(CHAT, &body).await?.rest().await?;
    assert_eq!(streamed.text(0)?, before, "no part of the stop text is sent");
    Ok(())
}

#[tokio::test]
async fn equal_seeds_give_equal_answers_on_whichever_worker() -> anyhow::Result<()> {
    let cluster = Cluster::sim(&["--workers=2", "--speedup=0", "--policy=round-robin"]).await?;
    let mut body =
        json!({"model": cluster.model, "messages": Workload::new(9).chat(30), "max_tokens": 20, "seed": 42});
    let mut workers = Vec::new();
    let mut texts = Vec::new();
    for _ in 0..2 {
        let reply = cluster.api.post(CHAT, &body).await?;
        workers.push(reply.header("x-signalbox-worker").to_owned());
        texts.push(reply.json()?["choices"][0]["message"]["content"].clone());
    }
    assert_ne!(workers[0], workers[1]);
    assert_eq!(texts[0], texts[1]);
    body["seed"] = json!(43);
    assert_ne!(
        ok(&cluster.api, CHAT, &body).await?["choices"][0]["message"]["content"],
        texts[0]
    );
    Ok(())
}

#[tokio::test]
async fn a_prompt_of_token_ids_is_the_prompt_itself() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let ids: Vec<u32> = (100..150).collect();
    let body = json!({"model": cluster.model, "prompt": ids, "max_tokens": 3});
    let answer = ok(&cluster.api, COMPLETIONS, &body).await?;
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["usage"]["prompt_tokens"], 50);
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    // Without a limit, OpenAI's default of sixteen.
    let answer = ok(
        &cluster.api,
        COMPLETIONS,
        &json!({"model": cluster.model, "prompt": ids}),
    )
    .await?;
    assert_eq!(answer["usage"]["completion_tokens"], 16);
    assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 48);
    Ok(())
}

#[tokio::test]
async fn a_completion_can_repeat_its_prompt() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let mut body = json!({"model": cluster.model, "prompt": "All clear: ", "max_tokens": 4, "echo": true});
    let whole = ok(&cluster.api, COMPLETIONS, &body).await?;
    let text = whole["choices"][0]["text"].as_str().unwrap();
    assert!(text.starts_with("All clear: ") && text.len() > 11, "{text:?}");
    body["stream"] = json!(true);
    let streamed = cluster.api.stream(COMPLETIONS, &body).await?.rest().await?;
    assert_eq!(streamed.text(0)?, text);
    Ok(())
}

#[tokio::test]
async fn unknown_parameters_and_values_that_change_nothing_are_accepted() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let body = json!({
        "model": cluster.model, "messages": Workload::new(10).chat(5), "max_completion_tokens": 3,
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "presence_penalty": 0.1, "frequency_penalty": -0.1,
        "user": "somebody", "metadata": {"any": ["thing"]}, "x_of_tomorrow": 1, "tools": [], "stop": null,
    });
    assert_eq!(
        ok(&cluster.api, CHAT, &body).await?["usage"]["completion_tokens"],
        3
    );
    Ok(())
}

#[tokio::test]
async fn every_answer_names_its_policy_and_its_worker() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let body = json!({"model": cluster.model, "messages": Workload::new(11).chat(100), "max_tokens": 2});
    let reply = cluster.api.post(CHAT, &body).await?;
    assert_eq!(reply.header("x-signalbox-worker"), "worker-0");
    assert!(
        reply.header("x-signalbox-policy").starts_with("kv-aware@"),
        "{:?}",
        reply.headers
    );
    assert_eq!(reply.header("x-signalbox-overlap-blocks"), "0");
    assert!(!reply.header("x-request-id").is_empty());
    let own = [("x-request-id", "mine-123"), ("content-type", "application/json")];
    let reply = cluster
        .api
        .send(reqwest::Method::POST, CHAT, &own, body.to_string())
        .await?;
    assert_eq!(
        reply.header("x-request-id"),
        "mine-123",
        "a client's own id is kept"
    );
    let mut streaming = body.clone();
    streaming["stream"] = json!(true);
    let stream = cluster.api.stream(CHAT, &streaming).await?;
    for header in [
        "x-request-id",
        "x-signalbox-worker",
        "x-signalbox-policy",
        "x-signalbox-overlap-blocks",
    ] {
        assert!(!stream.header(header).is_empty(), "{header} in a stream's head");
    }
    Ok(())
}

#[tokio::test]
async fn models_and_health_name_the_served_models_and_the_workers() -> anyhow::Result<()> {
    let cluster = Cluster::sim(&["--workers=2", "--speedup=0", "--model-name=points/one"]).await?;
    let models = cluster.api.get("/v1/models").await?.json()?;
    assert_eq!(models["object"], "list");
    assert_eq!(
        models["data"].as_array().unwrap().len(),
        1,
        "two workers, one model"
    );
    let model = &models["data"][0];
    assert_eq!(
        (&model["id"], &model["object"]),
        (&json!("points/one"), &json!("model"))
    );
    assert!(model["created"].is_u64() && model["owned_by"].is_string() && model["max_model_len"].is_u64());
    assert_eq!(cluster.api.get("/v1/models/points/one").await?.json()?, *model);

    let health = cluster.api.get("/health").await?;
    assert_eq!(health.status, 200);
    let health = health.json()?;
    assert_eq!(health["status"], "healthy");
    let instances = health["instances"].as_array().unwrap();
    assert_eq!(instances.len(), 2);
    for instance in instances {
        for field in ["component", "endpoint", "instance_id", "model", "state"] {
            assert!(instance[field].is_string(), "{field} of {instance}");
        }
        assert_eq!(instance["state"], "ready");
        assert!(
            instance["transport"].to_string().contains("127.0.0.1:"),
            "{instance}"
        );
    }
    for path in ["/live", "/ready"] {
        assert_eq!(cluster.api.get(path).await?.status, 200, "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn requests_and_tokens_are_counted() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let body = json!({"model": cluster.model, "messages": Workload::new(12).chat(50), "max_tokens": 4});
    let first = ok(&cluster.api, CHAT, &body).await?;
    let again = ok(&cluster.api, CHAT, &body).await?;
    cluster
        .api
        .post(
            CHAT,
            &json!({"model": "nobody", "messages": [{"role": "user", "content": "x"}]}),
        )
        .await?;
    cluster.idle().await?;
    let metrics = cluster.metrics().await?;
    let tokens = |answer: &Value, field: &str| answer["usage"][field].as_f64().unwrap();
    let model = [("model", cluster.model.as_str())];
    assert_eq!(metrics.sum("signalbox_requests_total", &[("status", "200")]), 2.0);
    assert_eq!(metrics.sum("signalbox_requests_total", &[("status", "404")]), 1.0);
    let prompts = tokens(&first, "prompt_tokens") + tokens(&again, "prompt_tokens");
    assert_eq!(metrics.sum("signalbox_prompt_tokens_total", &model), prompts);
    assert_eq!(metrics.sum("signalbox_completion_tokens_total", &model), 8.0);
    let cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
        .as_f64()
        .unwrap();
    assert_eq!(metrics.sum("signalbox_cached_tokens_total", &model), cached);
    assert_eq!(metrics.sum("signalbox_policy_decisions_total", &[]), 2.0);
    assert!(
        metrics.has("signalbox_decision_seconds_bucket"),
        "a histogram, not a summary"
    );
    Ok(())
}

/// More bytes than a worker keeps of a stream that is not read.
#[tokio::test]
async fn a_whole_answer_of_many_megabytes_arrives() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let body = json!({
        "model": cluster.model, "messages": Workload::new(8).chat(10), "n": 4, "max_tokens": 1_500, "ignore_eos": true,
        "logprobs": true, "top_logprobs": 20,
    });
    let reply = cluster.api.post(CHAT, &body).await?;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert!(reply.body.len() > 5 << 20, "{} bytes", reply.body.len());
    assert_eq!(reply.json()?["usage"]["completion_tokens"], 6_000);
    Ok(())
}

#[tokio::test]
async fn a_limit_that_the_prompt_leaves_no_room_for_is_lowered_to_the_room() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let models = cluster.api.get("/v1/models").await?.json()?;
    let context = models["data"][0]["max_model_len"].as_u64().unwrap();
    // A prompt that leaves room for a hundred tokens or so, and a limit of the whole context.
    let prompt = vec![5; usize::try_from(context)? - 100];
    let body = json!({"model": cluster.model, "prompt": prompt, "max_tokens": context, "ignore_eos": true});
    let answer = ok(&cluster.api, COMPLETIONS, &body).await?;
    assert_eq!(answer["usage"]["completion_tokens"], 100);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let body = json!({"model": cluster.model, "prompt": prompt, "max_tokens": context + 1});
    let reply = cluster.api.post(COMPLETIONS, &body).await?;
    assert_eq!(
        (reply.status, &reply.error()?["param"]),
        (400, &json!("max_tokens"))
    );
    Ok(())
}
