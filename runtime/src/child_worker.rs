//! One worker of `runtime up`: a child process of this binary, started again when it dies.

use std::{
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use actix::Addr;
use anyhow::Context;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    static_workers::{AddWorker, RemoveWorker, StaticWorkers},
    worker_process::ChildNotice,
};

/// Wait before a worker that died is started again, doubled up to the longest at each death.
const RESTART_MIN: Duration = Duration::from_millis(250);
const RESTART_MAX: Duration = Duration::from_secs(30);

/// A worker that lived this long died of something new: the wait starts over.
const STABLE_AFTER: Duration = Duration::from_secs(60);

/// Longer than a child's own grace, after which it is killed.
const KILL_AFTER: Duration = Duration::from_secs(5);

/// The admin token is the router's alone, and each child is one worker, found by its address and nothing else.
const NOT_FOR_CHILDREN: [&str; 6] = [
    "SIGNALBOX_ADMIN_TOKEN",
    "SIGNALBOX_CONFIG",
    "SIGNALBOX_DISCOVERY",
    "SIGNALBOX_EVENTS",
    "SIGNALBOX_REQUEST_PLANE",
    "SIGNALBOX_SIM_WORKERS",
];

/// What a child is started with, and whom it concerns.
pub(crate) struct ChildWorker {
    pub(crate) name: String,
    /// Arguments of `runtime worker`.
    pub(crate) arguments: Vec<String>,
    /// Requests under way have this long to end.
    pub(crate) grace: Duration,
    pub(crate) workers: Addr<StaticWorkers>,
    pub(crate) reports: mpsc::Sender<ChildReport>,
    pub(crate) stop: CancellationToken,
}

/// What became of a child, for the person at the terminal.
#[derive(Debug)]
pub(crate) enum ChildReport {
    /// Its model is loaded this far.
    Loading { name: String, percent: u8 },
    /// It takes requests.
    Ready,
    /// It could not start, for this reason, and never has.
    NeverStarted { name: String, reason: String },
    /// It died and will be started again.
    Died { name: String, reason: String },
}

impl ChildWorker {
    /// Runs the child until told to stop, or until it turns out that it cannot start at all.
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
            let name = self.name.clone();
            if !has_started {
                return self.report(ChildReport::NeverStarted { name, reason }).await;
            }
            warn!(worker.id = name, reason, "worker died; starting it again");
            self.report(ChildReport::Died { name, reason }).await;
            if started.elapsed() > STABLE_AFTER {
                wait = RESTART_MIN;
            }
            tokio::select! { () = sleep(wait) => {}, () = self.stop.cancelled() => return }
            wait = (wait * 2).min(RESTART_MAX);
        }
    }

    /// One life of the child; answers why it ended.
    async fn run_once(&self, has_started: &mut bool) -> anyhow::Result<String> {
        let mut child = self.spawn()?;
        let stdout = child.stdout.take().context("the child has no standard output")?;
        let mut notices = BufReader::new(stdout).lines();
        let mut address = None;
        let mut reason = None;
        loop {
            let line = tokio::select! {
                line = notices.next_line() => line,
                () = self.stop.cancelled() => break,
            };
            let Ok(Some(line)) = line else { break };
            match serde_json::from_str(&line) {
                Ok(ChildNotice::Loading { percent }) => {
                    self.report(ChildReport::Loading {
                        name: self.name.clone(),
                        percent,
                    })
                    .await;
                }
                Ok(ChildNotice::Ready { address: at }) => {
                    *has_started = true;
                    let _ = self.workers.send(AddWorker(at.clone())).await;
                    address = Some(at);
                    self.report(ChildReport::Ready).await;
                }
                Ok(ChildNotice::Failed { reason: why }) => reason = Some(why),
                Err(error) => warn!(worker.id = self.name, line, %error, "the child said something else"),
            }
        }
        // Before the child ends, so that its leaving is no lost connection.
        if let Some(address) = address {
            let _ = self.workers.send(RemoveWorker(address)).await;
        }
        let status = self.end(&mut child).await?;
        Ok(reason.unwrap_or_else(|| format!("its process ended ({status})")))
    }

    fn spawn(&self) -> anyhow::Result<Child> {
        let binary = std::env::current_exe().context("this program cannot find itself")?;
        let mut command = Command::new(&binary);
        for variable in NOT_FOR_CHILDREN {
            command.env_remove(variable);
        }
        command
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C at the terminal is the parent's to hear; it stops its children in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))
    }

    /// Lets the child end: its standard input closes, and past its grace it is killed.
    async fn end(&self, child: &mut Child) -> anyhow::Result<ExitStatus> {
        drop(child.stdin.take());
        if let Ok(status) = timeout(self.grace + KILL_AFTER, child.wait()).await {
            return Ok(status?);
        }
        child.kill().await?;
        Ok(child.wait().await?)
    }

    async fn report(&self, report: ChildReport) {
        // The receiver ends before the children do only while everything stops.
        let _ = self.reports.send(report).await;
    }
}
