//! `random` draws a worker, without regard to load and KV caches. It is a baseline for measuring other policies, and with
//! `weight` it splits traffic by shares.

use signalbox_policy_sdk::{Candidates, Decision, Draws, Info, Policy, Request, Settings, export_policy};

/// A draw. Setting: `weight`.
#[derive(Debug, Default)]
pub struct Random {
    /// The column `number:LABEL` of the label that `weight` names: a worker's share of the requests. `None`: equal shares.
    weight: Option<String>,
}

impl Policy for Random {
    fn configure(&mut self, settings: &mut Settings) -> Result<(), String> {
        self.weight = settings.text("weight")?.map(|label| format!("number:{label}"));
        Ok(())
    }

    fn describe(&self) -> Info {
        Info::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION")).numbers(self.weight.clone())
    }

    fn decide(&mut self, request: &Request, candidates: &Candidates) -> Decision {
        let mut draws = Draws::new(request.seed);
        let weighted = self
            .weight
            .as_ref()
            .and_then(|column| weighted(&mut draws, candidates.numbers_named(column)));
        let row = weighted.unwrap_or_else(|| draws.below(candidates.len() as u32));
        Decision::Pick(row)
    }
}

/// A row, drawn in proportion to its weight. `None` where no row has a weight above 0.
fn weighted(draws: &mut Draws, weights: &[f32]) -> Option<u32> {
    let weight = |&weight: &f32| {
        if weight > 0.0 {
            f64::from(weight.min(f32::MAX))
        } else {
            0.0
        }
    };
    let total: f64 = weights.iter().map(weight).sum();
    let mut rest = draws.unit() * total;
    let mut last = None;
    for (row, weight) in weights.iter().map(weight).enumerate() {
        if weight > 0.0 {
            last = Some(row as u32);
            if rest < weight {
                return last;
            }
            rest -= weight;
        }
    }
    last
}

export_policy!(Random);

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each worker is chosen by 4,000 seeds.
    fn chosen(settings: &str, weights: &[f32]) -> Vec<usize> {
        let mut policy = Random::default();
        policy
            .configure(&mut Settings::parse(settings).expect("JSON"))
            .expect("settings");
        let candidates = Candidates::of(weights.len()).with_numbers_named("number:share", weights);
        let mut counts = vec![0; weights.len()];
        for seed in 0..4_000 {
            let request = Request {
                seed,
                ..Request::default()
            };
            match policy.decide(&request, &candidates) {
                Decision::Pick(row) => counts[row as usize] += 1,
                other => panic!("a pick was expected, not {other:?}"),
            }
        }
        counts
    }

    #[test]
    fn every_worker_is_equally_likely() {
        let counts = chosen("", &[0.0; 4]);
        assert!(
            counts.iter().all(|count| (880..1_120).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn a_worker_gets_its_share_and_one_without_a_share_gets_nothing() {
        let counts = chosen(r#"{"weight": "share"}"#, &[3.0, 0.0, 1.0, -2.0]);
        assert!(counts[0].abs_diff(3_000) < 150, "{counts:?}");
        assert_eq!((counts[1], counts[3]), (0, 0));
        let counts = chosen(r#"{"weight": "share"}"#, &[0.0, 0.0]);
        assert!(
            counts.iter().all(|count| *count > 1_800),
            "without shares: {counts:?}"
        );
    }
}
