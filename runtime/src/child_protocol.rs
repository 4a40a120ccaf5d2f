//! What `runtime up` and its child workers send each other over the standard streams of the child.
//!
//! The parent writes the child's settings to standard input as one line of JSON. A command line would show them in
//! `ps`, and every flag would be printed and parsed again. Standard input then stays open and silent: its end means
//! that the parent process has ended, however it ended. The child writes notices to standard output, one JSON
//! document per line.

use std::io::{self, BufRead};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::{console, settings::WorkerSettings};

/// Longest line of settings: they take about a kilobyte, most of it paths.
const MAX_SETTINGS_BYTES: u64 = 1 << 20;

/// What a child reports to its parent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum ChildNotice {
    /// The model is being loaded.
    Loading {
        /// The part that is loaded.
        percent: u8,
    },
    /// The engine next door is not ready; the worker waits for it.
    Waiting {
        /// What it waits for.
        reason: String,
    },
    /// The engine next door is ready.
    Found {
        /// What it is, and what it lacks: a line each.
        lines: Vec<String>,
    },
    /// The workers of the process take requests.
    Ready {
        /// `host:port` of the request plane, of each worker.
        addresses: Vec<String>,
    },
    /// The workers of the process take no more requests until the next `Ready`.
    Away {
        /// Why not.
        reason: String,
    },
    /// The worker cannot run; its process ends.
    Failed {
        /// The error with its causes.
        reason: String,
    },
}

impl ChildNotice {
    /// Writes the notice to standard output.
    pub(crate) fn send(&self) {
        if let Ok(line) = serde_json::to_string(self) {
            console::line(format_args!("{line}"));
        }
    }
}

/// The line that the parent writes.
pub(crate) fn settings_line(settings: &WorkerSettings) -> anyhow::Result<String> {
    let mut line = serde_json::to_string(settings).context("the settings cannot be sent to the child")?;
    line.push('\n');
    Ok(line)
}

/// Reads the settings from standard input; blocks until they are there.
pub(crate) fn read_settings() -> anyhow::Result<WorkerSettings> {
    parse_settings(io::stdin().lock())
}

fn parse_settings(input: impl BufRead) -> anyhow::Result<WorkerSettings> {
    let mut line = String::new();
    input
        .take(MAX_SETTINGS_BYTES)
        .read_line(&mut line)
        .context("standard input cannot be read")?;
    ensure!(
        line.ends_with('\n'),
        "standard input ended before the settings; `runtime up` sends them to a worker with --child"
    );
    serde_json::from_str(&line).context("the settings on standard input cannot be read")
}

/// Waits for the end of standard input, which is the end of the parent. A thread reads it, and nothing waits for that
/// thread: a read of standard input cannot be cancelled.
pub(crate) async fn parent_gone() {
    let (sender, ended) = tokio::sync::oneshot::channel::<()>();
    let reader = std::thread::Builder::new()
        .name("parent-watch".into())
        .spawn(move || {
            let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
            drop(sender);
        });
    if reader.is_err() {
        return std::future::pending().await;
    }
    // Nothing is ever sent; dropping the sender ends the wait.
    let _ = ended.await;
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::settings::{EngineKind, EngineSettings};

    #[test]
    fn a_child_gets_the_settings_of_its_parent() {
        let engine = EngineSettings {
            kind: EngineKind::Sim,
            model: Some("a folder/model.gguf".into()),
            model_name: Some("m \"quoted\"\n".into()),
            block_size: Some(16),
            kv_tokens: None,
            max_sequences: Some(8),
            threads: Some(1),
            tokenizer: None,
            speedup: 0.1,
            seed: u64::MAX,
            fatal_token: Some(7),
            upstream: None,
        };
        let sent = WorkerSettings::of_child("worker-0".parse().unwrap(), engine, Duration::from_secs(3));
        let line = settings_line(&sent).unwrap();
        assert_eq!(line.matches('\n').count(), 1, "{line:?}");
        let received = parse_settings(line.as_bytes()).unwrap();
        assert_eq!(received.engine, sent.engine);
        assert_eq!(received.workers, sent.workers);
        assert_eq!((received.name, received.grace), (sent.name, sent.grace));
    }

    #[test]
    fn settings_that_are_cut_off_are_refused() {
        for input in ["", "{}", "{}\n", "{\"name\":\"w\"}\n"] {
            assert!(parse_settings(input.as_bytes()).is_err(), "{input:?}");
        }
    }
}
