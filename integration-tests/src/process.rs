//! A process of the binary: started, its output read, and always ended.

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

/// Most bytes of output that are kept. The rest is read and dropped, so that the process never blocks on a full pipe.
const MAX_OUTPUT: usize = 1 << 20;

/// Longest wait for killed processes to end.
const REAPING: Duration = Duration::from_secs(5);

/// A running `runtime …`. Dropping this kills the process and every process it started.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pid: u32,
    stdout: watch::Receiver<String>,
    stderr: watch::Receiver<String>,
    command: String,
    /// The working directory: empty, so that no file of the checkout affects a test. Children inherit it, so it
    /// identifies them even after their parent has ended.
    directory: TempDir,
}

/// A process of the operating system. Its start time distinguishes it from a later process with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProcessId {
    /// The process number.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    started: u64,
}

/// How a process ended, and its output.
#[derive(Debug)]
pub struct ProcessEnd {
    /// The exit status.
    pub status: ExitStatus,
    /// All of standard output.
    pub stdout: String,
    /// All of standard error.
    pub stderr: String,
}

impl Process {
    /// Starts the binary with these arguments, in an empty directory, without any `SIGNALBOX_…` variable, and with no
    /// Hugging Face hub but one that the arguments name.
    pub fn start(arguments: &[&str]) -> anyhow::Result<Self> {
        let binary = binary()?;
        let directory = TempDir::new()?;
        let mut command = Command::new(&binary);
        command
            .args(arguments)
            .current_dir(directory.path())
            // Nobody listens at port 1.
            .env("HF_ENDPOINT", "http://127.0.0.1:1")
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
        let pid = child.id().context("the process has already ended")?;
        let stdout = collect(child.stdout.take().context("no standard output")?);
        let stderr = collect(child.stderr.take().context("no standard error")?);
        Ok(Self {
            child,
            pid,
            stdout,
            stderr,
            command: arguments.join(" "),
            directory,
        })
    }

    /// Waits for a line of standard output that begins with `prefix`; returns the rest of the line.
    ///
    /// # Errors
    /// The process ended without printing the line, or [`DEADLINE`] passed. The error contains the output.
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
                "`runtime {}` printed no line that begins with {prefix:?}\n{}",
                self.command,
                self.output()
            )
        })
    }

    /// The process number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The processes it started that still run, whether it runs itself or not.
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

    /// Waits until all processes it started have ended.
    pub async fn childless(&self) -> anyhow::Result<()> {
        eventually("all workers have ended", || async {
            Ok(self.children().is_empty().then_some(()))
        })
        .await
    }

    /// Sends SIGINT, as Ctrl-C does.
    pub fn interrupt(&self) -> anyhow::Result<()> {
        signal("INT", self.pid)
    }

    /// Sends SIGHUP, upon which settings are read again.
    pub fn hangup(&self) -> anyhow::Result<()> {
        signal("HUP", self.pid)
    }

    /// Sends SIGSTOP: the process keeps its connections and does nothing.
    pub fn suspend(&self) -> anyhow::Result<()> {
        signal("STOP", self.pid)
    }

    /// Sends SIGCONT.
    pub fn resume(&self) -> anyhow::Result<()> {
        signal("CONT", self.pid)
    }

    /// Sends SIGKILL.
    pub fn kill(&self) -> anyhow::Result<()> {
        signal("KILL", self.pid)
    }

    /// Waits for the process to end; fails once [`DEADLINE`] has passed.
    pub async fn ended(&mut self) -> anyhow::Result<ProcessEnd> {
        let Ok(status) = timeout(DEADLINE, self.child.wait()).await else {
            bail!("`runtime {}` does not end\n{}", self.command, self.output());
        };
        let status = status?;
        // A worker that outlives the process may hold the pipes open: then the output so far is returned.
        for output in [&mut self.stdout, &mut self.stderr] {
            let _ = timeout(REAPING, output.wait_for(|_| false)).await;
        }
        Ok(ProcessEnd {
            status,
            stdout: self.stdout.borrow().clone(),
            stderr: self.stderr.borrow().clone(),
        })
    }

    /// Fails unless the process is running.
    pub fn ensure_running(&mut self) -> anyhow::Result<()> {
        let status = self.child.try_wait()?;
        ensure!(
            status.is_none(),
            "`runtime {}` has ended: {status:?}\n{}",
            self.command,
            self.output()
        );
        Ok(())
    }

    /// Resident memory, in bytes.
    pub fn resident_bytes(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line
            .and_then(|line| line.split_whitespace().next())
            .context("no VmRSS")?;
        Ok(kib.parse::<u64>()? * 1024)
    }

    /// All output so far, for messages.
    pub fn output(&self) -> String {
        format!(
            "--- stdout\n{}--- stderr\n{}",
            *self.stdout.borrow(),
            *self.stderr.borrow()
        )
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The parent first: it restarts children that end.
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
        // A test that already panics has its own message.
        assert!(
            left.is_empty() || std::thread::panicking(),
            "killed workers still run: {left:?}"
        );
    }
}

impl ProcessId {
    /// The running process of this number.
    fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the program's name in brackets, which may contain any text.
        let (_, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        // A process that has ended and is not reaped has a Z in the third field. The start time is the 22nd field.
        let is_running = *fields.first()? != "Z";
        Some(Self {
            pid,
            started: fields.get(19)?.parse().ok()?,
        })
        .filter(|_| is_running)
    }

    /// Whether this process still runs.
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// Sends SIGKILL.
    pub fn kill(&self) -> anyhow::Result<()> {
        signal("KILL", self.pid)
    }

    /// Sends SIGHUP.
    pub fn hangup(&self) -> anyhow::Result<()> {
        signal("HUP", self.pid)
    }

    /// The command line.
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

/// Reads the output to its end and keeps the beginning. The channel closes when the output does.
fn collect(mut output: impl AsyncRead + Unpin + Send + 'static) -> watch::Receiver<String> {
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
