//! The process: read the command line, run the command, say in one sentence what went wrong.

use std::process::ExitCode;

use runtime::{config, telemetry};

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
