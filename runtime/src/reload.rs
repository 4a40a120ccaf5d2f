//! SIGHUP: the settings are read again, and those that can change do.
//!
//! A router takes over `log`, `admin_token` and `grace_s`, a worker `log` and `grace_s`. What else has changed needs another
//! process, and a line in the log says so. With settings that are wrong everything stays as it is. SIGHUP never ends a process:
//! a terminal that is closed sends it, too.

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    cli::{Cli, Command},
    config::RunningOptions,
    console, telemetry,
};

/// SIGHUP, which is caught from the creation of this on. Until [`Hangups::follow`] it changes nothing.
#[derive(Debug)]
pub(crate) struct Hangups(Signal);

/// What a process does about a setting that has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// The new value is in effect.
    Made,
    /// Only another process has the new value.
    NeedsRestart,
}

impl Hangups {
    pub(crate) fn catch() -> anyhow::Result<Self> {
        Ok(Self(
            signal(SignalKind::hangup()).context("SIGHUP cannot be caught")?,
        ))
    }

    /// From now on, reads the settings of this process again at each signal. `settings` checks them as at the start of the
    /// process, and `change` puts the value of a key into effect.
    pub(crate) fn follow<S: 'static>(
        mut self,
        settings: impl Fn(Command) -> anyhow::Result<S> + 'static,
        mut change: impl FnMut(&str, &S) -> anyhow::Result<Change> + 'static,
    ) -> anyhow::Result<()> {
        let mut running = RunningOptions::of_process()?;
        actix_rt::spawn(async move {
            while self.0.recv().await.is_some() {
                if let Err(error) = reread(&mut running, &settings, &mut change) {
                    tracing::warn!("the settings stay as they are: {error:#}");
                }
            }
        });
        Ok(())
    }

    /// From now on, says at each signal that nothing changes, because of `reason`.
    pub(crate) fn ignore(mut self, reason: &'static str) {
        actix_rt::spawn(async move {
            while self.0.recv().await.is_some() {
                tracing::warn!("SIGHUP changes nothing: {reason}");
            }
        });
    }
}

fn reread<S>(
    running: &mut RunningOptions,
    settings: &impl Fn(Command) -> anyhow::Result<S>,
    change: &mut impl FnMut(&str, &S) -> anyhow::Result<Change>,
) -> anyhow::Result<()> {
    let read = running.read_again()?;
    let Cli { log, command, .. } = read.cli()?;
    let settings = settings(command)?;
    let (mut made, mut needs_restart) = (Vec::new(), Vec::new());
    for key in running.changes(&read) {
        let changed = match key.as_str() {
            "log" => telemetry::set_filter(&log).map(|()| Change::Made),
            key => change(key, &settings),
        };
        match changed.with_context(|| format!("{key} cannot change"))? {
            Change::Made => {
                running.take_over(&key, &read);
                made.push(key);
            }
            Change::NeedsRestart => needs_restart.push(key),
        }
    }
    let made = if made.is_empty() {
        "nothing".into()
    } else {
        made.join(", ")
    };
    console::line(format_args!("settings     read again; changed: {made}"));
    if !needs_restart.is_empty() {
        tracing::warn!(
            settings = needs_restart.join(", "),
            "settings have changed that a running process keeps; restart it to change them"
        );
    }
    Ok(())
}
