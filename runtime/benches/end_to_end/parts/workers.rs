//! Requests per second and the cost of a request, by number of workers.

use super::cost::STREAMED;
use crate::fleet::Fleet;

/// Small KV caches, so that this machine's memory holds the caches of all workers.
const OF_WORKERS: [&str; 1] = ["--kv-tokens=65536"];

pub(super) async fn run() -> anyhow::Result<()> {
    println!(
        "{:>8}{:>14}{:>16}{:>10}{:>10}{:>9}",
        "workers", "requests/s", "CPU us/request", "p50 ms", "p99 ms", "RSS MiB"
    );
    for workers in [4, 64, 1_024] {
        let fleet = Fleet::start_with(workers, 0.0, &OF_WORKERS, &[]).await?;
        let target = fleet.target();
        let measured = STREAMED.measure(&target)?;
        println!(
            "{workers:>8}{:>14.0}{:>16.1}{:>10.2}{:>10.2}{:>9.0}",
            measured.answered.requests / measured.answered.seconds,
            measured.cpu_us,
            measured.answered.p50_ms,
            measured.answered.p99_ms,
            target.process.resident_mib()?
        );
    }
    Ok(())
}
