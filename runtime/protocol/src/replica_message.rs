//! What routers tell each other of the load they have in flight.
//!
//! Each router speaks of its own load only, in totals for each worker: a message that is lost or comes twice does no
//! lasting harm, and a router that dies is forgotten whole. Messages are JSON, one topic a model.

use serde::{Deserialize, Serialize};

use crate::{ReplicaLoad, RouterId, WorkerEpoch, WorkerId};

/// One message on a model's topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaMessage {
    /// Who speaks.
    pub origin: RouterId,
    /// What it says.
    #[serde(flatten)]
    pub update: ReplicaUpdate,
}

/// What a router says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ReplicaUpdate {
    /// The load it has on these workers changed: what it is now.
    Changes {
        /// Numbers the origin's changes from 1, without holes.
        sequence: u64,
        /// Only those that changed.
        workers: Vec<WorkerShare>,
    },
    /// All the load it has.
    State {
        /// That of the last changes contained.
        sequence: u64,
        /// Those with any load.
        workers: Vec<WorkerShare>,
    },
    /// What its load should look like to whoever heard everything.
    Digest {
        /// That of its last changes.
        sequence: u64,
        /// XXH3-64 over the load of its workers, see [`WorkerShare::digest`].
        digest: u64,
    },
    /// Somebody's state is wanted.
    Ask {
        /// Whose; everybody's unless named.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        of: Option<RouterId>,
    },
}

/// One router's load on one worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerShare {
    /// Which worker.
    pub worker: WorkerId,
    /// Which life of it.
    pub epoch: WorkerEpoch,
    /// How much.
    #[serde(flatten)]
    pub load: ReplicaLoad,
}

impl WorkerShare {
    /// A number that two routers agree on exactly when they think the same of an origin's load: the sum, wrapping, of
    /// XXH3-64 over each worker's name, a zero byte, and its epoch and load in little-endian order.
    pub fn digest<'a>(shares: impl Iterator<Item = &'a Self>) -> u64 {
        shares.fold(0, |sum, share| {
            let mut bytes = Vec::with_capacity(share.worker.as_str().len() + 21);
            bytes.extend_from_slice(share.worker.as_str().as_bytes());
            bytes.push(0);
            bytes.extend_from_slice(&share.epoch.0.to_le_bytes());
            let ReplicaLoad {
                prefill_tokens,
                decode_blocks,
                requests,
            } = share.load;
            for number in [prefill_tokens, decode_blocks, requests] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            sum.wrapping_add(xxhash_rust::xxh3::xxh3_64(&bytes))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_flat_json() {
        let message = ReplicaMessage {
            origin: "router-1".parse().unwrap(),
            update: ReplicaUpdate::Changes {
                sequence: 7,
                workers: vec![WorkerShare {
                    worker: "worker-0".parse().unwrap(),
                    epoch: WorkerEpoch(1000),
                    load: ReplicaLoad {
                        prefill_tokens: 120,
                        decode_blocks: 8,
                        requests: 1,
                    },
                }],
            },
        };
        let json = r#"{"origin":"router-1","kind":"changes","sequence":7,"workers":[{"worker":"worker-0","epoch":1000,"prefill_tokens":120,"decode_blocks":8,"requests":1}]}"#;
        assert_eq!(serde_json::to_string(&message).unwrap(), json);
        assert_eq!(serde_json::from_str::<ReplicaMessage>(json).unwrap(), message);
        let ask = r#"{"origin":"router-1","kind":"ask"}"#;
        let asked = serde_json::from_str::<ReplicaMessage>(ask).unwrap();
        assert_eq!(asked.update, ReplicaUpdate::Ask { of: None });
    }

    #[test]
    fn a_digest_depends_on_every_part_and_on_no_order() {
        let share = |worker: &str, requests| WorkerShare {
            worker: worker.parse().unwrap(),
            epoch: WorkerEpoch(1),
            load: ReplicaLoad {
                requests,
                ..ReplicaLoad::default()
            },
        };
        let digest = |shares: &[WorkerShare]| WorkerShare::digest(shares.iter());
        let (a, b) = (share("a", 1), share("b", 2));
        assert_eq!(digest(&[a.clone(), b.clone()]), digest(&[b.clone(), a.clone()]));
        assert_ne!(digest(&[a.clone(), b]), digest(&[a, share("b", 3)]));
    }
}
