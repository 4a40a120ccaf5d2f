use std::{collections::BTreeMap, net::Ipv4Addr};

use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use signalbox_protocol::{LoadReport, Parity, WorkerCapacity, WorkerRole};
use signalbox_request_plane::{LinkConfig, LinkHandle, ResponseEvent, ResponseStream, ServerConfig};
use signalbox_tokenize::{ModelArtifacts, ModelText};
use tokio::{sync::watch, time::timeout};

use super::*;
use crate::{
    backend::BackendInfo,
    service::{ModelFiles, RunningWorker, WorkerConfig, run_backend},
};

/// Longer than anything here takes, so that a test that waits for ever fails.
const LONG: Duration = Duration::from_secs(20);

/// A backend that the test changes, and that takes no requests.
#[derive(Debug, Default)]
struct TestBackend {
    load: watch::Sender<LoadReport>,
    parity: watch::Sender<Parity>,
    adapters: watch::Sender<Arc<[LoraAdapter]>>,
}

impl Backend for TestBackend {
    fn generate(&self, _: BackendRequest, responder: Responder) {
        responder.end(StreamSummary::default());
    }

    fn load(&self) -> watch::Receiver<LoadReport> {
        self.load.subscribe()
    }

    fn parity(&self) -> watch::Receiver<Parity> {
        self.parity.subscribe()
    }

    fn adapters(&self) -> watch::Receiver<Arc<[LoraAdapter]>> {
        self.adapters.subscribe()
    }

    fn failed(&self) -> BoxFuture<'static, String> {
        std::future::pending().boxed()
    }

    fn stop(&self) -> BoxFuture<'static, ()> {
        std::future::ready(()).boxed()
    }
}

async fn serve(backend: Arc<TestBackend>) -> (RunningWorker, LinkHandle) {
    let artifacts = ModelArtifacts::byte_level();
    let text = Arc::new(ModelText::load(&artifacts).unwrap());
    let config = WorkerConfig {
        id: "w0".parse().unwrap(),
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        advertise_host: None,
        nats: None,
        model: "m".into(),
        last_epoch: None,
        role: WorkerRole::Aggregated,
        labels: BTreeMap::new(),
        server: ServerConfig::default(),
    };
    let info = BackendInfo {
        engine: "test".into(),
        engine_version: String::new(),
        reads_body: true,
        continues_answers: false,
        abilities: Vec::new(),
        kv_events: false,
        block_size: 16,
        context_length: 1_024,
        capacity: WorkerCapacity::default(),
    };
    let files = ModelFiles::new(&artifacts, text);
    let worker = run_backend(config, info, files, |_, _| backend).await.unwrap();
    let link = LinkHandle::start(worker.card().address.clone(), LinkConfig::default(), None);
    (worker, link)
}

fn watch_load(link: &LinkHandle) -> ResponseStream {
    link.open(CallParts {
        call: Call::WatchLoad { interval_ms: 1 },
        tokens: Vec::new(),
        body: Bytes::new(),
    })
    .unwrap()
}

/// The running requests and the adapters of the next report.
async fn next(reports: &mut ResponseStream) -> (u32, Option<Vec<String>>) {
    let Ok(ResponseEvent::Data { bytes, .. }) = timeout(LONG, reports.next()).await.unwrap().unwrap() else {
        panic!("the reports end");
    };
    let report: WorkerReport = serde_json::from_slice(&bytes).unwrap();
    let names = |adapters: Vec<LoraAdapter>| adapters.into_iter().map(|adapter| adapter.name).collect();
    (report.load.running, report.adapters.map(names))
}

#[actix_rt::test]
async fn adapters_are_reported_at_first_and_after_each_change() {
    let backend = Arc::new(TestBackend::default());
    let (_worker, link) = serve(backend.clone()).await;
    let load = |names: &[&str]| {
        let adapters = names.iter().map(|name| LoraAdapter {
            name: (*name).into(),
            root: None,
        });
        backend.adapters.send_replace(adapters.collect());
    };
    let run = |running| {
        backend.load.send_replace(LoadReport {
            running,
            ..LoadReport::default()
        });
    };
    let names = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
    let mut reports = watch_load(&link);
    assert_eq!(next(&mut reports).await, (0, names(&[])));
    // Nothing else changes.
    load(&["sql", "chat"]);
    assert_eq!(next(&mut reports).await, (0, names(&["sql", "chat"])));
    run(1);
    assert_eq!(next(&mut reports).await, (1, None));
    load(&[]);
    assert_eq!(next(&mut reports).await, (1, names(&[])));
    load(&["sql"]);
    assert_eq!(next(&mut reports).await, (1, names(&["sql"])));
    // Another router has seen no report yet.
    assert_eq!(next(&mut watch_load(&link)).await, (1, names(&["sql"])));
}
