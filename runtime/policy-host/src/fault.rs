//! What goes wrong inside a policy, as data: a metric label, a log line, a reason for the fallback to decide.

use wasmtime::{PoolConcurrencyLimitError, Trap};

use crate::sandbox::MemoryRefused;

/// What went wrong in one call of a policy. The instance it happened in is finished.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyFault {
    /// It panicked or did something WebAssembly forbids.
    #[error("trapped: {0}")]
    Trap(String),
    /// It ran longer than it may.
    #[error("ran past its budget of {budget_ms} ms")]
    Deadline {
        /// The time it had, in milliseconds.
        budget_ms: u64,
    },
    /// It asked for more memory than it may have.
    #[error("asked for {asked} bytes of memory; the limit is {limit}")]
    Memory {
        /// Bytes it wanted in all.
        asked: usize,
        /// Bytes it may have in all.
        limit: usize,
    },
    /// It recursed too deeply.
    #[error("ran out of stack")]
    Stack,
    /// It answered, but not with a decision.
    #[error("answered nonsense: {0}")]
    Answer(String),
    /// It was not asked, because the candidates were none, or columns of different lengths: the host's own mistake.
    #[error("not asked: {0}")]
    Candidates(String),
    /// It could not be started. Nothing the policy did wrong when the host itself is out of places.
    #[error("could not be started: {reason}")]
    Instantiate {
        /// Why not.
        reason: String,
        /// Whether the policy is to blame, rather than a host that ran out of places for instances.
        blamed: bool,
    },
}

impl PolicyFault {
    /// The fault's metric label: `trap`, `deadline`, `memory`, `stack`, `answer`, `candidates` or
    /// `instantiate`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Trap(_) => "trap",
            Self::Deadline { .. } => "deadline",
            Self::Memory { .. } => "memory",
            Self::Stack => "stack",
            Self::Answer(_) => "answer",
            Self::Candidates(_) => "candidates",
            Self::Instantiate { .. } => "instantiate",
        }
    }

    /// Whether it counts towards the policy's quarantine.
    pub(crate) const fn blamed(&self) -> bool {
        !matches!(
            self,
            Self::Candidates(_) | Self::Instantiate { blamed: false, .. }
        )
    }

    /// From an error of a call that had `budget_ms`.
    pub(crate) fn from_call(error: &wasmtime::Error, budget_ms: u64) -> Self {
        if let Some(refused) = error.downcast_ref::<MemoryRefused>() {
            return Self::Memory {
                asked: refused.asked,
                limit: refused.limit,
            };
        }
        match error.downcast_ref::<Trap>() {
            Some(Trap::Interrupt) => Self::Deadline { budget_ms },
            Some(Trap::StackOverflow) => Self::Stack,
            Some(trap) => Self::Trap(trap.to_string()),
            // Not a trap of the guest's code but an answer that breaks the canonical ABI.
            None => Self::Trap(error.root_cause().to_string()),
        }
    }

    /// From an error while an instance was made.
    pub(crate) fn from_instantiation(error: &wasmtime::Error, budget_ms: u64) -> Self {
        if error.is::<PoolConcurrencyLimitError>() {
            return Self::Instantiate {
                reason: error.root_cause().to_string(),
                blamed: false,
            };
        }
        match Self::from_call(error, budget_ms) {
            Self::Trap(_) if !error.is::<Trap>() => Self::Instantiate {
                reason: format!("{error:#}"),
                blamed: true,
            },
            fault => fault,
        }
    }
}
