//! The figures of a run: what it means for clients, and whether it was fair to workers and to long prompts.

use std::time::Duration;

use serde::Serialize;

use crate::cluster::{RequestOutcome, RequestRecord, RunRecord};

/// The share of requests whose prompts count as long.
const LONG_PROMPTS: f64 = 0.1;

/// Up to which times a request counts as served well.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ServiceLimits {
    /// Longest time to the first token.
    pub ttft: Duration,
    /// Longest mean time between two tokens.
    pub itl: Duration,
}

impl Default for ServiceLimits {
    /// Limits that are common for chats.
    fn default() -> Self {
        Self {
            ttft: Duration::from_secs(2),
            itl: Duration::from_millis(50),
        }
    }
}

/// The figures of one run. Times are in milliseconds. Equal records give equal figures, to the last bit.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Requests whose whole answer arrived.
    pub completed: usize,
    /// Requests refused because every worker had as many as it takes.
    pub shed: usize,
    /// Requests that no worker could serve.
    pub failed: usize,
    /// How often a request moved because its worker failed.
    pub moved: u64,
    /// From a request's arrival to its first token.
    #[serde(flatten, serialize_with = "Times::as_ttft")]
    pub ttft: Times,
    /// Between two tokens of an answer.
    #[serde(flatten, serialize_with = "Times::as_itl")]
    pub itl: Times,
    /// From a request's arrival to its last token.
    #[serde(flatten, serialize_with = "Times::as_e2e")]
    pub e2e: Times,
    /// TTFT of the tenth of the requests with the longest prompts.
    #[serde(flatten, serialize_with = "Times::as_long_ttft")]
    pub long_ttft: Times,
    /// Share of the prompts' tokens that workers took from their KV caches.
    pub prefix_reuse: f64,
    /// Share of the prompts' tokens that routers expected there.
    pub credited_reuse: f64,
    /// Share of all requests that were completed within the limits of service.
    pub goodput_share: f64,
    /// Requests a second that were completed within the limits of service.
    pub goodput_rps: f64,
    /// The largest share of the requests that one worker was given.
    pub largest_worker_share: f64,
    /// The standard deviation of the shares of time in which workers computed, over their mean.
    pub load_spread: f64,
    /// Tokens of answers a second.
    pub output_tokens_per_s: f64,
    /// From the first arrival to the last event, in seconds.
    pub duration_s: f64,
    /// Decisions made.
    pub decisions: u64,
    /// Decisions that the fallback made, because the policy failed.
    pub fallback_decisions: u64,
}

/// Mean and percentiles of times, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Times {
    /// The mean.
    pub mean: f64,
    /// Half of them are at most this long.
    pub p50: f64,
    /// Nine tenths of them are at most this long.
    pub p90: f64,
    /// 99 of 100 of them are at most this long.
    pub p99: f64,
}

impl Figures {
    /// The figures of a run.
    #[must_use]
    pub fn new(record: &RunRecord, limits: ServiceLimits) -> Self {
        let requests = &record.requests;
        let count = |outcome| {
            requests
                .iter()
                .filter(|request| request.outcome == outcome)
                .count()
        };
        let completed = || {
            requests
                .iter()
                .filter(|request| request.outcome == RequestOutcome::Completed)
        };
        let first_arrival = requests.iter().map(|request| request.arrival).min();
        let duration_s = (record.end - first_arrival.unwrap_or_default()).as_secs_f64();
        let per_second = |count: f64| if duration_s > 0.0 { count / duration_s } else { 0.0 };
        let served_well = completed().filter(|request| limits.are_met_by(request)).count();
        let prefilled = || {
            requests
                .iter()
                .filter_map(|request| Some((request, request.cached_tokens?)))
        };
        let prompt_tokens: u64 = prefilled()
            .map(|(request, _)| u64::from(request.input_tokens))
            .sum();
        let cached: u64 = prefilled().map(|(_, cached)| u64::from(cached)).sum();
        let credited: u64 = prefilled()
            .map(|(request, _)| u64::from(request.credited_tokens))
            .sum();
        let tokens: u64 = requests
            .iter()
            .map(|request| u64::from(request.generated_tokens))
            .sum();
        let given: Vec<f64> = record
            .workers
            .iter()
            .map(|worker| f64::from(worker.requests))
            .collect();
        let busy: Vec<f64> = record
            .workers
            .iter()
            .filter(|worker| !worker.present.is_zero())
            .map(|worker| worker.busy.as_secs_f64() / worker.present.as_secs_f64())
            .collect();
        Self {
            completed: count(RequestOutcome::Completed),
            shed: count(RequestOutcome::Shed),
            failed: count(RequestOutcome::Failed),
            moved: requests.iter().map(|request| u64::from(request.moves)).sum(),
            ttft: Times::of_durations(requests.iter().filter_map(ttft).collect()),
            itl: itl(record),
            e2e: Times::of_durations(completed().map(|request| request.end - request.arrival).collect()),
            long_ttft: Times::of_durations(long_prompts(requests).filter_map(ttft).collect()),
            prefix_reuse: share(cached, prompt_tokens),
            credited_reuse: share(credited, prompt_tokens),
            goodput_share: share(served_well as u64, requests.len() as u64),
            goodput_rps: per_second(served_well as f64),
            largest_worker_share: given.iter().copied().fold(0.0, f64::max)
                / given.iter().sum::<f64>().max(1.0),
            load_spread: spread(&busy),
            output_tokens_per_s: per_second(tokens as f64),
            duration_s,
            decisions: record.decisions.count,
            fallback_decisions: record.decisions.by_fallback,
        }
    }
}

