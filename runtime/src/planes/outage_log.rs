//! What is logged of a plane: one line for a loss, one for each further cause of it, one for the return. Pure.
//!
//! A connection that is retried four times a second reports its reason as often. A cause that shows only later, such as
//! credentials that the restarted server refuses, is worth a line all the same.

use signalbox_protocol::{PlaneState, PlaneStatus};

/// Most causes that are logged of one outage. Reasons may hold a port or a time that is new at each attempt.
const MAX_CAUSES: usize = 4;

/// What the log has of a plane.
#[derive(Debug, Default)]
pub(super) struct OutageLog {
    was_up: bool,
    /// The reasons logged since the plane worked last.
    causes: Vec<String>,
}

/// A line to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OutageLine {
    /// For the first time.
    Works,
    WorksAgain,
    Fails,
}

impl OutageLog {
    /// The line that a status is worth.
    pub(super) fn line(&mut self, now: &PlaneStatus) -> Option<OutageLine> {
        if now.state == PlaneState::Up {
            let is_change = !self.was_up || !self.causes.is_empty();
            self.was_up = true;
            let was_lost = !std::mem::take(&mut self.causes).is_empty();
            return match (is_change, was_lost) {
                (false, _) => None,
                (true, false) => Some(OutageLine::Works),
                (true, true) => Some(OutageLine::WorksAgain),
            };
        }
        let is_new = now.has_reason() && !self.causes.contains(&now.detail) && self.causes.len() < MAX_CAUSES;
        if is_new {
            self.causes.push(now.detail.clone());
        }
        is_new.then_some(OutageLine::Fails)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_one_line_each_further_cause_another_and_the_return_one() {
        let (mut log, mut status) = (OutageLog::default(), PlaneStatus::connecting("nats"));
        assert_eq!(log.line(&status), None, "not tried yet");
        status.up();
        assert_eq!(log.line(&status), Some(OutageLine::Works));
        assert_eq!(log.line(&status), None);
        let mut lines = Vec::new();
        for reason in ["lost", "refused", "lost", "refused", "wrong password"] {
            status.down(reason);
            lines.extend(log.line(&status));
        }
        assert_eq!(lines, [OutageLine::Fails; 3]);
        status.up();
        assert_eq!(log.line(&status), Some(OutageLine::WorksAgain));
        for port in 0..1_000 {
            status.down(format!("refused at port {port}"));
            lines.extend(log.line(&status));
        }
        assert_eq!(lines.len(), 3 + MAX_CAUSES);
    }
}
