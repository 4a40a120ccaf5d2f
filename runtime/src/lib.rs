//! Builds a process from the crates of `runtime/`.
//!
//! A process is a *router* (`serve`), a *worker* (`worker`), or a router that also starts workers as children of
//! itself (`up`). Everything here is wiring; decisions, protocols and engines are in the crates below, and
//! `runtime/README.md` is the map.

mod admin_client;
mod child_protocol;
mod child_worker;
mod cli;
pub mod config;
pub mod console;
mod decision_writer;
mod doctor;
mod model;
mod open_files;
mod planes;
mod policy_commands;
mod policy_kit;
mod policy_test;
mod reload;
mod replay;
mod router_process;
mod settings;
mod shutdown;
mod static_workers;
pub mod telemetry;
mod tokenizer_files;
mod up;
mod worker_process;

use std::process::ExitCode;

pub use cli::Cli;
use cli::{Command, ConfigCommand};
use reload::Hangups;
use settings::LogSettings;

/// Runs the command until it ends or the process is asked to stop.
///
/// The exit code is that of the command where it has a verdict; an error has its own.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    open_files::raise_limit();
    let system = actix_rt::System::new();
    let log = LogSettings {
        filter: cli.log,
        json: cli.log_json,
    };
    system.block_on(async {
        match cli.command {
            Command::Doctor(options) => return Ok(doctor::run(*options).await),
            Command::Up(options) => {
                let hangups = Hangups::catch()?;
                up::run((*options).try_into()?, log, hangups).await
            }
            Command::Serve(options) => {
                let hangups = Hangups::catch()?;
                router_process::run((*options).try_into()?, hangups).await
            }
            Command::Worker(options) if options.child.is_some() => {
                Hangups::catch()?.ignore("the settings are those of `runtime up`");
                worker_process::run_child().await
            }
            Command::Worker(options) => {
                let hangups = Hangups::catch()?;
                worker_process::run((*options).try_into()?, hangups).await
            }
            Command::Replay(options) => replay::run(&options),
            Command::Policy(command) => return policy_commands::run(command).await,
            Command::Config(ConfigCommand::Show { command, arguments }) => config::show(command, &arguments),
            Command::Config(ConfigCommand::Check { file }) => config::check(&file),
            Command::Config(ConfigCommand::Example) => config::example(),
        }?;
        Ok(ExitCode::SUCCESS)
    })
}
