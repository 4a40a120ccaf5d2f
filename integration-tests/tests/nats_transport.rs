//! A worker that routers cannot dial: its requests go over NATS, everything else works as over TCP.

use serde_json::json;
use signalbox_integration_tests::{Fleet, eventually, workload::Workload};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_answered_cancelled_and_drained_over_nats() -> anyhow::Result<()> {
    let fleet = Fleet::start();
    let mut worker = fleet
        .worker("far", &["--speedup=2", "--request-plane=nats"])
        .await?;
    assert_eq!(worker.address, "nats:far");
    let router = fleet.router_of(1, &[]).await?;
    let mut workload = Workload::new(1);
    let mut body = |tokens: u32| json!({"model": router.model, "messages": workload.chat(300), "max_tokens": tokens, "stream": true});

    let prompt = body(50);
    let whole = router.api.stream(CHAT, &prompt).await?.rest().await?;
    assert!(
        whole.is_whole() && whole.finish_reason(0)?.is_some(),
        "{:?}",
        whole.events.last()
    );
    let again = eventually(
        "the index has the prompt, by events over the same NATS",
        || async {
            let again = router.api.stream(CHAT, &prompt).await?.rest().await?;
            Ok((again.header("x-signalbox-overlap-blocks") != "0").then_some(again))
        },
    )
    .await?;
    assert_eq!(again.header("x-signalbox-worker"), "far");

    let mut abandoned = router.api.stream(CHAT, &body(3_000)).await?;
    abandoned.next().await?;
    drop(abandoned);
    router.idle().await?;
    eventually("the engine has no request", || async {
        let running = router.workers().await?;
        Ok((running[0]["requests"] == 0).then_some(()))
    })
    .await?;

    let mut last = router.api.stream(CHAT, &body(100)).await?;
    last.next().await?;
    worker.process.interrupt()?;
    let rest = last.rest().await?;
    assert!(rest.is_whole(), "{:?}", rest.events.last());
    assert!(worker.process.ended().await?.status.success());
    Ok(())
}

#[tokio::test]
async fn without_nats_the_transport_is_refused_with_a_reason() -> anyhow::Result<()> {
    let arguments = [
        "worker",
        "--engine=sim",
        "--request-plane=nats",
        "--listen=127.0.0.1:0",
    ];
    let mut process = signalbox_integration_tests::process::Process::start(&arguments)?;
    let ended = process.ended().await?;
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr.contains("--events nats://"), "{}", ended.stderr);
    Ok(())
}
