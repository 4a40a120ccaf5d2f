//! Output for the person at the terminal: results on standard output, the final error on standard error. Logs are
//! in `telemetry.rs`.

use std::{
    fmt,
    io::{self, Write},
};

/// Prints a line to standard output. A closed pipe is not an error.
pub fn line(text: fmt::Arguments<'_>) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}

/// Prints why the command failed: the whole chain of causes in one line.
pub fn error(error: &anyhow::Error) {
    let _ = writeln!(io::stderr().lock(), "error: {error:#}");
}
