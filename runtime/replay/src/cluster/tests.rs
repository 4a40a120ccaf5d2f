use std::sync::OnceLock;

use proptest::prelude::*;

use super::*;
use crate::{
    policy::ReplayPolicy,
    trace::{BlockContent, TraceRequest},
};

/// Compiled once for all tests.
fn policy(name: &str) -> &'static ReplayPolicy {
    static POLICIES: OnceLock<Vec<ReplayPolicy>> = OnceLock::new();
    let policies = POLICIES.get_or_init(|| {
        let names = ["round-robin", "kv-aware", "kv-linear", "replica-synced"];
        let choices = names.map(|name| name.parse().unwrap());
        ReplayPolicy::load_all(&choices).unwrap()
    });
    policies.iter().find(|policy| policy.label() == name).unwrap()
}

fn run(trace: &Trace, config: &ClusterConfig, name: &str, seed: u64) -> RunRecord {
    replay(trace, config, policy(name), seed, &AtomicUsize::new(0)).unwrap()
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn request(at: u64, input_tokens: u32, output_tokens: u32, ids: std::ops::Range<u64>) -> TraceRequest {
    TraceRequest {
        arrival: Arrival::At(millis(at)),
        input_tokens,
        output_tokens,
        blocks: ids.map(|id| BlockContent { scope: 0, id }).collect(),
        session: 0,
    }
}

fn trace(requests: Vec<TraceRequest>) -> Trace {
    Trace {
        block_tokens: 16,
        requests,
    }
}

fn cluster(workers: usize) -> ClusterConfig {
    ClusterConfig {
        workers: vec![WorkerShape::default(); workers],
        ..ClusterConfig::default()
    }
}

fn ttft_ms(record: &RunRecord, index: usize) -> f64 {
    let request = &record.requests[index];
    (request.first_token.unwrap() - request.arrival).as_secs_f64() * 1e3
}

/// The timing model's prefill of `tokens` tokens.
fn prefill_ms(tokens: f64) -> f64 {
    4.209989e-7 * tokens * tokens + 1.518344e-2 * tokens + 16.50142
}

/// The timing model's decode step of sequences that occupy this share of the cache.
fn decode_ms(share: f64) -> f64 {
    -25.74 * share * share + 54.01 * share + 5.74
}

fn assert_close(value: f64, expected: f64) {
    assert!((value - expected).abs() < 1e-3, "{value} is not {expected}");
}

#[test]
fn an_idle_worker_answers_in_the_time_of_the_timing_model() {
    let record = run(
        &trace(vec![request(5, 1_600, 3, 0..100)]),
        &cluster(1),
        "round-robin",
        0,
    );
    assert_close(ttft_ms(&record, 0), prefill_ms(1_600.0));
    let of_two: f64 = [1_601.0, 1_602.0]
        .map(|context| context / (16_384.0 * 16.0))
        .map(decode_ms)
        .iter()
        .sum();
    assert_close(record.gaps.total.as_secs_f64() * 1e3, of_two);
    assert_eq!(record.requests[0].outcome, RequestOutcome::Completed);
    assert_eq!(record.workers[0].requests, 1);
}

#[test]
fn a_request_that_arrives_in_a_step_waits_for_its_end() {
    let requests = vec![request(0, 1_600, 1, 0..100), request(10, 160, 1, 200..210)];
    let record = run(&trace(requests), &cluster(1), "round-robin", 0);
    assert_close(
        ttft_ms(&record, 1),
        prefill_ms(1_600.0) - 10.0 + prefill_ms(160.0),
    );
}

#[test]
fn what_workers_report_gives_the_true_times_of_their_steps() {
    // Prompts of 300 to 12,299 tokens and answers of 50 to 299, at moments that have nothing to do with each other.
    let requests = (0..200).map(|number| {
        let draw = |count: u64, most: u64| scramble(number * 3 + count) % most;
        let input_tokens = 300 + draw(0, 12_000) as u32;
        let ids = number * 10_000..number * 10_000 + u64::from(input_tokens.div_ceil(16));
        request(
            number * 250 + draw(1, 250),
            input_tokens,
            50 + draw(2, 250) as u32,
            ids,
        )
    });
    let trace = trace(requests.collect());
    let speeds = [1.0, 0.5, 1.0, 0.5];
    let config = ClusterConfig {
        workers: speeds
            .map(|speed| WorkerShape {
                speed,
                ..WorkerShape::default()
            })
            .to_vec(),
        ..ClusterConfig::default()
    };
    let ended = AtomicUsize::new(0);
    let mut simulation = Simulation::new(&trace, &config, policy("round-robin"), 0, &ended).unwrap();
    while let Some(now) = simulation.queue.next_at() {
        simulation.advance(now).unwrap();
    }
    for (worker, speed) in simulation.workers.iter_mut().zip(speeds) {
        let load = worker.report_due(Duration::MAX, Duration::ZERO).unwrap();
        let tokens = f64::from(load.prefill_step_tokens);
        let step_ms = tokens * 1e3 / f64::from(load.prefill_tokens_per_s);
        let of_prefill = step_ms * speed / prefill_ms(tokens);
        assert!(
            (of_prefill - 1.0).abs() < 0.1,
            "{of_prefill} at {speed}: {load:?}"
        );
        let share = f64::from(load.decode_step_blocks) / f64::from(load.total_kv_blocks);
        let of_decode = f64::from(load.decode_step_us) / 1e3 * speed / decode_ms(share);
        assert!((of_decode - 1.0).abs() < 0.1, "{of_decode} at {speed}: {load:?}");
    }
}

#[test]
fn requests_of_one_moment_share_a_step() {
    let requests = vec![request(0, 160, 1, 0..10), request(0, 160, 1, 20..30)];
    let record = run(&trace(requests), &cluster(1), "round-robin", 0);
    assert_close(ttft_ms(&record, 0), prefill_ms(320.0));
    assert_close(ttft_ms(&record, 1), prefill_ms(320.0));
}

#[test]
fn a_prefix_is_credited_when_its_events_have_arrived() {
    let requests = || {
        let again = (1..6).map(|number| request(100 * number, 1_600, 1, 0..100));
        [request(0, 1_600, 1, 0..100)].into_iter().chain(again).collect()
    };
    let at_once = run(&trace(requests()), &cluster(4), "kv-aware", 0);
    let holder = at_once.requests[0].worker;
    for later in &at_once.requests[1..] {
        assert_eq!(
            (later.worker, later.credited_tokens, later.cached_tokens),
            (holder, 1_600, Some(1_584))
        );
    }
    let lagging = ClusterConfig {
        event_lag: millis(250),
        ..cluster(4)
    };
    let late = run(&trace(requests()), &lagging, "kv-aware", 0);
    // The first step ends at 42 ms, so its events arrive at 292 ms.
    let credited: Vec<_> = late
        .requests
        .iter()
        .map(|request| request.credited_tokens)
        .collect();
    assert_eq!(credited, [0, 0, 0, 1_600, 1_600, 1_600]);
}

#[test]
fn a_session_continues_after_its_answer() {
    let mut second = request(0, 1_600, 1, 0..100);
    second.arrival = Arrival::After {
        previous: 0,
        delay: millis(500),
    };
    let record = run(
        &trace(vec![request(0, 160, 20, 0..10), second]),
        &cluster(1),
        "round-robin",
        0,
    );
    let [first, second] = &record.requests[..] else {
        panic!("two requests")
    };
    assert_eq!(second.arrival, first.end + millis(500));
    assert_eq!(second.cached_tokens, Some(160));
}

#[test]
fn other_routers_load_decides_when_it_has_arrived() {
    // Two routers, two workers, a long prompt in flight at the first router. Request 1 arrives at the other router.
    let requests = |at| vec![request(0, 16_000, 1, 0..1_000), request(at, 160, 1, 2_000..2_010)];
    let chosen = |sync_lag: u64, seed: u64| {
        let config = ClusterConfig {
            routers: 2,
            sync_lag: millis(sync_lag),
            ..cluster(2)
        };
        let record = run(&trace(requests(50)), &config, "replica-synced", seed);
        (record.requests[0].worker, record.requests[1].worker)
    };
    let together = |sync_lag| {
        (0..16)
            .map(|seed| chosen(sync_lag, seed))
            .filter(|(first, second)| first == second)
            .count()
    };
    assert_eq!(together(0), 0);
    assert_eq!(together(49), 0);
    assert!((1..16).contains(&together(51)), "blind: a tie");
}

#[test]
fn a_failed_workers_requests_continue_elsewhere_and_lose_no_token() {
    let requests = (0..8).map(|number| request(0, 1_600, 400, 100 * number..100 * (number + 1)));
    let config = ClusterConfig {
        changes: vec![
            MembershipChange {
                at: millis(1_000),
                change: Change::Fail(0),
            },
            MembershipChange {
                at: millis(1_500),
                change: Change::Join(WorkerShape::default()),
            },
            MembershipChange {
                at: millis(2_000),
                change: Change::Fail(1),
            },
        ],
        ..cluster(2)
    };
    let record = run(&trace(requests.collect()), &config, "round-robin", 0);
    for request in &record.requests {
        assert_eq!(request.outcome, RequestOutcome::Completed);
        assert_eq!(request.generated_tokens, 400);
        assert_eq!(request.worker, Some(2));
        assert!(request.moves >= 1);
    }
    assert_eq!(record.gaps.micros.len(), 8 * 399);
    assert_eq!(record.workers[0].present, millis(1_000));
    assert_eq!(record.workers[2].joined, millis(1_500));
}

#[test]
fn a_draining_worker_finishes_and_gets_nothing_more() {
    let requests = vec![
        request(0, 160, 100, 0..10),
        request(0, 160, 100, 20..30),
        request(200, 160, 1, 40..50),
        request(200, 160, 1, 60..70),
    ];
    let config = ClusterConfig {
        changes: vec![MembershipChange {
            at: millis(100),
            change: Change::Drain(0),
        }],
        ..cluster(2)
    };
    let record = run(&trace(requests), &config, "round-robin", 0);
    assert!(
        record
            .requests
            .iter()
            .all(|request| request.outcome == RequestOutcome::Completed)
    );
    let late: Vec<_> = record.requests[2..]
        .iter()
        .map(|request| request.worker)
        .collect();
    assert_eq!(late, [Some(1), Some(1)]);
    assert!(record.workers[0].present < record.workers[1].present);
}

#[test]
fn what_does_not_fit_is_shed_or_fails() {
    let config = ClusterConfig {
        max_sequences: 2,
        max_waiting: 1,
        workers: vec![WorkerShape {
            kv_blocks: 100,
            speed: 1.0,
        }],
        ..ClusterConfig::default()
    };
    let mut requests: Vec<_> = (0..5)
        .map(|number| request(0, 160, 5, 20 * number..20 * number + 10))
        .collect();
    requests.push(request(5_000, 3_200, 1, 500..700));
    let record = run(&trace(requests), &config, "round-robin", 0);
    let outcomes: Vec<_> = record.requests.iter().map(|request| request.outcome).collect();
    use RequestOutcome::{Completed, Failed, Shed};
    assert_eq!(outcomes, [Completed, Completed, Completed, Shed, Shed, Failed]);
}

#[test]
fn clusters_that_cannot_be_are_refused() {
    let refusal = |config: &ClusterConfig| {
        let trace = trace(vec![request(0, 16, 1, 0..1)]);
        let refused = replay(&trace, config, policy("round-robin"), 0, &AtomicUsize::new(0));
        refused.unwrap_err().to_string()
    };
    let speed = |speed| ClusterConfig {
        workers: vec![WorkerShape { kv_blocks: 10, speed }],
        ..ClusterConfig::default()
    };
    let no_router = ClusterConfig {
        routers: 0,
        ..ClusterConfig::default()
    };
    assert!(refusal(&speed(0.0)).contains("speed is 0"));
    assert!(refusal(&speed(f64::NAN)).contains("positive number"));
    assert!(refusal(&no_router).contains("at least 1"));
    let nobody = run(
        &trace(vec![request(0, 16, 1, 0..1)]),
        &cluster(0),
        "round-robin",
        0,
    );
    assert_eq!(nobody.requests[0].outcome, RequestOutcome::Failed);
}

/// Requests with some shared prefixes, some of them turns of sessions.
fn any_trace() -> impl Strategy<Value = Trace> {
    let any_request = (0_u64..3_000, 1_u32..600, 1_u32..60, 0_u64..4, any::<bool>());
    proptest::collection::vec(any_request, 1..40).prop_map(|drawn| {
        let mut requests = Vec::new();
        for (at, input, output, group, follows) in drawn {
            let ids = 1_000 * group..1_000 * group + u64::from(input.div_ceil(16));
            let mut request = request(at, input, output, ids);
            if follows && !requests.is_empty() && requests.len() % 2 == 1 {
                request.arrival = Arrival::After {
                    previous: requests.len() - 1,
                    delay: millis(at),
                };
            }
            requests.push(request);
        }
        trace(requests)
    })
}

fn any_cluster() -> impl Strategy<Value = ClusterConfig> {
    let change = (0_u64..3_000, 0_u32..5, 0_u8..3).prop_map(|(at, worker, kind)| MembershipChange {
        at: millis(at),
        change: match kind {
            0 => Change::Join(WorkerShape::default()),
            1 => Change::Drain(worker),
            _ => Change::Fail(worker),
        },
    });
    let shape = (50_u32..200, 1_u32..4).prop_map(|(kv_blocks, speed)| WorkerShape {
        kv_blocks,
        speed: f64::from(speed) / 2.0,
    });
    (
        proptest::collection::vec(shape, 1..5),
        proptest::collection::vec(change, 0..4),
        1_usize..4,
        0_u64..100,
        0_u64..100,
    )
        .prop_map(|(workers, changes, routers, event_lag, sync_lag)| ClusterConfig {
            workers,
            changes,
            routers,
            event_lag: millis(event_lag),
            sync_lag: millis(sync_lag),
            max_sequences: 4,
            max_waiting: 8,
            ..ClusterConfig::default()
        })
}

proptest! {
    // A case runs two clusters, which takes a second where nothing is optimised.
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Whatever happens: every request ends, a completed one has each of its tokens once and in time, and the same
    /// replay gives the same record.
    #[test]
    fn every_request_ends_and_a_replay_repeats(trace in any_trace(), config in any_cluster(), seed in any::<u64>()) {
        let ended = AtomicUsize::new(0);
        let record = replay(&trace, &config, policy("kv-aware"), seed, &ended).unwrap();
        prop_assert_eq!(ended.load(Relaxed), trace.requests.len());
        let mut gaps = 0;
        for (request, asked) in record.requests.iter().zip(&trace.requests) {
            prop_assert_ne!(request.outcome, RequestOutcome::Open);
            prop_assert!(request.generated_tokens <= asked.output_tokens);
            if request.outcome == RequestOutcome::Completed {
                prop_assert_eq!(request.generated_tokens, asked.output_tokens);
                prop_assert!(request.arrival < request.first_token.unwrap());
                prop_assert!(request.first_token.unwrap() <= request.end);
            }
            gaps += request.generated_tokens.saturating_sub(1) as usize;
        }
        prop_assert_eq!(record.gaps.micros.len(), gaps);
        let again = replay(&trace, &config, policy("kv-aware"), seed, &ended).unwrap();
        prop_assert_eq!(record, again);
    }
}
