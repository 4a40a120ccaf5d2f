//! One model's load as its routers report it to each other: the pure state behind the
//! [`ReplicaSync`](super::ReplicaSync) actor.
//!
//! [`PublishedLoad`] makes the updates of this router: each holds the changes since the one before. [`Peers`] holds the
//! loads that the other routers reported, apart for each router, so that one that ends is forgotten whole. A lost
//! message shows in the sequence number of the next one or in the next digest; then the origin is asked for its state.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, Instant},
};

use signalbox_protocol::{ReplicaLoad, ReplicaUpdate, RouterId, WorkerEpoch, WorkerId, WorkerShare};

/// A router that sent nothing for this long, ten digests, no longer counts. It is gone or cut off, and its last report is
/// too old to use.
const SILENCE: Duration = Duration::from_secs(10);

/// Shortest time between two requests for the state of one origin: the answer to the first is under way.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// Most routers counted, so that messages with ever new ids cannot fill the memory.
const MAX_ORIGINS: usize = 256;

/// Most workers counted for one origin: as many as a router can have.
const MAX_SHARES: usize = crate::load::MAX_WORKERS as usize;

/// One incarnation of a worker.
pub(super) type WorkerIncarnation = (WorkerId, WorkerEpoch);

/// The load that this router has published.
#[derive(Debug, Default)]
pub(crate) struct PublishedLoad {
    /// Sequence number of the last changes.
    sequence: u64,
    /// Only workers that this router has requests on.
    published: BTreeMap<WorkerIncarnation, ReplicaLoad>,
}

impl PublishedLoad {
    /// The changes since the last call; `None` if there are none. `now` is this router's load on every present worker.
    pub(super) fn changes(
        &mut self,
        now: impl Iterator<Item = (WorkerIncarnation, ReplicaLoad)>,
    ) -> Option<ReplicaUpdate> {
        let now: BTreeMap<_, _> = now.filter(|(_, load)| !load.is_idle()).collect();
        let ended = self.published.keys().filter(|worker| !now.contains_key(*worker));
        let mut workers: Vec<_> = ended
            .map(|worker| share(worker, ReplicaLoad::default()))
            .collect();
        let changed = now
            .iter()
            .filter(|(worker, load)| self.published.get(*worker) != Some(*load));
        workers.extend(changed.map(|(worker, load)| share(worker, *load)));
        if workers.is_empty() {
            return None;
        }
        self.published = now;
        self.sequence += 1;
        Some(ReplicaUpdate::Changes {
            sequence: self.sequence,
            workers,
        })
    }

    /// The whole load, for a router that lost a message.
    pub(super) fn state(&self) -> ReplicaUpdate {
        ReplicaUpdate::State {
            sequence: self.sequence,
            workers: self
                .published
                .iter()
                .map(|(worker, load)| share(worker, *load))
                .collect(),
        }
    }

    /// A digest of the load, with which another router finds out whether it lost a message.
    pub(super) fn digest(&self) -> ReplicaUpdate {
        let shares: Vec<_> = self
            .published
            .iter()
            .map(|(worker, load)| share(worker, *load))
            .collect();
        ReplicaUpdate::Digest {
            sequence: self.sequence,
            digest: WorkerShare::digest(shares.iter()),
        }
    }
}

/// The loads of the other routers.
#[derive(Debug, Default)]
pub(super) struct Peers {
    origins: HashMap<RouterId, Origin>,
    /// When the state of each origin was last requested, for origins of which a message was lost.
    asked: HashMap<RouterId, Instant>,
}

#[derive(Debug)]
struct Origin {
    sequence: u64,
    shares: HashMap<WorkerIncarnation, ReplicaLoad>,
    last_received: Instant,
}

/// What follows from a message.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct UpdateEffect {
    /// The workers whose load from other routers may have changed.
    pub(super) changed: HashSet<WorkerIncarnation>,
    /// Request the state of this origin.
    pub(super) ask: Option<RouterId>,
}

