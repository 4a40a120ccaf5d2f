//! What a person at the terminal reads: results on standard output, trouble on standard error. Logs are elsewhere.

use std::{
    fmt,
    io::{self, Write},
};

/// One line of standard output. A closed pipe is no reason to fail.
pub fn line(text: fmt::Arguments<'_>) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}

/// Why the command failed: the whole chain of causes in one line.
pub fn error(error: &anyhow::Error) {
    let _ = writeln!(io::stderr().lock(), "error: {error:#}");
}
