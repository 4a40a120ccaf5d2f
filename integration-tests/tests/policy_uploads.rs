//! Uploads are checked before they may decide anything.

use std::path::Path;

use reqwest::Method;
use serde_json::{Value, json};
use signalbox_integration_tests::{Cluster, Reply, process::Process, workspace_root};

const UPLOAD: &str = "/admin/v1/policies";

async fn cluster() -> anyhow::Result<Cluster> {
    Cluster::sim(&["--workers=1", "--speedup=0"]).await
}

/// `curl --data-binary @… '…?name=…'`, with the content type curl gives it.
async fn upload(cluster: &Cluster, query: &str, component: Vec<u8>) -> anyhow::Result<Reply> {
    let form = [("content-type", "application/x-www-form-urlencoded")];
    cluster
        .admin
        .send(Method::POST, &format!("{UPLOAD}?{query}"), &form, component)
        .await
}

fn round_robin() -> anyhow::Result<Vec<u8>> {
    Ok(std::fs::read(
        workspace_root().join("policies/built/round-robin.wasm"),
    )?)
}

fn guest(name: &str) -> anyhow::Result<Vec<u8>> {
    Ok(std::fs::read(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("guests")
            .join(format!("{name}.wasm")),
    )?)
}

#[tokio::test]
async fn an_uploaded_policy_has_a_digest_and_a_version_and_decides_once_activated() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let reply = upload(&cluster, "name=mine", round_robin()?).await?;
    assert_eq!(reply.status, 201, "{}", reply.text());
    let record = reply.json()?;
    assert_eq!(record["name"], "mine");
    assert_eq!(
        record["digest"]
            .as_str()
            .unwrap()
            .trim_start_matches("sha256:")
            .len(),
        64,
        "{record}"
    );
    let version = record["version"].as_str().unwrap().to_owned();
    assert!(!version.is_empty());

    let again = upload(&cluster, "name=mine", round_robin()?).await?;
    assert_eq!(
        again.status,
        200,
        "the same bytes are the same version: {}",
        again.text()
    );
    assert_eq!(
        (&again.json()?["digest"], &again.json()?["version"]),
        (&record["digest"], &record["version"])
    );
    let listed = cluster.admin.get(UPLOAD).await?.json()?;
    let mine: Vec<&Value> = listed["policies"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|policy| policy["name"] == "mine")
        .collect();
    assert_eq!(mine.len(), 1, "{listed}");

    let body =
        json!({"model": cluster.model, "messages": [{"role": "user", "content": "Who?"}], "max_tokens": 1});
    let before = cluster.api.post("/v1/chat/completions", &body).await?;
    assert!(
        before.header("x-signalbox-policy").starts_with("kv-aware@"),
        "an upload does not activate the policy"
    );
    let label = cluster.activate("mine").await?;
    assert_eq!(label, format!("mine@{version}"));
    let after = cluster.api.post("/v1/chat/completions", &body).await?;
    assert_eq!(after.header("x-signalbox-policy"), label);
    Ok(())
}

#[tokio::test]
async fn an_upload_that_is_no_policy_is_refused_with_the_reason() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let mut cut = round_robin()?;
    cut.truncate(cut.len() / 2);
    let cases: [(&str, Vec<u8>, &[&str]); 9] = [
        ("nothing", Vec::new(), &["empty", "WebAssembly", "component"]),
        (
            "text",
            b"function decide() {}".to_vec(),
            &["WebAssembly", "component"],
        ),
        (
            "half a component",
            cut,
            &["not valid", "end", "cut", "unexpected"],
        ),
        ("a core module", guest("core-module")?, &["module"]),
        ("another world", guest("other-world")?, &["example:greeter"]),
        ("an import of its own", guest("foreign-import")?, &["wasi:clocks"]),
        (
            "a column no host has",
            guest("unknown-column")?,
            &["phase-of-the-moon"],
        ),
        (
            "a loop in configure",
            guest("loop-in-configure")?,
            &["budget", "time", "ms"],
        ),
        ("settings that are unknown", round_robin()?, &["weight"]),
    ];
    for (case, component, words) in cases {
        let query = if case.starts_with("settings") {
            "name=bad&settings=%7B%22weight%22%3A1%7D"
        } else {
            "name=bad"
        };
        let reply = upload(&cluster, query, component).await?;
        assert_eq!(reply.status, 422, "{case}: {}", reply.text());
        let message = reply.error()?["message"].as_str().unwrap().to_owned();
        assert!(
            words.iter().any(|word| message.contains(word)),
            "{case}: {message}"
        );
        println!("{case}: {message}");
    }
    let listed = cluster.admin.get(UPLOAD).await?.json()?;
    let names: Vec<&str> = listed["policies"]
        .as_array()
        .unwrap()
        .iter()
        .map(|policy| policy["name"].as_str().unwrap())
        .collect();
    assert!(!names.contains(&"bad"), "{names:?}");
    Ok(())
}