impl ServiceLimits {
    fn are_met_by(&self, request: &RequestRecord) -> bool {
        let Some(ttft) = ttft(request) else { return false };
        let gaps = request.generated_tokens.saturating_sub(1);
        let decoding = request.end - request.arrival - ttft;
        ttft <= self.ttft && (gaps == 0 || decoding / gaps <= self.itl)
    }
}

fn ttft(request: &RequestRecord) -> Option<Duration> {
    request.first_token.map(|first| first - request.arrival)
}

/// The requests with the longest prompts.
fn long_prompts(requests: &[RequestRecord]) -> impl Iterator<Item = &RequestRecord> {
    let mut lengths: Vec<u32> = requests.iter().map(|request| request.input_tokens).collect();
    lengths.sort_unstable();
    let least = lengths
        .get(place(lengths.len(), 1.0 - LONG_PROMPTS))
        .copied()
        .unwrap_or(0);
    requests
        .iter()
        .filter(move |request| request.input_tokens >= least)
}

fn itl(record: &RunRecord) -> Times {
    let mut micros = record.gaps.micros.clone();
    let mut at = |share| percentile(&mut micros, share).map_or(0.0, |micros| f64::from(micros) / 1e3);
    Times {
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        mean: record.gaps.total.as_nanos() as f64 / 1e6 / record.gaps.micros.len().max(1) as f64,
    }
}

impl Times {
    fn of_durations(mut times: Vec<Duration>) -> Self {
        let total: Duration = times.iter().sum();
        let mean = total.as_nanos() as f64 / 1e6 / times.len().max(1) as f64;
        let mut at = |share| percentile(&mut times, share).map_or(0.0, |time| time.as_nanos() as f64 / 1e6);
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            mean,
        }
    }
}

/// The index of a percentile among `count` sorted values: the nearest rank, as in the reports of Dynamo's replay.
fn place(count: usize, share: f64) -> usize {
    (count.saturating_sub(1) as f64 * share).round() as usize
}

/// The value below which this share of the values lie. Changes their order.
fn percentile<T: Ord + Copy>(values: &mut [T], share: f64) -> Option<T> {
    let place = place(values.len(), share);
    (place < values.len()).then(|| *values.select_nth_unstable(place).1)
}

fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// Standard deviation over mean.
fn spread(values: &[f64]) -> f64 {
    let count = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / count;
    if mean == 0.0 {
        return 0.0;
    }
    let variance = values
        .iter()
        .map(|value| (value - mean) * (value - mean))
        .sum::<f64>()
        / count;
    variance.sqrt() / mean
}

/// Writes the four times under names that end with the name of what was measured.
macro_rules! serialize_times {
    ($($function:ident: $mean:literal $p50:literal $p90:literal $p99:literal;)*) => {
        impl Times {
            $(fn $function<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeMap as _;
                let mut map = serializer.serialize_map(Some(4))?;
                map.serialize_entry($mean, &self.mean)?;
                map.serialize_entry($p50, &self.p50)?;
                map.serialize_entry($p90, &self.p90)?;
                map.serialize_entry($p99, &self.p99)?;
                map.end()
            })*
        }
    };
}

