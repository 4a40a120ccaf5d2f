//! `power-of-two` draws two workers and takes the one with less load.
//!
//! It balances nearly as well as `least-loaded`, and routers that see the same load do not all send to the same worker.

use signalbox_policy_sdk::{
    Candidates, Decision, Draws, Info, LoadMeasure, Policy, Request, Settings, export_policy,
};

/// Most workers of one draw: with more, it is `least-loaded`.
const MAX_CHOICES: f32 = 16.0;

/// The less loaded of a few workers that the seed draws. Settings: `load`, and `choices`.
#[derive(Debug)]
pub struct PowerOfTwo {
    load: LoadMeasure,
    /// `choices`: the workers of a draw.
    choices: usize,
}

impl Default for PowerOfTwo {
    fn default() -> Self {
        Self {
            load: LoadMeasure::default(),
            choices: 2,
        }
    }
}

impl Policy for PowerOfTwo {
    fn configure(&mut self, settings: &mut Settings) -> Result<(), String> {
        self.load = LoadMeasure::from_settings(settings)?;
        self.choices = settings.number("choices", 2.0, 1.0..=MAX_CHOICES)? as usize;
        Ok(())
    }

    fn describe(&self) -> Info {
        Info::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION")).counts([self.load.column()])
    }

    fn decide(&mut self, request: &Request, candidates: &Candidates) -> Decision {
        let load = self.load.of(candidates);
        let mut draws = Draws::new(request.seed);
        let best = drawn(&mut draws, self.choices, load.len())
            .into_iter()
            // Where loads are equal, the seed decides.
            .min_by_key(|&row| (load[row], draws.bits()));
        Decision::Pick(best.unwrap_or(0) as u32)
    }
}

/// Different rows, `choices` of them or all, each set equally likely (Floyd's sampling).
fn drawn(draws: &mut Draws, choices: usize, rows: usize) -> Vec<usize> {
    let choices = choices.min(rows);
    let mut chosen = Vec::with_capacity(choices);
    for last in rows - choices..rows {
        let row = draws.below(last as u32 + 1) as usize;
        chosen.push(if chosen.contains(&row) { last } else { row });
    }
    chosen
}

export_policy!(PowerOfTwo);

#[cfg(test)]
mod tests {
    use signalbox_policy_sdk::Count;

    use super::*;

    /// How often each worker is chosen by 6,000 seeds.
    fn chosen(settings: &str, load: &[u32]) -> Vec<usize> {
        let mut policy = PowerOfTwo::default();
        policy
            .configure(&mut Settings::parse(settings).expect("JSON"))
            .expect("settings");
        let candidates = Candidates::of(load.len()).with_counts(Count::RequestsAll, load);
        let mut counts = vec![0; load.len()];
        for seed in 0..6_000 {
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
    fn equal_workers_share_requests_equally() {
        for workers in [2, 3] {
            let counts = chosen("", &vec![1; workers]);
            let share = 6_000 / workers;
            assert!(
                counts.iter().all(|count| count.abs_diff(share) < share / 10),
                "{counts:?}"
            );
        }
    }

    #[test]
    fn the_most_loaded_worker_gets_nothing_and_the_others_share_by_rank() {
        let counts = chosen("", &[5, 9, 1]);
        assert_eq!(counts[1], 0);
        // Of three pairs, the least loaded worker is in two.
        assert!(counts[2].abs_diff(4_000) < 200, "{counts:?}");
    }

    #[test]
    fn one_choice_is_random_and_all_choices_are_the_least_loaded() {
        assert!(
            chosen(r#"{"choices": 1}"#, &[5, 9, 1])
                .iter()
                .all(|count| *count > 1_800)
        );
        assert_eq!(chosen(r#"{"choices": 3}"#, &[5, 9, 1]), [0, 0, 6_000]);
    }

    #[test]
    fn draws_are_different_rows() {
        for seed in 0..1_000 {
            let mut rows = drawn(&mut Draws::new(seed), 4, 6);
            rows.sort_unstable();
            rows.dedup();
            assert!(rows.len() == 4 && rows.iter().all(|row| *row < 6), "{rows:?}");
        }
        assert_eq!(drawn(&mut Draws::new(1), 2, 1), [0]);
    }
}
