//! Examines an engine next door: asks it about itself, compares tokens, and sends one prompt twice.

use std::time::Duration;

use serde_json::{Value, json};
use signalbox_event_plane::EventLog;
use signalbox_protocol::{BlockHasher, WorkerEpoch};
use signalbox_tokenize::{ChatPrompt, ModelText};
use signalbox_worker::openai::{
    DEFAULT_BLOCK_SIZE, EngineFlavour, FoundEngine, StatedFacts, Upstream, find_engine,
    kv_events::{KvEventSource, KvEventsConfig},
};
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    cache_check::CacheTrial,
    facts_check,
    text_check::{self, Compared, Sample, SamplePrompt},
    verdict::{Finding, Report, Verdict},
};

/// How long an engine may take to be ready. Whoever runs the doctor wants to know now.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// Longest time for an answer of one token. A cold engine compiles first.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);
/// Longest time until an event of a computed block arrives. It takes milliseconds.
const EVENTS_WITHIN: Duration = Duration::from_secs(5);
/// Whole blocks of the prompt that is sent twice: enough to tell a cached prompt from one that only begins alike.
const TRIAL_BLOCKS: u32 = 6;
/// Prompts that are tried until events report one: without replay, events of the first moments are lost.
const TRIALS: usize = 2;

/// Examines the engine at `upstream`. `load_text` loads the tokenizer and template that routers would use for the engine;
/// its error says why there are none.
pub(crate) async fn examine(
    upstream: &Upstream,
    stated: &StatedFacts,
    load_text: impl AsyncFnOnce(&FoundEngine) -> Result<ModelText, Finding>,
) -> Report {
    let mut report = Report {
        subject: upstream.url().to_string(),
        description: "not examined".into(),
        findings: Vec::new(),
    };
    let mut reason = String::new();
    let found = timeout(
        READY_WITHIN,
        find_engine(upstream, stated, |waiting| waiting.clone_into(&mut reason)),
    )
    .await;
    let found = match found {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            report.findings.push(Finding::blind(error.to_string(), ""));
            return report;
        }
        Err(_) => {
            let mend = "start the engine, or wait until it has loaded its model";
            report.findings.push(Finding::blind(reason, mend));
            return report;
        }
    };
    let facts = &found.facts;
    report.description = facts_check::describe(facts);
    report.findings.extend(facts_check::judge(facts));
    let text = match load_text(&found).await {
        Ok(text) => text,
        Err(finding) => {
            report.findings.push(finding);
            return report;
        }
    };
    let exam = Examination {
        upstream,
        found: &found,
        text: &text,
    };
    let compared = exam.compare_texts().await;
    report.findings.extend(text_check::judge(&compared));
    // No block of a prompt can be found by other tokens than the engine's.
    if report.verdict() != Verdict::Blind {
        report.findings.extend(exam.try_cache().await);
    }
    report
}

struct Examination<'a> {
    upstream: &'a Upstream,
    found: &'a FoundEngine,
    text: &'a ModelText,
}

