//! `session-affinity` sends every request of a session to the same worker: by rendezvous hashing on the keys of session and
//! worker, so that all routers agree without a word to each other, and after a restart.
//!
//! A request moves only if its worker cannot take it. A request without a session goes to the worker with the fewest
//! requests.

use signalbox_policy_sdk::{
    Candidates, Count, Decision, Info, Key, Policy, Request, RequestKey, Settings, bounded_load,
    export_policy, rendezvous,
};

/// The worker of the session. Settings: `key`, and `max_load`.
#[derive(Debug)]
pub struct SessionAffinity {
    /// `key`: the key of the request that stands for its session.
    key: String,
    /// `max_load`: the most requests of a worker, as a multiple of its equal share of all requests. Beyond it a session goes
    /// to its next worker, for as long as its own has more. 0 for no bound. With a bound, routers that see another load may
    /// disagree.
    max_load: f32,
}

impl Default for SessionAffinity {
    fn default() -> Self {
        Self {
            key: RequestKey::Session.into(),
            max_load: 0.0,
        }
    }
}

impl Policy for SessionAffinity {
    fn configure(&mut self, settings: &mut Settings) -> Result<(), String> {
        if let Some(key) = settings.text("key")? {
            self.key = key;
        }
        self.max_load = settings.number("max_load", 0.0, 0.0..=100.0)?;
        if self.max_load > 0.0 && self.max_load < 1.0 {
            return Err("the setting \"max_load\" must be 0, for no bound, or from 1 to 100".into());
        }
        Ok(())
    }

    fn describe(&self) -> Info {
        Info::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
            .counts([Count::RequestsAll])
            .keys([Key::Worker])
            .request_keys([self.key.as_str()])
    }

    fn decide(&mut self, request: &Request, candidates: &Candidates) -> Decision {
        let session = request.key_named(&self.key);
        let requests = candidates.counts(Count::RequestsAll);
        if session == 0 {
            return Decision::Costs(requests.iter().map(|&requests| requests as f32).collect());
        }
        let bound = match self.max_load {
            0.0 => f64::INFINITY,
            max_load => bounded_load(requests, max_load),
        };
        let has_room = |row: usize| f64::from(requests[row]) < bound;
        Decision::Pick(rendezvous(session, candidates.keys(Key::Worker), has_room) as u32)
    }
}

export_policy!(SessionAffinity);

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(settings: &str) -> Result<SessionAffinity, String> {
        let mut policy = SessionAffinity::default();
        policy.configure(&mut Settings::parse(settings)?)?;
        Ok(policy)
    }

    /// The key of the worker that a session goes to.
    fn worker(settings: &str, session: u64, workers: &[u64], requests: &[u32]) -> u64 {
        let mut policy = configured(settings).expect("settings");
        let candidates = Candidates::of(workers.len())
            .with_counts(Count::RequestsAll, requests)
            .with_keys(Key::Worker, workers);
        let request = Request::default().with_key_named(&policy.key, session);
        match policy.decide(&request, &candidates) {
            Decision::Pick(row) => workers[row as usize],
            other => panic!("a pick was expected, not {other:?}"),
        }
    }

    #[test]
    fn a_session_stays_whatever_the_load_and_the_order_of_rows() {
        for session in 1..500 {
            let chosen = worker("", session, &[3, 5, 8], &[0, 0, 0]);
            assert_eq!(worker("", session, &[8, 3, 5], &[900, 0, 4]), chosen);
        }
    }

    #[test]
    fn with_a_bound_a_session_leaves_a_worker_that_has_more_than_its_share() {
        let bounded = r#"{"max_load": 1.5}"#;
        for session in 1..100 {
            let own = worker(bounded, session, &[3, 5], &[2, 2]);
            let requests = [3, 5].map(|worker| if worker == own { 9 } else { 1 });
            assert_ne!(worker(bounded, session, &[3, 5], &requests), own);
            assert_eq!(worker("", session, &[3, 5], &requests), own);
        }
    }

    #[test]
    fn a_request_without_a_session_goes_where_there_are_fewest_requests() {
        let candidates = Candidates::of(2)
            .with_counts(Count::RequestsAll, &[4, 1])
            .with_keys(Key::Worker, &[3, 5]);
        let request = Request::default().with_key(RequestKey::Session, 0);
        let decision = SessionAffinity::default().decide(&request, &candidates);
        assert!(matches!(decision, Decision::Costs(costs) if costs == [4.0, 1.0]));
    }

    #[test]
    fn another_key_can_stand_for_the_session() {
        let by_tenant = configured(r#"{"key": "tenant"}"#).expect("settings");
        assert_eq!(by_tenant.describe().request_keys, ["tenant"]);
        assert!(configured(r#"{"max_load": 0.5}"#).is_err());
    }
}
