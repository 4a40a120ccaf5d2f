//! Workers of one model that differ: in the length of their context, and in tokenizer and block size during an update.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context;
use serde_json::{Value, json};
use signalbox_integration_tests::{
    Api, Cluster, Fleet, Worker, eventually,
    fake_engine::ModelFolder,
    fleet::{follows, same_index},
    workload::Workload,
};
use tokio::task::JoinSet;

const CHAT: &str = "/v1/chat/completions";
const WORKERS: usize = 4;

/// Between two requests of all clients together: 100 requests a second.
const INTERVAL: Duration = Duration::from_millis(10);

/// A prompt of which each tokenizer makes another number of tokens.
const PROBE: &str = "the signal box where the points are set, and the lever that sets them";

/// The tokens of the probe's prompt in an answer, which say which version answered.
fn prompt_tokens(answer: &Value) -> anyhow::Result<u64> {
    answer["usage"]["prompt_tokens"]
        .as_u64()
        .with_context(|| format!("no usage in {answer}"))
}

fn probe(seed: u64) -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": PROBE}], "max_tokens": 2, "seed": seed})
}

/// Sends the probe to the routers in turn until the caller stops it. Returns, for each number of prompt tokens, how many
/// requests had it.
async fn load(routers: Vec<Api>, stop: Arc<AtomicBool>) -> anyhow::Result<BTreeMap<u64, usize>> {
    let mut requests = JoinSet::new();
    let mut ticks = tokio::time::interval(INTERVAL);
    for number in 0_u64.. {
        if stop.load(Relaxed) {
            break;
        }
        ticks.tick().await;
        let router = routers[number as usize % routers.len()].clone();
        requests.spawn(async move {
            let reply = router.post(CHAT, &probe(number)).await?;
            anyhow::ensure!(reply.status == 200, "{}: {}", reply.status, reply.text());
            prompt_tokens(&reply.json()?)
        });
    }
    let mut counts = BTreeMap::new();
    while let Some(outcome) = requests.join_next().await {
        *counts.entry(outcome??).or_insert(0) += 1;
    }
    Ok(counts)
}

/// The version of each worker, as a router shows it.
async fn versions(router: &Cluster) -> anyhow::Result<BTreeMap<String, (String, String)>> {
    let workers = router.workers().await?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let versions = workers.iter().map(|worker| {
        (
            text(&worker["card"]["id"]),
            (text(&worker["state"]), text(&worker["version"])),
        )
    });
    Ok(versions.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_to_another_tokenizer_and_block_size_fails_no_request() -> anyhow::Result<()> {
    let fleet = Fleet::start();
    let (old, new) = (ModelFolder::new()?, ModelFolder::with_another_tokenizer()?);
    let options = |folder: &ModelFolder, block_size: u32| {
        let tokenizer = format!("--tokenizer={}", folder.path().display());
        let block_size = format!("--block-size={block_size}");
        [
            tokenizer,
            block_size,
            "--model-name=m".into(),
            "--speedup=20".into(),
        ]
    };
    let (old_options, new_options) = (options(&old, 16), options(&new, 32));
    let start = async |number: usize, options: &[String]| {
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        fleet.worker(&format!("w{number}"), &options).await
    };
    let mut workers = Vec::new();
    for number in 0..WORKERS {
        workers.push(start(number, &old_options).await?);
    }
    let routers = [
        fleet.router_of(WORKERS, &[]).await?,
        fleet.router_of(WORKERS, &[]).await?,
    ];
    let tokens_before = prompt_tokens(&routers[0].api.post(CHAT, &probe(0)).await?.json()?)?;

    let stop = Arc::new(AtomicBool::new(false));
    let apis = routers.iter().map(|router| router.api.clone()).collect();
    let load = tokio::spawn(load(apis, stop.clone()));
    for (number, worker) in workers.iter_mut().enumerate() {
        // In place: the new version takes over the name.
        worker.process.interrupt()?;
        worker.process.ended().await?;
        *worker = start(number, &new_options).await?;
        for router in &routers {
            follows(router, WORKERS).await?;
        }
        if number + 1 == WORKERS / 2 {
            let seen = [versions(&routers[0]).await?, versions(&routers[1]).await?];
            assert_eq!(seen[0], seen[1], "both routers see the same versions");
            let distinct: BTreeSet<_> = seen[0].values().collect();
            assert_eq!(distinct.len(), 2, "both versions are ready: {seen:?}");
            both_versions_are_credited(&routers).await?;
        }
        let health = routers[0].api.get("/health").await?;
        assert_eq!(health.status, 200, "{}", health.text());
    }
    stop.store(true, Relaxed);
    let counts = load.await??;
    println!("requests by the number of their prompt's tokens: {counts:?}");
    assert_eq!(counts.len(), 2, "both versions answered: {counts:?}");
    assert!(counts.contains_key(&tokens_before));

    // After the update both routers have one version, the new one, with an index of its own.
    let seen = [versions(&routers[0]).await?, versions(&routers[1]).await?];
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0].values().collect::<BTreeSet<_>>().len(), 1);
    same_index(&[&routers[0], &routers[1]]).await?;
    let long = json!({"model": "m", "messages": Workload::new(7).chat(300), "max_tokens": 2});
    let first = routers[0].api.post(CHAT, &long).await?;
    same_index(&[&routers[0], &routers[1]]).await?;
    eventually("the other router knows the prompt's blocks", || async {
        let again = routers[1].api.post(CHAT, &long).await?;
        let is_same = again.header("x-signalbox-worker") == first.header("x-signalbox-worker");
        Ok((is_same && again.header("x-signalbox-overlap-blocks") != "0").then_some(()))
    })
    .await
}

