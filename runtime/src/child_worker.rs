//! One worker of `runtime up`: a child process of this binary, started again when it exits.

use std::{
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    child_protocol::{ChildNotice, settings_line},
    cli::{LOG_JSON_VARIABLE, LOG_VARIABLE},
    settings::{LogSettings, WorkerSettings},
    static_workers::StaticAddresses,
};

/// Shortest and longest wait before a worker is started again. The wait doubles with each exit.
const RESTART_MIN: Duration = Duration::from_millis(250);
const RESTART_MAX: Duration = Duration::from_secs(30);

/// A worker that ran for this long has a new reason to exit: the wait starts at its shortest again.
const STABLE_AFTER: Duration = Duration::from_secs(60);

/// How long after its own grace a child is killed.
const KILL_AFTER: Duration = Duration::from_secs(5);

/// Variables that begin like this are settings of the router, its admin token among them. A child gets its settings
/// from its parent instead.
const VARIABLES_OF_SETTINGS: &str = "SIGNALBOX_";

/// A child to be run, and what is notified of its changes.
pub(crate) struct ChildWorker {
    pub(crate) settings: WorkerSettings,
    pub(crate) log: LogSettings,
    /// Gets the child's address while the child takes requests.
    pub(crate) workers: StaticAddresses,
    pub(crate) reports: mpsc::Sender<ChildReport>,
    pub(crate) stop: CancellationToken,
}

/// A change of a child, for the person at the terminal.
#[derive(Debug)]
pub(crate) enum ChildReport {
    /// This part of its model is loaded.
    Loading { name: String, percent: u8 },
    /// Its engine next door is not ready.
    Waiting { name: String, reason: String },
    /// Its engine next door is ready; what it is, a line each.
    Found { name: String, lines: Vec<String> },
    /// The child takes requests.
    Ready { name: String },
    /// The child takes no requests until it is ready again.
    Away { name: String, reason: String },
    /// The child exited before it ever took requests.
    NeverStarted { name: String, reason: String },
    /// The child exited after it took requests, and will be started again.
    Exited { name: String, reason: String },
}

impl ChildWorker {
    /// Runs the child until `stop` is cancelled, or until the child exits without having taken requests once.
    pub(crate) async fn supervise(self) {
        let mut wait = RESTART_MIN;
        let mut has_started = false;
        loop {
            let started = Instant::now();
            let ended = self.run_once(&mut has_started).await;
            if self.stop.is_cancelled() {
                return;
            }
            let reason = match ended {
                Ok(reason) => reason,
                Err(error) => format!("{error:#}"),
            };
            let name = self.settings.name.to_string();
            if !has_started {
                return self.report(ChildReport::NeverStarted { name, reason }).await;
            }
            warn!(worker.id = name, reason, "worker exited; starting it again");
            self.report(ChildReport::Exited { name, reason }).await;
            if started.elapsed() > STABLE_AFTER {
                wait = RESTART_MIN;
            }
            tokio::select! { () = sleep(wait) => {}, () = self.stop.cancelled() => return }
            wait = (wait * 2).min(RESTART_MAX);
        }
    }

    /// Runs the child once; returns why it ended.
    async fn run_once(&self, has_started: &mut bool) -> anyhow::Result<String> {
        let settings = settings_line(&self.settings)?;
        let mut child = self.spawn()?;
        let stdin = child.stdin.as_mut().context("the child has no standard input")?;
        // This fails only if the child has exited, which the end of its output shows too.
        let _ = stdin.write_all(settings.as_bytes()).await;
        let stdout = child.stdout.take().context("the child has no standard output")?;
        let mut notices = BufReader::new(stdout).lines();
        let mut addresses = Vec::new();
        let mut reason = None;
        loop {
            let line = tokio::select! {
                line = notices.next_line() => line,
                () = self.stop.cancelled() => break,
            };
            let Ok(Some(line)) = line else { break };
            let name = self.settings.name.to_string();
            match serde_json::from_str(&line) {
                Ok(ChildNotice::Loading { percent }) => {
                    self.report(ChildReport::Loading { name, percent }).await;
                }
                Ok(ChildNotice::Waiting { reason }) => {
                    self.report(ChildReport::Waiting { name, reason }).await;
                }
                Ok(ChildNotice::Found { lines }) => {
                    self.report(ChildReport::Found { name, lines }).await;
                }
                Ok(ChildNotice::Ready { addresses: own }) => {
                    *has_started = true;
                    for address in &own {
                        self.workers.add(address.clone()).await;
                    }
                    addresses = own;
                    self.report(ChildReport::Ready { name }).await;
                }
                Ok(ChildNotice::Away { reason }) => {
                    self.remove(&mut addresses).await;
                    self.report(ChildReport::Away { name, reason }).await;
                }
                Ok(ChildNotice::Failed { reason: own }) => reason = Some(own),
                Err(error) => {
                    warn!(worker.id = name, line, %error, "the child wrote a line that is no notice");
                }
            }
        }
        // Before the child ends, so that its end does not count as a lost connection.
        self.remove(&mut addresses).await;
        let status = self.end(&mut child).await?;
        Ok(reason.unwrap_or_else(|| format!("its process ended ({status})")))
    }

    /// The router closes its connections to these addresses.
    async fn remove(&self, addresses: &mut Vec<String>) {
        for address in addresses.drain(..) {
            self.workers.remove(&address).await;
        }
    }

    fn spawn(&self) -> anyhow::Result<Child> {
        let binary = std::env::current_exe().context("the path of this program is unknown")?;
        let mut command = Command::new(&binary);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with(VARIABLES_OF_SETTINGS) {
                command.env_remove(variable);
            }
        }
        command.env(LOG_VARIABLE, &self.log.filter);
        if self.log.json {
            command.env(LOG_JSON_VARIABLE, "true");
        }
        command
            // The name is for people who list processes.
            .args(["worker", "--child", self.settings.name.as_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C at the terminal goes to the parent alone, which stops its children in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))
    }

    /// Closes the child's standard input, which ends the child, and kills it when it is still running after its grace.
    async fn end(&self, child: &mut Child) -> anyhow::Result<ExitStatus> {
        drop(child.stdin.take());
        if let Ok(status) = timeout(self.settings.grace + KILL_AFTER, child.wait()).await {
            return Ok(status?);
        }
        child.kill().await?;
        Ok(child.wait().await?)
    }

    async fn report(&self, report: ChildReport) {
        // The receiver is dropped before the children end only while the whole command stops.
        let _ = self.reports.send(report).await;
    }
}
