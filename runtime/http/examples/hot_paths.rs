//! Runs one hot path of a router a number of times, to count its instructions: `hot_paths
//! decision|unrecorded|lookup|frame|chunk TIMES`.
//! `integration-tests/tests/instruction_counts.rs` checks the counts against their bounds.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use actix_web::body::MessageBody;
use anyhow::{Context as _, bail};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use signalbox_kv_index::{OverlapScores, SharedKvIndex, WorkerSlot};
use signalbox_protocol::{CacheTier, Call, KvEvent, SequenceHash};
use signalbox_request_plane::{CallParts, bench_support::BenchLink};
use signalbox_router::{
    bench_support::{BenchRouter, answer},
    policies::{PolicyEngine, PolicyLimits, PolicyRegistry},
};
use signalbox_tokenize::{ModelArtifacts, ModelText};

const WORKERS: u32 = 64;
/// Sequences that an engine steps together; their tokens arrive in one read.
const STREAMS: usize = 16;
/// KV blocks of a prompt of 2,000 bytes.
const PROMPT: u64 = 31;
/// One token as a server-sent event.
const TOKEN_BYTES: usize = 200;

/// Runs that are not counted, in which buffers grow: more than the ring of recorded decisions has places.
const WARM_UP: usize = 300;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, times] = &arguments[..] else {
        bail!("usage: hot_paths decision|unrecorded|lookup|frame|chunk TIMES");
    };
    let times = times.parse().context("TIMES is not a number")?;
    match path.as_str() {
        "decision" => decisions(router(PROMPT)?.recording(), times),
        "unrecorded" => decisions(router(PROMPT)?, times),
        "lookup" => lookups(times),
        "frame" => frames(times),
        "chunk" => chunks(times),
        other => bail!("{other:?} is no path; give decision, unrecorded, lookup, frame or chunk"),
    }
}

fn repeat(times: usize, mut path: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    for _ in 0..WARM_UP {
        path()?;
    }
    for _ in 0..times {
        counted(&mut path)?;
    }
    Ok(())
}

/// The function whose instructions callgrind counts, which it finds by this name.
#[inline(never)]
fn counted(path: &mut dyn FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    path()
}

/// Decisions by `kv-aware` among 64 workers that hold prefixes of the prompt.
fn decisions(mut router: BenchRouter, times: usize) -> anyhow::Result<()> {
    let blocks = blocks(PROMPT);
    repeat(times, || {
        router.decide(&blocks).context("no worker was chosen")?;
        Ok(())
    })
}

/// Lookups of the overlap of a prompt of 1,000 blocks with what 64 workers hold.
fn lookups(times: usize) -> anyhow::Result<()> {
    const PROMPT: u64 = 1_000;
    let index = SharedKvIndex::new(usize::MAX);
    for (worker, blocks) in beginnings(PROMPT) {
        let stored = KvEvent::Stored {
            tier: CacheTier::Device,
            parent: None,
            blocks,
        };
        index.apply_all(WorkerSlot(worker), std::slice::from_ref(&stored));
    }
    let (blocks, mut overlaps) = (blocks(PROMPT), OverlapScores::default());
    repeat(times, || {
        index.read(|index| index.overlaps(&blocks, &mut overlaps));
        Ok(())
    })
}

fn router(prompt: u64) -> anyhow::Result<BenchRouter> {
    let text = Arc::new(ModelText::load(&ModelArtifacts::byte_level())?);
    // A run under callgrind is fifty times as slow.
    let limits = PolicyLimits {
        decide_budget_ms: 10_000,
        configure_budget_ms: 10_000,
        ..PolicyLimits::default()
    };
    let engine = PolicyEngine::new(limits)?;
    let registry = PolicyRegistry::new(engine, "kv-aware")?;
    let router = BenchRouter::new(WORKERS, 2 * WORKERS as usize, text, registry)?;
    for (worker, blocks) in beginnings(prompt) {
        router.store(worker, blocks);
    }
    Ok(router)
}

/// The prefix that each worker holds of a prompt with this many blocks.
fn beginnings(prompt: u64) -> impl Iterator<Item = (u32, Vec<SequenceHash>)> {
    (0..WORKERS).map(move |worker| (worker, blocks(prompt * u64::from(worker) / u64::from(WORKERS))))
}

fn blocks(length: u64) -> Vec<SequenceHash> {
    (1..=length)
        .map(|block| SequenceHash(block.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
        .collect()
}

/// From the bytes of one read, with a token for each stream, to the readers of the streams.
fn frames(times: usize) -> anyhow::Result<()> {
    let mut link = BenchLink::default();
    let (step, mut streams) = opened(&mut link)?;
    let mut cx = Context::from_waker(Waker::noop());
    repeat(times, || {
        link.arrive(&step).map_err(anyhow::Error::msg)?;
        for stream in &mut streams {
            let Poll::Ready(Some(Ok(_))) = stream.poll_next_unpin(&mut cx) else {
                bail!("a frame did not arrive");
            };
        }
        Ok(())
    })
}

/// From the bytes of one read, with a token for each stream, to what the HTTP library writes.
fn chunks(times: usize) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    let _entered = runtime.enter();
    let mut link = BenchLink::default();
    let (step, streams) = opened(&mut link)?;
    let bodies = streams
        .into_iter()
        .map(|stream| answer(Bytes::from_static(b"data: \n\n"), stream));
    let mut bodies: Vec<_> = bodies.map(signalbox_http::bench_support::body).collect();
    let mut cx = Context::from_waker(Waker::noop());
    repeat(times, || {
        link.arrive(&step).map_err(anyhow::Error::msg)?;
        for body in &mut bodies {
            let Poll::Ready(Some(Ok(_))) = Pin::new(body).poll_next(&mut cx) else {
                bail!("a chunk did not arrive");
            };
        }
        Ok(())
    })
}

/// Opens streams on a link; returns the bytes of one read with a token for each, and the streams.
fn opened(link: &mut BenchLink) -> anyhow::Result<(BytesMut, Vec<signalbox_request_plane::ResponseStream>)> {
    let parts = CallParts {
        call: Call::WatchLoad { interval_ms: 1 },
        tokens: Vec::new(),
        body: Bytes::new(),
    };
    let token = Bytes::from(vec![b'x'; TOKEN_BYTES]);
    let mut step = BytesMut::new();
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let (stream, answer) = link.open(&parts).map_err(anyhow::Error::msg)?;
        BenchLink::write_data(&mut step, stream, &token);
        streams.push(answer);
    }
    Ok((step, streams))
}
