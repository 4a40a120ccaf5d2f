//! The messages in which routers report to each other the load they have in flight.
//!
//! Each router reports only its own load, as totals for each worker. So a message that is lost or repeated does no
//! lasting harm, and the load of a router that has gone is dropped as a whole. Messages are JSON. Each model has a
//! topic.

use serde::{Deserialize, Serialize};

use crate::{ReplicaLoad, RouterId, WorkerEpoch, WorkerId};

/// One message on a model's topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaMessage {
    /// The router that sends it.
    pub origin: RouterId,
    /// The content.
    #[serde(flatten)]
    pub update: ReplicaUpdate,
}

/// The content of a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ReplicaUpdate {
    /// The load of the origin changed on some workers.
    Changes {
        /// Number of this message among the origin's `Changes`: from 1, without holes.
        sequence: u64,
        /// The new load of each worker where it changed.
        workers: Vec<WorkerShare>,
    },
    /// The whole load of the origin.
    State {
        /// Number of the last `Changes` that the load contains.
        sequence: u64,
        /// The load of each worker where it is not zero.
        workers: Vec<WorkerShare>,
    },
    /// A digest of the origin's load. A router that holds another digest for the origin has missed changes.
    Digest {
        /// Number of the origin's last `Changes`.
        sequence: u64,
        /// XXH3-64 over the load on each worker, see [`WorkerShare::digest`].
        digest: u64,
    },
    /// The origin requests the state of one or all routers.
    Ask {
        /// The router whose state is requested; `None` for all routers.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        of: Option<RouterId>,
    },
}

/// One router's load on one worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerShare {
    /// The worker.
    pub worker: WorkerId,
    /// The worker's epoch.
    pub epoch: WorkerEpoch,
    /// The load on this incarnation of the worker.
    #[serde(flatten)]
    pub load: ReplicaLoad,
}

impl WorkerShare {
    /// A digest that is equal for equal loads, in any order: the wrapping sum of XXH3-64 over each worker's name, a
    /// zero byte, and its epoch and load as little-endian integers.
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
    fn a_digest_depends_on_every_share_and_not_on_their_order() {
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
