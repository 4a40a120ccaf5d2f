//! The id, time and model in an answer.

use rand::RngExt;

use super::engine::now;

/// What identifies one answer.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    /// The client's `X-Request-Id`, or a random number.
    request: String,
    /// Seconds of the Unix epoch.
    pub(super) created: u64,
    /// The model's name.
    pub(super) model: String,
}

impl Identity {
    pub(super) fn new(request_id: Option<&str>, model: String) -> Self {
        Self {
            request: request_id.map_or_else(random_id, String::from),
            created: now() as u64,
            model,
        }
    }

    /// The id of an answer of the kind that `prefix` names.
    pub(super) fn id(&self, prefix: &str) -> String {
        format!("{prefix}{}", self.request)
    }
}

/// 16 hexadecimal digits.
pub(super) fn random_id() -> String {
    format!("{:016x}", rand::rng().random::<u64>())
}
