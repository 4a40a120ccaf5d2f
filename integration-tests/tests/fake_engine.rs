//! The fake engine behaves as real engines do, in what Signalbox relies on and in what it must bear.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use signalbox_integration_tests::{
    Api, eventually,
    fake_engine::{EngineOptions, FakeEngine, StreamFault, StreamFaultKind},
    workload::Workload,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, SubSocket, ZmqMessage};

const CHAT: &str = "/v1/chat/completions";
const WAIT: Duration = Duration::from_secs(20);

fn chat(seed: u64, words: usize) -> Value {
    json!({"model": "fake", "messages": Workload::new(seed).chat(words), "max_tokens": 8, "ignore_eos": true})
}

fn cached(document: &Value) -> u64 {
    document["usage"]["prompt_tokens_details"]["cached_tokens"]
        .as_u64()
        .unwrap_or(u64::MAX)
}

/// One batch of events: its number, and its events.
async fn batch(socket: &mut SubSocket) -> anyhow::Result<(u64, Value)> {
    let frames = timeout(WAIT, socket.recv()).await??.into_vec();
    ensure!(frames.len() == 3 && &frames[0][..] == b"kv-events", "{frames:?}");
    let number = u64::from_be_bytes(frames[1][..].try_into()?);
    let document: Value = rmp_serde::from_slice(&frames[2])?;
    Ok((number, document[1].clone()))
}

async fn subscribe(engine: &FakeEngine) -> anyhow::Result<SubSocket> {
    let (live, _) = engine.event_endpoints().context("no events")?;
    let mut socket = SubSocket::new();
    socket.connect(&live).await?;
    socket.subscribe("").await?;
    Ok(socket)
}

/// The numbers that the engine sends again from `start` on, up to its end mark.
async fn replay(engine: &FakeEngine, start: u64) -> anyhow::Result<Vec<u64>> {
    let (_, endpoint) = engine.event_endpoints().context("no events")?;
    let mut socket = DealerSocket::new();
    socket.connect(&endpoint.context("no replay")?).await?;
    let request = vec![bytes::Bytes::new(), start.to_be_bytes().to_vec().into()];
    let request = ZmqMessage::try_from(request).ok().context("no frames")?;
    socket.send(request).await?;
    let mut numbers = Vec::new();
    loop {
        let frames = timeout(WAIT, socket.recv()).await??.into_vec();
        ensure!(frames.len() == 4 && frames[0].is_empty(), "{frames:?}");
        let number = u64::from_be_bytes(frames[2][..].try_into()?);
        if number == u64::MAX {
            ensure!(frames[1].is_empty() && frames[3].is_empty(), "{frames:?}");
            return Ok(numbers);
        }
        numbers.push(number);
    }
}

#[tokio::test]
async fn a_repeated_prompt_is_cached_and_events_report_its_blocks() -> anyhow::Result<()> {
    let engine = FakeEngine::start(EngineOptions::default()).await?;
    let api = Api::new(&engine.url())?;
    let mut events = subscribe(&engine).await?;
    // A subscription takes effect a moment after it is made.
    let body = chat(1, 200);
    let first = eventually("events arrive", || async {
        let reply = api.post(CHAT, &body).await?.json()?;
        Ok((engine.next_batch() > 0).then_some(reply))
    })
    .await?;
    let prompt = first["usage"]["prompt_tokens"].as_u64().unwrap();
    let again = api.post(CHAT, &body).await?.json()?;
    assert_eq!(cached(&again), (prompt - 1) / 16 * 16);
    assert_eq!(
        again["choices"][0]["message"], first["choices"][0]["message"],
        "the answer does not depend on the cache"
    );
    let other = api.post(CHAT, &chat(2, 200)).await?.json()?;
    assert!(
        cached(&other) < 64,
        "only the beginning of a chat is equal: {other}"
    );
    let mut stored = BTreeSet::new();
    while stored.len() < 12 {
        let (_, batch) = batch(&mut events).await?;
        for event in batch.as_array().into_iter().flatten() {
            assert_eq!(event["type"], "BlockStored");
            let hashes = event["block_hashes"].as_array().unwrap();
            assert_eq!(event["token_ids"].as_array().unwrap().len(), hashes.len() * 16);
            stored.extend(hashes.iter().map(|hash| hash.as_u64().unwrap()));
        }
    }
    assert!(stored.len() <= engine.held_blocks());
    let all: Vec<u64> = (0..engine.next_batch()).collect();
    assert_eq!(replay(&engine, 0).await?, all);
    assert_eq!(replay(&engine, all.len() as u64 + 5).await?, [] as [u64; 0]);
    Ok(())
}

