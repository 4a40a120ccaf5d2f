//! The state of a plane. It stays within a process, apart from the JSON of `/health`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The detail until the first attempt to reach the server has ended.
const NOT_YET: &str = "not reached yet";

/// The state of what carries a plane: a connection to NATS or etcd, or memory of this process, which is always up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaneStatus {
    /// What carries the plane: `nats`, `etcd`, `memory`, `static`.
    pub kind: String,
    /// Whether the plane works.
    pub state: PlaneState,
    /// Why the plane does not work, in one sentence; empty while it works.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// Whether a plane works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlaneState {
    /// It has never worked so far. The process keeps trying.
    Connecting,
    /// It works.
    Up,
    /// It worked before and does not work now. The process keeps trying.
    Down,
}

impl PlaneStatus {
    /// A plane within this process, which is always up.
    pub fn in_process(kind: &str) -> Self {
        Self {
            kind: kind.into(),
            state: PlaneState::Up,
            detail: String::new(),
        }
    }

    /// A plane whose server has not been reached yet.
    pub fn connecting(kind: &str) -> Self {
        Self {
            kind: kind.into(),
            state: PlaneState::Connecting,
            detail: NOT_YET.into(),
        }
    }

    /// Whether `detail` gives the reason of a failure.
    pub fn has_reason(&self) -> bool {
        !self.detail.is_empty() && self.detail != NOT_YET
    }

    /// Notes that the plane works. Returns whether the status changed.
    pub fn up(&mut self) -> bool {
        let changed = self.state != PlaneState::Up || !self.detail.is_empty();
        self.state = PlaneState::Up;
        self.detail.clear();
        changed
    }

    /// Notes that the plane does not work, and why. Returns whether the status changed.
    pub fn down(&mut self, reason: impl Into<String>) -> bool {
        let reason = reason.into();
        let changed = self.state == PlaneState::Up || self.detail != reason;
        if self.state == PlaneState::Up {
            self.state = PlaneState::Down;
        }
        self.detail = reason;
        changed
    }
}

impl fmt::Display for PlaneState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connecting => "connecting",
            Self::Up => "up",
            Self::Down => "down",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plane_that_never_worked_is_not_down_but_connecting() {
        let mut status = PlaneStatus::connecting("nats");
        assert!(status.down("refused"));
        assert!(!status.down("refused"), "nothing changed");
        assert_eq!(
            (status.state, status.detail.as_str()),
            (PlaneState::Connecting, "refused")
        );
        assert!(status.up() && !status.up());
        assert!(status.down("reset"));
        assert_eq!(
            serde_json::to_value(&status).unwrap(),
            serde_json::json!({"kind": "nats", "state": "down", "detail": "reset"})
        );
        status.up();
        assert_eq!(
            serde_json::to_value(&status).unwrap(),
            serde_json::json!({"kind": "nats", "state": "up"})
        );
    }
}
