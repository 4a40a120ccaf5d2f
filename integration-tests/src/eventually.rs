//! Waits for a condition by polling.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use anyhow::bail;

/// Longest wait for a condition that should hold almost at once. Long enough for a loaded machine.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Time between two polls.
const POLL_EVERY: Duration = Duration::from_millis(20);

/// Calls `poll` until it returns a value. Fails with `condition` once [`DEADLINE`] has passed, or when `poll` fails.
pub async fn eventually<T, F>(condition: &str, mut poll: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<Option<T>>>,
{
    let began = Instant::now();
    loop {
        if let Some(found) = poll().await? {
            return Ok(found);
        }
        if began.elapsed() > DEADLINE {
            bail!("not within {} s: {condition}", DEADLINE.as_secs());
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
}
