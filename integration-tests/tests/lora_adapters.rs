//! LoRA adapters of fake engines behind `runtime up --upstream`: each is a model of its own, served where it is loaded, with
//! KV blocks apart from the base model's.

use std::collections::BTreeSet;

use anyhow::Context;
use serde_json::{Value, json};
use signalbox_integration_tests::{
    Api, NextDoor, Reply, eventually, fake_engine::EngineOptions, workload::Workload,
};
use tokio::task::JoinSet;

const CHAT: &str = "/v1/chat/completions";

fn vllm(adapters: &[&str]) -> EngineOptions {
    EngineOptions {
        adapters: adapters.iter().map(|adapter| (*adapter).to_owned()).collect(),
        ..EngineOptions::default()
    }
}

fn sglang(adapters: &[&str]) -> EngineOptions {
    EngineOptions {
        adapters: vllm(adapters).adapters,
        ..EngineOptions::sglang()
    }
}

/// A chat with `model` about `content`.
async fn chat(door: &NextDoor, model: &str, content: &str) -> anyhow::Result<Reply> {
    let mut body = door.chat(content);
    body["model"] = json!(model);
    door.cluster.api.post(CHAT, &body).await
}

/// The names in `/v1/models`, each with its parent and its root.
async fn models(door: &NextDoor) -> anyhow::Result<Vec<(String, Value, Value)>> {
    let models = door.cluster.api.get("/v1/models").await?.json()?;
    let models = models["data"].as_array().context("no list of models")?;
    let described = models.iter().map(|model| {
        let id = model["id"].as_str().unwrap_or_default().to_owned();
        (id, model["parent"].clone(), model["root"].clone())
    });
    Ok(described.collect())
}

#[tokio::test]
async fn an_adapter_is_a_model_served_where_it_is_loaded() -> anyhow::Result<()> {
    let door = NextDoor::start(&[vllm(&["sql", "both"]), vllm(&["both"])]).await?;
    eventually("both workers are ready", || async {
        let ready = [door.worker_view(0).await?, door.worker_view(1).await?];
        Ok(ready.iter().all(|view| view["state"] == "ready").then_some(()))
    })
    .await?;
    let adapter = |name: &str| (name.to_owned(), json!("fake"), json!(format!("/adapters/{name}")));
    assert_eq!(
        models(&door).await?,
        [
            adapter("both"),
            ("fake".into(), Value::Null, Value::Null),
            adapter("sql")
        ]
    );
    let view = door.worker_view(0).await?;
    assert_eq!(
        view["adapters"][0],
        json!({"name": "sql", "root": "/adapters/sql"})
    );
    let mut requests = JoinSet::new();
    let mut workload = Workload::new(11);
    for _ in 0..10 {
        let mut body = door.chat(&workload.text(100));
        body["model"] = json!("both");
        let api = door.cluster.api.clone();
        requests.spawn(async move { api.post(CHAT, &body).await });
    }
    let mut workers = BTreeSet::new();
    while let Some(answered) = requests.join_next().await {
        workers.insert(answered??.header("x-signalbox-worker").to_owned());
    }
    assert_eq!(workers.len(), 2, "{workers:?}");
    for _ in 0..10 {
        let reply = chat(&door, "sql", &workload.text(100)).await?;
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(reply.header("x-signalbox-worker"), door.worker(0));
        assert_eq!(reply.json()?["model"], "sql");
    }
    let unknown = chat(&door, "other", "Hello").await?;
    assert_eq!(unknown.status, 404);
    let error = unknown.json()?["error"].clone();
    assert_eq!(error["param"], "model");
    let message = error["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("\"other\"") && message.contains("both, fake, sql"),
        "{message}"
    );
    Ok(())
}

#[tokio::test]
async fn the_blocks_of_an_adapter_are_apart_from_the_base_models() -> anyhow::Result<()> {
    for options in [vllm(&["sql"]), sglang(&["sql"])] {
        let door = NextDoor::start(&[options]).await?;
        door.reaches(0, "exact").await?;
        let text = Workload::new(12).text(200);
        let overlap = async |model: &str| {
            let reply = chat(&door, model, &text).await?;
            assert_eq!(reply.status, 200, "{}", reply.text());
            door.indexed().await?;
            let cached = reply.json()?["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
            let overlap: u64 = reply.header("x-signalbox-overlap-blocks").parse()?;
            anyhow::Ok((overlap, cached.unwrap_or(0)))
        };
        assert_eq!(overlap("fake").await?, (0, 0));
        assert_eq!(
            overlap("sql").await?,
            (0, 0),
            "the base model's blocks are not the adapter's"
        );
        for model in ["fake", "sql"] {
            let (overlap, cached) = overlap(model).await?;
            assert!(
                overlap > 10 && overlap.abs_diff(cached / 16) <= 1,
                "{model}: {overlap}, {cached}"
            );
        }
        for _ in 0..20 {
            overlap("sql").await?;
        }
        door.reaches(0, "exact").await?;
    }
    Ok(())
}

#[tokio::test]
async fn sglang_gets_the_adapters_name_where_it_looks_for_it() -> anyhow::Result<()> {
    let door = NextDoor::start(&[sglang(&["sql"])]).await?;
    chat(&door, "sql", "Hello").await?;
    let seen = door.engines[0].seen();
    let sent = seen
        .iter()
        .rfind(|request| request.path == CHAT)
        .context("no chat arrived")?;
    let sent: Value = serde_json::from_slice(&sent.body)?;
    assert_eq!(
        (&sent["model"], &sent["lora_path"]),
        (&json!("sql"), &json!("sql"))
    );
    let body = json!({"model": "sql", "input": "Hello"});
    let refused = door.cluster.api.post("/v1/responses", &body).await?;
    assert_eq!(refused.status, 400, "{}", refused.text());
    assert!(refused.text().contains("LoRA adapter"), "{}", refused.text());
    Ok(())
}

#[tokio::test]
async fn adapters_are_loaded_and_unloaded_while_the_engine_runs() -> anyhow::Result<()> {
    let door = NextDoor::start(&[vllm(&["old"])]).await?;
    let engine = Api::new(&door.engines[0].url())?;
    let epoch = door.worker_view(0).await?["card"]["epoch"].clone();
    let load = json!({"lora_name": "new", "lora_path": "/adapters/new"});
    assert_eq!(engine.post("/v1/load_lora_adapter", &load).await?.status, 200);
    let unload = json!({"lora_name": "old"});
    assert_eq!(engine.post("/v1/unload_lora_adapter", &unload).await?.status, 200);
    eventually("the router serves what the engine has loaded", || async {
        let (new, old) = (
            chat(&door, "new", "Hello").await?,
            chat(&door, "old", "Hello").await?,
        );
        Ok((new.status == 200 && old.status == 404).then_some(()))
    })
    .await?;
    let names: Vec<String> = models(&door).await?.into_iter().map(|(id, ..)| id).collect();
    assert_eq!(names, ["fake", "new"]);
    let error = chat(&door, "old", "Hello").await?;
    assert!(
        error.text().contains("served here: fake, new"),
        "the router's own answer: {}",
        error.text()
    );
    assert_eq!(
        door.worker_view(0).await?["card"]["epoch"],
        epoch,
        "the worker went on"
    );
    Ok(())
}
