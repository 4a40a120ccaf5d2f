//! Decisions a policy is tried on before it is accepted: made up, always the same, of every size it will meet.

use crate::features::{Candidates, RequestFeatures, candidate_traits};

/// Numbers of candidates: the least there can be, a machine, a rack, the most that is measured.
const SIZES: [usize; 5] = [1, 2, 8, 64, 1024];
/// Decisions of each size, each with another shape of load.
const ROUNDS: u64 = 4;
/// Trial decisions are numbered from here, real ones from 0, so that records tell them apart.
const FIRST_DECISION: u64 = 1 << 32;

/// What every policy is tried on before it is accepted.
pub(super) fn trial_decisions() -> impl Iterator<Item = (RequestFeatures, Candidates)> {
    trial_requests(&SIZES, ROUNDS)
}

/// Requests with candidates, `rounds` for each number of candidates in `sizes`: short and long prompts; caches empty,
/// shared and full; workers idle and overloaded; columns at their extremes. Always the same for the same arguments:
/// for trying, recording and measuring policies.
pub fn trial_requests(
    sizes: &[usize],
    rounds: u64,
) -> impl Iterator<Item = (RequestFeatures, Candidates)> + use<'_> {
    let mut numbers = Numbers(0x5167_6e61_6c62_6f78);
    let shapes = sizes
        .iter()
        .flat_map(move |&size| (0..rounds).map(move |round| (size, round)));
    shapes
        .zip(FIRST_DECISION..)
        .map(move |((size, round), number)| decision(&mut numbers, size, round, number))
}

fn decision(numbers: &mut Numbers, size: usize, round: u64, number: u64) -> (RequestFeatures, Candidates) {
    let kind = (round % 4) as usize;
    let block_size = [16, 32, 64, 1][kind];
    let prompt_blocks = numbers.below([64, 512, 4096, 2][kind]);
    let request = RequestFeatures {
        prompt_tokens: prompt_blocks * block_size + numbers.below(block_size),
        prompt_blocks,
        block_size,
        expected_output_tokens: numbers.below(2048),
        priority: numbers.below(5) as i32 - 2,
        session: numbers.next(),
        lora: if kind == 3 { numbers.next() } else { 0 },
        seed: numbers.next(),
        decision_number: number,
    };
    let mut candidates = Candidates::default();
    for worker in 0..size as u32 {
        // The first round is a cluster that just started: everything is zero. The last has columns at their limits.
        let busy = kind > 0;
        let mut upto = |most: u32| {
            if busy {
                numbers.below(most.saturating_add(1))
            } else {
                0
            }
        };
        let device = upto(prompt_blocks);
        let host = upto(prompt_blocks - device);
        let disk = upto(prompt_blocks - device - host);
        let (prefill, decode, requests) = match kind {
            3 => (u32::MAX - upto(1), u32::MAX - upto(1), u32::MAX - upto(1)),
            _ => (upto(100_000), upto(20_000), upto(256)),
        };
        candidates.worker.push(worker * 7 + 3);
        candidates
            .traits
            .push(candidate_traits::PREFILL | candidate_traits::DECODE | (upto(3) << 2));
        candidates.overlap_device.push(device);
        candidates.overlap_host.push(host);
        candidates.overlap_disk.push(disk);
        candidates.prefill_tokens.push(prefill);
        candidates.decode_blocks.push(decode);
        candidates.requests.push(requests);
        candidates
            .prefill_tokens_all
            .push(prefill.saturating_add(upto(100_000)));
        candidates
            .decode_blocks_all
            .push(decode.saturating_add(upto(20_000)));
        candidates.requests_all.push(requests.saturating_add(upto(256)));
        candidates.kv_blocks_total.push(upto(1) * 30_000);
        candidates.kv_blocks_used.push(upto(30_000));
        candidates.queue_depth.push(upto(100));
    }
    (request, candidates)
}

/// SplitMix64: a stream of numbers that is the same everywhere.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number from 0 to below `most`.
    fn below(&mut self, most: u32) -> u32 {
        (self.next() % u64::from(most.max(1))) as u32
    }
}
