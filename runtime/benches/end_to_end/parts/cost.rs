//! CPU of the router's process per request, under as much load as it answers.

use crate::{
    fleet::{Fleet, Target},
    prompts::{self, Shape},
    wrk::{Answered, Run},
};

/// Rounds of each router, in turn with the others; the median counts.
const ROUNDS: usize = 3;
const SECONDS: u32 = 6;
/// Time before each measurement, in which caches warm up and memory grows.
const WARM_UP_SECONDS: u32 = 2;

/// A load.
#[derive(Debug)]
pub(crate) struct Cost {
    pub(crate) prompts: Prompts,
    pub(crate) stream: bool,
    pub(crate) connections: usize,
    /// Speed-up of the simulated GPUs; 0 for no waiting.
    pub(crate) speedup: f64,
    /// Additional options of the workers.
    pub(crate) of_workers: &'static [&'static str],
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Prompts {
    /// 2,000 bytes, all different.
    Distinct,
    /// 16,000 bytes, the first 14,000 equal in all.
    Shared,
    /// Chats of ten turns.
    Chats,
}

/// Prompts of 2,000 bytes, and 64 tokens without waiting.
pub(crate) const STREAMED: Cost = Cost {
    prompts: Prompts::Distinct,
    stream: true,
    connections: 32,
    speedup: 0.0,
    of_workers: &[],
};

/// The same at about 5 ms per token, for 128 clients. At this speed-up a step of the simulated GPU with its prefills
/// takes this long.
pub(crate) const PACED: Cost = Cost {
    connections: 128,
    speedup: 4.0,
    ..STREAMED
};

const TOKENS: u32 = 64;

impl Cost {
    pub(super) async fn run(&self, peers: &[Target]) -> anyhow::Result<()> {
        let fleet = Fleet::start_with(4, self.speedup, self.of_workers, &[]).await?;
        let mut targets = vec![fleet.target()];
        targets.extend_from_slice(peers);
        let mut measured = vec![Vec::new(); targets.len()];
        for _ in 0..ROUNDS {
            for (target, rounds) in targets.iter().zip(&mut measured) {
                rounds.push(self.measure(target)?);
            }
        }
        println!(
            "{:<16}{:>14}{:>12}{:>10}{:>10}{:>8}{:>9}",
            "router", "CPU us/request", "requests/s", "p50 ms", "p99 ms", "errors", "RSS MiB"
        );
        for (target, mut rounds) in targets.iter().zip(measured) {
            rounds.sort_by(|a, b| a.cpu_us.total_cmp(&b.cpu_us));
            let Measured { cpu_us, answered } = rounds[ROUNDS / 2];
            println!(
                "{:<16}{cpu_us:>14.1}{:>12.0}{:>10.2}{:>10.2}{:>8}{:>9.0}",
                target.name,
                answered.requests / answered.seconds,
                answered.p50_ms,
                answered.p99_ms,
                rounds.iter().map(|round| round.answered.errors).sum::<f64>(),
                target.process.resident_mib()?,
            );
        }
        Ok(())
    }

    pub(super) fn measure(&self, target: &Target) -> anyhow::Result<Measured> {
        let shape = Shape {
            stream: self.stream,
            tokens: TOKENS,
        };
        let bodies = match self.prompts {
            Prompts::Distinct => prompts::bodies(&target.model, shape, 2_000, 0),
            Prompts::Shared => prompts::bodies(&target.model, shape, 16_000, 14_000),
            Prompts::Chats => prompts::chats(&target.model, shape),
        };
        let run = |seconds| {
            Run {
                url: &target.url,
                bodies: &bodies,
                connections: self.connections,
                seconds,
            }
            .go()
        };
        run(WARM_UP_SECONDS)?;
        let before = target.process.cpu()?;
        let answered = run(SECONDS)?;
        let cpu = target.process.cpu()? - before;
        Ok(Measured {
            cpu_us: cpu.as_secs_f64() * 1e6 / answered.requests.max(1.0),
            answered,
        })
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    pub(super) cpu_us: f64,
    pub(super) answered: Answered,
}
