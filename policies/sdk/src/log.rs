//! What a policy writes to the router's log (`wit/diagnostics.wit`).

#[cfg(target_arch = "wasm32")]
use crate::bindings::policy::signalbox::policy::diagnostics::{Level, log};

/// Writes a message for the author of the policy.
pub fn debug(message: &str) {
    #[cfg(target_arch = "wasm32")]
    log(Level::Debug, message);
    #[cfg(not(target_arch = "wasm32"))]
    eprintln!("debug: {message}");
}

/// Writes a message for the operator.
pub fn info(message: &str) {
    #[cfg(target_arch = "wasm32")]
    log(Level::Info, message);
    #[cfg(not(target_arch = "wasm32"))]
    eprintln!("info: {message}");
}

/// Writes a warning for the operator.
pub fn warn(message: &str) {
    #[cfg(target_arch = "wasm32")]
    log(Level::Warn, message);
    #[cfg(not(target_arch = "wasm32"))]
    eprintln!("warning: {message}");
}
