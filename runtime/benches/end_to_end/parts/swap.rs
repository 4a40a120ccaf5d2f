//! Latency with and without repeated swaps of the policy.

use std::time::Duration;

use super::added::{report, through_the_router};
use crate::fleet::Fleet;

const RATE: f64 = 200.0;
const SWAPS: u32 = 100;
const BETWEEN: Duration = Duration::from_millis(100);

pub(super) async fn run() -> anyhow::Result<()> {
    let fleet = Fleet::start(4, 0.0).await?;
    let target = fleet.target();
    let router = fleet.router.named().await?;
    let requests = (RATE * f64::from(SWAPS) * BETWEEN.as_secs_f64()) as usize;
    println!(
        "{:<28}{:>14}{:>10}{:>10}{:>10}{:>10}{:>8}",
        "streamed, 64 tokens", "requests/s", "first p50", "p99 ms", "whole p50", "p99 ms", "failed"
    );
    report(
        "no swap",
        RATE,
        &through_the_router(&target, RATE, requests).await,
    );
    let swapping = async {
        for swap in 0..SWAPS {
            tokio::time::sleep(BETWEEN).await;
            router
                .activate(["round-robin", "kv-aware"][swap as usize % 2])
                .await?;
        }
        anyhow::Ok(())
    };
    let (times, swapped) = tokio::join!(through_the_router(&target, RATE, requests), swapping);
    swapped?;
    report(&format!("{SWAPS} swaps"), RATE, &times);
    Ok(())
}
