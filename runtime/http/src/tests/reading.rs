//! What the router answers itself: tokens, models, metrics and the document of the API; and how requests may be written.

use serde_json::json;

use super::*;

#[actix_rt::test]
async fn texts_and_chats_become_tokens_and_tokens_a_text() {
    let rig = Rig::serving("tokens").await;
    let text = rig.router.model("tokens").unwrap().text;
    let tokens = text.encode_prompt("héllo").unwrap();
    for body in [
        json!({"model": "tokens", "prompt": "héllo", "return_token_strs": true}),
        json!({"prompt": "héllo", "return_token_strs": true}),
    ] {
        let reply = rig.public(&post("/tokenize", &body.to_string())).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        let reply = reply.json();
        assert_eq!(
            (&reply["tokens"], &reply["count"]),
            (&json!(tokens), &json!(tokens.len()))
        );
        assert_eq!(reply["max_model_len"], 512);
        let written: Vec<_> = tokens.iter().map(|token| text.written_token(*token)).collect();
        assert_eq!(reply["token_strs"], json!(written));
    }
    let messages = json!([{"role": "user", "content": "hello"}]);
    let body = json!({"model": "tokens", "messages": messages}).to_string();
    let chat = text
        .encode_chat(&signalbox_tokenize::ChatPrompt::new(&messages))
        .unwrap();
    let reply = rig.public(&post("/tokenize", &body)).await.json();
    assert_eq!(
        (&reply["tokens"], &reply["token_strs"]),
        (&json!(chat), &Value::Null)
    );
    let info = rig.public(&get("/tokenizer_info")).await.json();
    assert!(info["eos_token"].is_string(), "{info}");
    let body = json!({"model": "tokens", "tokens": tokens}).to_string();
    let reply = rig.public(&post("/detokenize", &body)).await;
    assert!(reply.header("x-request-id").is_some());
    assert_eq!(reply.json(), json!({"prompt": "héllo"}));
    // As in vLLM, a special token has its text.
    let end = text.eos_tokens()[0];
    let body = json!({"model": "tokens", "tokens": [tokens[0], end]}).to_string();
    let reply = rig.public(&post("/detokenize", &body)).await.json();
    assert_eq!(reply["prompt"], format!("h{}", text.written_token(end)));
}

#[actix_rt::test]
async fn a_chat_with_tools_is_tokenized_as_it_is_answered() {
    let mut rig = Rig::serving("tool-tokens").await;
    let tool = json!({"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}});
    let message = json!({"role": "user", "content": "hello"});
    let body = json!({"model": "tool-tokens", "messages": [message], "tools": [tool]}).to_string();
    let request = post("/v1/chat/completions", &body);
    let (_, _, parts) = rig
        .answered(request, |responder| responder.end(StreamSummary::default()))
        .await;
    let reply = rig.public(&post("/tokenize", &body)).await.json();
    assert_eq!(reply["tokens"], json!(parts.tokens));
    let plain = json!({"model": "tool-tokens", "messages": [message], "tools": []}).to_string();
    let plain = rig.public(&post("/tokenize", &plain)).await.json();
    assert!(plain["count"].as_u64() < reply["count"].as_u64(), "{plain}");
}

#[actix_rt::test]
async fn wrong_calls_of_the_tokenizer_are_refused_by_name() {
    let rig = Rig::serving("no-tokens").await;
    for (path, body, param) in [
        ("/tokenize", json!({"model": "no-tokens"}), "messages"),
        ("/tokenize", json!({"model": "no-tokens", "prompt": 1}), "prompt"),
        ("/tokenize", json!({"model": 7, "prompt": "x"}), "model"),
        (
            "/tokenize",
            json!({"model": "no-tokens", "messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]}),
            "tools[0].function",
        ),
        ("/detokenize", json!({"model": "no-tokens"}), "tokens"),
        (
            "/detokenize",
            json!({"model": "no-tokens", "tokens": [1, -1]}),
            "tokens[1]",
        ),
        (
            "/detokenize",
            json!({"model": "no-tokens", "tokens": [1, 100_000]}),
            "tokens[1]",
        ),
    ] {
        let reply = rig.public(&post(path, &body.to_string())).await;
        reply.check_error(400, Some(param));
    }
}

#[actix_rt::test]
async fn paths_may_have_slashes_too_many_and_names_of_models_slashes() {
    let rig = Rig::serving("org/family/model").await;
    for path in [
        "/v1/models/org/family/model",
        "/v1/models/org%2Ffamily%2Fmodel",
        "//v1//models/org/family/model/",
    ] {
        let reply = rig.public(&get(path)).await;
        assert_eq!(
            (reply.status, &reply.json()["id"]),
            (200, &json!("org/family/model")),
            "{path}"
        );
    }
    assert_eq!(rig.public(&get("/v1/models/")).await.json()["object"], "list");
    for path in [
        "/v1/models",
        "/v1/models/org/family/model",
        "/health",
        "/openapi.json",
    ] {
        let reply = rig.public(&request("HEAD", path, "")).await;
        assert_eq!((reply.status, reply.body.len()), (200, 0), "{path}");
    }
    let unknown = rig.public(&get("/v1/models/org/family")).await;
    unknown.check_error(404, Some("model"));
    assert_eq!(unknown.json()["error"]["code"], "model_not_found");
}

#[actix_rt::test]
async fn pages_of_allowed_origins_may_use_the_api() {
    let configure = |config: &mut HttpConfig| config.cors_origins = vec!["https://a.example".into()];
    let rig = Rig::start(Some("cors"), configure).await;
    let asked = |method: &str, origin: &str| {
        let more = format!(
            "Origin: {origin}\r\nAccess-Control-Request-Method: POST\r\n\
             Access-Control-Request-Headers: authorization\r\nHost:"
        );
        request(method, "/v1/models", "").replace("Host:", &more)
    };
    let preflight = rig.public(&asked("OPTIONS", "https://a.example")).await;
    assert_eq!((preflight.status, preflight.body.len()), (204, 0));
    assert_eq!(
        preflight.header("access-control-allow-origin"),
        Some("https://a.example")
    );
    assert_eq!(
        preflight.header("access-control-allow-headers"),
        Some("authorization")
    );
    let answer = rig.public(&asked("GET", "https://a.example")).await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("access-control-allow-origin"),
        Some("https://a.example")
    );
    assert_eq!(answer.header("vary"), Some("origin"));
    for method in ["OPTIONS", "GET"] {
        let other = rig.public(&asked(method, "https://b.example")).await;
        assert_eq!(other.status, if method == "GET" { 200 } else { 405 });
        assert_eq!(other.header("access-control-allow-origin"), None);
    }
}

#[actix_rt::test]
async fn metrics_are_beside_the_api_only_if_asked_for() {
    let hidden = Rig::start(None, |_| ()).await;
    assert_eq!(hidden.public(&get("/metrics")).await.status, 404);
    let shown = Rig::start(None, |config| config.public_metrics = true).await;
    let reply = shown.public(&get("/metrics")).await;
    assert_eq!(reply.status, 200);
    assert!(reply.text().contains("signalbox_"), "{}", reply.text());
}

#[actix_rt::test]
async fn the_document_of_the_api_names_every_route() {
    let rig = Rig::start(None, |_| ()).await;
    let document = rig.public(&get("/openapi.json")).await.json();
    for path in [
        "/v1/chat/completions",
        "/v1/completions",
        "/tokenize",
        "/v1/models/{id}",
        "/score",
    ] {
        assert!(document["paths"][path].is_object(), "{path}");
    }
    assert!(document["paths"]["/metrics"].is_null());
}
