//! Writes JSON piece by piece into a buffer.

use std::{fmt::Display, io::Write};

/// Appends `text` as a JSON string, quotes included.
pub(super) fn push_string(out: &mut Vec<u8>, text: &str) {
    let written = serde_json::to_writer(&mut *out, text);
    debug_assert!(
        written.is_ok(),
        "a string always serialises, and writing to a Vec never fails"
    );
}

/// Appends a number, which needs no quotes and no escapes.
pub(super) fn push_display(out: &mut Vec<u8>, number: impl Display) {
    let written = write!(out, "{number}");
    debug_assert!(written.is_ok(), "writing to a Vec never fails");
}

/// Appends a log probability. JSON has no infinity; OpenAI writes −9999 for an impossible token.
pub(super) fn push_logprob(out: &mut Vec<u8>, logprob: f32) {
    let logprob = if logprob.is_finite() { logprob } else { -9999.0 };
    // `Debug` writes whole numbers with a fraction, so that readers always see a float.
    push_display(out, format_args!("{logprob:?}"));
}
