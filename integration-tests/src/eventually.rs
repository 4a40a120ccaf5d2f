//! Waiting for what only asking can tell.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use anyhow::bail;

/// Longest wait for anything that should happen at once. A loaded machine is slow, not that slow.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// How often it is asked.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// Asks until there is an answer; fails with `what` once [`DEADLINE`] has passed, or where asking itself fails.
pub async fn eventually<T, F>(what: &str, mut ask: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<Option<T>>>,
{
    let began = Instant::now();
    loop {
        if let Some(found) = ask().await? {
            return Ok(found);
        }
        if began.elapsed() > DEADLINE {
            bail!("waited {} s in vain: {what}", DEADLINE.as_secs());
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}