/// A prompt that a worker holds goes to that worker, through either router and whichever version it has.
async fn both_versions_are_credited(routers: &[Cluster; 2]) -> anyhow::Result<()> {
    let mut workload = Workload::new(3);
    let mut credited = BTreeSet::new();
    let versions = versions(&routers[0]).await?;
    // A prompt that no worker holds goes to a random one of the idle workers.
    for _ in 0..100 {
        let body = json!({"model": "m", "messages": workload.chat(300), "max_tokens": 2});
        let first = routers[0].api.post(CHAT, &body).await?;
        anyhow::ensure!(first.status == 200, "{}", first.text());
        let worker = first.header("x-signalbox-worker").to_owned();
        eventually("the other router knows where the prompt is", || async {
            let again = routers[1].api.post(CHAT, &body).await?;
            let overlap = again.header("x-signalbox-overlap-blocks").parse::<u32>()?;
            Ok((overlap > 0 && again.header("x-signalbox-worker") == worker).then_some(()))
        })
        .await?;
        credited.insert(versions.get(&worker).cloned());
        if credited.len() == 2 {
            return Ok(());
        }
    }
    anyhow::bail!("100 prompts went to workers of one version")
}

#[tokio::test]
async fn each_prompt_goes_to_a_worker_whose_context_it_fits() -> anyhow::Result<()> {
    const CONTEXTS: [usize; 3] = [512, 2_048, 8_192];
    let mut workers = Vec::new();
    for context in CONTEXTS {
        let tokens = format!("--kv-tokens={context}");
        let name = format!("w{context}");
        workers.push(Worker::sim(&name, &["--model-name=m", &tokens, "--speedup=0"]).await?);
    }
    let workers: Vec<&Worker> = workers.iter().collect();
    let cluster = Cluster::serve(&workers, &[]).await?;
    let models = cluster.api.get("/v1/models").await?.json()?;
    assert_eq!(models["data"][0]["max_model_len"], CONTEXTS[2]);

    let post = async |tokens: usize, limit: Option<usize>| {
        let mut body = json!({"model": "m", "prompt": vec![65; tokens]});
        if let Some(limit) = limit {
            body["max_tokens"] = json!(limit);
        }
        cluster.api.post("/v1/completions", &body).await
    };
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for round in 0..10 {
        for (tokens, limit, least) in [
            (10, Some(4), 512),
            (10, None, 512),
            (508 + round, Some(100), 2_048),
            (1_000, Some(1_048), 2_048),
            (1_000, Some(1_049), 8_192),
            (2_047, Some(1), 2_048),
            (2_048, Some(1), 8_192),
            (8_100 + round, Some(20), 8_192),
        ] {
            let reply = post(tokens, limit).await?;
            assert_eq!(reply.status, 200, "{tokens} tokens, {limit:?}: {}", reply.text());
            let worker = reply.header("x-signalbox-worker").to_owned();
            let context: usize = worker[1..].parse()?;
            assert!(context >= least, "{tokens} tokens, {limit:?} went to {worker}");
            if let Some(limit) = limit {
                let answer = reply.json()?;
                assert_eq!(answer["usage"]["completion_tokens"], limit, "at {worker}");
            }
            *seen.entry(worker).or_default() += 1;
        }
    }
    println!("requests by worker: {seen:?}");
    assert_eq!(seen.len(), CONTEXTS.len(), "every worker has requests: {seen:?}");
    let refused = post(8_192, Some(1)).await?;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.json()?["error"]["code"], "context_length_exceeded");
    Ok(())
}
