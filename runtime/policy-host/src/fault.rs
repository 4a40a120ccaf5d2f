//! The faults of a policy as data: a metric label and a log line. After a fault the fallback decides.

use std::io;

use rustix::io::Errno;
use wasmtime::{PoolConcurrencyLimitError, Trap};

use crate::sandbox::MemoryRefused;

/// What went wrong in one call of a policy. The instance must be dropped. The message completes a sentence that begins
/// with the policy's name or "it".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyFault {
    /// It panicked or did something that WebAssembly forbids.
    #[error("trapped: {0}")]
    Trap(String),
    /// It ran past its budget.
    #[error("ran past its budget of {budget_ms} ms")]
    Deadline {
        /// The budget, in milliseconds.
        budget_ms: u64,
    },
    /// It requested more memory than its limit.
    #[error("requested {requested} bytes of memory; the limit is {limit}")]
    Memory {
        /// Size of the memory that it requested, in bytes.
        requested: usize,
        /// Largest size of its memory, in bytes.
        limit: usize,
    },
    /// It recursed too deeply.
    #[error("ran out of stack")]
    Stack,
    /// It returned something invalid, such as costs for other candidates.
    #[error("returned an invalid answer: {0}")]
    Answer(String),
    /// It was not called, because there was no candidate, or the columns differ in length: a mistake of the host.
    #[error("was not called: {0}")]
    Candidates(String),
    /// No instance of it starts.
    #[error("does not start: {0}")]
    Instantiate(String),
    /// The host has no place or no memory for another instance. The policy is not the cause.
    #[error("was not called: there is no place for another instance: {0}")]
    NoPlace(String),
}

impl PolicyFault {
    /// The fault's metric label: `trap`, `deadline`, `memory`, `stack`, `answer`, `candidates`, `instantiate` or
    /// `no_place`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Trap(_) => "trap",
            Self::Deadline { .. } => "deadline",
            Self::Memory { .. } => "memory",
            Self::Stack => "stack",
            Self::Answer(_) => "answer",
            Self::Candidates(_) => "candidates",
            Self::Instantiate(_) => "instantiate",
            Self::NoPlace(_) => "no_place",
        }
    }

    /// Whether it counts towards the policy's quarantine.
    pub(crate) const fn blamed(&self) -> bool {
        !matches!(self, Self::Candidates(_) | Self::NoPlace(_))
    }

    /// The same, with the reason that the policy gave before a trap: a panic's message, usually.
    pub(crate) fn with_reason(self, reason: Option<&str>) -> Self {
        match (self, reason) {
            (Self::Trap(trap), Some(reason)) => Self::Trap(format!("{reason} ({trap})")),
            (fault, _) => fault,
        }
    }

    /// The fault behind an error of a call with a budget of `budget_ms`.
    pub(crate) fn from_call(error: &wasmtime::Error, budget_ms: u64) -> Self {
        if let Some(refused) = error.downcast_ref::<MemoryRefused>() {
            return Self::Memory {
                requested: refused.requested,
                limit: refused.limit,
            };
        }
        match error.downcast_ref::<Trap>() {
            Some(Trap::Interrupt) => Self::Deadline { budget_ms },
            Some(Trap::StackOverflow) => Self::Stack,
            Some(trap) => Self::Trap(trap.to_string()),
            // The guest's code did not trap: its answer breaks the canonical ABI.
            None => Self::Trap(error.root_cause().to_string()),
        }
    }

    /// The fault behind an error at the start of an instance.
    pub(crate) fn from_instantiation(error: &wasmtime::Error, budget_ms: u64) -> Self {
        let is_of_system =
            |cause: &(dyn std::error::Error + 'static)| cause.is::<Errno>() || cause.is::<io::Error>();
        if error.is::<PoolConcurrencyLimitError>() || error.chain().any(is_of_system) {
            return Self::NoPlace(error.root_cause().to_string());
        }
        match Self::from_call(error, budget_ms) {
            Self::Trap(_) if !error.is::<Trap>() => Self::Instantiate(format!("{error:#}")),
            fault => fault,
        }
    }
}
