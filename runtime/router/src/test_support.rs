//! What the tests of several files need: workers that exist only in tables, and a worker whose engine is the test.

use std::{
    collections::HashMap,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use parking_lot::Mutex;
use signalbox_kv_index::WorkerSlot;
use signalbox_policy_host::{PolicyEngine, PolicyLimits, PolicyRegistry};
use signalbox_protocol::{
    AnswerFormat, Call, Endpoint, GenerateRequest, RequestId, SamplingParams, SequenceHash, StreamSummary,
    WorkerCapacity, WorkerCard, WorkerEpoch, WorkerRole,
};
use signalbox_request_plane::{CallHandler, CallParts, Responder, Server, ServerConfig, ServerHandle};
use signalbox_tokenize::{ModelArtifacts, ModelText};
use tokio::sync::mpsc;

use crate::{
    RouteRequest,
    context_need::ContextNeed,
    roster::{Joined, ModelEntry, Roster, VersionId, WorkerEntry, WorkerPhase, versions_of},
    versioned_prompt::VersionedPrompt,
};

/// Far longer than anything in a test takes, and short enough to see a test that hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn card(name: &str, epoch: u64) -> Arc<WorkerCard> {
    Arc::new(WorkerCard {
        id: name.parse().unwrap(),
        epoch: WorkerEpoch(epoch),
        model: "m".into(),
        address: "127.0.0.1:1".into(),
        engine: "sim".into(),
        block_size: 16,
        context_length: 1_024,
        artifacts_digest: "d".into(),
        role: WorkerRole::Aggregated,
        capacity: WorkerCapacity {
            kv_blocks: 64,
            max_sequences: 1,
            max_waiting: 1,
        },
        engine_version: String::new(),
        reads_body: false,
        continues_answers: true,
        abilities: Vec::new(),
        kv_events: true,
        labels: Default::default(),
    })
}

pub(crate) fn text() -> Arc<ModelText> {
    static TEXT: OnceLock<Arc<ModelText>> = OnceLock::new();
    let load = || Arc::new(ModelText::load(&ModelArtifacts::byte_level()).unwrap());
    TEXT.get_or_init(load).clone()
}

/// A worker that is present and ready.
pub(crate) fn join(roster: &mut Roster, card: &Arc<WorkerCard>) -> WorkerSlot {
    let joined = roster.join(card.clone(), |_| true).unwrap();
    assert!(roster.loaded(card, text()));
    roster.judge(1);
    match joined {
        Joined::New(slot) => slot,
        Joined::Relisted => panic!("the worker is present already"),
    }
}

/// The ready worker `worker-SLOT` at an address.
pub(crate) fn entry(slot: u32, address: &str) -> WorkerEntry {
    WorkerEntry {
        slot: WorkerSlot(slot),
        card: Arc::new(WorkerCard {
            address: address.into(),
            ..(*card(&format!("worker-{slot}"), 1)).clone()
        }),
        phase: WorkerPhase::Ready,
        listed: true,
        adapters: None,
        version: version(),
        text: Some(text()),
    }
}

/// The version that the workers of [`card`] serve.
pub(crate) fn version() -> VersionId {
    VersionId::of(&card("a", 1))
}

/// The prompt of a request for the workers of one version, of which no context is needed.
pub(crate) fn prompt(version: VersionId, tokens: u32, blocks: &[SequenceHash]) -> VersionedPrompt<'_> {
    VersionedPrompt {
        version,
        tokens,
        blocks,
        context: ContextNeed::default(),
    }
}

/// The model `m` and its ready workers.
pub(crate) fn model(workers: Vec<WorkerEntry>) -> ModelEntry {
    ModelEntry {
        name: "m".into(),
        adapter: None,
        created: 0,
        versions: match versions_of(workers.iter().filter_map(WorkerEntry::served)) {
            none if none.is_empty() => versions_of(entry(0, "").served()),
            versions => versions,
        },
        decisions: Arc::default(),
        workers: workers.into_iter().collect(),
    }
}

/// The built-in policies, with `kv-aware` as the default. Compiled once for all tests.
pub(crate) fn policies() -> PolicyRegistry {
    static REGISTRY: OnceLock<PolicyRegistry> = OnceLock::new();
    let start = || {
        // Tests run beside each other on few cores, and a policy that is only slow must not count as a fault.
        let limits = PolicyLimits {
            decide_budget_ms: 10_000,
            configure_budget_ms: 10_000,
            ..PolicyLimits::default()
        };
        PolicyRegistry::new(PolicyEngine::new(limits).unwrap(), "kv-aware").unwrap()
    };
    REGISTRY.get_or_init(start).clone()
}

