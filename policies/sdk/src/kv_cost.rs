//! The cost of placing a request, in KV blocks of work. `kv-linear` and `replica-synced` share it.
//!
//! The formula is that of NVIDIA Dynamo's KV router (its default scorer), so that results compare. It has two
//! additions: a short overlap counts as none, and a full KV cache has a cost.
//!
//! ```text
//! prefill  = (prefill tokens in flight + prompt tokens) / block size
//! excess   = (prefill tokens in flight - the minimum of all candidates) / block size / prompt blocks
//! credit   = overlap_credit / (1 + credit_decay * excess) * device + host_weight * host + disk_weight * disk,
//!            or 0 where device + host + disk < min_overlap * prompt blocks
//! fill     = KV blocks used / KV blocks in total
//! cost     = prefill_load_scale * max(0, prefill - credit) + decode blocks + prompt blocks + request_weight * requests
//!            + fill_weight * fill
//! ```
//!
//! The additions matter when all requests share a system prompt of one block. Without them, every new prompt goes to
//! the worker that had the system prompt first: its cache overflows while the other caches stay empty. [`KvCost::DYNAMO`]
//! is without them.

use crate::{Candidates, Count, Request, Settings};

/// The weights of the formula. Each setting has the name of its field.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KvCost {
    /// Blocks of prefill that a block of overlap in device memory saves. The true value is 1; a higher one favours the
    /// cache over balance.
    pub overlap_credit: f32,
    /// How fast the credit shrinks with the prefill tokens that a worker has in excess of the minimum; 0 for not at
    /// all.
    pub credit_decay: f32,
    /// As `overlap_credit`, for a block in host memory, which the worker has to copy back.
    pub host_weight: f32,
    /// As `overlap_credit`, for a block on disk.
    pub disk_weight: f32,
    /// The cost of a block of prefill, in blocks of decoding.
    pub prefill_load_scale: f32,
    /// The cost of a request in flight beside that of its blocks.
    pub request_weight: f32,
    /// An overlap shorter than this share of the prompt's blocks counts as none.
    pub min_overlap: f32,
    /// The cost of a full KV cache, in blocks. Below 1 it decides only between workers that are equal otherwise.
    pub fill_weight: f32,
}

/// The load columns that the formula uses: those of this router, or those of all routers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// What this router has in flight.
    Own,
    /// What all routers together have in flight.
    OfAllRouters,
}

impl Load {
    /// The columns of prefill tokens, decode blocks and requests.
    fn columns(self) -> [Count; 3] {
        match self {
            Self::Own => [Count::PrefillTokens, Count::DecodeBlocks, Count::Requests],
            Self::OfAllRouters => [
                Count::PrefillTokensAll,
                Count::DecodeBlocksAll,
                Count::RequestsAll,
            ],
        }
    }
}

impl Default for KvCost {
    fn default() -> Self {
        Self {
            min_overlap: 0.1,
            fill_weight: 0.5,
            ..Self::DYNAMO
        }
    }
}

impl KvCost {
    /// Dynamo's formula with its default weights.
    pub const DYNAMO: Self = Self {
        overlap_credit: 1.0,
        credit_decay: 0.0,
        host_weight: 0.75,
        disk_weight: 0.25,
        prefill_load_scale: 1.0,
        request_weight: 0.0,
        min_overlap: 0.0,
        fill_weight: 0.0,
    };

    /// The columns that the formula needs with these weights.
    #[must_use]
    pub fn columns(&self, load: Load) -> Vec<Count> {
        let mut columns = vec![
            Count::OverlapDevice,
            Count::OverlapHost,
            Count::OverlapDisk,
            Count::KvBlocksTotal,
            Count::KvBlocksUsed,
        ];
        let with_requests = self.request_weight != 0.0;
        columns.extend(load.columns().into_iter().take(if with_requests { 3 } else { 2 }));
        columns
    }

