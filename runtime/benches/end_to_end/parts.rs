//! The parts of the bench: the load of each, and what it prints.

mod added;
mod cost;
mod idle;
mod swap;
mod workers;

use cost::{Cost, Prompts};

use crate::fleet::Target;

/// The parts by name, in the order in which they run.
pub(crate) const PARTS: [(&str, Part); 9] = [
    ("streamed", Part::Cost(&cost::STREAMED)),
    (
        "whole",
        Part::Cost(&Cost {
            stream: false,
            ..cost::STREAMED
        }),
    ),
    (
        "shared",
        Part::Cost(&Cost {
            prompts: Prompts::Shared,
            ..cost::STREAMED
        }),
    ),
    (
        "chats",
        Part::Cost(&Cost {
            prompts: Prompts::Chats,
            ..cost::STREAMED
        }),
    ),
    ("paced", Part::Cost(&cost::PACED)),
    ("latency", Part::Added),
    ("swap", Part::Swap),
    ("workers", Part::Workers),
    ("idle", Part::Idle),
];

#[derive(Debug, Clone, Copy)]
pub(crate) enum Part {
    Cost(&'static Cost),
    Added,
    Swap,
    Workers,
    Idle,
}

impl Part {
    pub(crate) async fn run(self, peers: &[Target]) -> anyhow::Result<()> {
        match self {
            Self::Cost(cost) => cost.run(peers).await,
            Self::Added => added::run(peers).await,
            Self::Swap => swap::run().await,
            Self::Workers => workers::run().await,
            Self::Idle => idle::run().await,
        }
    }
}