impl Peers {
    /// Applies an update from `origin`. An [`ReplicaUpdate::Ask`] changes nothing: the actor answers it.
    pub(super) fn receive(&mut self, origin: &RouterId, update: ReplicaUpdate, now: Instant) -> UpdateEffect {
        let is_new = !self.origins.contains_key(origin);
        if is_new && self.origins.len() >= MAX_ORIGINS {
            return UpdateEffect::default();
        }
        let known = self.origins.get_mut(origin);
        match (update, known) {
            (ReplicaUpdate::State { sequence, workers }, _) => {
                self.asked.remove(origin);
                self.replace(origin, sequence, workers, now)
            }
            (ReplicaUpdate::Changes { sequence, workers }, Some(known)) if sequence == known.sequence + 1 => {
                known.sequence = sequence;
                known.last_received = now;
                known.apply(workers)
            }
            (ReplicaUpdate::Changes { sequence, workers }, None) if sequence == 1 => {
                self.replace(origin, sequence, workers, now)
            }
            // A repeated message, or one whose changes are part of a state that overtook it.
            (ReplicaUpdate::Changes { sequence, .. }, Some(known)) if sequence <= known.sequence => {
                known.last_received = now;
                UpdateEffect::default()
            }
            (ReplicaUpdate::Digest { sequence, digest }, Some(known)) => {
                known.last_received = now;
                // Changes overtook a digest with a lower sequence number: it describes an earlier load.
                if sequence < known.sequence || (sequence == known.sequence && digest == known.digest()) {
                    return UpdateEffect::default();
                }
                self.ask(origin, now)
            }
            (ReplicaUpdate::Changes { .. } | ReplicaUpdate::Digest { .. }, _) => self.ask(origin, now),
            (ReplicaUpdate::Ask { .. }, _) => UpdateEffect::default(),
        }
    }

    /// Forgets an origin. Returns the workers that it had requests on.
    pub(super) fn forget(&mut self, origin: &RouterId) -> HashSet<WorkerIncarnation> {
        self.asked.remove(origin);
        let forgotten = self.origins.remove(origin);
        forgotten.map_or_else(HashSet::new, |origin| origin.shares.into_keys().collect())
    }

    /// Forgets the origins that sent nothing for [`SILENCE`]. Returns the workers that they had requests on.
    pub(super) fn expire(&mut self, now: Instant) -> HashSet<WorkerIncarnation> {
        let is_silent = |origin: &Origin| now.saturating_duration_since(origin.last_received) >= SILENCE;
        let gone: Vec<_> = self
            .origins
            .iter()
            .filter(|(_, origin)| is_silent(origin))
            .map(|(id, _)| id.clone())
            .collect();
        self.asked
            .retain(|_, asked| now.saturating_duration_since(*asked) < SILENCE);
        gone.iter().flat_map(|id| self.forget(id)).collect()
    }

    /// What all other routers together have in flight on a worker.
    pub(super) fn load(&self, worker: &WorkerIncarnation) -> ReplicaLoad {
        self.origins
            .values()
            .filter_map(|origin| origin.shares.get(worker))
            .fold(ReplicaLoad::default(), |sum, load| sum.saturating_add(*load))
    }

    /// The routers that are counted.
    pub(super) fn origins(&self) -> impl Iterator<Item = &RouterId> {
        self.origins.keys()
    }

    fn replace(
        &mut self,
        id: &RouterId,
        sequence: u64,
        workers: Vec<WorkerShare>,
        now: Instant,
    ) -> UpdateEffect {
        let mut changed = self.forget(id);
        let mut origin = Origin {
            sequence,
            shares: HashMap::new(),
            last_received: now,
        };
        changed.extend(origin.apply(workers).changed);
        self.origins.insert(id.clone(), origin);
        UpdateEffect { changed, ask: None }
    }

