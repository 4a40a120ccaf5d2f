//! What policies write to the log: the one import of a policy.
//!
//! A call keeps its messages until it has ended; then those that the instance may still write this second go to the log.
//! Nothing of this happens in a call that writes nothing.

use std::time::{Duration, Instant};

use crate::bindings::diagnostics::{Host, Level};

/// Most messages that are kept of one call (`wit/diagnostics.wit`).
const MAX_PER_CALL: usize = 16;
/// Longest message, in bytes (`wit/diagnostics.wit`).
const MAX_MESSAGE_BYTES: usize = 1_024;
/// Most messages of one instance in each [`PERIOD`] (`wit/diagnostics.wit`).
const MAX_PER_PERIOD: usize = 10;
/// The time in which an instance may write [`MAX_PER_PERIOD`] messages.
const PERIOD: Duration = Duration::from_secs(1);

/// The messages of one instance.
#[derive(Debug, Default)]
pub(crate) struct Diagnostics {
    /// Those of the current call.
    messages: Vec<(Level, String)>,
    /// Messages that the current call wrote beyond those.
    dropped: u64,
    /// When the current period began, and the messages that went to the log since.
    period: Option<(Instant, usize)>,
}

impl Host for Diagnostics {
    fn log(&mut self, level: Level, mut message: String) {
        if self.messages.len() >= MAX_PER_CALL {
            self.dropped += 1;
            return;
        }
        message.truncate(message.floor_char_boundary(MAX_MESSAGE_BYTES));
        self.messages.push((level, message));
    }
}

impl Diagnostics {
    /// Whether the last call wrote anything.
    pub(crate) const fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// What the policy warned of last. Where the call then trapped, that is the reason.
    pub(crate) fn last_warning(&self) -> Option<&str> {
        let (level, message) = self.messages.last()?;
        matches!(level, Level::Warn).then_some(message)
    }

    /// Writes the messages of the call that has just ended to the log. `policy` is `name@version`.
    pub(crate) fn write(&mut self, policy: &str, now: Instant) {
        let (began, mut written) = self
            .period
            .filter(|(began, _)| now.saturating_duration_since(*began) < PERIOD)
            .unwrap_or((now, 0));
        for (level, message) in self.messages.drain(..) {
            if written >= MAX_PER_PERIOD {
                self.dropped += 1;
                continue;
            }
            written += 1;
            match level {
                Level::Debug => tracing::debug!(target: "policy", policy, "{message}"),
                Level::Info => tracing::info!(target: "policy", policy, "{message}"),
                Level::Warn => tracing::warn!(target: "policy", policy, "{message}"),
            }
        }
        self.period = Some((began, written));
        let dropped = std::mem::take(&mut self.dropped);
        if dropped > 0 {
            metrics::counter!("signalbox_policy_messages_dropped_total", "policy" => policy.to_owned())
                .increment(dropped);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(diagnostics: &Diagnostics) -> usize {
        diagnostics.period.map_or(0, |(_, written)| written)
    }

    #[test]
    fn a_call_keeps_few_and_short_messages() {
        let mut diagnostics = Diagnostics::default();
        for _ in 0..MAX_PER_CALL + 3 {
            diagnostics.log(Level::Info, "ä".repeat(MAX_MESSAGE_BYTES));
        }
        assert_eq!(
            (diagnostics.messages.len(), diagnostics.dropped),
            (MAX_PER_CALL, 3)
        );
        assert!(
            diagnostics
                .messages
                .iter()
                .all(|(_, text)| text.len() == MAX_MESSAGE_BYTES)
        );
    }

    #[test]
    fn an_instance_writes_ten_messages_a_second() {
        let (mut diagnostics, start) = (Diagnostics::default(), Instant::now());
        for _ in 0..3 {
            (0..5).for_each(|_| diagnostics.log(Level::Debug, "x".into()));
            diagnostics.write("p@1", start);
        }
        assert_eq!(written(&diagnostics), MAX_PER_PERIOD);
        diagnostics.log(Level::Debug, "x".into());
        diagnostics.write("p@1", start + PERIOD);
        assert_eq!(written(&diagnostics), 1, "a second later");
        assert!(diagnostics.is_empty());
    }

    #[test]
    fn only_a_warning_that_came_last_is_a_reason() {
        let mut diagnostics = Diagnostics::default();
        diagnostics.log(Level::Warn, "panicked".into());
        assert_eq!(diagnostics.last_warning(), Some("panicked"));
        diagnostics.log(Level::Info, "went on".into());
        assert_eq!(diagnostics.last_warning(), None);
    }
}