#[tokio::test]
async fn a_restarted_engine_is_empty_and_numbers_its_events_from_zero() -> anyhow::Result<()> {
    let mut engine = FakeEngine::start(EngineOptions::default()).await?;
    let (url, endpoints) = (engine.url(), engine.event_endpoints());
    let api = Api::new(&url)?;
    let before = api.get("/metrics").await?.text();
    for seed in 0..3 {
        api.post(CHAT, &chat(seed, 100)).await?;
    }
    assert!(engine.next_batch() >= 3 && engine.held_blocks() > 10);
    engine.kill().await;
    assert!(api.get("/health").await.is_err(), "nobody listens");
    engine.restart().await?;
    assert_eq!((engine.url(), engine.event_endpoints()), (url, endpoints));
    assert_eq!((engine.next_batch(), engine.held_blocks()), (0, 0));
    let reply = api.post(CHAT, &chat(0, 100)).await?.json()?;
    assert_eq!(cached(&reply), 0);
    assert_eq!(replay(&engine, 0).await?.first(), Some(&0));
    let start = |metrics: &str| {
        let line = metrics
            .lines()
            .find(|line| line.starts_with("process_start_time_seconds "));
        line.map(String::from)
    };
    let after = api.get("/metrics").await?.text();
    assert!(start(&after).is_some() && start(&after) != start(&before));
    Ok(())
}

#[tokio::test]
async fn lost_batches_leave_gaps_and_a_short_buffer_cannot_fill_them() -> anyhow::Result<()> {
    let engine = FakeEngine::start(EngineOptions {
        event_buffer: 2,
        ..EngineOptions::default()
    })
    .await?;
    let api = Api::new(&engine.url())?;
    engine.set_faults(|faults| faults.batches_lost = 1);
    for seed in 0..4 {
        api.post(
            CHAT,
            &json!({"model": "fake", "messages": Workload::new(seed).chat(60), "max_tokens": 1}),
        )
        .await?;
    }
    assert_eq!(engine.next_batch(), 4);
    assert_eq!(replay(&engine, 0).await?, [2, 3]);
    engine.set_faults(|faults| faults.events_stopped = true);
    api.post(CHAT, &chat(9, 60)).await?;
    assert_eq!(engine.next_batch(), 4);
    Ok(())
}

#[tokio::test]
async fn a_closed_connection_ends_its_request_in_prefill_and_in_decode() -> anyhow::Result<()> {
    let engine = FakeEngine::start(EngineOptions {
        prefill_per_token: Duration::from_millis(5),
        per_token: Duration::from_millis(20),
        ..EngineOptions::default()
    })
    .await?;
    let api = Api::new(&engine.url())?;
    let mut body = chat(1, 1000);
    body["stream"] = json!(true);
    // The head is here at once, and the first token is seconds away.
    let stream = api.stream(CHAT, &body).await?;
    assert_eq!(stream.status, 200);
    eventually("it runs", || async { Ok((engine.requests() == 1).then_some(())) }).await?;
    drop(stream);
    eventually("the request in prefill ends", || async {
        Ok((engine.requests() == 0).then_some(()))
    })
    .await?;
    let mut body = chat(2, 5);
    body["stream"] = json!(true);
    body["max_tokens"] = json!(4000);
    let mut stream = api.stream(CHAT, &body).await?;
    stream.next().await?.context("no event")?;
    drop(stream);
    eventually("the request in decode ends", || async {
        Ok((engine.requests() == 0).then_some(()))
    })
    .await?;
    // Without a stream, too.
    let whole = tokio::spawn({
        let (api, body) = (api.clone(), chat(3, 1000));
        async move { api.post(CHAT, &body).await }
    });
    eventually("it runs", || async { Ok((engine.requests() == 1).then_some(())) }).await?;
    whole.abort();
    eventually("it ends", || async { Ok((engine.requests() == 0).then_some(())) }).await
}

