//! A worker over TCP, as a router uses it.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt;
use signalbox_event_plane::{decode_batch, decode_snapshot};
use signalbox_protocol::{
    AnswerFormat, BlockHasher, Call, Endpoint, ErrorKind, GenerateRequest, KvEvent, LoadReport, RequestId,
    SamplingParams, SequenceHash, StreamSummary, WorkerEpoch, WorkerRole,
};
use signalbox_request_plane::{
    CallParts, LinkConfig, LinkError, LinkHandle, ResponseEvent, ResponseStream, ServerConfig,
};
use signalbox_tokenize::{ModelArtifacts, ModelText};
use signalbox_worker::{
    runner::EngineThread,
    service::{ModelFiles, RunningWorker, WorkerConfig, WorkerError, run},
    sim::{SimConfig, SimEngine, ordinary_tokens},
};

fn config() -> WorkerConfig {
    WorkerConfig {
        nats: None,
        id: "w0".parse().unwrap(),
        listen: "127.0.0.1:0".parse().unwrap(),
        advertise_host: None,
        model: "tiny".into(),
        last_epoch: None,
        role: WorkerRole::Aggregated,
        labels: BTreeMap::new(),
        server: ServerConfig::default(),
    }
}

async fn start(config: WorkerConfig, sim: SimConfig) -> Result<RunningWorker, WorkerError> {
    let artifacts = ModelArtifacts::byte_level();
    let text = Arc::new(ModelText::load(&artifacts).unwrap());
    let engine = SimEngine::new(sim, ordinary_tokens(&text)).unwrap();
    let files = ModelFiles::new(&artifacts, text);
    run(
        config,
        Box::new(engine),
        files,
        &EngineThread::start("sim").unwrap(),
    )
    .await
}

async fn worker(sim: SimConfig) -> (RunningWorker, LinkHandle) {
    let worker = start(config(), sim).await.unwrap();
    let link = LinkHandle::start(worker.card().address.clone(), LinkConfig::default(), None);
    (worker, link)
}

fn fast() -> SimConfig {
    SimConfig {
        speedup: 0.0,
        ..SimConfig::default()
    }
}

fn generate(tokens: Vec<u32>, max_tokens: u32, stream: bool) -> CallParts {
    let request = GenerateRequest {
        id: RequestId::from_client("r1").unwrap(),
        model: "tiny".into(),
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
            stream,
            include_usage: true,
            echo: None,
            return_token_ids: false,
            continuous_usage: false,
            tools: None,
            created: 1,
            part: None,
        },
    };
    CallParts {
        call: Call::Generate(request),
        tokens,
        body: Bytes::new(),
    }
}

fn plain(call: Call) -> CallParts {
    CallParts {
        call,
        tokens: vec![],
        body: Bytes::new(),
    }
}

/// The bytes, the number of tokens and the summary of a whole stream.
async fn whole(mut stream: ResponseStream) -> Result<(Vec<u8>, u32, StreamSummary), LinkError> {
    let (mut all, mut count) = (Vec::new(), 0);
    while let Some(event) = stream.next().await {
        match event? {
            ResponseEvent::Data { tokens, bytes, .. } => {
                all.extend_from_slice(&bytes);
                count += tokens;
            }
            ResponseEvent::End(summary) => return Ok((all, count, summary)),
        }
    }
    panic!("the stream ended without a summary");
}

async fn next_piece(stream: &mut ResponseStream) -> Bytes {
    match stream.next().await {
        Some(Ok(ResponseEvent::Data { bytes, .. })) => bytes,
        other => panic!("expected a piece, got {other:?}"),
    }
}

