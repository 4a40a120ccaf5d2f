//! Rendezvous hashing: equal keys go to the same worker, at every router and without any state.
//!
//! Each worker has a weight for each key, and a key goes to the worker with the highest. When a worker leaves, only its own
//! keys move, each to the worker with its next highest weight; when one joins, it takes an equal share from all others.

/// The row of the worker with the highest weight for `key`, among those whose row `has_room` accepts; if it accepts none,
/// among all. `workers` is the column [`Key::Worker`](crate::Key::Worker).
///
/// # Panics
/// There is no worker: never in a decision.
#[must_use]
pub fn rendezvous(key: u64, workers: &[u64], has_room: impl Fn(usize) -> bool) -> usize {
    let weigh = |row: usize| (weight(key, workers[row]), workers[row]);
    let best = (0..workers.len())
        .filter(|&row| has_room(row))
        .max_by_key(|&row| weigh(row));
    best.or_else(|| (0..workers.len()).max_by_key(|&row| weigh(row)))
        .expect("a decision has a candidate")
}

/// The most requests that a worker may have before a key goes elsewhere, where no worker may have more than `max_load` times
/// its equal share of all requests and the new one (consistent hashing with bounded loads). At least one worker has fewer,
/// if `max_load` is at least 1.
#[must_use]
pub fn bounded_load(requests: &[u32], max_load: f32) -> f64 {
    let total: f64 = requests.iter().map(|&requests| f64::from(requests)).sum();
    (f64::from(max_load) * (total + 1.0) / requests.len().max(1) as f64).ceil()
}

/// The weight of a worker for a key: both through MurmurHash3's 64-bit finaliser.
pub(crate) const fn weight(key: u64, worker: u64) -> u64 {
    let mut bits = key ^ worker.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    bits = (bits ^ (bits >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    bits ^ (bits >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Draws;

    fn keys() -> impl Iterator<Item = u64> {
        (0..4_000).map(|number| Draws::new(number).bits())
    }

    /// The worker, not the row, that a key goes to.
    fn worker(key: u64, workers: &[u64]) -> u64 {
        workers[rendezvous(key, workers, |_| true)]
    }

    #[test]
    fn keys_spread_evenly_whatever_the_order_of_rows() {
        let mut counts = [0; 4];
        for key in keys() {
            let chosen = worker(key, &[11, 22, 33, 44]);
            assert_eq!(worker(key, &[44, 11, 33, 22]), chosen);
            counts[(chosen / 11 - 1) as usize] += 1;
        }
        assert!(
            counts.iter().all(|count| (880..1_120).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn only_the_keys_of_a_worker_that_left_move() {
        for key in keys() {
            let before = worker(key, &[11, 22, 33, 44]);
            let after = worker(key, &[11, 22, 44]);
            assert!(before == 33 || after == before);
        }
    }

    #[test]
    fn a_key_goes_to_the_next_worker_where_its_own_has_no_room() {
        let workers = [11, 22, 33];
        for key in keys().take(100) {
            let own = rendezvous(key, &workers, |_| true);
            let others: Vec<u64> = workers
                .iter()
                .copied()
                .filter(|&other| other != workers[own])
                .collect();
            let next = rendezvous(key, &workers, |row| row != own);
            assert_eq!(workers[next], worker(key, &others));
            assert_eq!(rendezvous(key, &workers, |_| false), own, "room nowhere");
        }
    }

    #[test]
    fn the_bound_leaves_room_at_one_worker_at_least() {
        assert_eq!(bounded_load(&[0, 0], 1.25), 1.0);
        assert_eq!(bounded_load(&[9, 0, 0], 1.25), 5.0);
        for requests in [&[0][..], &[7], &[3, 3, 3], &[u32::MAX, u32::MAX]] {
            let bound = bounded_load(requests, 1.0);
            assert!(requests.iter().any(|&requests| f64::from(requests) < bound));
        }
    }
}