#[tokio::test]
async fn streams_break_in_the_ways_of_real_engines() -> anyhow::Result<()> {
    let engine = FakeEngine::start(EngineOptions::default()).await?;
    let api = Api::new(&engine.url())?;
    let mut body = chat(1, 5);
    body["stream"] = json!(true);
    let fault = |kind| Some(StreamFault { after: 3, kind });

    engine.set_faults(|faults| faults.stream = fault(StreamFaultKind::ErrorThenDone));
    let stream = api.stream(CHAT, &body).await?.rest().await?;
    let chunks = stream.chunks()?;
    assert_eq!(
        (chunks.len(), stream.is_whole()),
        (1 + 3 + 1, true),
        "it ends politely"
    );
    assert_eq!(chunks[4]["error"]["code"], 500);

    engine.set_faults(|faults| faults.stream = fault(StreamFaultKind::NoFinishReason));
    let stream = api.stream(CHAT, &body).await?.rest().await?;
    assert!(stream.is_whole() && stream.finish_reason(0)?.is_none());

    engine.set_faults(|faults| faults.stream = fault(StreamFaultKind::Reset));
    assert!(api.stream(CHAT, &body).await?.rest().await.is_err());

    engine.set_faults(|faults| faults.stream = None);
    let stream = api.stream(CHAT, &body).await?.rest().await?;
    assert_eq!(stream.finish_reason(0)?.as_deref(), Some("length"));
    engine.set_faults(|faults| faults.refused_with = Some(503));
    assert_eq!(api.post(CHAT, &body).await?.status, 503);
    Ok(())
}

#[tokio::test]
async fn after_sigterm_open_streams_hang_and_connections_are_refused() -> anyhow::Result<()> {
    let mut engine = FakeEngine::start(EngineOptions {
        per_token: Duration::from_millis(20),
        ..EngineOptions::default()
    })
    .await?;
    let api = Api::new(&engine.url())?;
    let mut body = chat(1, 5);
    body["stream"] = json!(true);
    body["max_tokens"] = json!(1000);
    let mut stream = api.stream(CHAT, &body).await?;
    stream.next().await?.context("no event")?;
    engine.terminate();
    eventually("connections are refused", || async {
        Ok(Api::new(&engine.url())?
            .get("/health")
            .await
            .is_err()
            .then_some(()))
    })
    .await?;
    let hangs = async {
        while stream.next().await?.is_some() {}
        anyhow::Ok(())
    };
    assert!(
        timeout(Duration::from_secs(1), hangs).await.is_err(),
        "the stream neither goes on nor ends"
    );
    engine.kill().await;
    assert!(timeout(WAIT, stream.rest()).await?.is_err(), "it is reset");
    Ok(())
}

#[tokio::test]
async fn an_idle_connection_is_closed() -> anyhow::Result<()> {
    let engine = FakeEngine::start(EngineOptions {
        keep_alive: Duration::from_millis(200),
        ..EngineOptions::default()
    })
    .await?;
    let mut connection = TcpStream::connect(engine.url().trim_start_matches("http://")).await?;
    connection
        .write_all(b"GET /health HTTP/1.1\r\nhost: fake\r\n\r\n")
        .await?;
    let mut all = Vec::new();
    timeout(WAIT, connection.read_to_end(&mut all)).await??;
    assert_eq!(
        String::from_utf8_lossy(&all).matches("HTTP/1.1 ").count(),
        1,
        "an answer, and then the end"
    );
    Ok(())
}

#[tokio::test]
async fn sglang_differs_where_signalbox_must_know() -> anyhow::Result<()> {
    let engine = FakeEngine::start(EngineOptions {
        reasoning_tokens: 2,
        ..EngineOptions::sglang()
    })
    .await?;
    let api = Api::new(&engine.url())?;
    let info = api.get("/server_info").await?.json()?;
    assert_eq!(
        (&info["page_size"], &info["kv_events"]["block_size"]),
        (&json!(16), &json!(16))
    );
    assert_eq!(api.get("/kv_event_sources").await?.status, 404);
    assert_eq!(api.get("/ready").await?.status, 200);

    // `input_ids` replace the rendered messages.
    let mut body = chat(1, 50);
    body["input_ids"] = json!([1, 2, 3]);
    let reply = api.post(CHAT, &body).await?.json()?;
    assert_eq!(reply["usage"]["prompt_tokens"], 3);
    assert!(reply["choices"][0]["message"]["reasoning_content"].is_string());

    body["stream"] = json!(true);
    let stream = api.stream(CHAT, &body).await?.rest().await?;
    let chunks = stream.chunks()?;
    let last = chunks.last().context("no chunk")?;
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert!(
        last["choices"][0]["delta"]["content"].is_null(),
        "the finish reason has an event of its own"
    );
    body["return_token_ids"] = json!(true);
    let refused = api.post(CHAT, &body).await?;
    assert_eq!(
        (refused.status, &refused.json()?["object"]),
        (400, &json!("error"))
    );

    let native = json!({"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 3, "ignore_eos": true}, "stream": true});
    let stream = api.stream("/generate", &native).await?.rest().await?;
    let lengths: Vec<usize> = stream
        .chunks()?
        .iter()
        .map(|chunk| chunk["output_ids"].as_array().map_or(0, Vec::len))
        .collect();
    assert_eq!(lengths, [1, 2, 3], "ids are cumulative");
    Ok(())
}
