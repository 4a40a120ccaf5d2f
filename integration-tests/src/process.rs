//! A process of the binary: started, listened to, and surely ended.

use std::{
    collections::BTreeSet,
    fs,
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Child,
    sync::watch,
    time::timeout,
};

use crate::{DEADLINE, binary, eventually};

/// Most bytes of output that are kept; the rest is read and dropped, so that the process never waits for us.
const MAX_OUTPUT: usize = 1 << 20;

/// Longest wait for killed processes to be gone.
const REAPING: Duration = Duration::from_secs(5);

/// A running `runtime …`. Dropping it kills it, and every process it started.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pid: u32,
    stdout: watch::Receiver<String>,
    stderr: watch::Receiver<String>,
    command: String,
    /// Its working directory: empty, so that no file of the checkout changes what a test sees. Its children have it
    /// too, which tells them even when they have outlived their parent.
    directory: TempDir,
}

/// A process of the system, told from a later one with the same number by when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProcessId {
    /// The system's number.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    started: u64,
}

/// How a process ended, and what it said.
#[derive(Debug)]
pub struct ProcessEnd {
    /// Its exit status.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
}

impl Process {
    /// Starts the binary with these arguments, in an empty directory and without any `SIGNALBOX_…` variable.
    pub fn start(arguments: &[&str]) -> anyhow::Result<Self> {
        let binary = binary()?;
        let directory = TempDir::new()?;
        let mut command = Command::new(&binary);
        command
            .args(arguments)
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("SIGNALBOX_") {
                command.env_remove(name);
            }
        }
        let mut child = tokio::process::Command::from(command)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        let pid = child.id().context("the process has no number")?;
        let stdout = listen(child.stdout.take().context("no standard output")?);
        let stderr = listen(child.stderr.take().context("no standard error")?);
        Ok(Self {
            child,
            pid,
            stdout,
            stderr,
            command: arguments.join(" "),
            directory,
        })
    }

    /// Waits for a line of standard output that begins with `prefix`; answers with the rest of it.
    ///
    /// # Errors
    /// The process ended without saying it, or [`DEADLINE`] passed; the message has what it said instead.
    pub async fn line(&self, prefix: &str) -> anyhow::Result<String> {
        let find = |text: &String| {
            let end = text.rfind('\n')?;
            text[..end]
                .lines()
                .find_map(|line| line.strip_prefix(prefix))
                .map(|rest| rest.trim().to_owned())
        };
        let mut stdout = self.stdout.clone();
        let found = match timeout(DEADLINE, stdout.wait_for(|text| find(text).is_some())).await {
            Ok(Ok(text)) => find(&text),
            Ok(Err(_)) | Err(_) => find(&self.stdout.borrow()),
        };
        found.with_context(|| {
            format!(
                "`runtime {}` never said {prefix:?}\n{}",
                self.command,
                self.said()
            )
        })
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The processes it started that are still there, whether it is there itself or not.
    pub fn children(&self) -> BTreeSet<ProcessId> {
        let Ok(entries) = fs::read_dir("/proc") else {
            return BTreeSet::new();
        };
        let pids = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| *pid != self.pid)
            .filter(|pid| {
                fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == self.directory.path())
            })
            .filter_map(ProcessId::of)
            .collect()
    }

    /// Waits until none of the processes it started is there any more.
    pub async fn childless(&self) -> anyhow::Result<()> {
        eventually("all workers have ended", || async {
            Ok(self.children().is_empty().then_some(()))
        })
        .await
    }

    /// What Ctrl-C does.
    pub fn interrupt(&self) -> anyhow::Result<()> {
        signal("INT", self.pid)
    }

    /// SIGSTOP: it holds its connections and does nothing.
    pub fn suspend(&self) -> anyhow::Result<()> {
        signal("STOP", self.pid)
    }

    /// SIGCONT.
    pub fn resume(&self) -> anyhow::Result<()> {
        signal("CONT", self.pid)
    }

    /// Ends it without a chance to clean up.
    pub fn kill(&self) -> anyhow::Result<()> {
        signal("KILL", self.pid)
    }

    /// Waits for its end; fails once [`DEADLINE`] has passed.
    pub async fn ended(&mut self) -> anyhow::Result<ProcessEnd> {
        let Ok(status) = timeout(DEADLINE, self.child.wait()).await else {
            bail!("`runtime {}` does not end\n{}", self.command, self.said());
        };
        let status = status?;
        // A worker that outlives it may hold the pipes open: then what was said so far is what there is.
        for output in [&mut self.stdout, &mut self.stderr] {
            let _ = timeout(REAPING, output.wait_for(|_| false)).await;
        }
        Ok(ProcessEnd {
            status,
            stdout: self.stdout.borrow().clone(),
            stderr: self.stderr.borrow().clone(),
        })
    }

    /// Fails unless it is running.
    pub fn ensure_running(&mut self) -> anyhow::Result<()> {
        let status = self.child.try_wait()?;
        ensure!(
            status.is_none(),
            "`runtime {}` has ended: {status:?}\n{}",
            self.command,
            self.said()
        );
        Ok(())
    }

    /// Its resident memory, in bytes.
    pub fn resident_bytes(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line
            .and_then(|line| line.split_whitespace().next())
            .context("no VmRSS")?;
        Ok(kib.parse::<u64>()? * 1024)
    }

    /// All it said so far, for messages.
    pub fn said(&self) -> String {
        format!(
            "--- stdout\n{}--- stderr\n{}",
            *self.stdout.borrow(),
            *self.stderr.borrow()
        )
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The parent first: it would start others in their place.
        let _ = self.child.start_kill();
        let began = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && began.elapsed() < REAPING {
            std::thread::sleep(Duration::from_millis(2));
        }
        let mut left = self.children();
        for child in &left {
            let _ = child.kill();
        }
        while !left.is_empty() && began.elapsed() < REAPING {
            std::thread::sleep(Duration::from_millis(2));
            left.retain(ProcessId::is_alive);
        }
        // A test that already fails has its own message.
        assert!(
            left.is_empty() || std::thread::panicking(),
            "workers survive being killed: {left:?}"
        );
    }
}

