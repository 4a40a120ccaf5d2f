//! `prefix-hash` sends prompts that begin alike to the same worker, so that they find their beginning in its KV cache. It
//! needs no KV events and no other state.
//!
//! It hashes the key `prefix`, the prompt's first 256 tokens, by rendezvous with the workers' keys: all routers agree. A
//! beginning that many requests share would fill one worker, so a worker takes only a bounded share of the requests, and the
//! beginning goes to its next worker beyond that (consistent hashing with bounded loads). Where the prompt's tokens are
//! unknown, the session stands for its beginning; a prompt that fills no KV block goes where there are the fewest requests.

use signalbox_policy_sdk::{
    Candidates, Count, Decision, Info, Key, Policy, Request, RequestKey, Settings, bounded_load,
    export_policy, rendezvous,
};

/// By how much a worker may have more requests than its equal share: as other routers of this kind have it.
const DEFAULT_MAX_LOAD: f32 = 1.25;

/// The worker of the prompt's beginning. Setting: `max_load`.
#[derive(Debug)]
pub struct PrefixHash {
    /// `max_load`: the most requests of a worker, as a multiple of its equal share of all requests.
    max_load: f32,
}

impl Default for PrefixHash {
    fn default() -> Self {
        Self {
            max_load: DEFAULT_MAX_LOAD,
        }
    }
}

impl Policy for PrefixHash {
    fn configure(&mut self, settings: &mut Settings) -> Result<(), String> {
        self.max_load = settings.number("max_load", DEFAULT_MAX_LOAD, 1.0..=100.0)?;
        Ok(())
    }

    fn describe(&self) -> Info {
        Info::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
            .counts([Count::RequestsAll])
            .keys([Key::Worker])
            .request_keys([RequestKey::Prefix, RequestKey::Session])
    }

    fn decide(&mut self, request: &Request, candidates: &Candidates) -> Decision {
        let requests = candidates.counts(Count::RequestsAll);
        let prefix = match request.key(RequestKey::Prefix) {
            0 => request.key(RequestKey::Session),
            prefix => prefix,
        };
        if prefix == 0 {
            return Decision::Costs(requests.iter().map(|&requests| requests as f32).collect());
        }
        let bound = bounded_load(requests, self.max_load);
        let has_room = |row: usize| f64::from(requests[row]) < bound;
        Decision::Pick(rendezvous(prefix, candidates.keys(Key::Worker), has_room) as u32)
    }
}

export_policy!(PrefixHash);

#[cfg(test)]
mod tests {
    use super::*;

    const WORKERS: [u64; 3] = [3, 5, 8];

    fn decision(prefix: u64, session: u64, requests: &[u32; 3]) -> Decision {
        let candidates = Candidates::of(3)
            .with_counts(Count::RequestsAll, requests)
            .with_keys(Key::Worker, &WORKERS);
        let request = Request::default()
            .with_key(RequestKey::Prefix, prefix)
            .with_key(RequestKey::Session, session);
        PrefixHash::default().decide(&request, &candidates)
    }

    fn row(prefix: u64, session: u64, requests: &[u32; 3]) -> usize {
        match decision(prefix, session, requests) {
            Decision::Pick(row) => row as usize,
            other => panic!("a pick was expected, not {other:?}"),
        }
    }

    #[test]
    fn prompts_that_begin_alike_go_to_one_worker_whatever_their_session() {
        for prefix in 1..200 {
            assert_eq!(row(prefix, 7, &[1, 1, 1]), row(prefix, 9, &[1, 1, 1]));
        }
        let mut rows: Vec<usize> = (1..200).map(|prefix| row(prefix, 0, &[1, 1, 1])).collect();
        rows.sort_unstable();
        rows.dedup();
        assert_eq!(rows, [0, 1, 2]);
    }

    #[test]
    fn a_popular_beginning_is_shared_by_the_workers() {
        let mut requests = [0; 3];
        for _ in 0..300 {
            requests[row(77, 0, &requests)] += 1;
        }
        // At most 1.25 times the share of 100, rounded up; what is beyond goes to the next worker, and then to the last.
        assert!(requests.iter().all(|requests| *requests <= 126), "{requests:?}");
    }

    #[test]
    fn the_session_stands_for_an_unknown_beginning_and_load_for_both() {
        assert!((1..50).all(|session| row(0, session, &[1; 3]) == row(session, 0, &[1; 3])));
        assert!(matches!(decision(0, 0, &[4, 1, 2]), Decision::Costs(costs) if costs == [4.0, 1.0, 2.0]));
    }
}
