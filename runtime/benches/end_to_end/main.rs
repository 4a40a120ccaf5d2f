//! What a router costs in front of simulated workers, end to end: CPU of its process for a request, latency it adds,
//! memory, and what swaps of the policy and many workers do to these.
//!
//! `cargo bench --package runtime --bench end_to_end [-- PART…] [--peer NAME=URL,PID,MODEL]…`, or `make bench`. Parts:
//! `streamed`, `whole`, `shared`, `chats`, `paced` (CPU a request), `latency`, `swap`, `workers`, `idle`; all unless
//! named. A peer is another router that is running already; the parts that measure CPU and latency measure it in turn with
//! ours, round by round, since figures of one sitting compare and others do not. `runtime/docs/performance.md` says what
//! was measured.
//!
//! Clients, router and workers share this machine's cores, so requests a second are those of the whole.

#![expect(clippy::print_stdout, reason = "a benchmark talks to its reader")]

mod direct;
mod fleet;
mod paced;
mod parts;
mod proc;
mod prompts;
mod wrk;

use anyhow::{Context, bail};
use fleet::{MODEL, Target};
use parts::PARTS;

fn main() -> anyhow::Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    actix_rt::System::new().block_on(async {
        for (name, run) in PARTS {
            if options.parts.is_empty() || options.parts.iter().any(|part| part == name) {
                println!("\n== {name}");
                run.run(&options.peers)
                    .await
                    .with_context(|| format!("part {name}"))?;
            }
        }
        Ok(())
    })
}

struct Options {
    parts: Vec<String>,
    peers: Vec<Target>,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let (mut parts, mut peers) = (Vec::new(), Vec::new());
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--peer" => peers.push(peer(&arguments.next().unwrap_or_default())?),
                // Cargo's own.
                "--bench" => {}
                name if PARTS.iter().any(|(part, _)| *part == name) => parts.push(argument),
                other => bail!(
                    "there is no part {other:?}; there are {}",
                    PARTS.map(|(part, _)| part).join(", ")
                ),
            }
        }
        Ok(Self { parts, peers })
    }
}

fn peer(text: &str) -> anyhow::Result<Target> {
    let target = || {
        let (name, rest) = text.split_once('=')?;
        let mut fields = rest.split(',');
        Some(Target {
            name: name.to_owned(),
            url: fields.next()?.to_owned(),
            process: proc::Watched(fields.next()?.parse().ok()?),
            model: fields.next().unwrap_or(MODEL).to_owned(),
        })
    };
    target().with_context(|| format!("--peer {text:?} is not NAME=URL,PID or NAME=URL,PID,MODEL"))
}
