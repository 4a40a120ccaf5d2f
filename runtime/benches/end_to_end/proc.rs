//! CPU and memory of a process, from the kernel's accounting.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::Context;

/// A process to be measured. Its children are workers and are not counted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watched(pub(crate) u32);

impl Watched {
    fn file(self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.0))
    }

    /// CPU time of all its threads so far, including threads that have ended.
    pub(crate) fn cpu(self) -> anyhow::Result<Duration> {
        let stat = fs::read_to_string(self.file("stat"))?;
        // The second field is the program's name in brackets, which may contain any text.
        let (_, fields) = stat.rsplit_once(") ").context("no fields in /proc/…/stat")?;
        let fields: Vec<&str> = fields.split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(Duration::from_secs_f64(ticks as f64 / TICKS_PER_SECOND))
    }

    /// Resident memory, in MiB.
    pub(crate) fn resident_mib(self) -> anyhow::Result<f64> {
        let status = fs::read_to_string(self.file("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line
            .and_then(|line| line.split_whitespace().next())
            .context("no VmRSS")?;
        Ok(kib.parse::<f64>()? / 1024.0)
    }
}

/// Linux always reports these times in hundredths of a second (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;
