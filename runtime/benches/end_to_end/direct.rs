//! Sends requests to the workers over the request plane, as a router does, but without a router. The latency that a
//! router adds is the difference to this.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;
use bytes::Bytes;
use futures_util::StreamExt;
use signalbox_protocol::{AnswerFormat, Call, Endpoint, GenerateRequest, RequestId, SamplingParams};
use signalbox_request_plane::{CallParts, LinkConfig, LinkHandle, ResponseEvent};
use signalbox_tokenize::{ChatPrompt, ModelArtifacts, ModelText};

/// Links to all workers, used in turn.
pub(crate) struct Direct {
    links: Vec<LinkHandle>,
    text: ModelText,
    model: String,
}

impl Direct {
    pub(crate) fn new(addresses: &[&str], tokenizer: Option<&Path>, model: &str) -> anyhow::Result<Self> {
        let artifacts = match tokenizer {
            Some(folder) => ModelArtifacts::from_hf_folder(folder)?,
            None => ModelArtifacts::byte_level(),
        };
        let link = |address: &&str| LinkHandle::start((*address).to_owned(), LinkConfig::default(), None);
        Ok(Self {
            links: addresses.iter().map(link).collect(),
            text: ModelText::load(&artifacts)?,
            model: model.to_owned(),
        })
    }

    /// The call that a router makes of this request body.
    pub(crate) fn call(&self, number: usize, body: &str) -> anyhow::Result<CallParts> {
        let request: serde_json::Value = serde_json::from_str(body)?;
        let max_tokens = request["max_tokens"].as_u64().unwrap_or(16) as u32;
        Ok(CallParts {
            call: Call::Generate(GenerateRequest {
                id: RequestId::from_random(number as u128),
                model: self.model.clone(),
                deadline_ms: 60_000,
                lora: String::new(),
                cache_salt: String::new(),
                priority: 0,
                overlap_blocks: 0,
                wants_token_ids: false,
                continuation: None,
                constraint: None,
                sampling: SamplingParams {
                    max_tokens,
                    ..SamplingParams::default()
                },
                format: AnswerFormat {
                    endpoint: Endpoint::Chat,
                    stream: true,
                    include_usage: false,
                    echo: None,
                    return_token_ids: false,
                    continuous_usage: false,
                    tools: None,
                    created: 1,
                    part: None,
                },
            }),
            tokens: self.text.encode_chat(&ChatPrompt::new(&request["messages"]))?,
            body: Bytes::copy_from_slice(body.as_bytes()),
        })
    }

    pub(crate) fn link(&self, number: usize) -> LinkHandle {
        self.links[number % self.links.len()].clone()
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        for link in &self.links {
            link.close();
        }
    }
}

/// The times from `due` to the first bytes and to the end.
pub(crate) async fn stream(
    link: LinkHandle,
    call: CallParts,
    due: Instant,
) -> anyhow::Result<(Duration, Duration)> {
    let mut stream = link.open(&call)?;
    let mut first = None;
    while let Some(event) = stream.next().await {
        match event? {
            ResponseEvent::Data { .. } => _ = first.get_or_insert_with(|| due.elapsed()),
            ResponseEvent::End(_) => break,
        }
    }
    Ok((first.context("no token came")?, due.elapsed()))
}
