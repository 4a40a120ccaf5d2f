//! Writes sampled decisions: to a file, to a subject of NATS, or to both.
//!
//! `runtime/docs/decisions.md` describes the lines. A thread of its own encodes and writes them, and a task publishes them,
//! so that neither a slow disk nor NATS delays a request. What cannot be written in time is dropped and counted
//! (`signalbox_decisions_dropped_total`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use metrics::{counter, describe_counter};
use signalbox_nats::NatsConnection;
use signalbox_router::{DecisionFeed, NextDecision, RecordedDecision};
use tokio::sync::{mpsc, oneshot};

use rotated_file::RotatedFile;

mod rotated_file;

/// Longest wait for a decision until written lines are flushed, and until a request to stop is noticed.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest time that the last lines may take to be written at the end of the process.
const LAST_LINES: Duration = Duration::from_secs(2);
/// Most lines that wait for NATS. At 10 KB each they take 10 MB.
const MAX_UNPUBLISHED: usize = 1_024;
/// Time between two log lines about lines that could not be written.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Where the lines go.
pub(crate) struct Outputs {
    pub(crate) file: Option<RotatedFile>,
    pub(crate) subject: Option<Publisher>,
}

/// The thread that writes.
#[derive(Debug)]
pub(crate) struct DecisionWriter {
    is_stopping: Arc<AtomicBool>,
    ended: oneshot::Receiver<()>,
}

/// Publishes lines to a subject of NATS.
#[derive(Debug, Clone)]
pub(crate) struct Publisher(mpsc::Sender<Bytes>);

impl DecisionWriter {
    /// Starts the thread.
    pub(crate) fn start(feed: DecisionFeed, outputs: Outputs) -> anyhow::Result<Self> {
        describe_counter!(
            "signalbox_decisions_written_total",
            "Sampled decisions that were written or published"
        );
        let is_stopping = Arc::<AtomicBool>::default();
        let (done, ended) = oneshot::channel();
        let stopping = is_stopping.clone();
        thread::Builder::new()
            .name("decisions".into())
            .spawn(move || {
                write_all(&feed, outputs, &stopping);
                // The process may have stopped to wait.
                let _ = done.send(());
            })
            .context("no thread to write decisions starts")?;
        Ok(Self { is_stopping, ended })
    }

    /// Writes what has been queued, and ends.
    pub(crate) async fn stop(self) {
        self.is_stopping.store(true, Relaxed);
        if tokio::time::timeout(LAST_LINES, self.ended).await.is_err() {
            tracing::warn!("the last decisions are not written: their output takes too long");
        }
    }
}

/// The file for decisions; `None` for none.
pub(crate) fn open_file(settings: Option<&(std::path::PathBuf, u64)>) -> anyhow::Result<Option<RotatedFile>> {
    let open = |(path, most_bytes): &(std::path::PathBuf, u64)| {
        RotatedFile::open(path, *most_bytes)
            .with_context(|| format!("decisions cannot be written to {}", path.display()))
    };
    settings.map(open).transpose()
}

impl Publisher {
    /// Publishes on this connection. Call it inside a tokio runtime.
    pub(crate) fn start(nats: NatsConnection, subject: String) -> Self {
        let (lines, mut queued) = mpsc::channel::<Bytes>(MAX_UNPUBLISHED);
        actix_rt::spawn(async move {
            while let Some(line) = queued.recv().await {
                // It waits while NATS is away and its client's queue is full. Meanwhile lines are dropped here.
                if let Err(error) = nats.client().publish(subject.clone(), line).await {
                    tracing::debug!(%error, "a decision was not published");
                    dropped("size");
                }
            }
        });
        Self(lines)
    }

    fn publish(&self, line: Bytes) -> bool {
        self.0.try_send(line).is_ok()
    }
}

fn write_all(feed: &DecisionFeed, mut outputs: Outputs, is_stopping: &AtomicBool) {
    let mut failures = Failures::default();
    let mut line = Vec::new();
    loop {
        let mut next = feed.next(Duration::ZERO);
        if matches!(next, NextDecision::Idle) {
            if let Some(file) = &mut outputs.file {
                failures.note(file.flush());
            }
            if is_stopping.load(Relaxed) {
                return;
            }
            next = feed.next(PAUSE);
        }
        match next {
            NextDecision::Decision(decision) => write(&decision, &mut line, &mut outputs, &mut failures),
            NextDecision::Idle => {}
            NextDecision::Ended => {
                if let Some(file) = &mut outputs.file {
                    failures.note(file.flush());
                }
                return;
            }
        }
    }
}

fn write(decision: &RecordedDecision, line: &mut Vec<u8>, outputs: &mut Outputs, failures: &mut Failures) {
    line.clear();
    if serde_json::to_writer(&mut *line, decision).is_err() {
        return dropped("output");
    }
    let mut is_written = true;
    if let Some(publisher) = &outputs.subject {
        is_written &= publisher.publish(Bytes::copy_from_slice(line));
    }
    if let Some(file) = &mut outputs.file {
        line.push(b'\n');
        is_written &= failures.note(file.write_line(line));
    }
    if is_written {
        counter!("signalbox_decisions_written_total").increment(1);
    } else {
        dropped("output");
    }
}

fn dropped(reason: &'static str) {
    counter!("signalbox_decisions_dropped_total", "reason" => reason).increment(1);
}

/// Logs now and then that a file cannot be written.
#[derive(Debug, Default)]
struct Failures {
    logged: Option<Instant>,
}

impl Failures {
    /// Whether it succeeded.
    fn note(&mut self, result: std::io::Result<()>) -> bool {
        let Err(error) = result else {
            return true;
        };
        if self.logged.is_none_or(|logged| logged.elapsed() >= LOG_INTERVAL) {
            self.logged = Some(Instant::now());
            tracing::warn!(%error, "decisions cannot be written to their file and are dropped");
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[actix_rt::test]
    async fn a_writer_that_is_stopped_has_written_what_was_queued() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("decisions.jsonl");
        let (sampler, feed) = signalbox_router::decision_feed("r".parse().unwrap(), 1.0);
        let outputs = Outputs {
            file: Some(RotatedFile::open(&path, 1 << 20).unwrap()),
            subject: None,
        };
        let writer = DecisionWriter::start(feed, outputs).unwrap();
        // The sampler still exists: the writer ends because it is stopped.
        writer.stop().await;
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
        drop(sampler);
    }
}