impl Examination<'_> {
    async fn compare_texts(&self) -> Vec<Compared> {
        let mut compared = Vec::new();
        for Sample { name, prompt } in text_check::samples() {
            let router = match &prompt {
                SamplePrompt::Chat { messages, tools } => self.encode_chat(messages, tools),
                SamplePrompt::Text(text) => self.text.encode_prompt(text).map_err(|error| error.to_string()),
            };
            compared.push(Compared {
                name,
                is_chat: matches!(prompt, SamplePrompt::Chat { .. }),
                router,
                engine: self.engine_tokens(&prompt).await,
            });
        }
        compared
    }

    fn encode_chat(&self, messages: &Value, tools: &Value) -> Result<Vec<u32>, String> {
        let chat = ChatPrompt {
            tools: Some(tools),
            ..ChatPrompt::new(messages)
        };
        let tokens = self.text.encode_chat(&chat);
        tokens.map_err(|error| error.to_string())
    }

    /// The engine's tokens of a prompt, which cost it no generation.
    async fn engine_tokens(&self, prompt: &SamplePrompt) -> Result<Vec<u32>, String> {
        let mut body = json!({"model": self.found.served_model});
        match prompt {
            SamplePrompt::Chat { messages, tools } => {
                body["messages"] = messages.clone();
                if !tools.is_null() {
                    body["tools"] = tools.clone();
                }
            }
            SamplePrompt::Text(text) => body["prompt"] = json!(text),
        }
        let answer = self.post("/tokenize", &body).await?;
        serde_json::from_value(answer["tokens"].clone())
            .map_err(|_| "its answer to POST /tokenize has no tokens".into())
    }

    /// Sends a prompt twice, and compares what events reported with what the engine took from its cache.
    async fn try_cache(&self) -> Vec<Finding> {
        let facts = &self.found.facts;
        let Some(endpoint) = facts.events.first() else {
            return Vec::new();
        };
        let block_size = facts.block_size.unwrap_or(DEFAULT_BLOCK_SIZE).max(1);
        let config = KvEventsConfig {
            endpoint: endpoint.events.clone(),
            replay_endpoint: endpoint.replay.clone(),
            topic: endpoint.topic.clone(),
            rank: (facts.ranks > 1).then_some(0),
            model: facts.model.clone(),
            block_size,
            kv_blocks: facts.kv_blocks.unwrap_or(0),
        };
        let source = match KvEventSource::start(config, EventLog::new(WorkerEpoch(1))) {
            Ok(source) => source,
            Err(error) => {
                return vec![Finding::blind(
                    error.to_string(),
                    "give --kv-events tcp://host:port",
                )];
            }
        };
        let mut known = source.facts();
        let connected = timeout(EVENTS_WITHIN, known.wait_for(|facts| facts.connected)).await;
        // The facts are locked as long as what was awaited is kept.
        let is_connected = connected.is_ok_and(|facts| facts.is_ok());
        if !is_connected {
            return vec![Finding::blind(
                format!("no connection to the KV events at {}", endpoint.events),
                "open the port to this machine, and give the engine an endpoint with a `*` (tcp://*:5557): vLLM binds no \
                 other one",
            )];
        }
        let mut findings = Vec::new();
        for _ in 0..TRIALS {
            match self.trial(&source, block_size).await {
                Ok(trial) => {
                    findings = trial.judge();
                    if trial.reported_blocks > 0 {
                        break;
                    }
                }
                Err(reason) => {
                    let what = format!("a chat of one token failed: {reason}");
                    return vec![Finding::degraded(what, "see the engine's log")];
                }
            }
        }
        findings
    }

    async fn trial(&self, source: &KvEventSource, block_size: u32) -> Result<CacheTrial, String> {
        let facts = &self.found.facts;
        let messages = json!([{"role": "user", "content": unheard_of(block_size)}]);
        let tokens = self.encode_chat(&messages, &Value::Null)?;
        let blocks = BlockHasher::new(&facts.model, "", "", block_size as usize).hash(&tokens);
        let expected = tokens.len().saturating_sub(1) / block_size as usize;
        let body = json!({
            "model": self.found.served_model,
            "messages": messages,
            "max_tokens": 1,
            "temperature": 0,
        });
        self.post("/v1/chat/completions", &body).await?;
        let reported = || {
            blocks
                .iter()
                .take_while(|block| source.has_appeared(**block))
                .count()
        };
        let deadline = Instant::now() + EVENTS_WITHIN;
        let mut known = source.facts();
        while reported() < expected {
            if !matches!(timeout_at(deadline, known.changed()).await, Ok(Ok(()))) {
                break;
            }
        }
        let again = self.post("/v1/chat/completions", &body).await?;
        let cached = &again["usage"]["prompt_tokens_details"]["cached_tokens"];
        let event_block_sizes = source.facts().borrow().block_sizes.iter().copied().collect();
        Ok(CacheTrial {
            prompt_tokens: tokens.len() as u32,
            block_size,
            reported_blocks: reported() as u32,
            cached_tokens: cached.as_u64().map(|cached| cached as u32),
            event_block_sizes,
            cached_tokens_mend: match facts.flavour {
                EngineFlavour::Vllm => "start vLLM with --enable-prompt-tokens-details",
                EngineFlavour::Sglang => "start SGLang with --enable-cache-report",
                EngineFlavour::OpenAi => "have the engine report usage.prompt_tokens_details.cached_tokens",
            },
        })
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value, String> {
        let answer = self.upstream.post(path, body.to_string(), ANSWER_WITHIN).await;
        let (status, body) = answer.map_err(|error| error.to_string())?;
        if status != 200 {
            let start = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
            return Err(format!("it answers {status} to POST {path}: {start}"));
        }
        serde_json::from_slice(&body)
            .map_err(|error| format!("its answer to POST {path} is no JSON: {error}"))
    }
}

/// A prompt that no engine has computed before: numbers of this moment, in so many words that they make
/// [`TRIAL_BLOCKS`] blocks with any tokenizer.
fn unheard_of(block_size: u32) -> String {
    let moment = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos());
    let words = block_size * TRIAL_BLOCKS / 2;
    let words: Vec<String> = (0..u128::from(words))
        .map(|word| ((moment + word).wrapping_mul(2_654_435_761) % 99_991).to_string())
        .collect();
    format!("Say yes. {}", words.join(" "))
}
