//! Signals a policy may ask for by name beside the columns: derived here from the columns, so that each new one
//! leaves the ABI alone.

use crate::features::{Candidates, RequestFeatures};

/// Most signals one policy may ask for: as many as there is use for, and a bound on what a decision can cost.
pub(crate) const MAX_SIGNALS: usize = 8;

/// A signal by name; `wit/types.wit` (`info.extra`) describes each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// The used share of the worker's KV blocks.
    KvUse,
    /// The share of the prompt's blocks the worker holds on any tier.
    OverlapShare,
}

impl Signal {
    const ALL: [(&'static str, Self); 2] = [("kv-use", Self::KvUse), ("overlap-share", Self::OverlapShare)];

    /// The signals of these names, or a sentence about the first there is none of.
    pub(crate) fn named(names: &[String]) -> Result<Vec<Self>, String> {
        if names.len() > MAX_SIGNALS {
            return Err(format!(
                "it asks for {} extra signals; {MAX_SIGNALS} is the most",
                names.len()
            ));
        }
        let find = |name: &String| {
            let known = Self::ALL.iter().find(|(known, _)| known == name);
            known.map(|&(_, signal)| signal).ok_or_else(|| {
                let known: Vec<&str> = Self::ALL.iter().map(|&(name, _)| name).collect();
                format!(
                    "it asks for the extra signal {name:?}, which this version does not have; known: {}",
                    known.join(", ")
                )
            })
        };
        names.iter().map(find).collect()
    }

    /// Appends its column, a row per candidate.
    pub(crate) fn append(self, request: &RequestFeatures, candidates: &Candidates, out: &mut Vec<f32>) {
        match self {
            Self::KvUse => {
                let rows = candidates.kv_blocks_used.iter().zip(&candidates.kv_blocks_total);
                out.extend(rows.map(|(&used, &total)| share(used, total)));
            }
            Self::OverlapShare => out.extend((0..candidates.len()).map(|row| {
                let held = candidates.overlap_device[row]
                    .saturating_add(candidates.overlap_host[row])
                    .saturating_add(candidates.overlap_disk[row]);
                share(held, request.prompt_blocks)
            })),
        }
    }
}

/// From 0 to 1; 0 of nothing.
fn share(part: u32, whole: u32) -> f32 {
    if whole == 0 {
        0.0
    } else {
        (part as f32 / whole as f32).min(1.0)
    }
}
