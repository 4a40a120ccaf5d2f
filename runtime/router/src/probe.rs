//! A request of the router itself to an ejected worker: whether it answers again. So no client's request finds that out.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::json;
use signalbox_protocol::{
    AnswerFormat, Call, Endpoint, GenerateRequest, RequestId, SamplingParams, WorkerCard,
};
use signalbox_request_plane::{CallParts, LinkError, LinkHandle, ResponseEvent};
use tokio::time::timeout;

use crate::{breaker::Fault, latency::MeasuredLatency};

/// The time for the whole answer of a worker whose speed is not known, and the shortest of all.
const SHORTEST_LIMIT: Duration = Duration::from_secs(3);

/// The longest time for the whole answer. With the longest wait between probes it bounds how long a worker that is well
/// again gets no requests.
const LONGEST_LIMIT: Duration = Duration::from_secs(10);

/// How many times as long as usual the answer may take.
const SLACK: f32 = 4.0;

/// Tokens of the answer: more than one, because a worker may fail behind its first token.
const TOKENS: u32 = 4;

/// The prompt, in tokens that every tokenizer has, and fewer than a KV block usually has.
const PROMPT: [u32; 4] = [1, 2, 3, 4];

/// Whether the worker answers a small request. A refusal that is not a fault of the worker is an answer too: the worker may
/// have no room, or its engine no completions.
pub(crate) async fn probe(link: LinkHandle, card: Arc<WorkerCard>, usual: MeasuredLatency) -> bool {
    let limit = limit(usual);
    match timeout(limit, answer(&link, &card, limit)).await {
        Ok(Ok(has_tokens)) => has_tokens,
        Ok(Err(error @ LinkError::Refused(_))) => Fault::of(&error).is_none(),
        Ok(Err(_)) | Err(_) => false,
    }
}

/// How long a worker with this latency may take.
fn limit(usual: MeasuredLatency) -> Duration {
    let usual_ms = usual.ttft_ms.unwrap_or(0.0) + TOKENS as f32 * usual.itl_ms.unwrap_or(0.0);
    let scaled = Duration::try_from_secs_f32(SLACK * usual_ms / 1e3).unwrap_or(LONGEST_LIMIT);
    (SHORTEST_LIMIT + scaled).min(LONGEST_LIMIT)
}

/// Whether the answer has a token.
async fn answer(link: &LinkHandle, card: &WorkerCard, limit: Duration) -> Result<bool, LinkError> {
    let mut response = link.open(request(card, limit))?;
    let mut has_tokens = false;
    while let Some(event) = response.next().await {
        match event? {
            ResponseEvent::Data { tokens, bytes, .. } => has_tokens |= tokens > 0 || !bytes.is_empty(),
            ResponseEvent::End(_) => return Ok(has_tokens),
        }
    }
    Ok(false)
}

fn request(card: &WorkerCard, limit: Duration) -> CallParts {
    // An engine next door reads the body, and the engines of this repository the tokens.
    let body = json!({
        "model": card.model, "prompt": "1 2 3", "max_tokens": TOKENS, "temperature": 0, "stream": true, "ignore_eos": true,
    });
    let is_next_door = card.reads_body;
    CallParts {
        call: Call::Generate(GenerateRequest {
            id: RequestId::from_random(rand::random()),
            model: card.model.clone(),
            deadline_ms: limit.as_millis() as u64,
            lora: String::new(),
            cache_salt: String::new(),
            priority: 0,
            overlap_blocks: 0,
            wants_token_ids: false,
            continuation: None,
            constraint: None,
            sampling: SamplingParams {
                max_tokens: TOKENS,
                ignore_eos: true,
                ..SamplingParams::default()
            },
            format: AnswerFormat {
                endpoint: Endpoint::Completions,
                stream: true,
                include_usage: false,
                echo: None,
                return_token_ids: false,
                continuous_usage: false,
                tools: None,
                created: 0,
                part: None,
            },
        }),
        tokens: if is_next_door { Vec::new() } else { PROMPT.to_vec() },
        body: if is_next_door {
            Bytes::from(body.to_string())
        } else {
            Bytes::new()
        },
    }
}

#[cfg(test)]
mod tests {
    use signalbox_protocol::{ErrorKind, WireError};
    use signalbox_request_plane::{LinkConfig, Responder};

    use super::*;
    use crate::test_support::{TestWorker, card, soon, summary};

    /// Whether a worker that treats a probe in this way gets requests again.
    async fn passes(treat: impl FnOnce(Responder)) -> bool {
        let mut worker = TestWorker::start().await;
        let link = LinkHandle::start(worker.address.clone(), LinkConfig::default(), None);
        let engine = async {
            let (parts, responder) = worker.call().await;
            assert_eq!(parts.tokens, PROMPT);
            treat(responder);
        };
        let probing = probe(link, card("worker-0", 1), MeasuredLatency::default());
        soon(async { tokio::join!(probing, engine).0 }).await
    }

    #[test]
    fn a_slow_worker_may_take_longer() {
        let measured = |ttft_ms, itl_ms| MeasuredLatency {
            ttft_ms: Some(ttft_ms),
            itl_ms: Some(itl_ms),
            uncached_prompt_tokens: None,
        };
        assert_eq!(limit(MeasuredLatency::default()), SHORTEST_LIMIT);
        assert_eq!(limit(measured(100.0, 100.0)), Duration::from_secs(5));
        assert_eq!(limit(measured(1e6, f32::INFINITY)), LONGEST_LIMIT);
    }

    #[actix_rt::test]
    async fn a_worker_that_answers_passes() {
        assert!(
            passes(|responder| {
                responder.queue(1, b"one").unwrap();
                responder.end(summary());
            })
            .await
        );
    }

    #[actix_rt::test]
    async fn an_error_of_the_worker_or_an_empty_answer_does_not_pass_and_a_refusal_does() {
        let refuse = |kind| move |responder: Responder| responder.fail(WireError::new(kind, "refused"));
        assert!(!passes(refuse(ErrorKind::Internal)).await);
        assert!(!passes(refuse(ErrorKind::Unavailable)).await);
        assert!(passes(refuse(ErrorKind::Overloaded)).await);
        assert!(passes(refuse(ErrorKind::NotFound)).await);
        assert!(!passes(|responder| responder.end(summary())).await);
    }

    #[actix_rt::test]
    async fn a_worker_that_stops_behind_its_first_token_does_not_pass() {
        let mut worker = TestWorker::start().await;
        let link = LinkHandle::start(worker.address.clone(), LinkConfig::default(), None);
        let engine = async {
            let (_, responder) = worker.call().await;
            responder.queue(1, b"one").unwrap();
            responder.flush();
            worker.stop().await;
        };
        let probing = probe(link, card("worker-0", 1), MeasuredLatency::default());
        let (has_passed, ()) = soon(async { tokio::join!(probing, engine) }).await;
        assert!(!has_passed);
    }
}
