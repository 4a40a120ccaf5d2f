//! Engines that die, hang, refuse and break off: what has not begun goes to another engine, another engine continues what
//! has begun, and no client takes a broken answer for a whole one.

use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use signalbox_integration_tests::{
    NextDoor, Streamed,
    disturbed::DisturbedChats,
    eventually,
    fake_engine::{EngineOptions, FakeEngine, StreamFault, StreamFaultKind},
    workload::Workload,
};
use tokio::time::timeout;

const CHAT: &str = "/v1/chat/completions";

fn slow() -> EngineOptions {
    EngineOptions {
        prefill_per_token: Duration::from_millis(1),
        per_token: Duration::from_millis(20),
        ..EngineOptions::default()
    }
}

/// Whether the stream ended in an error that its client sees.
fn is_failed(stream: &Streamed) -> bool {
    stream.error().is_some() && !stream.is_whole()
}

/// Waits until every engine has been sent a chat. Each thread of the router connects to each worker by itself, some
/// milliseconds after `up` is ready; until then a request may have one candidate.
async fn all_used(door: &NextDoor) -> anyhow::Result<()> {
    let is_used = |engine: &FakeEngine| engine.seen().iter().any(|request| request.path == CHAT);
    eventually("all engines are used", || async {
        let reply = door.cluster.api.post(CHAT, &door.chat(&workload_text())).await?;
        assert_eq!(reply.status, 200, "{}", reply.text());
        Ok(door.engines.iter().all(is_used).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_one_of_fifty_streams_is_whole_when_an_engine_dies() -> anyhow::Result<()> {
    let mut door = NextDoor::start(&[slow(), slow()]).await?;
    all_used(&door).await?;
    let mut workload = Workload::new(1);
    let bodies = (0..50).map(|_| {
        let mut body = door.chat(&workload.text(60));
        body["max_tokens"] = json!(60);
        body
    });
    let mut chats = DisturbedChats::start(&door.cluster.api, bodies, &door.worker(0));
    chats.begun(5).await?;
    door.engines[0].kill().await;
    let answers = chats.whole().await?;
    let metrics = door.cluster.metrics().await?;
    let continued = metrics.sum("signalbox_requests_continued_total", &[]);
    println!("{continued} of {} continued", answers.len());
    assert!(continued >= 1.0);
    assert_eq!(answers.len(), 50);
    eventually("the dead engine's blocks are gone", || async {
        let index = door.cluster.index().await?;
        let blocks = index["workers"][door.worker(0)]["blocks"].as_u64().unwrap_or(0);
        Ok((blocks == 0).then_some(()))
    })
    .await?;
    door.cluster.idle().await?;

    door.engines[0].restart().await?;
    eventually(
        "the restarted engine is used again, and its blocks are in the index",
        || async {
            let reply = door.cluster.api.post(CHAT, &door.chat(&workload_text())).await?;
            assert_eq!(reply.status, 200, "{}", reply.text());
            let index = door.cluster.index().await?;
            let blocks = index["workers"][door.worker(0)]["blocks"].as_u64().unwrap_or(0);
            Ok((blocks > 0).then_some(()))
        },
    )
    .await?;
    door.indexed().await
}

/// A text that was not sent before.
fn workload_text() -> String {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1_000);
    Workload::new(NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)).text(60)
}

#[tokio::test]
async fn streams_that_break_off_end_with_an_error() -> anyhow::Result<()> {
    let door = NextDoor::start(&[EngineOptions::default()]).await?;
    let mut body = door.chat("Hello");
    body["stream"] = json!(true);
    for kind in [
        StreamFaultKind::ErrorThenDone,
        StreamFaultKind::NoFinishReason,
        StreamFaultKind::Reset,
    ] {
        door.engines[0].set_faults(|faults| faults.stream = Some(StreamFault { after: 3, kind }));
        for (path, body) in [
            (CHAT, body.clone()),
            (
                "/v1/completions",
                json!({"model": door.cluster.model, "prompt": "a b", "max_tokens": 8, "ignore_eos": true, "stream": true}),
            ),
        ] {
            let stream = door.cluster.api.stream(path, &body).await?.rest().await?;
            assert_eq!(stream.status, 200);
            assert!(
                is_failed(&stream),
                "{kind:?} at {path}: {:?}",
                stream.events.last()
            );
        }
    }
    door.engines[0].set_faults(|faults| faults.stream = None);
    let stream = door.cluster.api.stream(CHAT, &body).await?.rest().await?;
    assert!(stream.is_whole());
    door.cluster.idle().await
}

#[tokio::test]
async fn an_engine_that_refuses_passes_its_requests_to_another_one() -> anyhow::Result<()> {
    let door = NextDoor::start(&[EngineOptions::default(), EngineOptions::default()]).await?;
    all_used(&door).await?;
    for status in [500, 503] {
        door.engines[0].set_faults(|faults| faults.refused_with = Some(status));
        for _ in 0..8 {
            let reply = door.cluster.api.post(CHAT, &door.chat(&workload_text())).await?;
            let output = door.cluster.process.output();
            assert_eq!(reply.status, 200, "{}\n{output}", reply.text());
            assert_eq!(reply.header("x-signalbox-worker"), door.worker(1));
        }
    }
    door.engines[1].set_faults(|faults| faults.refused_with = Some(503));
    let reply = door.cluster.api.post(CHAT, &door.chat("Hello")).await?;
    assert_eq!(reply.status, 503, "{}", reply.text());
    reply.error()?;
    Ok(())
}

/// As vLLM does by default on SIGTERM: it takes no more connections and leaves its streams open.
#[tokio::test]
async fn a_stream_that_hangs_in_a_terminated_engine_is_continued_by_another() -> anyhow::Result<()> {
    let door = NextDoor::start(&[slow(), slow()]).await?;
    let mut body = door.chat(&workload_text());
    body["stream"] = json!(true);
    body["max_tokens"] = json!(200);
    let mut stream = door.cluster.api.stream(CHAT, &body).await?;
    stream.next().await?.context("no event")?;
    let number = door.engine_of(stream.header("x-signalbox-worker"))?;
    door.engines[number].terminate();
    // The watchdog waits 10 s without data while health is refused.
    let rest = timeout(Duration::from_secs(50), stream.rest()).await??;
    assert!(rest.is_whole(), "{:?}", rest.events.last());
    for _ in 0..4 {
        let reply = door.cluster.api.post(CHAT, &door.chat(&workload_text())).await?;
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(reply.header("x-signalbox-worker"), door.worker(1 - number));
    }
    Ok(())
}

#[tokio::test]
async fn another_model_at_the_same_address_is_another_incarnation() -> anyhow::Result<()> {
    let mut door = NextDoor::start(&[EngineOptions::default()]).await?;
    let options = EngineOptions {
        model: "other".into(),
        ..door.engines[0].options().clone()
    };
    door.engines[0].restart_as(options).await?;
    eventually("the router serves the other model", || async {
        let models = door.cluster.api.get("/v1/models").await?.json()?;
        Ok((models["data"][0]["id"] == "other").then_some(()))
    })
    .await?;
    let mut body = door.chat("Hello");
    body["model"] = json!("other");
    let reply = door.cluster.api.post(CHAT, &body).await?;
    assert_eq!(reply.status, 200, "{}", reply.text());
    Ok(())
}
