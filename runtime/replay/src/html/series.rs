//! The lines of the plots.

use std::time::Duration;

use crate::cluster::{RequestRecord, RunRecord};

/// Points of a line over time. A plot is some 900 pixels wide.
const POINTS: usize = 240;
/// Points of a distribution.
const QUANTILES: usize = 400;

/// For each time to the first token, the share of requests with at most that time.
pub(super) fn ttft_distribution(record: &RunRecord) -> Vec<(f64, f64)> {
    let ttft = |request: &RequestRecord| Some((request.first_token? - request.arrival).as_secs_f64() * 1e3);
    let mut times: Vec<f64> = record.requests.iter().filter_map(ttft).collect();
    times.sort_by(f64::total_cmp);
    let Some(last) = times.len().checked_sub(1) else {
        return Vec::new();
    };
    (0..=QUANTILES)
        .map(|number| {
            let share = number as f64 / QUANTILES as f64;
            (times[(share * last as f64) as usize], share)
        })
        .collect()
}

/// In each stretch of time, the share of prompt tokens that came from KV caches, for the requests that arrived in it.
pub(super) fn reuse_over_time(record: &RunRecord) -> Vec<(f64, f64)> {
    let mut sums = [(0_u64, 0_u64); POINTS];
    for request in &record.requests {
        if let Some(cached) = request.cached_tokens {
            let (hit, all) = &mut sums[stretch(record, request.arrival)];
            *hit += u64::from(cached);
            *all += u64::from(request.input_tokens);
        }
    }
    let point = |(number, (hit, all)): (usize, &(u64, u64))| {
        (*all > 0).then(|| (middle(record, number), *hit as f64 / *all as f64))
    };
    sums.iter().enumerate().filter_map(point).collect()
}

/// For each worker and stretch of time, the mean number of requests that the worker had.
pub(super) fn load_over_time(record: &RunRecord) -> Vec<Vec<(f64, f64)>> {
    let width = record.end.as_secs_f64() / POINTS as f64;
    let mut busy = vec![[0.0; POINTS]; record.workers.len()];
    for request in &record.requests {
        let Some(of_worker) = request.worker.and_then(|worker| busy.get_mut(worker as usize)) else {
            continue;
        };
        let (from, to) = (request.arrival.as_secs_f64(), request.end.as_secs_f64());
        let (first, last) = (stretch(record, request.arrival), stretch(record, request.end));
        for (number, seconds) in of_worker.iter_mut().enumerate().take(last + 1).skip(first) {
            let start = number as f64 * width;
            let inside = to.min(start + width) - from.max(start);
            *seconds += inside.max(0.0);
        }
    }
    let points = |seconds: &[f64; POINTS]| {
        let point = |(number, seconds): (usize, &f64)| (middle(record, number), seconds / width.max(1e-9));
        seconds.iter().enumerate().map(point).collect()
    };
    busy.iter().map(points).collect()
}

/// The stretch in which a moment lies.
fn stretch(record: &RunRecord, at: Duration) -> usize {
    let share = at.as_secs_f64() / record.end.as_secs_f64().max(1e-9);
    ((share * POINTS as f64) as usize).min(POINTS - 1)
}

/// The middle of a stretch, in seconds.
fn middle(record: &RunRecord, number: usize) -> f64 {
    (number as f64 + 0.5) / POINTS as f64 * record.end.as_secs_f64()
}
