//! Closed-loop load from `wrk` (a Debian package): as many requests as the router answers.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, ensure};
use tempfile::TempDir;

/// A run of `wrk`.
pub(crate) struct Run<'a> {
    pub(crate) url: &'a str,
    pub(crate) bodies: &'a [String],
    pub(crate) connections: usize,
    pub(crate) seconds: u32,
}

/// The result of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answered {
    pub(crate) requests: f64,
    pub(crate) seconds: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) errors: f64,
}

const REPORT: &str = r#"
wrk.method = "POST"
wrk.path = "/v1/chat/completions"
wrk.headers["Content-Type"] = "application/json"
local i = 0
request = function() i = i + 1; return wrk.format(nil, nil, nil, bodies[(i - 1) % #bodies + 1]) end
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format("RESULT %d %d %d %d %d\n", summary.requests, summary.duration, latency:percentile(50),
    latency:percentile(99), errors.status + errors.timeout + errors.read + errors.connect))
end
"#;

impl Run<'_> {
    pub(crate) fn go(&self) -> anyhow::Result<Answered> {
        let folder = TempDir::new()?;
        let script = folder.path().join("load.lua");
        let bodies: Vec<String> = self.bodies.iter().map(|body| lua_string(body)).collect();
        fs::write(
            &script,
            format!("local bodies = {{\n{}}}\n{REPORT}", bodies.join(",\n")),
        )?;
        let output = self.wrk(&script)?;
        let line = output.lines().find_map(|line| line.strip_prefix("RESULT "));
        let numbers: Vec<f64> = line
            .with_context(|| format!("wrk printed no result:\n{output}"))?
            .split(' ')
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        let [requests, micros, p50, p99, errors] = numbers[..] else {
            anyhow::bail!("wrk printed {output}");
        };
        Ok(Answered {
            requests,
            seconds: micros / 1e6,
            p50_ms: p50 / 1e3,
            p99_ms: p99 / 1e3,
            errors,
        })
    }

    fn wrk(&self, script: &Path) -> anyhow::Result<String> {
        let output = Command::new("wrk")
            .args(["-t1", "--timeout", "30s"])
            .arg(format!("-c{}", self.connections))
            .arg(format!("-d{}s", self.seconds))
            .arg("-s")
            .arg(script)
            .arg(self.url)
            .output()
            .context("wrk cannot start; `make bench` installs it")?;
        ensure!(
            output.status.success(),
            "wrk failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// A Lua string literal of JSON text, which contains no newlines.
fn lua_string(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
