//! The process: read the command line, run the command, say in one sentence what went wrong.

use std::process::ExitCode;

use mimalloc::MiMalloc;
use runtime::{config, telemetry};

/// Gives memory back that loading a tokenizer took, of which glibc's keeps some 150 MiB, and costs a request less.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    let outcome = config::command_line(std::env::args_os().collect()).and_then(|cli| {
        telemetry::start_logging(&cli.log, cli.log_json);
        runtime::run(cli)
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            runtime::console::error(&error);
            ExitCode::FAILURE
        }
    }
}
