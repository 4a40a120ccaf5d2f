//! Workers that are sick: one that fails or hangs draws no traffic, and a prompt that kills workers kills two.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use signalbox_integration_tests::{
    Api, Cluster, NextDoor, Worker, eventually,
    fake_engine::{EngineOptions, Faults, StreamFault, StreamFaultKind},
    workload::Workload,
};
use tokio::task::JoinSet;

const CHAT: &str = "/v1/chat/completions";

/// Requests of one run.
const REQUESTS: usize = 200;
/// Clients, each of which sends its next request when the last one has ended.
const CLIENTS: usize = 8;
/// Requests that may fail or be late.
const MOST_HURT: usize = 5;
/// How much later than in quiet an answer may be whole.
const LATE: Duration = Duration::from_secs(2);
/// How soon a worker that is well gets requests again. The promise is 10 s; the rest is for a busy machine.
const BACK_WITHIN: Duration = Duration::from_secs(20);

/// What became of a run of requests.
#[derive(Debug)]
struct Run {
    /// How long each whole answer took.
    took: Vec<Duration>,
    failed: Vec<String>,
    /// Of each answer, the worker that began it.
    workers: Vec<String>,
}

impl Run {
    /// Answers that took longer than `limit`.
    fn late(&self, limit: Duration) -> usize {
        self.took.iter().filter(|took| **took > limit).count()
    }

    fn longest(&self) -> Duration {
        self.took.iter().max().copied().unwrap_or_default()
    }

    fn begun_by(&self, worker: &str) -> usize {
        self.workers.iter().filter(|name| *name == worker).count()
    }
}

/// A stream's whole answer: how long it took, and the worker that began it; or why it failed.
async fn ask(api: &Api, body: &Value) -> anyhow::Result<Result<(Duration, String), String>> {
    let sent = Instant::now();
    let stream = api.stream(CHAT, body).await?;
    let worker = stream.header("x-signalbox-worker").to_owned();
    let status = stream.status;
    if status != 200 {
        return Ok(Err(format!("status {status}")));
    }
    let answer = stream.rest().await?;
    Ok(match answer.is_whole() && answer.error().is_none() {
        true => Ok((sent.elapsed(), worker)),
        false => Err(format!("{:?}", answer.events.last())),
    })
}

/// Sends this many chats, with answers of this many tokens.
async fn run(door: &NextDoor, seed: u64, requests: usize, tokens: u32) -> anyhow::Result<Run> {
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let (api, mut workload) = (
            door.cluster.api.clone(),
            Workload::new(seed * 1_000 + client as u64),
        );
        let mut body = door.chat("");
        body["stream"] = json!(true);
        body["max_tokens"] = json!(tokens);
        clients.spawn(async move {
            let mut outcomes = Vec::new();
            for _ in 0..requests / CLIENTS {
                body["messages"][0]["content"] = json!(workload.text(40));
                outcomes.push(ask(&api, &body).await?);
            }
            anyhow::Ok(outcomes)
        });
    }
    let mut run = Run {
        took: Vec::new(),
        failed: Vec::new(),
        workers: Vec::new(),
    };
    while let Some(outcomes) = clients.join_next().await {
        for outcome in outcomes?? {
            match outcome {
                Ok((took, worker)) => {
                    run.took.push(took);
                    run.workers.push(worker);
                }
                Err(reason) => run.failed.push(reason),
            }
        }
    }
    Ok(run)
}