/// A request to the model `m` with a prompt of 40 tokens: two whole blocks and a rest.
pub(crate) fn request(deadline: Duration) -> RouteRequest {
    RouteRequest {
        form: version().form,
        generate: GenerateRequest {
            id: RequestId::from_random(1),
            model: "m".into(),
            deadline_ms: deadline.as_millis() as u64,
            lora: String::new(),
            cache_salt: String::new(),
            priority: 0,
            overlap_blocks: 0,
            wants_token_ids: false,
            continuation: None,
            constraint: None,
            sampling: SamplingParams::default(),
            format: AnswerFormat {
                endpoint: Endpoint::Chat,
                stream: true,
                include_usage: false,
                echo: None,
                return_token_ids: false,
                continuous_usage: false,
                tools: None,
                created: 0,
                part: None,
            },
        },
        tokens: (0..40).collect(),
        unhashed_tokens: 0,
        max_output_tokens: Some(64),
        explained: false,
        body: Bytes::from_static(b"{}"),
        keys: Default::default(),
        other_forms: Vec::new(),
    }
}

/// The same request, as a link takes it.
pub(crate) fn call_parts() -> CallParts {
    let request = request(PATIENCE);
    CallParts {
        call: Call::Generate(request.generate),
        tokens: request.tokens,
        body: request.body,
    }
}

pub(crate) fn summary() -> StreamSummary {
    StreamSummary {
        prompt_tokens: 40,
        cached_tokens: 32,
        completion_tokens: 2,
    }
}

/// An address that accepts connections and never sends a hello, for as long as the listener is kept.
pub(crate) fn silent_address() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// A worker's server that hands each call to the test.
pub(crate) struct TestWorker {
    pub(crate) address: String,
    server: ServerHandle,
    calls: mpsc::Receiver<(CallParts, Responder)>,
}

struct HandOver(mpsc::Sender<(CallParts, Responder)>);

impl CallHandler for HandOver {
    fn call(&self, parts: CallParts, responder: Responder) {
        assert!(
            self.0.try_send((parts, responder)).is_ok(),
            "more calls than the test takes"
        );
    }
}

impl TestWorker {
    pub(crate) async fn start() -> Self {
        Self::start_as(card("worker-0", 1)).await
    }

    /// With this card in its hello.
    pub(crate) async fn start_as(card: Arc<WorkerCard>) -> Self {
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = Server::bind(any_port, ServerConfig::default()).await.unwrap();
        let (sender, calls) = mpsc::channel(8);
        Self {
            address: server.address(),
            server: server.serve(card, Arc::new(HandOver(sender))),
            calls,
        }
    }

    /// The next call that arrives.
    pub(crate) async fn call(&mut self) -> (CallParts, Responder) {
        soon(self.calls.recv()).await.unwrap()
    }

    /// Whether no call has arrived since the last one that was taken.
    pub(crate) fn has_no_call(&self) -> bool {
        self.calls.is_empty()
    }

    /// Closes the connections of all routers, with streams open.
    pub(crate) async fn stop(&self) {
        soon(self.server.drain(Duration::ZERO)).await;
    }
}

/// Waits for a future that must complete, so that a test fails instead of hanging.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("the test waits for something that does not happen")
}

/// Polls a condition that must become true.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    soon(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// Keeps counters and gauges, so that a test can read what its thread records. Histograms are ignored.
#[derive(Debug, Default)]
pub(crate) struct TestRecorder {
    counters: Mutex<HashMap<Key, Arc<AtomicU64>>>,
    gauges: Mutex<HashMap<Key, Arc<AtomicU64>>>,
}

impl TestRecorder {
    /// The sum of the counters with this name.
    pub(crate) fn count(&self, name: &str) -> u64 {
        let counters = self.counters.lock();
        let named = counters.iter().filter(|(key, _)| key.name() == name);
        named.map(|(_, count)| count.load(Relaxed)).sum()
    }

    /// The label `label` of the gauges with this name that are not 0, in order.
    pub(crate) fn raised(&self, name: &str, label: &str) -> Vec<String> {
        let gauges = self.gauges.lock();
        let raised = gauges
            .iter()
            .filter(|(key, value)| key.name() == name && f64::from_bits(value.load(Relaxed)) != 0.0);
        let mut labels: Vec<_> = raised
            .flat_map(|(key, _)| key.labels().filter(|found| found.key() == label))
            .map(|found| found.value().to_owned())
            .collect();
        labels.sort();
        labels
    }
}

impl Recorder for TestRecorder {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.counters.lock().entry(key.clone()).or_default().clone())
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.gauges.lock().entry(key.clone()).or_default().clone())
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}