    fn ask(&mut self, origin: &RouterId, now: Instant) -> UpdateEffect {
        let asked = self.asked.get(origin);
        if asked.is_some_and(|asked| now.saturating_duration_since(*asked) < ASK_AGAIN) {
            return UpdateEffect::default();
        }
        if self.asked.len() < MAX_ORIGINS {
            self.asked.insert(origin.clone(), now);
        }
        UpdateEffect {
            ask: Some(origin.clone()),
            ..UpdateEffect::default()
        }
    }
}

impl Origin {
    fn apply(&mut self, workers: Vec<WorkerShare>) -> UpdateEffect {
        let mut changed = HashSet::new();
        for WorkerShare { worker, epoch, load } in workers {
            let worker = (worker, epoch);
            if load.is_idle() {
                self.shares.remove(&worker);
            } else if self.shares.len() < MAX_SHARES || self.shares.contains_key(&worker) {
                self.shares.insert(worker.clone(), load);
            }
            changed.insert(worker);
        }
        UpdateEffect { changed, ask: None }
    }

    fn digest(&self) -> u64 {
        let shares: Vec<_> = self
            .shares
            .iter()
            .map(|(worker, load)| share(worker, *load))
            .collect();
        WorkerShare::digest(shares.iter())
    }
}

fn share((worker, epoch): &WorkerIncarnation, load: ReplicaLoad) -> WorkerShare {
    WorkerShare {
        worker: worker.clone(),
        epoch: *epoch,
        load,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn worker(number: usize) -> WorkerIncarnation {
        (format!("w{number}").parse().unwrap(), WorkerEpoch(1))
    }

    fn load(requests: u32) -> ReplicaLoad {
        ReplicaLoad {
            prefill_tokens: 100 * requests,
            decode_blocks: 10 * requests,
            requests,
        }
    }

    fn origin(name: &str) -> RouterId {
        name.parse().unwrap()
    }

    fn loads(requests: &[u32]) -> Vec<(WorkerIncarnation, ReplicaLoad)> {
        requests
            .iter()
            .enumerate()
            .map(|(number, requests)| (worker(number), load(*requests)))
            .collect()
    }

    #[test]
    fn changes_hold_what_began_and_what_ended_and_nothing_else() {
        let mut own = PublishedLoad::default();
        assert_eq!(own.changes(loads(&[0, 0]).into_iter()), None);
        let changed = |update: Option<ReplicaUpdate>| match update {
            Some(ReplicaUpdate::Changes { sequence, workers }) => (sequence, workers.len()),
            other => panic!("{other:?}"),
        };
        assert_eq!(changed(own.changes(loads(&[1, 2]).into_iter())), (1, 2));
        assert_eq!(changed(own.changes(loads(&[1, 3]).into_iter())), (2, 1));
        assert_eq!(own.changes(loads(&[1, 3]).into_iter()), None);
        assert_eq!(changed(own.changes(loads(&[1]).into_iter())), (3, 1));
    }

    #[test]
    fn after_a_lost_message_the_origin_is_asked_once() {
        let (mut own, mut peers, now) = (PublishedLoad::default(), Peers::default(), Instant::now());
        let a = origin("a");
        let first = own.changes(loads(&[1]).into_iter()).unwrap();
        assert_eq!(peers.receive(&a, first.clone(), now).changed.len(), 1);
        assert_eq!(peers.load(&worker(0)), load(1));
        assert_eq!(
            peers.receive(&a, first, now),
            UpdateEffect::default(),
            "it is a repetition"
        );
        let _lost = own.changes(loads(&[2]).into_iter());
        let third = own.changes(loads(&[3]).into_iter()).unwrap();
        assert_eq!(peers.receive(&a, third.clone(), now).ask, Some(a.clone()));
        assert_eq!(
            peers.receive(&a, own.digest(), now).ask,
            None,
            "it was asked just now"
        );
        assert_eq!(
            peers.load(&worker(0)),
            load(1),
            "until it answers, its last report counts"
        );
        peers.receive(&a, own.state(), now);
        assert_eq!(peers.load(&worker(0)), load(3));
        assert_eq!(peers.receive(&a, own.digest(), now), UpdateEffect::default());
    }

    #[test]
    fn a_digest_from_an_unknown_origin_requests_its_state() {
        let (mut own, mut peers, now) = (PublishedLoad::default(), Peers::default(), Instant::now());
        own.changes(loads(&[4]).into_iter());
        own.changes(loads(&[5]).into_iter());
        assert_eq!(
            peers.receive(&origin("a"), own.digest(), now).ask,
            Some(origin("a"))
        );
        peers.receive(&origin("a"), own.state(), now);
        assert_eq!(peers.load(&worker(0)), load(5));
    }

    #[test]
    fn a_router_that_is_silent_or_left_is_forgotten_whole() {
        let (mut own, mut peers, now) = (PublishedLoad::default(), Peers::default(), Instant::now());
        own.changes(loads(&[1, 1]).into_iter());
        for name in ["a", "b"] {
            peers.receive(&origin(name), own.state(), now);
        }
        assert_eq!(peers.load(&worker(1)), load(2));
        assert_eq!(peers.forget(&origin("b")).len(), 2);
        assert_eq!(peers.load(&worker(1)), load(1));
        let almost = now + SILENCE - Duration::from_millis(1);
        assert!(peers.expire(almost).is_empty());
        peers.receive(&origin("a"), own.digest(), almost);
        assert!(
            peers.expire(now + SILENCE).is_empty(),
            "a digest ends the silence"
        );
        assert_eq!(peers.expire(almost + SILENCE).len(), 2);
        assert!(peers.load(&worker(1)).is_idle());
    }

    #[test]
    fn ever_new_router_ids_stay_within_the_bound() {
        let (mut peers, now) = (Peers::default(), Instant::now());
        for number in 0..10_000 {
            let state = ReplicaUpdate::State {
                sequence: 0,
                workers: vec![],
            };
            peers.receive(&origin(&format!("r{number}")), state, now);
            peers.receive(
                &origin(&format!("q{number}")),
                ReplicaUpdate::Digest {
                    sequence: 9,
                    digest: 0,
                },
                now,
            );
        }
        assert_eq!(peers.origins().count(), MAX_ORIGINS);
        assert!(peers.asked.len() <= MAX_ORIGINS);
    }

    proptest! {
        /// Whatever was lost, repeated or overtaken: once a digest and the state that it leads to have arrived, a peer
        /// has the origin's true load.
        #[test]
        fn a_lossy_channel_ends_in_agreement(steps in prop::collection::vec((0usize..3, 0u32..3, 0u8..4), 0..60)) {
            let (mut own, mut peers, mut now) = (PublishedLoad::default(), Peers::default(), Instant::now());
            let (a, mut true_loads, mut held_back) = (origin("a"), vec![0u32; 3], None);
            for (number, requests, fate) in steps {
                now += Duration::from_millis(10);
                true_loads[number] = requests;
                let Some(update) = own.changes(loads(&true_loads).into_iter()) else { continue };
                match fate {
                    0 => {}
                    1 => held_back = Some(update),
                    2 => {
                        peers.receive(&a, update.clone(), now);
                        peers.receive(&a, update, now);
                    }
                    _ => {
                        peers.receive(&a, update, now);
                        if let Some(late) = held_back.take() {
                            peers.receive(&a, late, now);
                        }
                    }
                }
            }
            now += ASK_AGAIN;
            if peers.receive(&a, own.digest(), now).ask.is_some() {
                peers.receive(&a, own.state(), now);
            }
            for (number, requests) in true_loads.into_iter().enumerate() {
                prop_assert_eq!(peers.load(&worker(number)), load(requests));
            }
        }
    }
}
