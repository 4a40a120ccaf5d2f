//! JSON written piece by piece into a buffer.

use std::{fmt::Display, io::Write};

/// Appends `text` as a JSON string, quotes included.
pub(super) fn push_string(out: &mut Vec<u8>, text: &str) {
    let written = serde_json::to_writer(&mut *out, text);
    debug_assert!(
        written.is_ok(),
        "a string is always JSON, and a Vec takes everything"
    );
}

/// Appends what needs no quotes and no escapes: numbers.
pub(super) fn push_display(out: &mut Vec<u8>, number: impl Display) {
    let written = write!(out, "{number}");
    debug_assert!(written.is_ok(), "a Vec takes everything");
}

/// Appends a log probability. JSON has no infinity: OpenAI writes −9999 for what is impossible.
pub(super) fn push_logprob(out: &mut Vec<u8>, logprob: f32) {
    let logprob = if logprob.is_finite() { logprob } else { -9999.0 };
    // Debug keeps the fraction of whole numbers, so that readers see a float always.
    push_display(out, format_args!("{logprob:?}"));
}
