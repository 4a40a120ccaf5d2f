//! The latency that a router adds: requests at a fixed rate through the router, and the same directly to the workers.

use crate::{
    direct::{self, Direct},
    fleet::{Fleet, MODEL, Target, tokenizer},
    paced::{Connections, Times, at_rate, percentile},
    prompts::{self, Shape},
};

const RATES: [f64; 3] = [50.0, 200.0, 500.0];
/// Enough that a hundredth of the requests are several.
const SECONDS: f64 = 10.0;
/// Requests that are not counted, in which connections open and memory grows.
const WARM_UP: usize = 200;

const SHAPE: Shape = Shape {
    stream: true,
    tokens: 64,
};

pub(super) async fn run(peers: &[Target]) -> anyhow::Result<()> {
    let fleet = Fleet::start(4, 0.0).await?;
    let addresses: Vec<&str> = fleet.addresses.iter().map(String::as_str).collect();
    let workers = Direct::new(&addresses, tokenizer().as_deref(), MODEL)?;
    let mut targets = vec![fleet.target()];
    targets.extend_from_slice(peers);
    println!(
        "{:<28}{:>14}{:>10}{:>10}{:>10}{:>10}{:>8}",
        "streamed, 64 tokens", "requests/s", "first p50", "p99 ms", "whole p50", "p99 ms", "failed"
    );
    for rate in RATES {
        let requests = (rate * SECONDS) as usize;
        let direct = to_the_workers(&workers, rate, requests).await?;
        report("workers, directly", rate, &direct);
        for target in &targets {
            let through = through_the_router(target, rate, requests).await;
            report(&target.name, rate, &through);
            let added = |share| percentile(&through.whole, share) - percentile(&direct.whole, share);
            println!(
                "{:<28}{rate:>14}{:>20}{:>10}{:>10.2}{:>10.2}",
                format!("  added by {}", target.name),
                "",
                "",
                added(0.5),
                added(0.99)
            );
        }
    }
    Ok(())
}

async fn to_the_workers(workers: &Direct, rate: f64, requests: usize) -> anyhow::Result<Times> {
    let bodies = prompts::bodies(MODEL, SHAPE, 2_000, 0);
    let calls: Vec<_> = bodies
        .iter()
        .enumerate()
        .map(|(number, body)| workers.call(number, body))
        .collect::<Result<_, _>>()?;
    let send = |number: usize, due| {
        let call = calls[number % calls.len()].clone();
        direct::stream(workers.link(number), call, due)
    };
    at_rate(rate, WARM_UP, send).await;
    Ok(at_rate(rate, requests, send).await)
}

pub(super) async fn through_the_router(target: &Target, rate: f64, requests: usize) -> Times {
    let bodies = prompts::bodies(&target.model, SHAPE, 2_000, 0);
    let connections = Connections::new(&target.url);
    let send = |number: usize, due| {
        let body = bodies[number % bodies.len()].clone();
        connections.clone().stream(body, due)
    };
    at_rate(rate, WARM_UP, send).await;
    at_rate(rate, requests, send).await
}

pub(super) fn report(name: &str, rate: f64, times: &Times) {
    println!(
        "{name:<28}{rate:>14}{:>10.2}{:>10.2}{:>10.2}{:>10.2}{:>8}",
        percentile(&times.first, 0.5),
        percentile(&times.first, 0.99),
        percentile(&times.whole, 0.5),
        percentile(&times.whole, 0.99),
        times.failed
    );
}
