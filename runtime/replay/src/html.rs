//! The report as one HTML file: the table, and plots. It needs no network and no script, so it opens anywhere.
//!
//! The plots are of the first seed: what single requests and workers did. Differences are over all seeds.

use std::fmt::Write as _;

use crate::{cluster::RunRecord, comparison::Comparison, report::table, runs::Run};
use chart::{Axis, Chart, Series, differences};

mod chart;
mod series;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1b1f24; --faint: #c9ced6; --paper: #ffffff }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --faint: #3c434d; --paper: #14171b } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1000px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
pre { font: 13px/1.45 ui-monospace, monospace; overflow-x: auto }
svg { width: 100%; height: auto; display: block } svg text { fill: var(--ink); font: 12px system-ui, sans-serif }
.grid { stroke: var(--faint); stroke-width: 1 } .line { fill: none; stroke-width: 1.6 } .thin { stroke-width: .9; opacity: .8 }
";

/// The report of runs in the order of [`run_all`](crate::run_all), `seeds` for each policy. `title` says what was
/// replayed.
#[must_use]
pub fn html(title: &str, runs: &[Run], seeds: usize, comparisons: &[Comparison]) -> String {
    let title = escape(title);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>runtime replay: {title}</title>\n\
         <style>{STYLE}</style>\n<h1>runtime replay: {title}</h1>\n"
    );
    let records: Vec<(&str, &RunRecord)> = runs
        .iter()
        .filter_map(|run| Some((run.policy.as_str(), run.record.as_ref()?)))
        .collect();
    let each = |points: fn(&RunRecord) -> Vec<(f64, f64)>| {
        let of_policy = |(number, (policy, record)): (usize, &(&str, &RunRecord))| Series {
            name: (*policy).to_owned(),
            color: number,
            points: points(record),
        };
        records.iter().enumerate().map(of_policy).collect::<Vec<_>>()
    };
    section(
        &mut page,
        "Time to the first token",
        &Chart {
            x: Axis::logarithmic("TTFT, ms"),
            y: Axis::linear("share of requests"),
            series: each(series::ttft_distribution),
        }
        .svg(),
    );
    section(
        &mut page,
        "Prefix reuse over time",
        &Chart {
            x: Axis::linear("seconds"),
            y: Axis::linear("share of prompt tokens from KV caches"),
            series: each(series::reuse_over_time),
        }
        .svg(),
    );
    for (policy, record) in &records {
        let of_worker = |(worker, points)| Series {
            name: format!("worker {worker}"),
            color: worker,
            points,
        };
        let load = series::load_over_time(record);
        let chart = Chart {
            x: Axis::linear("seconds"),
            y: Axis::linear("requests in flight"),
            series: load.into_iter().enumerate().map(of_worker).collect(),
        };
        section(
            &mut page,
            &format!("Load of each worker: {}", escape(policy)),
            &chart.svg(),
        );
    }
    for comparison in comparisons {
        let heading = format!("{} against {}", escape(&comparison.with), escape(&comparison.of));
        section(&mut page, &heading, &differences(comparison));
    }
    let figures = format!("<pre>{}</pre>", escape(&table(runs, seeds, comparisons)));
    section(&mut page, "Figures", &figures);
    page
}

fn section(page: &mut String, heading: &str, content: &str) {
    let _ = write!(page, "<h2>{heading}</h2>\n{content}\n");
}

/// Text as HTML shows it. Names of policies are what somebody typed.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        cluster::{DecisionRecord, RequestOutcome, RequestRecord, TokenGaps, WorkerRecord},
        figures::{Figures, ServiceLimits},
    };

    fn run(policy: &str) -> Run {
        let request = |number: u64| RequestRecord {
            input_tokens: 100,
            arrival: Duration::from_secs(number),
            first_token: Some(Duration::from_millis(1_000 * number + 50 + 10 * number)),
            end: Duration::from_secs(number + 3),
            outcome: RequestOutcome::Completed,
            worker: Some((number % 2) as u32),
            generated_tokens: 1,
            cached_tokens: Some(40),
            credited_tokens: 40,
            moves: 0,
        };
        let record = RunRecord {
            requests: (0..20).map(request).collect(),
            workers: vec![WorkerRecord::default(); 2],
            gaps: TokenGaps::default(),
            decisions: DecisionRecord::default(),
            end: Duration::from_secs(23),
        };
        Run {
            policy: policy.into(),
            seed: 0,
            figures: Figures::new(&record, ServiceLimits::default()),
            decision_time: Duration::ZERO,
            record: Some(record),
        }
    }

    #[test]
    fn the_page_has_each_plot_and_stands_alone() {
        let runs = [run("a"), run("<b>&\"c\"")];
        let page = html("trace & <more>", &runs, 1, &Comparison::of_runs(&runs, 1));
        // TTFT, reuse, the load of two policies, one comparison.
        assert_eq!(page.matches("<svg").count(), 5);
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        for absent in ["http", "<script", "src=", "<b>", "NaN", "inf"] {
            assert!(!page.contains(absent), "{absent}");
        }
        assert!(page.contains("&lt;b&gt;&amp;&quot;c&quot;"));
        assert_eq!(
            page,
            html("trace & <more>", &runs, 1, &Comparison::of_runs(&runs, 1))
        );
    }

    #[test]
    fn a_run_without_requests_has_a_page() {
        let mut empty = run("a");
        empty.record = empty.record.map(|record| RunRecord {
            requests: Vec::new(),
            end: Duration::ZERO,
            ..record
        });
        let page = html("nothing", &[empty], 1, &[]);
        assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
    }
}
