//! Open-loop load: requests at a fixed rate, whether or not earlier ones have been answered. Each is timed from when
//! it was due, so a slow answer does not reduce the load.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

/// A timer can be late by one step (a millisecond in tokio), which is not the router's fault and is not counted. A
/// longer delay is counted.
const TIMER_STEP: Duration = Duration::from_millis(2);

/// The times of all requests to their first bytes and to their ends, in milliseconds, ascending.
#[derive(Debug, Default, Clone)]
pub(crate) struct Times {
    pub(crate) first: Vec<f64>,
    pub(crate) whole: Vec<f64>,
    pub(crate) failed: usize,
}

impl Times {
    pub(crate) fn push(&mut self, outcome: anyhow::Result<(Duration, Duration)>) {
        match outcome {
            Ok((first, whole)) => {
                self.first.push(first.as_secs_f64() * 1e3);
                self.whole.push(whole.as_secs_f64() * 1e3);
            }
            Err(_) => self.failed += 1,
        }
    }

    pub(crate) fn sorted(mut self) -> Self {
        self.first.sort_by(f64::total_cmp);
        self.whole.sort_by(f64::total_cmp);
        self
    }
}

/// The value below which `share` of the sorted values are.
pub(crate) fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = (sorted.len() as f64 * share) as usize;
    sorted
        .get(place.min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}

/// Sends `requests` requests with `send`, `rate` per second. `send` gets the time at which its request was due.
pub(crate) async fn at_rate<F>(rate: f64, requests: usize, send: impl Fn(usize, Instant) -> F) -> Times
where
    F: Future<Output = anyhow::Result<(Duration, Duration)>> + 'static,
{
    let began = Instant::now();
    let mut under_way = JoinSet::new();
    let mut times = Times::default();
    for number in 0..requests {
        let due = began + Duration::from_secs_f64(number as f64 / rate);
        tokio::time::sleep_until(due.into()).await;
        let now = Instant::now();
        let due = if now - due > TIMER_STEP { due } else { now };
        under_way.spawn_local(send(number, due));
        while let Some(answered) = under_way.try_join_next() {
            times.push(answered.context("a request panicked").flatten());
        }
    }
    while let Some(answered) = under_way.join_next().await {
        times.push(answered.context("a request panicked").flatten());
    }
    times.sorted()
}

/// Connections to one router, which are reused.
#[derive(Debug, Clone)]
pub(crate) struct Connections {
    address: String,
    idle: Rc<RefCell<Vec<TcpStream>>>,
}

impl Connections {
    pub(crate) fn new(url: &str) -> Self {
        Self {
            address: url.trim_start_matches("http://").to_owned(),
            idle: Rc::default(),
        }
    }

    /// Sends a chat and reads its streamed answer. Returns the times from `due` to the first event and to the end.
    pub(crate) async fn stream(self, body: String, due: Instant) -> anyhow::Result<(Duration, Duration)> {
        let idle = self.idle.borrow_mut().pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => {
                let connection = TcpStream::connect(&self.address).await?;
                connection.set_nodelay(true)?;
                connection
            }
        };
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        connection.write_all(request.as_bytes()).await?;
        let mut answer = Vec::with_capacity(32 << 10);
        let mut first = None;
        while !answer.ends_with(b"\r\n0\r\n\r\n") {
            if connection.read_buf(&mut answer).await? == 0 {
                bail!("the connection was closed before the end");
            }
            if first.is_none() && contains(&answer, b"data: ") {
                first = Some(due.elapsed());
            }
        }
        let whole = due.elapsed();
        if !contains(&answer[answer.len().saturating_sub(64)..], b"[DONE]") {
            bail!("the answer is an error: {}", String::from_utf8_lossy(&answer));
        }
        self.idle.borrow_mut().push(connection);
        Ok((first.context("no event")?, whole))
    }
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}