serialize_times! {
    as_ttft: "mean_ttft_ms" "p50_ttft_ms" "p90_ttft_ms" "p99_ttft_ms";
    as_itl: "mean_itl_ms" "p50_itl_ms" "p90_itl_ms" "p99_itl_ms";
    as_e2e: "mean_e2e_ms" "p50_e2e_ms" "p90_e2e_ms" "p99_e2e_ms";
    as_long_ttft: "mean_long_prompt_ttft_ms" "p50_long_prompt_ttft_ms" "p90_long_prompt_ttft_ms" "p99_long_prompt_ttft_ms";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{DecisionRecord, TokenGaps, WorkerRecord};

    fn request(input_tokens: u32, arrival: u64, first: u64, end: u64, tokens: u32) -> RequestRecord {
        RequestRecord {
            input_tokens,
            arrival: Duration::from_millis(arrival),
            first_token: Some(Duration::from_millis(first)),
            end: Duration::from_millis(end),
            outcome: RequestOutcome::Completed,
            worker: Some(0),
            generated_tokens: tokens,
            cached_tokens: Some(input_tokens / 2),
            credited_tokens: input_tokens / 4,
            moves: 0,
        }
    }

    fn record(requests: Vec<RequestRecord>) -> RunRecord {
        let worker = |requests, busy| WorkerRecord {
            requests,
            busy: Duration::from_secs(busy),
            present: Duration::from_secs(10),
            joined: Duration::ZERO,
        };
        RunRecord {
            requests,
            workers: vec![worker(3, 2), worker(1, 6)],
            gaps: TokenGaps {
                micros: vec![3_000, 1_000, 2_000],
                total: Duration::from_millis(6),
            },
            decisions: DecisionRecord::default(),
            end: Duration::from_secs(11),
        }
    }

    #[test]
    fn figures_are_those_of_the_record() {
        let refused = RequestRecord {
            first_token: None,
            outcome: RequestOutcome::Shed,
            cached_tokens: None,
            ..request(100, 5_000, 0, 5_000, 0)
        };
        let requests = vec![
            request(100, 1_000, 1_010, 1_050, 2),
            request(100, 1_000, 1_030, 1_040, 1),
            // 60 ms between tokens: not within the limits.
            request(200, 2_000, 2_020, 2_080, 2),
            // Three seconds to the first token.
            request(400, 2_000, 5_000, 5_000, 1),
            refused,
        ];
        let figures = Figures::new(&record(requests), ServiceLimits::default());
        assert_eq!((figures.completed, figures.shed, figures.failed), (4, 1, 0));
        assert_eq!(figures.ttft.mean, (10.0 + 30.0 + 20.0 + 3_000.0) / 4.0);
        assert_eq!((figures.ttft.p50, figures.ttft.p99), (30.0, 3_000.0));
        assert_eq!(
            (figures.itl.mean, figures.itl.p50, figures.itl.p99),
            (2.0, 2.0, 3.0)
        );
        assert_eq!(figures.e2e.mean, (50.0 + 40.0 + 80.0 + 3_000.0) / 4.0);
        assert_eq!((figures.prefix_reuse, figures.credited_reuse), (0.5, 0.25));
        assert_eq!(figures.goodput_share, 0.4);
        assert_eq!((figures.duration_s, figures.goodput_rps), (10.0, 0.2));
        assert_eq!(figures.largest_worker_share, 0.75);
        assert!(
            (figures.load_spread - 0.5).abs() < 1e-9,
            "{}",
            figures.load_spread
        );
        assert_eq!(figures.long_ttft.mean, 3_000.0);
    }

    #[test]
    fn every_figure_has_its_name_in_json() {
        let json = serde_json::to_value(Figures::default()).unwrap();
        for name in [
            "completed",
            "shed",
            "mean_ttft_ms",
            "p50_ttft_ms",
            "p99_ttft_ms",
            "mean_itl_ms",
            "p90_itl_ms",
            "mean_e2e_ms",
            "prefix_reuse",
            "goodput_share",
            "largest_worker_share",
            "p99_long_prompt_ttft_ms",
        ] {
            assert!(json[name].is_number(), "{name} in {json}");
        }
    }

    #[test]
    fn an_empty_run_has_figures() {
        let figures = Figures::new(&record(Vec::new()), ServiceLimits::default());
        assert_eq!((figures.ttft, figures.prefix_reuse), (Times::default(), 0.0));
    }
}
