//! The process: read the command line, run the command, say in one sentence what went wrong.

use std::process::ExitCode;

use clap::Parser;
use runtime::{Cli, telemetry};

fn main() -> ExitCode {
    let cli = Cli::parse();
    telemetry::start_logging(&cli.log, cli.log_json);
    match runtime::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            runtime::console::error(&error);
            ExitCode::FAILURE
        }
    }
}
