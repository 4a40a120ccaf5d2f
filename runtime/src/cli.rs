//! The command line, as clap parses it. Nothing else uses these types but `settings/from_options.rs`.
//!
//! Every option can also be set by the environment variable that its help names, and options of `serve` and `worker` in
//! a file. A flag wins over the environment, the environment over the file, the file over the default.

use std::{
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
};

use clap::{Parser, Subcommand, ValueEnum};

mod doctor;
mod planes;
mod policy;
mod policy_kit;
mod policy_test;
mod replay;
mod router;
mod worker;

pub(crate) use doctor::DoctorOptions;
pub(crate) use planes::PlaneOptions;
pub(crate) use policy::{AdminOptions, ChoiceOptions, PolicyCommand};
pub(crate) use policy_kit::KitCommand;
pub(crate) use policy_test::PolicyTestOptions;
pub(crate) use replay::{ChangeKind, ReplayAction, ReplayCommand, ReplayOptions, TuneOptions};
pub(crate) use router::{FrontendOptions, ServeOptions, Switch, UpOptions};
pub(crate) use worker::{EngineChoice, EngineOptions, RequestTransport, UpstreamOptions, WorkerOptions};

/// The environment variables of `--log` and `--log-json`. A child process gets both options this way.
pub(crate) const LOG_VARIABLE: &str = "SIGNALBOX_LOG";
pub(crate) const LOG_JSON_VARIABLE: &str = "SIGNALBOX_LOG_JSON";

/// Routes LLM inference: an OpenAI API in front of GPU workers, with the routing decided by WASM policies.
#[derive(Debug, Parser)]
#[command(name = "runtime", version, propagate_version = true, max_term_width = 110, after_help = EXAMPLES)]
pub struct Cli {
    /// What is logged to standard error: a level, or tracing directives such as `warn,signalbox_router=debug`.
    #[arg(
        long,
        global = true,
        env = LOG_VARIABLE,
        default_value = "warn",
        value_name = "FILTER"
    )]
    pub log: String,
    /// Log in JSON, a document a line.
    #[arg(long, global = true, env = LOG_JSON_VARIABLE)]
    pub log_json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "Examples:
  runtime up                                      a model on two workers at http://127.0.0.1:8000
  runtime up --engine sim --workers 4             the same with simulated GPUs
  runtime up --upstream http://gpu-1:8000 --upstream http://gpu-2:8000
                                                  in front of engines that run already (vLLM, SGLang)
  runtime worker --engine sim --listen 127.0.0.1:7001
  runtime serve --discovery static://127.0.0.1:7001,127.0.0.1:7002
  runtime serve --discovery etcd://etcd:2379 --events nats://nats:4222
  runtime doctor --upstream http://gpu-1:8000     whether an engine's KV cache can be known, and what prevents it
  runtime replay trace.jsonl --policy round-robin --policy kv-aware
                                                  the same traffic with two policies, in virtual time
  runtime config example                          a file of all settings, explained
  runtime policy check policy.wasm                check a component as an upload does
  runtime policy push mine.wasm                   upload a component to the router at http://127.0.0.1:9090
  runtime policy activate MODEL mine              let it decide for a model; `rollback` undoes that
  runtime policy test policy.wasm --decisions decisions.jsonl
                                                  where it decides otherwise than a router did";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve a model on this machine, or engines that run already: the router, and its workers as child processes.
    Up(Box<UpOptions>),
    /// Route to workers that run elsewhere.
    Serve(Box<ServeOptions>),
    /// Run one engine and serve it to routers.
    Worker(Box<WorkerOptions>),
    /// Examine engines or workers: whether routers can know what their KV caches hold, and what prevents it.
    Doctor(Box<DoctorOptions>),
    /// Judge policies on a trace or on made-up traffic: a whole cluster in virtual time.
    Replay(Box<ReplayCommand>),
    /// Check policies, and change and show those of a router.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Show or check settings.
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print the settings in effect, each with its source.
    Show {
        /// The command whose settings are printed.
        #[arg(value_enum)]
        command: Configurable,
        /// The options of that command, `--config FILE` included.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Check a file of settings, and print what is wrong with it.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Print a file of all settings, explained and at their defaults.
    Example,
}

/// A command that can take its settings from a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Configurable {
    /// `runtime serve`
    Serve,
    /// `runtime worker`
    Worker,
}

/// An address to listen at: `ADDRESS:PORT`, or `NAME:PORT` for a name that resolves. A listener has one address, so the first
/// of IPv4 is taken where a name has several: programs that resolve `localhost` try it in any case.
pub(crate) fn listen_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let found: Vec<SocketAddr> = text
        .to_socket_addrs()
        .map_err(|error| format!("{error}; give ADDRESS:PORT or NAME:PORT"))?
        .collect();
    let first_of_ipv4 = found.iter().find(|address| address.is_ipv4());
    first_of_ipv4
        .or_else(|| found.first())
        .copied()
        .ok_or_else(|| "the name has no address".into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_address_to_listen_at_can_have_a_name() {
        assert_eq!(
            listen_address("localhost:8000"),
            Ok(SocketAddr::from(([127, 0, 0, 1], 8000)))
        );
        assert_eq!(
            listen_address("[::1]:1"),
            "[::1]:1".parse().map_err(|_| String::new())
        );
        for wrong in ["localhost", ":", "127.0.0.1:65536", "no such name:80", ""] {
            let refusal = listen_address(wrong).unwrap_err();
            assert!(refusal.contains("give ADDRESS:PORT or NAME:PORT"), "{refusal}");
        }
    }

    #[test]
    fn wrong_values_are_refused_where_they_stand() {
        for wrong in [
            ["runtime", "up", "--workers", "0"],
            ["runtime", "up", "--speedup", "-1"],
            ["runtime", "worker", "--id", "a.b"],
            ["runtime", "worker", "--label", "zone"],
            ["runtime", "up", "--upstream", "gpu-1:8000"],
            ["runtime", "worker", "--kv-events", "gpu-1:5557"],
        ] {
            let error = Cli::try_parse_from(wrong).unwrap_err().to_string();
            assert!(error.contains(wrong[2]), "{error}");
        }
    }
}
