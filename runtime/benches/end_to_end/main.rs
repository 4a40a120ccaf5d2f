//! The cost of a router in front of simulated workers, end to end: CPU of its process per request, added latency,
//! memory, and the effect of policy swaps and of many workers.
//!
//! `cargo bench --package runtime --bench end_to_end [-- PART…] [--peer NAME=URL,PID,MODEL]…`, or `make bench`. Parts:
//! `streamed`, `whole`, `shared`, `chats`, `paced` (CPU per request), `latency`, `swap`, `workers`, `idle`; without names, all
//! of them. A peer is another router that already runs. The parts that measure CPU and latency measure peers in turn
//! with ours, round by round, since only figures of the same session are comparable. `runtime/docs/performance.md`
//! has the results.
//!
//! Clients, router and workers share this machine's cores, so requests per second are those of all of them together.

#![expect(clippy::print_stdout, reason = "a benchmark prints its results")]

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
                // Cargo adds this.
                "--bench" => {}
                name if PARTS.iter().any(|(part, _)| *part == name) => parts.push(argument),
                other => bail!(
                    "there is no part {other:?}; give one of {}",
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
