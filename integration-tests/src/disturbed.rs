//! Streams under way while one of the workers that write them is lost.

use std::sync::Arc;

use anyhow::ensure;
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinSet};

use crate::{Api, Streamed};

const CHAT: &str = "/v1/chat/completions";

/// Events that a client has read when its stream counts as begun, so that the answer is cut in its middle.
const BEGUN_EVENTS: usize = 5;

/// Chats that are streamed at the same time.
#[derive(Debug)]
pub struct DisturbedChats {
    api: Api,
    streams: JoinSet<anyhow::Result<(Streamed, Value)>>,
    begun: watch::Receiver<usize>,
}

impl DisturbedChats {
    /// Sends these chats, each as a stream with usage. Those that `worker` answers are counted when they have begun.
    pub fn start(api: &Api, bodies: impl IntoIterator<Item = Value>, worker: &str) -> Self {
        let (count, begun) = watch::channel(0);
        let count = Arc::new(count);
        let mut streams = JoinSet::new();
        for mut body in bodies {
            body["stream"] = json!(true);
            body["stream_options"] = json!({"include_usage": true});
            let (api, count, worker) = (api.clone(), count.clone(), worker.to_owned());
            streams.spawn(async move {
                let mut stream = api.stream(CHAT, &body).await?;
                let mut first = Vec::new();
                for _ in 0..BEGUN_EVENTS {
                    first.extend(stream.next().await?);
                }
                if stream.header("x-signalbox-worker") == worker {
                    count.send_modify(|count| *count += 1);
                }
                let mut answer = stream.rest().await?;
                answer.events.splice(0..0, first);
                Ok((answer, body))
            });
        }
        Self {
            api: api.clone(),
            streams,
            begun,
        }
    }

    /// Waits until the worker has begun this many answers.
    ///
    /// # Errors
    /// All streams have ended before.
    pub async fn begun(&mut self, least: usize) -> anyhow::Result<()> {
        self.begun.wait_for(|count| *count >= least).await?;
        Ok(())
    }

    /// Checks that each client has read one whole answer, equal to the undisturbed one: the same chat sent again, as a
    /// document, to an engine whose tokens depend on the request alone. Returns the streams.
    ///
    /// # Errors
    /// An answer is broken, is made of two, or differs.
    pub async fn whole(mut self) -> anyhow::Result<Vec<Streamed>> {
        let mut undisturbed = JoinSet::new();
        while let Some(answer) = self.streams.join_next().await {
            let (answer, mut body) = answer??;
            body["stream"] = json!(false);
            body["stream_options"] = json!(null);
            let api = self.api.clone();
            undisturbed.spawn(async move { anyhow::Ok((answer, api.post(CHAT, &body).await?.json()?)) });
        }
        let mut answers = Vec::new();
        while let Some(both) = undisturbed.join_next().await {
            let (answer, whole) = both??;
            ensure_equal(&answer, &whole)?;
            answers.push(answer);
        }
        Ok(answers)
    }
}

fn ensure_equal(answer: &Streamed, whole: &Value) -> anyhow::Result<()> {
    ensure!(answer.status == 200, "status {}", answer.status);
    ensure!(answer.is_whole(), "not whole: {:?}", answer.events.last());
    let chunks = answer.chunks()?;
    for name in ["id", "created", "model", "object"] {
        let is_one = chunks.iter().all(|chunk| chunk[name] == chunks[0][name]);
        ensure!(is_one, "one answer has more than one {name}");
    }
    let (content, finish) = (answer.text(0)?, answer.finish_reason(0)?.unwrap_or_default());
    let choice = &whole["choices"][0];
    ensure!(
        choice["message"]["content"] == content,
        "{content:?} is not of {choice}"
    );
    ensure!(choice["finish_reason"] == finish, "{finish:?} is not of {choice}");
    let usage = answer.usage()?;
    for count in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        let expected = &whole["usage"][count];
        ensure!(
            usage[count] == *expected,
            "{count}: {} and not {expected}",
            usage[count]
        );
    }
    Ok(())
}
