//! What a replay prints: a table for people, and one JSON object for programs.

use std::fmt::Write as _;

use serde::Serialize;

use crate::{
    comparison::{Comparison, Difference},
    figures::Figures,
    runs::Run,
    trace::RecordedCluster,
};

/// The JSON of a replay. It is equal, byte for byte, wherever the same replay runs.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    /// Requests of the traffic.
    pub requests: usize,
    /// Workers at the start.
    pub workers: usize,
    /// Routers.
    pub routers: usize,
    /// The live cluster, if the traffic is recorded decisions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recorded: Option<&'a RecordedCluster>,
    /// The runs: the seeds of the first policy, then those of the next.
    pub runs: &'a [Run],
    /// Each later policy compared with the first one.
    pub comparisons: &'a [Comparison],
}

/// A line of the table.
struct Line {
    name: &'static str,
    value: fn(&Figures) -> f64,
    digits: usize,
}

const fn line(name: &'static str, digits: usize, value: fn(&Figures) -> f64) -> Line {
    Line { name, value, digits }
}

const LINES: [Line; 27] = [
    line("completed", 0, |figures| figures.completed as f64),
    line("shed", 0, |figures| figures.shed as f64),
    line("failed", 0, |figures| figures.failed as f64),
    line("moved", 0, |figures| figures.moved as f64),
    line("TTFT, ms           mean", 1, |figures| figures.ttft.mean),
    line("                    p50", 1, |figures| figures.ttft.p50),
    line("                    p90", 1, |figures| figures.ttft.p90),
    line("                    p99", 1, |figures| figures.ttft.p99),
    line("ITL, ms            mean", 2, |figures| figures.itl.mean),
    line("                    p50", 2, |figures| figures.itl.p50),
    line("                    p90", 2, |figures| figures.itl.p90),
    line("                    p99", 2, |figures| figures.itl.p99),
    line("end to end, ms     mean", 0, |figures| figures.e2e.mean),
    line("                    p50", 0, |figures| figures.e2e.p50),
    line("                    p90", 0, |figures| figures.e2e.p90),
    line("                    p99", 0, |figures| figures.e2e.p99),
    line("long prompts, TTFT mean", 1, |figures| figures.long_ttft.mean),
    line("                    p99", 1, |figures| figures.long_ttft.p99),
    line("prefix reuse", 4, |figures| figures.prefix_reuse),
    line("prefix reuse expected", 4, |figures| figures.credited_reuse),
    line("largest worker's share", 3, |figures| {
        figures.largest_worker_share
    }),
    line("spread of load", 3, |figures| figures.load_spread),
    line("goodput, share", 3, |figures| figures.goodput_share),
    line("goodput, requests/s", 2, |figures| figures.goodput_rps),
    line("output tokens/s", 0, |figures| figures.output_tokens_per_s),
    line("duration, s", 0, |figures| figures.duration_s),
    line("fallback's decisions", 0, |figures| {
        figures.fallback_decisions as f64
    }),
];

/// Width of the column of names: that of the longest.
const NAMES: usize = 24;
/// Least width of a policy's column.
const COLUMN: usize = 14;

/// The runs as a table with a column for each policy: the means over its seeds. Then how each policy differs from the
/// first one.
#[must_use]
pub fn table(runs: &[Run], seeds: usize, comparisons: &[Comparison]) -> String {
    let policies: Vec<&[Run]> = runs.chunks(seeds.max(1)).collect();
    let widths: Vec<usize> = policies
        .iter()
        .map(|runs| {
            runs.first()
                .map_or(0, |run| run.policy.chars().count())
                .max(COLUMN)
        })
        .collect();
    let mut text = " ".repeat(NAMES);
    for (runs, &width) in policies.iter().zip(&widths) {
        let name = runs.first().map_or("", |run| run.policy.as_str());
        let _ = write!(text, "  {name:>width$}");
    }
    text.push('\n');
    for line in &LINES {
        let _ = write!(text, "{:<NAMES$}", line.name);
        for (runs, &width) in policies.iter().zip(&widths) {
            let total: f64 = runs.iter().map(|run| (line.value)(&run.figures)).sum();
            let mean = total / runs.len().max(1) as f64;
            let _ = write!(text, "  {mean:>width$.digits$}", digits = line.digits);
        }
        text.push('\n');
    }
    let _ = write!(text, "{:<NAMES$}", "decision here, µs");
    for (runs, &width) in policies.iter().zip(&widths) {
        let total: f64 = runs.iter().map(|run| run.decision_time.as_secs_f64() * 1e6).sum();
        let _ = write!(text, "  {:>width$.1}", total / runs.len().max(1) as f64);
    }
    text.push('\n');
    for comparison in comparisons {
        let _ = write!(text, "\n{} against {}\n", comparison.with, comparison.of);
        for difference in &comparison.differences {
            text.push_str(&difference_line(difference));
        }
    }
    if seeds == 1 && !comparisons.is_empty() {
        text.push_str("one seed says nothing about chance: give several with --seed\n");
    }
    text
}

fn difference_line(difference: &Difference) -> String {
    let Difference {
        figure,
        before,
        after,
        ..
    } = difference;
    let percent = |value: f64| 100.0 * value / before;
    let mut line = format!("  {figure:<24} {before:>12.3} → {after:>12.3}");
    if *before != 0.0 {
        let _ = write!(line, "  {:>+7.1} %", percent(difference.mean));
        if let Some(half) = difference.confidence_95 {
            let _ = write!(line, " ± {:.1}", percent(half).abs());
            if !difference.is_certain() {
                line.push_str("  (may be chance)");
            }
        }
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::figures::Times;

    fn run(policy: &str, seed: u64, mean: f64) -> Run {
        let ttft = Times {
            mean,
            ..Times::default()
        };
        Run {
            policy: policy.into(),
            seed,
            figures: Figures {
                ttft,
                completed: 3,
                ..Figures::default()
            },
            decision_time: Duration::from_nanos(2_500),
            record: None,
        }
    }

    #[test]
    fn policies_stand_beside_each_other_with_the_means_of_their_seeds() {
        let runs = [
            run("a", 0, 100.0),
            run("a", 1, 200.0),
            run("b", 0, 90.0),
            run("b", 1, 180.0),
        ];
        let text = table(&runs, 2, &Comparison::of_runs(&runs, 2));
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines[0], ["a", "b"]);
        assert_eq!(lines[1], ["completed", "3", "3"]);
        assert_eq!(lines[5], ["TTFT,", "ms", "mean", "150.0", "135.0"]);
        assert!(text.contains("decision here, µs"), "{text}");
        let difference = text.lines().find(|line| line.contains("mean_ttft_ms")).unwrap();
        let words: Vec<_> = difference.split_whitespace().collect();
        assert_eq!(
            words[..8],
            [
                "mean_ttft_ms",
                "150.000",
                "→",
                "135.000",
                "-10.0",
                "%",
                "±",
                "42.4"
            ]
        );
        assert!(difference.ends_with("(may be chance)"), "{difference}");
    }

    #[test]
    fn the_json_has_the_runs_with_every_figure_by_name_and_no_time_of_this_machine() {
        let runs = [run("a", 7, 100.0)];
        let report = Report {
            requests: 3,
            workers: 8,
            routers: 1,
            recorded: None,
            runs: &runs,
            comparisons: &[],
        };
        let json = serde_json::to_value(&report).unwrap();
        let first = &json["runs"][0];
        assert_eq!((&first["policy"], &first["seed"]), (&"a".into(), &7.into()));
        assert_eq!(first["mean_ttft_ms"], 100.0);
        assert!(first.get("decision_time").is_none());
    }
}