/// Two workers, one of which breaks at once; then it is well again.
#[expect(clippy::print_stdout, reason = "the figures of a run")]
async fn one_of_two_breaks(what: &str, tokens: u32, fault: impl Fn(&mut Faults)) -> anyhow::Result<()> {
    let options = || EngineOptions {
        prefill_per_token: Duration::from_micros(100),
        per_token: Duration::from_millis(5),
        ..EngineOptions::default()
    };
    // Shorter than the defaults: on a busy machine all else takes longer, and what is late must not be that.
    let timeouts = ["--first-token-timeout-ms=1000", "--next-token-timeout-ms=1000"];
    let door = NextDoor::start_with(&[options(), options()], &timeouts).await?;
    let sick = door.worker(0);
    eventually("both engines are used", || async {
        let warm = run(&door, 1, CLIENTS, tokens).await?;
        let both = [0, 1].map(|number| warm.begun_by(&door.worker(number)));
        Ok((both[0] > 0 && both[1] > 0).then_some(()))
    })
    .await?;
    let quiet = run(&door, 2, REQUESTS, tokens).await?;
    ensure!(quiet.failed.is_empty(), "in quiet: {:?}", quiet.failed);

    door.engines[0].set_faults(&fault);
    let broken = run(&door, 3, REQUESTS, tokens).await?;
    let late = broken.late(quiet.longest() + LATE);
    let drawn = broken.begun_by(&sick);
    println!(
        "{what}: {} failed, {late} late, the longest took {:?} (in quiet {:?}); the sick worker began {drawn} answers",
        broken.failed.len(),
        broken.longest(),
        quiet.longest()
    );
    ensure!(
        broken.failed.len() + late <= MOST_HURT,
        "{what}: failed {:?}, {late} late\n{}",
        broken.failed,
        door.cluster.process.output()
    );

    door.engines[0].set_faults(|faults| *faults = Faults::default());
    let healed = Instant::now();
    eventually("the worker that is well gets requests again", || async {
        let again = run(&door, 4 + healed.elapsed().as_millis() as u64, CLIENTS, tokens).await?;
        ensure!(again.failed.is_empty(), "after the fault: {:?}", again.failed);
        Ok((again.begun_by(&sick) > 0).then_some(()))
    })
    .await
    .with_context(|| door.cluster.process.output())?;
    println!("{what}: in service {:?} after it was well", healed.elapsed());
    ensure!(healed.elapsed() < BACK_WITHIN, "{:?}", healed.elapsed());
    door.cluster.idle().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_answers_with_errors_hurts_few_requests() -> anyhow::Result<()> {
    one_of_two_breaks("errors", 24, |faults| faults.refused_with = Some(500)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_streams_end_with_errors_hurts_few_requests() -> anyhow::Result<()> {
    let fault = StreamFault {
        after: 1,
        kind: StreamFaultKind::ErrorThenDone,
    };
    one_of_two_breaks("errors in streams", 24, |faults| faults.stream = Some(fault)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_silent_hurts_few_requests() -> anyhow::Result<()> {
    one_of_two_breaks("silence", 24, |faults| faults.silent = true).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_silent_behind_the_first_token_hurts_few_requests() -> anyhow::Result<()> {
    let fault = StreamFault {
        after: 1,
        kind: StreamFaultKind::Silence,
    };
    one_of_two_breaks("one token, then silence", 24, |faults| {
        faults.stream = Some(fault)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "not kept yet: policies notice a slow worker when its answers end, and by then some 16 are late"]
async fn a_worker_that_is_slow_by_ten_hurts_few_requests() -> anyhow::Result<()> {
    one_of_two_breaks("slow by ten", 60, |faults| faults.slowed_by = 10).await
}

#[tokio::test]
async fn an_ejected_worker_is_shown_and_counted() -> anyhow::Result<()> {
    let door = NextDoor::start(&[EngineOptions::default(), EngineOptions::default()]).await?;
    door.engines[0].set_faults(|faults| faults.refused_with = Some(500));
    let view = eventually("the worker is ejected", || async {
        run(&door, 1, CLIENTS, 4).await?;
        let view = door.worker_view(0).await?;
        Ok((view["health"]["breaker"] != "closed").then_some(view))
    })
    .await?;
    assert!(view["health"]["recent_failures"].as_u64() >= Some(3), "{view}");
    assert_eq!(
        view["health"]["last_failure"],
        "the fake engine refuses generations"
    );
    let sick = [("worker", &*door.worker(0))];
    let metrics = door.cluster.metrics().await?;
    assert!(metrics.sum("signalbox_worker_failures_total", &sick) >= 3.0);
    assert!(metrics.sum("signalbox_worker_ejections_total", &sick) >= 1.0);
    door.engines[0].set_faults(|faults| faults.refused_with = None);
    eventually("it answers a probe", || async {
        let view = door.worker_view(0).await?;
        Ok((view["health"]["breaker"] == "closed").then_some(()))
    })
    .await?;
    let metrics = door.cluster.metrics().await?;
    assert_eq!(metrics.sum("signalbox_worker_ejected", &sick), 0.0);
    Ok(())
}

/// The token that aborts a worker's process. No text of these tests has it.
const FATAL: u32 = 200;

#[tokio::test]
async fn a_prompt_that_kills_workers_kills_two() -> anyhow::Result<()> {
    let fatal = format!("--fatal-token={FATAL}");
    let mut workers = Vec::new();
    for number in 0..5 {
        workers.push(Worker::sim(&format!("w{number}"), &["--speedup=0", &fatal]).await?);
    }
    let cluster = Cluster::serve(&workers.iter().collect::<Vec<_>>(), &[]).await?;
    let ask = |prompt: Vec<u32>| {
        let body = json!({"model": cluster.model, "prompt": prompt, "max_tokens": 4, "ignore_eos": true});
        let api = cluster.api.clone();
        async move { api.post("/v1/completions", &body).await }
    };
    eventually("every thread has a link to every worker", || async {
        assert_eq!(ask(vec![65, 66, 67]).await?.status, 200);
        let metrics = cluster.metrics().await?;
        let up = metrics.sum("signalbox_link_state", &[("state", "up")]);
        let all = metrics.sum("signalbox_link_state", &[]);
        Ok((up > 0.0 && up == all).then_some(()))
    })
    .await?;

    let poison = vec![65, 66, FATAL, 67];
    let killed = ask(poison.clone()).await?;
    assert_eq!(killed.status, 500, "{}", killed.text());
    let message = killed.error()?["message"].as_str().unwrap_or_default().to_owned();
    assert!(message.contains("two workers were lost"), "{message}");
    // Clients try again after a 500.
    for _ in 0..10 {
        assert_eq!(ask(poison.clone()).await?.status, 500);
    }
    let dead = || {
        let mut dead = 0;
        for worker in &mut workers {
            dead += usize::from(worker.process.ensure_running().is_err());
        }
        dead
    };
    assert_eq!({ dead }(), 2);
    for _ in 0..10 {
        assert_eq!(ask(vec![65, 66, 67]).await?.status, 200, "others are served");
    }
    let metrics = cluster.metrics().await?;
    assert_eq!(
        metrics.sum("signalbox_requests_refused_after_losses_total", &[]),
        10.0
    );
    Ok(())
}