impl ProcessId {
    /// The running process of this number.
    fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the program's name in brackets, and may hold anything.
        let (_, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        // One that has ended and waits to be reaped is a Z in the third field; the start is the 22nd.
        let is_running = *fields.first()? != "Z";
        Some(Self {
            pid,
            started: fields.get(19)?.parse().ok()?,
        })
        .filter(|_| is_running)
    }

    /// Whether that very process is still there.
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// `kill -9`.
    pub fn kill(&self) -> anyhow::Result<()> {
        signal("KILL", self.pid)
    }

    /// Its command line.
    pub fn command_line(&self) -> Vec<String> {
        let bytes = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        String::from_utf8_lossy(&bytes)
            .split('\0')
            .map(String::from)
            .collect()
    }
}

fn signal(name: &str, pid: u32) -> anyhow::Result<()> {
    let status = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status()?;
    ensure!(status.success(), "cannot send {name} to process {pid}");
    Ok(())
}

/// Reads to the end, keeping the beginning; the channel closes when the output does.
fn listen(mut output: impl AsyncRead + Unpin + Send + 'static) -> watch::Receiver<String> {
    let (sender, receiver) = watch::channel(String::new());
    tokio::spawn(async move {
        let mut piece = [0; 4096];
        while let Ok(read @ 1..) = output.read(&mut piece).await {
            let text = String::from_utf8_lossy(&piece[..read]);
            sender.send_modify(|kept| {
                if kept.len() < MAX_OUTPUT {
                    kept.push_str(&text);
                }
            });
        }
    });
    receiver
}