fn error_kind(result: Result<(Vec<u8>, u32, StreamSummary), LinkError>) -> ErrorKind {
    match result {
        Err(LinkError::Refused(error)) => error.kind,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

fn prompt() -> Vec<u32> {
    (0..100).map(|place| 3 + place % 250).collect()
}

#[actix_rt::test]
async fn a_request_is_streamed_and_its_prompt_is_cached_for_the_next_request() {
    let (_worker, link) = worker(fast()).await;
    let (bytes, tokens, summary) = whole(link.open(generate(prompt(), 20, true)).unwrap())
        .await
        .unwrap();
    assert_eq!(
        summary,
        StreamSummary {
            prompt_tokens: 100,
            cached_tokens: 0,
            completion_tokens: 20
        }
    );
    assert_eq!(tokens, 20);
    let text = String::from_utf8(bytes).unwrap();
    assert!(
        text.starts_with("data: {\"id\":\"chatcmpl-r1\",") && text.ends_with("data: [DONE]\n\n"),
        "{text}"
    );
    let (bytes, _, summary) = whole(link.open(generate(prompt(), 20, false)).unwrap())
        .await
        .unwrap();
    assert_eq!(summary.cached_tokens, 96);
    let document: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(document["usage"]["prompt_tokens_details"]["cached_tokens"], 96);
}

#[actix_rt::test]
async fn a_router_can_fetch_the_model_artifacts() {
    let (worker, link) = worker(fast()).await;
    let digest = worker.card().artifacts_digest.clone();
    let (bytes, ..) = whole(
        link.open(plain(Call::FetchArtifacts {
            digest: digest.clone(),
        }))
        .unwrap(),
    )
    .await
    .unwrap();
    assert_eq!(ModelArtifacts::from_bytes(&bytes).unwrap().digest(), digest);
    let other = plain(Call::FetchArtifacts { digest: "0".into() });
    assert_eq!(
        error_kind(whole(link.open(other).unwrap()).await),
        ErrorKind::NotFound
    );
}

#[actix_rt::test]
async fn kv_events_and_a_snapshot_give_the_content_of_the_cache() {
    let (worker, link) = worker(fast()).await;
    let epoch = worker.card().epoch;
    let mut events = link
        .open(plain(Call::WatchKvEvents {
            from: Some((epoch, 0)),
        }))
        .unwrap();
    whole(link.open(generate(prompt(), 1, true)).unwrap())
        .await
        .unwrap();
    let batch = decode_batch(&next_piece(&mut events).await).unwrap();
    assert_eq!((batch.epoch, batch.sequence), (epoch, 0));
    let blocks = BlockHasher::new("tiny", "", "", 16).hash(&prompt());
    let stored = |events: &[KvEvent]| -> Vec<SequenceHash> {
        let blocks = |event: &KvEvent| match event {
            KvEvent::Stored { blocks, .. } => blocks.clone(),
            other => panic!("{other:?}"),
        };
        events.iter().flat_map(blocks).collect()
    };
    assert_eq!(stored(&batch.events), blocks);
    let (bytes, ..) = whole(link.open(plain(Call::FetchKvSnapshot)).unwrap())
        .await
        .unwrap();
    let snapshot = decode_snapshot(&bytes).unwrap();
    assert_eq!((snapshot.epoch, snapshot.next_sequence), (epoch, 1));
    assert_eq!(stored(&snapshot.stored), blocks);
    let other_incarnation = plain(Call::WatchKvEvents {
        from: Some((WorkerEpoch(1), 0)),
    });
    assert_eq!(
        error_kind(whole(link.open(other_incarnation).unwrap()).await),
        ErrorKind::NotFound
    );
}

#[actix_rt::test]
async fn load_is_reported_when_it_changes_and_a_dropped_stream_frees_the_engine() {
    // Slow enough that the report shows the running request, fast enough that its first token comes at once.
    let (_worker, link) = worker(SimConfig {
        speedup: 1.0,
        ..SimConfig::default()
    })
    .await;
    let mut load = link.open(plain(Call::WatchLoad { interval_ms: 1 })).unwrap();
    let report = |bytes: Bytes| -> LoadReport { serde_json::from_slice(&bytes).unwrap() };
    assert_eq!(report(next_piece(&mut load).await).running, 0);
    let mut stream = link.open(generate(prompt(), 30_000, true)).unwrap();
    next_piece(&mut stream).await;
    while report(next_piece(&mut load).await).running == 0 {}
    drop(stream);
    loop {
        let report = report(next_piece(&mut load).await);
        if report.running == 0 {
            assert_eq!((report.active_kv_blocks, report.total_kv_blocks), (0, 16_384));
            assert!(report.used_kv_blocks >= 6, "the computed blocks stay cached");
            break;
        }
    }
}

#[actix_rt::test]
async fn draining_lets_open_answers_finish() {
    let (worker, link) = worker(SimConfig {
        speedup: 10.0,
        ..SimConfig::default()
    })
    .await;
    let mut stream = link.open(generate(prompt(), 50, true)).unwrap();
    next_piece(&mut stream).await;
    let answer = actix_rt::spawn(whole(stream));
    worker.drain(Duration::from_secs(60)).await;
    assert_eq!(answer.await.unwrap().unwrap().2.completion_tokens, 50);
}

#[actix_rt::test]
async fn a_worker_that_cannot_start_fails_with_the_reason() {
    let (worker, _link) = worker(fast()).await;
    let taken = worker.card().address.parse().unwrap();
    let error = start(
        WorkerConfig {
            listen: taken,
            ..config()
        },
        fast(),
    )
    .await
    .unwrap_err();
    assert!(error.to_string().contains(&worker.card().address), "{error}");
    let everywhere = WorkerConfig {
        listen: "0.0.0.0:0".parse().unwrap(),
        ..config()
    };
    assert!(matches!(
        start(everywhere.clone(), fast()).await,
        Err(WorkerError::NoAdvertisedHost(_))
    ));
    let named = WorkerConfig {
        advertise_host: Some("localhost".into()),
        ..everywhere
    };
    let named = start(named, fast()).await.unwrap();
    assert!(named.card().address.starts_with("localhost:"));
}
