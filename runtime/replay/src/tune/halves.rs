//! A trace in two halves: one to search on, one to judge what was found.

use std::time::Duration;

use crate::trace::{Arrival, Trace};

/// Segments of a trace, which belong to the two halves in turn. With several, both halves have each time of the day.
const SEGMENTS: usize = 6;

/// Splits a trace. A session belongs to one half as a whole: to that of its first request. The requests keep their times,
/// so a half is idle where the other one has its segments; each starts with its first request.
#[must_use]
pub fn halves(trace: &Trace) -> (Trace, Trace) {
    let mut starts: Vec<Duration> = trace
        .requests
        .iter()
        .filter_map(|request| at(request.arrival))
        .collect();
    starts.sort_unstable();
    let length = starts.len().div_ceil(SEGMENTS).max(1);
    let is_first_half =
        |time: &Duration| (starts.partition_point(|start| start < time) / length).is_multiple_of(2);
    let empty = || Trace {
        block_tokens: trace.block_tokens,
        requests: Vec::new(),
    };
    let mut halves = [empty(), empty()];
    // For each request, its half and its number there.
    let mut places: Vec<(usize, usize)> = Vec::with_capacity(trace.requests.len());
    for request in &trace.requests {
        let (half, arrival) = match request.arrival {
            Arrival::At(time) => (usize::from(!is_first_half(&time)), request.arrival),
            Arrival::After { previous, delay } => {
                let (half, previous) = places[previous];
                (half, Arrival::After { previous, delay })
            }
        };
        let requests = &mut halves[half].requests;
        places.push((half, requests.len()));
        let mut request = request.clone();
        request.arrival = arrival;
        requests.push(request);
    }
    for half in &mut halves {
        let first = half
            .requests
            .iter()
            .filter_map(|request| at(request.arrival))
            .min();
        for request in &mut half.requests {
            if let Arrival::At(time) = &mut request.arrival {
                *time = time.saturating_sub(first.unwrap_or_default());
            }
        }
    }
    let [searched, held_back] = halves;
    (searched, held_back)
}

fn at(arrival: Arrival) -> Option<Duration> {
    match arrival {
        Arrival::At(time) => Some(time),
        Arrival::After { .. } => None,
    }
}
