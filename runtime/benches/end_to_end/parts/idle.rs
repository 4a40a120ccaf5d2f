//! CPU and memory of an idle router.

use std::time::Duration;

use crate::{
    fleet::{Fleet, MODEL, tokenizer},
    proc::Watched,
};
use signalbox_integration_tests::{Cluster, Worker, fleet::follows};

/// Time after the start in which the allocator returns the memory that loading the tokenizer took.
const SETTLED: Duration = Duration::from_secs(10);
/// Long enough that one tick, a hundredth of a second, is 0.03 % of it.
const WATCHED: Duration = Duration::from_secs(30);

pub(super) async fn run() -> anyhow::Result<()> {
    println!("{:<36}{:>9}{:>14}", "idle, 4 workers", "RSS MiB", "% of a core");
    let fleet = Fleet::start(4, 1.0).await?;
    let name = if tokenizer().is_some() {
        "the model's tokenizer"
    } else {
        "a byte-level tokenizer"
    };
    report(name, fleet.target().process).await?;
    drop(fleet);
    let workers = Worker::sim("w", &["--sim-workers=4", &format!("--model-name={MODEL}")]).await?;
    let router = Cluster::serve_with(&[&format!("--discovery=static://{}", workers.address)]).await?;
    follows(&router, 4).await?;
    report("a byte-level tokenizer", Watched(router.process.pid())).await
}

async fn report(name: &str, process: Watched) -> anyhow::Result<()> {
    tokio::time::sleep(SETTLED).await;
    let before = process.cpu()?;
    tokio::time::sleep(WATCHED).await;
    let share = (process.cpu()? - before).as_secs_f64() / WATCHED.as_secs_f64();
    println!(
        "{name:<36}{:>9.0}{:>14.2}",
        process.resident_mib()?,
        share * 100.0
    );
    Ok(())
}