/// Two components that call each other: joining them made the compiler panic.
fn two_memories() -> anyhow::Result<Vec<u8>> {
    let text = include_str!("../../runtime/policy-host/tests/two-memories.wat");
    Ok(wat::parse_str(text)?)
}

#[tokio::test]
async fn a_component_with_two_memories_is_refused_with_a_sentence() -> anyhow::Result<()> {
    let component = two_memories()?;
    let folder = tempfile::TempDir::new()?;
    let path = folder.path().join("two-memories.wasm");
    std::fs::write(&path, &component)?;
    let mut check = Process::start(&["policy", "check", &path.display().to_string()])?;
    check.ended().await?;
    let output = check.output();
    assert!(output.contains("a policy is a single component"), "{output}");
    assert!(!output.contains("panicked"), "{output}");
    let cluster = cluster().await?;
    let reply = upload(&cluster, "name=two", component).await?;
    assert_eq!(reply.status, 422, "{}", reply.text());
    assert!(reply.text().contains("a policy is a single component"));
    Ok(())
}

#[tokio::test]
async fn a_built_in_name_and_an_unknown_member_of_the_query_are_refused() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let reply = upload(&cluster, "name=kv-aware", round_robin()?).await?;
    assert_eq!(reply.status, 409, "{}", reply.text());
    let reply = upload(&cluster, "name=mine&setings=%7B%7D", round_robin()?).await?;
    assert_eq!(reply.status, 400, "{}", reply.text());
    let listed = cluster.admin.get(UPLOAD).await?.json()?;
    let stored = listed["policies"].as_array().cloned().unwrap_or_default();
    assert!(
        !stored.is_empty() && stored.iter().all(|policy| policy["builtin"] == true),
        "{listed}"
    );
    Ok(())
}

#[tokio::test]
async fn a_component_that_is_too_large_is_refused_with_the_limit() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    for bytes in [3 << 20, 20 << 20] {
        let reply = upload(&cluster, "name=large", vec![0; bytes]).await?;
        assert_eq!(reply.status, 413, "{}", reply.text());
        let error = reply.error()?;
        assert!(
            error["message"]
                .as_str()
                .unwrap()
                .chars()
                .any(|character| character.is_ascii_digit()),
            "{error}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn invalid_names_and_activations_are_refused() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    for query in ["", "name=", "name=a%20b", "name=%0d%0ax-evil:1", "name=a@1"] {
        let reply = upload(&cluster, query, round_robin()?).await?;
        assert!([400, 422].contains(&reply.status), "{query}: {}", reply.text());
        assert!(
            reply.error()?["message"].as_str().unwrap().contains("name"),
            "{query}: {}",
            reply.text()
        );
    }
    let path = format!("/admin/v1/models/{}/policy", cluster.model);
    let unknown = cluster.admin.put(&path, &json!({"policy": "nobody"})).await?;
    assert_eq!(unknown.status, 404);
    let message = unknown.error()?["message"].as_str().unwrap().to_owned();
    assert!(
        message.contains("nobody") && message.contains("kv-aware"),
        "names the known policies: {message}"
    );
    let version = cluster
        .admin
        .put(&path, &json!({"policy": "kv-aware@99.0.0"}))
        .await?;
    assert_eq!(version.status, 404, "{}", version.text());
    let model = cluster
        .admin
        .put("/admin/v1/models/nobody/policy", &json!({"policy": "kv-aware"}))
        .await?;
    assert_eq!(
        (model.status, &model.json()?["served"]),
        (200, &false.into()),
        "a model can be prepared before a worker serves it: {}",
        model.text()
    );
    for body in ["", "{", "{\"policy\":7}", "{\"polcy\":\"kv-aware\"}"] {
        let reply = cluster.admin.send(Method::PUT, &path, &[], body).await?;
        assert_eq!(reply.status, 400, "{body}: {}", reply.text());
    }
    let body =
        json!({"model": cluster.model, "messages": [{"role": "user", "content": "Who?"}], "max_tokens": 1});
    let reply = cluster.api.post("/v1/chat/completions", &body).await?;
    assert!(
        reply.header("x-signalbox-policy").starts_with("kv-aware@"),
        "the active policy is unchanged"
    );
    Ok(())
}

#[tokio::test]
async fn the_admin_api_refuses_foreign_web_pages() -> anyhow::Result<()> {
    let cluster = Cluster::sim(&["--workers=1", "--speedup=0"]).await?;
    let page = [("origin", "https://evil.example")];
    let reply = cluster
        .admin
        .send(
            Method::POST,
            &format!("{UPLOAD}?name=evil"),
            &page,
            round_robin()?,
        )
        .await?;
    assert_eq!(reply.status, 401, "a page of another origin: {}", reply.text());
    let reply = cluster
        .admin
        .send(Method::GET, UPLOAD, &[("host", "evil.example")], "")
        .await?;
    assert_eq!(reply.status, 401, "a host name that foreign DNS points here");
    Ok(())
}
