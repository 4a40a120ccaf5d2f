//! Signals: values that a policy requests by name, beside the columns. The host computes them from the columns, so a
//! new signal does not change the WIT.

use crate::{
    candidates::{Candidates, candidate_traits},
    features::RequestFeatures,
};

/// Most signals of one policy: more than a policy needs, and a bound on the cost of a decision.
pub(crate) const MAX_SIGNALS: usize = 8;

/// A signal; `wit/types.wit` (`info.extra`) describes each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// The used share of the worker's KV blocks.
    KvUse,
    /// The share of the prompt's KV blocks that the worker holds on any tier.
    OverlapShare,
    /// Whether the overlap is approximate.
    Approximate,
    /// The number of other routers.
    OtherRouters,
}

impl Signal {
    const ALL: [(&'static str, Self); 4] = [
        ("kv-use", Self::KvUse),
        ("overlap-share", Self::OverlapShare),
        ("approximate", Self::Approximate),
        ("other-routers", Self::OtherRouters),
    ];

    /// Whether the signal is computed from an optional column.
    pub(crate) const fn reads_optional(self) -> bool {
        matches!(self, Self::Approximate)
    }

    /// The signals with these names. An error is a sentence about the first unknown name.
    pub(crate) fn named(names: &[String]) -> Result<Vec<Self>, String> {
        if names.len() > MAX_SIGNALS {
            return Err(format!(
                "it names {} extra signals; at most {MAX_SIGNALS} are possible",
                names.len()
            ));
        }
        let find = |name: &String| {
            let known = Self::ALL.iter().find(|(known, _)| known == name);
            known.map(|&(_, signal)| signal).ok_or_else(|| {
                let known: Vec<&str> = Self::ALL.iter().map(|&(name, _)| name).collect();
                format!(
                    "it names the extra signal {name:?}, which this version does not have; known: {}",
                    known.join(", ")
                )
            })
        };
        names.iter().map(find).collect()
    }

    /// Appends the column of the signal to `out`: a row for each candidate.
    pub(crate) fn append(self, request: &RequestFeatures, candidates: &Candidates, out: &mut Vec<f32>) {
        match self {
            Self::OtherRouters => {
                let routers = request.other_routers as f32;
                out.extend(std::iter::repeat_n(routers, candidates.len()));
            }
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
            Self::Approximate => {
                let is_approximate = |traits: &u32| traits & candidate_traits::APPROXIMATE != 0;
                out.extend(
                    candidates
                        .traits
                        .iter()
                        .map(|traits| f32::from(is_approximate(traits))),
                );
            }
        }
    }
}

/// A share from 0 to 1; 0 when `whole` is 0.
fn share(part: u32, whole: u32) -> f32 {
    if whole == 0 {
        0.0
    } else {
        (part as f32 / whole as f32).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_approximate_overlap_is_marked_with_one() {
        let candidates = Candidates {
            worker: vec![0, 1, 2],
            traits: vec![
                candidate_traits::PREFILL,
                candidate_traits::PREFILL | candidate_traits::APPROXIMATE,
                candidate_traits::PARTIAL,
            ],
            ..Candidates::default()
        };
        let mut out = Vec::new();
        Signal::Approximate.append(&RequestFeatures::default(), &candidates, &mut out);
        assert_eq!(out, [0.0, 1.0, 0.0]);
    }

    #[test]
    fn the_number_of_other_routers_is_the_same_for_each_candidate() {
        let candidates = Candidates {
            worker: vec![0, 1, 2],
            ..Candidates::default()
        };
        let request = RequestFeatures {
            other_routers: 7,
            ..RequestFeatures::default()
        };
        let mut out = Vec::new();
        Signal::OtherRouters.append(&request, &candidates, &mut out);
        assert_eq!(out, [7.0; 3]);
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let names = ["approximate", "overlap-share"].map(String::from);
        assert_eq!(
            Signal::named(&names),
            Ok(vec![Signal::Approximate, Signal::OverlapShare])
        );
        let refusal = Signal::named(&["weather".into()]).unwrap_err();
        assert!(
            refusal.contains("kv-use, overlap-share, approximate"),
            "{refusal}"
        );
    }
}
