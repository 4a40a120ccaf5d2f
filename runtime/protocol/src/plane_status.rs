//! How a plane's server is doing, as `/health` and `/ready` tell it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Before the first attempt to reach a server has ended.
const NOT_YET: &str = "not reached yet";

/// The state of what carries a plane: a connection to NATS or etcd, or nothing that could break.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaneStatus {
    /// What carries the plane: `nats`, `etcd`, `memory`, `static`.
    pub kind: String,
    /// Whether it works.
    pub state: PlaneState,
    /// Why it does not, in one sentence; empty while it does.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// Whether a plane works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlaneState {
    /// It never worked so far, and is tried again and again.
    Connecting,
    /// It works.
    Up,
    /// It worked before, and is tried again and again.
    Down,
}

impl PlaneStatus {
    /// A plane that lives within the process and cannot break.
    pub fn in_process(kind: &str) -> Self {
        Self {
            kind: kind.into(),
            state: PlaneState::Up,
            detail: String::new(),
        }
    }

    /// A plane whose server was not reached yet.
    pub fn connecting(kind: &str) -> Self {
        Self {
            kind: kind.into(),
            state: PlaneState::Connecting,
            detail: NOT_YET.into(),
        }
    }

    /// Whether it is known why the plane does not work.
    pub fn has_reason(&self) -> bool {
        !self.detail.is_empty() && self.detail != NOT_YET
    }

    /// It works from now on; whether that is news.
    pub fn up(&mut self) -> bool {
        let is_news = self.state != PlaneState::Up || !self.detail.is_empty();
        self.state = PlaneState::Up;
        self.detail.clear();
        is_news
    }

    /// It does not work, for this reason; whether that is news.
    pub fn down(&mut self, reason: impl Into<String>) -> bool {
        let reason = reason.into();
        let is_news = self.state == PlaneState::Up || self.detail != reason;
        if self.state == PlaneState::Up {
            self.state = PlaneState::Down;
        }
        self.detail = reason;
        is_news
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
        assert!(!status.down("refused"), "no news");
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
