//! LoRA adapters of an engine next door, as clients and operators see them.

use serde_json::json;

use super::*;

/// A worker of the model `base` whose engine has the adapters `sql`, from a folder, and `org/chat`.
async fn rig() -> Rig {
    let adapter = |name: &str, root: Option<&str>| LoraAdapter {
        name: name.into(),
        root: root.map(Into::into),
    };
    Rig::adapting(
        "base",
        &[adapter("sql", Some("/adapters/sql")), adapter("org/chat", None)],
    )
    .await
}

#[actix_rt::test]
async fn an_adapter_is_listed_as_a_model_with_its_parent_and_root() {
    let rig = rig().await;
    let models = rig.public(&get("/v1/models")).await.json()["data"].clone();
    let shown = |model: &Value| {
        json!([
            model["id"],
            model["parent"],
            model["root"],
            model["max_model_len"]
        ])
    };
    let shown: Vec<_> = models.as_array().unwrap().iter().map(shown).collect();
    assert_eq!(
        shown,
        [
            json!(["base", null, null, 512]),
            json!(["org/chat", "base", null, 512]),
            json!(["sql", "base", "/adapters/sql", 512]),
        ]
    );
    assert!(models[0].get("parent").is_none(), "a base model has none");
    let one = rig.public(&get("/v1/models/org/chat")).await.json();
    assert_eq!(one["parent"], "base");
    let ready = rig.public(&get("/ready")).await.json();
    assert_eq!(ready["models"], json!(["base", "org/chat", "sql"]));
    let health = rig.public(&get("/health")).await.json();
    assert_eq!(health["instances"][0]["adapters"], json!(["sql", "org/chat"]));
    let workers = rig.admin(get("/admin/v1/workers").as_bytes()).await.json();
    assert_eq!(
        workers["workers"][0]["adapters"],
        json!([{"name": "sql", "root": "/adapters/sql"}, {"name": "org/chat"}])
    );
}

#[actix_rt::test]
async fn a_request_for_an_adapter_reaches_the_worker_with_its_name() {
    let mut rig = rig().await;
    let document = |responder: Responder| {
        responder.queue(1, b"{}").unwrap();
        responder.end(StreamSummary::default());
    };
    for (model, lora) in [("sql", "sql"), ("org/chat", "org/chat"), ("base", "")] {
        let (reply, received, parts) = rig.answered(chat(model, ""), document).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!((received.model.as_str(), received.lora.as_str()), (model, lora));
        assert!(
            !parts.tokens.is_empty(),
            "the tokens are those of the base model's template"
        );
        let decided_by = reply.header("x-signalbox-policy").unwrap();
        assert!(decided_by.starts_with("round-robin@"), "{decided_by}");
    }
    let unknown = rig
        .public(&chat("chat", ""))
        .await
        .check_error(404, Some("model"));
    assert!(unknown.contains("base, org/chat, sql"), "{unknown}");
}

#[actix_rt::test]
async fn the_policy_of_an_adapter_is_that_of_its_base_model() {
    let rig = rig().await;
    let path = "/admin/v1/models/org/chat/policy";
    for request in [
        get(path),
        request("PUT", path, r#"{"policy":"kv-aware"}"#),
        post(&format!("{path}/rollback"), ""),
    ] {
        let message = rig
            .admin(request.as_bytes())
            .await
            .check_error(400, Some("model"));
        assert!(message.contains("/admin/v1/models/base/policy"), "{message}");
    }
}