    /// Reads the weights from the settings; a weight that is not set is that of `default`.
    ///
    /// # Errors
    /// A weight is not a number, or outside 0 to 1,000 (0 to 1 for host, disk and the least overlap).
    pub fn from_settings(settings: &mut Settings, default: Self) -> Result<Self, String> {
        Ok(Self {
            overlap_credit: settings.number("overlap_credit", default.overlap_credit, 0.0..=1000.0)?,
            credit_decay: settings.number("credit_decay", default.credit_decay, 0.0..=1000.0)?,
            host_weight: settings.number("host_weight", default.host_weight, 0.0..=1.0)?,
            disk_weight: settings.number("disk_weight", default.disk_weight, 0.0..=1.0)?,
            prefill_load_scale: settings.number(
                "prefill_load_scale",
                default.prefill_load_scale,
                0.0..=1000.0,
            )?,
            request_weight: settings.number("request_weight", default.request_weight, 0.0..=1000.0)?,
            min_overlap: settings.number("min_overlap", default.min_overlap, 0.0..=1.0)?,
            fill_weight: settings.number("fill_weight", default.fill_weight, 0.0..=1000.0)?,
        })
    }

    /// A cost for each candidate, in blocks.
    #[must_use]
    pub fn costs(&self, request: &Request, candidates: &Candidates, load: Load) -> Vec<f32> {
        if self.credit_decay == 0.0 {
            return self.costs_with(request, candidates, load, |_| self.overlap_credit);
        }
        let per_prompt = 1.0 / (request.block_size.max(1) as f32 * request.prompt_blocks.max(1) as f32);
        let decay = self.credit_decay * per_prompt;
        let [prefill, ..] = load.columns();
        let least = candidates.counts(prefill).iter().copied().min().unwrap_or(0);
        self.costs_with(request, candidates, load, |prefill_tokens| {
            self.overlap_credit / (1.0 + decay * float(prefill_tokens - least))
        })
    }

    /// `device_credit` takes a worker's prefill tokens in flight and returns the credit of a block in device memory.
    fn costs_with(
        &self,
        request: &Request,
        candidates: &Candidates,
        load: Load,
        device_credit: impl Fn(u32) -> f32,
    ) -> Vec<f32> {
        let rows = candidates.len();
        // All slices have the same known length, so the loop has no bounds checks and the compiler makes SIMD of it.
        let column = |name: Count| &candidates.counts(name)[..rows];
        let (device, host, disk) = (
            column(Count::OverlapDevice),
            column(Count::OverlapHost),
            column(Count::OverlapDisk),
        );
        let [prefill, decode, requests] = load.columns();
        let (prefill, decode) = (column(prefill), column(decode));
        // Without weight the column of requests is absent. Any other column can stand in, since it is multiplied by 0.
        let requests = if self.request_weight == 0.0 {
            decode
        } else {
            column(requests)
        };
        let (total, used) = (column(Count::KvBlocksTotal), column(Count::KvBlocksUsed));

        let per_token = 1.0 / request.block_size.max(1) as f32;
        let prompt_blocks = request.prompt_blocks as f32;
        let least_overlap = self.min_overlap * prompt_blocks;
        (0..rows)
            .map(|row| {
                let (device, host, disk) = (float(device[row]), float(host[row]), float(disk[row]));
                let credit = if device + host + disk < least_overlap {
                    0.0
                } else {
                    device_credit(prefill[row]) * device + self.host_weight * host + self.disk_weight * disk
                };
                let fill = float(used[row]) / float(total[row].max(1));
                let to_prefill =
                    positive((float(prefill[row]) + request.prompt_tokens as f32) * per_token - credit);
                self.prefill_load_scale * to_prefill
                    + float(decode[row])
                    + prompt_blocks
                    + self.request_weight * float(requests[row])
                    + self.fill_weight * fill
            })
            .collect()
    }
}

/// A count as a float, at most 2^31 - 1. SIMD converts signed numbers in one instruction, unsigned ones in eight.
fn float(count: u32) -> f32 {
    count.min(i32::MAX as u32) as i32 as f32
}

