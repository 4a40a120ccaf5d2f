//! The time until a new router's index is exact, in front of workers with full KV caches, while requests are decided.
//!
//! `cargo bench --package runtime --bench join [workers] [blocks]`; the default is 10 workers of a
//! million blocks each. Workers, router and clients share this machine's cores.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and may panic"
)]

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use signalbox_discovery::{Discovery, MemoryDiscovery};
use signalbox_event_plane::MemoryPlane;
use signalbox_policy_host::{PolicyEngine, PolicyLimits, PolicyRegistry};
use signalbox_policy_store::MemoryStore;
use signalbox_protocol::{
    AnswerFormat, CacheTier, Endpoint, GenerateRequest, KvEvent, RequestId, SamplingParams, SequenceHash,
    WorkerRole,
};
use signalbox_request_plane::{LinkConfig, ServerConfig};
use signalbox_router::{
    EventState, PromptForm, ReplicaHandle, RequestKeys, RouteRequest, Router, RouterConfig,
};
use signalbox_tokenize::{ModelArtifacts, ModelText};
use signalbox_worker::{
    runner::EngineThread,
    service::{self, ModelFiles, RunningWorker, WorkerConfig},
    sim::{SimConfig, SimEngine, ordinary_tokens},
};

/// Blocks of one cached prompt.
const CHAIN: u64 = 1_000;

fn main() {
    let mut numbers = std::env::args()
        .skip(1)
        .filter_map(|argument| argument.parse().ok());
    let (workers, blocks): (u64, u64) = (numbers.next().unwrap_or(10), numbers.next().unwrap_or(1_000_000));
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let running: Vec<_> = (0..workers)
        .map(|number| tokio.block_on(full_worker(number, blocks)))
        .collect();
    println!("{workers} workers hold {blocks} blocks each");
    actix_rt::System::new().block_on(join(&running, blocks));
}

async fn full_worker(number: u64, blocks: u64) -> RunningWorker {
    let artifacts = ModelArtifacts::byte_level();
    let text = Arc::new(ModelText::load(&artifacts).unwrap());
    let sim = SimConfig {
        speedup: 0.0,
        ..SimConfig::default()
    };
    let engine = SimEngine::new(sim, ordinary_tokens(&text)).unwrap();
    let config = WorkerConfig {
        id: format!("w{number}").parse().unwrap(),
        listen: "127.0.0.1:0".parse().unwrap(),
        nats: None,
        advertise_host: None,
        model: "m".into(),
        last_epoch: None,
        role: WorkerRole::Aggregated,
        labels: BTreeMap::new(),
        server: ServerConfig::default(),
    };
    let files = ModelFiles::new(&artifacts, text);
    let thread = EngineThread::start("sim").unwrap();
    let worker = service::run(config, Box::new(engine), files, &thread)
        .await
        .unwrap();
    for chain in 0..blocks / CHAIN {
        // A tenth of the blocks is held by all workers, like system prompts.
        let owner = if chain % 10 == 0 { 0 } else { number + 1 };
        let hash = |block: u64| SequenceHash((owner << 48) + chain * CHAIN + block + 1);
        worker.event_log().publish(vec![KvEvent::Stored {
            tier: CacheTier::Device,
            parent: None,
            blocks: (0..CHAIN).map(hash).collect(),
        }]);
    }
    worker
}

async fn join(workers: &[RunningWorker], blocks: u64) {
    let discovery = Arc::new(MemoryDiscovery::default());
    let registrations: Vec<_> = workers
        .iter()
        .map(|worker| discovery.register(worker.card().clone()).unwrap())
        .collect();
    let engine = PolicyEngine::new(PolicyLimits::default()).unwrap();
    let policies = PolicyRegistry::new(engine, "kv-aware").unwrap();
    let began = Instant::now();
    let router = Router::start(RouterConfig {
        discovery: vec![discovery],
        events: MemoryPlane::new(),
        feeds_events: true,
        policies,
        audit: Default::default(),
        policy_store: MemoryStore::new(),
        replicas: None,
        planes: Vec::new(),
        decisions: None,
        links: LinkConfig::default(),
        index_bytes: 4 << 30,
        breakers: Default::default(),
        token_timeouts: Default::default(),
    });
    let replica = ReplicaHandle::start(router.clone());
    let (mut first_answer, mut answers, mut longest) = (None, 0, Duration::ZERO);
    loop {
        let sent = Instant::now();
        let model = router.model("m");
        let answered = match &model {
            Some(model) => replica.route(request(model.form)).await.is_ok(),
            None => false,
        };
        if answered {
            let elapsed = began.elapsed();
            first_answer.get_or_insert(elapsed);
            longest = longest.max(sent.elapsed());
            answers += 1;
        }
        let instances = router.instances();
        let exact = instances
            .iter()
            .filter(|instance| instance.events == EventState::Following);
        if exact.count() == workers.len() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let exact = began.elapsed();
    println!(
        "first answer after {first_answer:?}, {answers} answers before the index was exact, the slowest took {longest:?}"
    );
    println!("index exact after {exact:?}");
    for instance in router.instances() {
        assert!(
            instance.index_blocks as u64 >= blocks,
            "{} holds {}",
            instance.card.id,
            instance.index_blocks
        );
    }
    println!("{}", router.index_view().bytes);
    drop(registrations);
    router.stop();
}

fn request(form: PromptForm) -> RouteRequest {
    RouteRequest {
        form,
        max_output_tokens: Some(1),
        explained: false,
        other_forms: Vec::new(),
        generate: GenerateRequest {
            id: RequestId::from_random(1),
            model: "m".into(),
            deadline_ms: 60_000,
            lora: String::new(),
            cache_salt: String::new(),
            priority: 0,
            overlap_blocks: 0,
            wants_token_ids: false,
            continuation: None,
            constraint: None,
            sampling: SamplingParams {
                max_tokens: 1,
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
        },
        tokens: vec![1; 64],
        unhashed_tokens: 0,
        body: Bytes::new(),
        keys: RequestKeys::default(),
    }
}
