//! The fake engine answers as a real vLLM did: the same errors, and documents and events with the same members in the
//! same order. `fixtures/README.md` says where the captures come from.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, ensure};
use reqwest::Method;
use serde_json::Value;
use signalbox_integration_tests::{
    Api, Reply,
    fake_engine::{EngineOptions, FakeEngine},
};

/// Members whose values are part of the shape.
const KEPT: [&str; 5] = ["object", "finish_reason", "role", "type", "publisher"];

struct Capture {
    name: String,
    method: Method,
    path: String,
    headers: Vec<(String, String)>,
    body: String,
    status: u16,
    content_type: String,
    answer: String,
}

impl Capture {
    fn all() -> anyhow::Result<Vec<Self>> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/vllm-0.32");
        let mut captures = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path
                .file_stem()
                .context("no name")?
                .to_string_lossy()
                .into_owned();
            let text = fs::read_to_string(&path)?;
            captures.push(Self::parse(name, &text).with_context(|| path.display().to_string())?);
        }
        ensure!(captures.len() > 30, "only {} captures", captures.len());
        Ok(captures)
    }

    fn parse(name: String, text: &str) -> anyhow::Result<Self> {
        let (text, _) = text.rsplit_once("\n# first byte").context("no trailer")?;
        let request: Vec<&str> = text.lines().map_while(|line| line.strip_prefix("> ")).collect();
        let line: Vec<&str> = request.first().context("no request")?.split(' ').collect();
        let header = |line: &&str| {
            let (name, value) = line.split_once(": ")?;
            Some((name.to_lowercase(), value.to_owned()))
        };
        let is_sent = |(name, _): &(String, String)| name == "content-type" || name.starts_with("x-");
        let head: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("< ")).collect();
        let status = head
            .first()
            .and_then(|line| line.split(' ').nth(1))
            .context("no status")?;
        let content_type = head
            .iter()
            .filter_map(header)
            .find(|(name, _)| name == "content-type");
        let (_, answer) = text
            .rsplit_once(head.last().context("no head")?)
            .context("no answer")?;
        Ok(Self {
            name,
            method: line[0].parse()?,
            path: line[1].into(),
            headers: request[1..]
                .iter()
                .take_while(|line| !line.is_empty())
                .filter_map(header)
                .filter(is_sent)
                .collect(),
            body: request
                .iter()
                .skip_while(|line| !line.is_empty())
                .nth(1)
                .map(|body| body.replace("<5000 x 'word '>", &"word ".repeat(5000)))
                .unwrap_or_default(),
            status: status.parse()?,
            content_type: content_type.map(|(_, value)| value).unwrap_or_default(),
            answer: answer.trim().into(),
        })
    }

    async fn send(&self, api: &Api) -> anyhow::Result<Reply> {
        let headers: Vec<(&str, &str)> = self
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        // The made-up model would end many answers early, and its vocabulary is smaller.
        let body = match serde_json::from_str::<Value>(&self.body) {
            Ok(mut body) if self.status == 200 && self.path.starts_with("/v1/") => {
                body["ignore_eos"] = true.into();
                if body["prompt"][0].is_number() {
                    body["prompt"] = serde_json::json!([1, 2, 3]);
                }
                body.to_string()
            }
            Ok(mut body) if self.path == "/detokenize" => {
                body["tokens"] = serde_json::json!([100, 101]);
                body.to_string()
            }
            _ => self.body.clone(),
        };
        api.send(self.method.clone(), &self.path, &headers, body).await
    }
}

/// The engine that the captures are of.
async fn engine() -> anyhow::Result<FakeEngine> {
    FakeEngine::start(EngineOptions {
        model: "smollm2".into(),
        context_length: 4096,
        block_size: 32,
        tool_parser: false,
        ..EngineOptions::default()
    })
    .await
}

/// Members in order, and what kind of value each has.
fn shape(name: &str, value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(_) => "number".into(),
        Value::String(text) if KEPT.contains(&name) => format!("{text:?}"),
        Value::String(_) => "string".into(),
        Value::Array(items) => format!(
            "[{}]",
            items.first().map_or(String::new(), |item| shape("", item))
        ),
        // The alternatives of a token, by their texts.
        Value::Object(members) if !members.is_empty() && members.values().all(Value::is_f64) => {
            "{text:number}".into()
        }
        Value::Object(members) => {
            let members = members
                .iter()
                .map(|(name, value)| format!("{name}:{}", shape(name, value)));
            format!("{{{}}}", members.collect::<Vec<_>>().join(","))
        }
    }
}

fn event_shapes(text: &str) -> anyhow::Result<BTreeMap<String, usize>> {
    let mut shapes = BTreeMap::new();
    for event in text
        .split("\n\n")
        .map(str::trim)
        .filter(|event| !event.is_empty())
    {
        // Anthropic's events and those of responses have names.
        let (name, data) = event
            .split_once("data: ")
            .with_context(|| format!("no event: {event:?}"))?;
        let shape = match data {
            "[DONE]" => data.into(),
            data => format!("{name}{}", shape("", &serde_json::from_str(data)?)),
        };
        *shapes.entry(shape).or_default() += 1;
    }
    Ok(shapes)
}

#[tokio::test]
async fn every_captured_request_is_answered_in_the_captured_shape() -> anyhow::Result<()> {
    let engine = engine().await?;
    let api = Api::new(&engine.url())?;
    for capture in Capture::all()? {
        let name = &capture.name;
        let reply = capture.send(&api).await.with_context(|| name.clone())?;
        assert_eq!(reply.status, capture.status, "{name}: {}", reply.text());
        assert_eq!(reply.header("content-type"), capture.content_type, "{name}");
        assert_eq!(reply.header("server"), "uvicorn", "{name}");
        if capture.status != 200 {
            assert_eq!(reply.text(), capture.answer, "{name}");
        } else if capture.content_type.starts_with("text/event-stream") {
            let (mut shapes, mut captured) = (event_shapes(&reply.text())?, event_shapes(&capture.answer)?);
            if name.contains("tool") {
                // The two models write a call in different numbers of tokens.
                shapes
                    .values_mut()
                    .chain(captured.values_mut())
                    .for_each(|count| *count = 1);
            }
            assert_eq!(shapes, captured, "{name}");
        } else if capture.answer.is_empty() {
            assert_eq!(reply.text(), "", "{name}");
        } else {
            let captured = serde_json::from_str(&capture.answer)?;
            assert_eq!(shape("", &reply.json()?), shape("", &captured), "{name}");
        }
    }
    Ok(())
}