/// `value`, or 0 if it is negative. `f32::max` also handles NaN, which takes SIMD one lane at a time.
fn positive(value: f32) -> f32 {
    if value > 0.0 { value } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A prompt of 10 blocks of 16 tokens.
    fn request() -> Request {
        Request {
            prompt_tokens: 160,
            prompt_blocks: 10,
            block_size: 16,
            ..Request::default()
        }
    }

    fn candidates(overlap: [[u32; 3]; 3], prefill: [u32; 3], decode: [u32; 3], used: [u32; 3]) -> Candidates {
        Candidates::of(3)
            .with_counts(Count::OverlapDevice, &overlap[0])
            .with_counts(Count::OverlapHost, &overlap[1])
            .with_counts(Count::OverlapDisk, &overlap[2])
            .with_counts(Count::PrefillTokens, &prefill)
            .with_counts(Count::DecodeBlocks, &decode)
            .with_counts(Count::KvBlocksTotal, &[100; 3])
            .with_counts(Count::KvBlocksUsed, &used)
    }

    fn busy() -> Candidates {
        let overlap = [[2, 5, 8], [0, 4, 0], [0, 0, 2]];
        candidates(overlap, [0, 0, 160], [0, 3, 0], [0; 3])
    }

    #[test]
    fn counts_blocks_to_prefill_and_blocks_in_use() {
        let costs = KvCost::default().costs(&request(), &busy(), Load::Own);
        // 10 - 2 + 10; 10 - 5 - 0.75 * 4 + 3 + 10; 20 - 8 - 0.25 * 2 + 10
        assert_eq!(costs, [18.0, 15.0, 21.5]);
    }

    #[test]
    fn each_weight_changes_its_term() {
        let candidates = busy().with_counts(Count::Requests, &[0, 1, 2]);
        let costs = |cost: KvCost| cost.costs(&request(), &candidates, Load::Own);
        let default = KvCost::default();
        let credit = KvCost {
            overlap_credit: 2.0,
            ..default
        };
        assert_eq!(costs(credit), [16.0, 13.0, 13.5]);
        let scale = KvCost {
            prefill_load_scale: 0.0,
            ..default
        };
        assert_eq!(costs(scale), [10.0, 13.0, 10.0]);
        let weight = KvCost {
            request_weight: 4.0,
            ..default
        };
        assert_eq!(costs(weight), [18.0, 19.0, 29.5]);
        // The third worker is one whole prompt behind: its credit is halved.
        let decay = KvCost {
            credit_decay: 1.0,
            ..default
        };
        assert_eq!(costs(decay), [18.0, 15.0, 25.5]);
    }

    #[test]
    fn the_credit_never_exceeds_the_prefill() {
        let cost = KvCost {
            overlap_credit: 100.0,
            ..KvCost::default()
        };
        assert_eq!(cost.costs(&request(), &busy(), Load::Own), [10.0, 13.0, 10.0]);
    }

    #[test]
    fn an_overlap_shorter_than_a_tenth_of_the_prompt_counts_as_none() {
        let overlap = [[0, 9, 10], [0; 3], [0; 3]];
        let request = Request {
            prompt_tokens: 1_600,
            prompt_blocks: 100,
            ..request()
        };
        let candidates = candidates(overlap, [0; 3], [0, 3, 0], [0; 3]);
        let costs = KvCost::default().costs(&request, &candidates, Load::Own);
        assert_eq!(costs, [200.0, 203.0, 190.0]);
    }

    #[test]
    fn between_equal_workers_the_emptier_cache_costs_less() {
        let candidates = candidates([[0; 3]; 3], [0; 3], [0, 0, 1], [100, 50, 0]);
        let costs = KvCost::default().costs(&request(), &candidates, Load::Own);
        assert_eq!(costs, [20.5, 20.25, 21.0]);
    }

    #[test]
    fn the_column_of_requests_is_wanted_only_where_it_has_weight() {
        let columns = |request_weight, load| {
            let cost = KvCost {
                request_weight,
                ..KvCost::default()
            };
            cost.columns(load)
        };
        assert!(!columns(0.0, Load::Own).contains(&Count::Requests));
        assert!(columns(1.0, Load::Own).contains(&Count::Requests));
        assert!(columns(1.0, Load::OfAllRouters).contains(&Count::RequestsAll));
    }

    #[test]
    fn each_setting_has_the_name_of_its_field() {
        let mut settings = Settings::parse(r#"{"overlap_credit": 2, "disk_weight": 0}"#).expect("valid");
        let expected = KvCost {
            overlap_credit: 2.0,
            disk_weight: 0.0,
            ..KvCost::default()
        };
        assert_eq!(
            KvCost::from_settings(&mut settings, KvCost::default()),
            Ok(expected)
        );
        let mut settings = Settings::parse(r#"{"host_weight": 2}"#).expect("valid");
        assert!(KvCost::from_settings(&mut settings, KvCost::DYNAMO).is_err());
    }
}
