//! The process: reads the command line, runs the command, and prints an error as one line.

use std::process::ExitCode;

use mimalloc::MiMalloc;
use runtime::{config, telemetry};

/// mimalloc returns the memory that loading a tokenizer took, of which glibc's allocator keeps some 150 MiB. It also
/// takes less CPU per request.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    let outcome = config::command_line(std::env::args_os().collect()).and_then(|cli| {
        telemetry::start_logging(&cli.log, cli.log_json);
        runtime::run(cli)
    });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            runtime::console::error(&error);
            ExitCode::FAILURE
        }
    }
}
