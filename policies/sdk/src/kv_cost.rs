//! The cost of placing a request, in KV blocks of work. `kv-aware` and `replica-synced` share it.
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
//! the worker that had the system prompt first: its cache overflows while the other caches stay empty. The settings
//! `{"min_overlap": 0, "fill_weight": 0}` give Dynamo's formula.

use crate::{Candidates, Columns, Request, Settings};

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
#[derive(Debug, Clone, Copy)]
pub struct Load<'a> {
    prefill_tokens: &'a [u32],
    decode_blocks: &'a [u32],
    requests: &'a [u32],
}

impl<'a> Load<'a> {
    /// What this router has in flight.
    #[must_use]
    pub fn own(candidates: &'a Candidates) -> Self {
        Self {
            prefill_tokens: &candidates.prefill_tokens,
            decode_blocks: &candidates.decode_blocks,
            requests: &candidates.requests,
        }
    }

    /// What all routers together have in flight.
    #[must_use]
    pub fn of_all_routers(candidates: &'a Candidates) -> Self {
        Self {
            prefill_tokens: &candidates.prefill_tokens_all,
            decode_blocks: &candidates.decode_blocks_all,
            requests: &candidates.requests_all,
        }
    }
}

impl Default for KvCost {
    fn default() -> Self {
        Self {
            overlap_credit: 1.0,
            credit_decay: 0.0,
            host_weight: 0.75,
            disk_weight: 0.25,
            prefill_load_scale: 1.0,
            request_weight: 0.0,
            min_overlap: 0.1,
            fill_weight: 0.5,
        }
    }
}

impl KvCost {
    /// The columns that the formula needs with these weights, for the load of all routers or of this one.
    #[must_use]
    pub fn columns(&self, of_all_routers: bool) -> Columns {
        let always = Columns::OVERLAP_DEVICE
            | Columns::OVERLAP_HOST
            | Columns::OVERLAP_DISK
            | Columns::KV_BLOCKS_TOTAL
            | Columns::KV_BLOCKS_USED;
        let (load, requests) = if of_all_routers {
            (
                Columns::PREFILL_TOKENS_ALL | Columns::DECODE_BLOCKS_ALL,
                Columns::REQUESTS_ALL,
            )
        } else {
            (
                Columns::PREFILL_TOKENS | Columns::DECODE_BLOCKS,
                Columns::REQUESTS,
            )
        };
        if self.request_weight == 0.0 {
            always | load
        } else {
            always | load | requests
        }
    }

    /// Reads the weights from the settings; a weight that is not set has its default.
    ///
    /// # Errors
    /// A weight is not a number, or outside 0 to 1,000 (0 to 1 for host, disk and the least overlap).
    pub fn from_settings(settings: &mut Settings) -> Result<Self, String> {
        let default = Self::default();
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
    pub fn costs(&self, request: &Request, candidates: &Candidates, load: Load<'_>) -> Vec<f32> {
        if self.credit_decay == 0.0 {
            return self.costs_with(request, candidates, load, |_| self.overlap_credit);
        }
        let per_prompt = 1.0 / (request.block_size.max(1) as f32 * request.prompt_blocks.max(1) as f32);
        let decay = self.credit_decay * per_prompt;
        let least = load.prefill_tokens.iter().copied().min().unwrap_or(0);
        self.costs_with(request, candidates, load, |prefill_tokens| {
            self.overlap_credit / (1.0 + decay * float(prefill_tokens - least))
        })
    }

    /// `device_credit` takes a worker's prefill tokens in flight and returns the credit of a block in device memory.
    fn costs_with(
        &self,
        request: &Request,
        candidates: &Candidates,
        load: Load<'_>,
        device_credit: impl Fn(u32) -> f32,
    ) -> Vec<f32> {
        let rows = candidates.len();
        // All slices have the same known length, so the loop has no bounds checks and the compiler makes SIMD of it.
        let (device, host, disk) = (
            &candidates.overlap_device[..rows],
            &candidates.overlap_host[..rows],
            &candidates.overlap_disk[..rows],
        );
        let (prefill, decode) = (&load.prefill_tokens[..rows], &load.decode_blocks[..rows]);
        // Without weight the column of requests is absent. Any other column can stand in, since it is multiplied by 0.
        let requests = if self.request_weight == 0.0 {
            decode
        } else {
            &load.requests[..rows]
        };
        let (total, used) = (
            &candidates.kv_blocks_total[..rows],
            &candidates.kv_blocks_used[..rows],
        );

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
            expected_output_tokens: 0,
            priority: 0,
            session: 0,
            lora: 0,
            seed: 0,
            decision_number: 0,
        }
    }

    fn candidates() -> Candidates {
        Candidates {
            worker: vec![1, 2, 3],
            overlap_device: vec![2, 5, 8],
            overlap_host: vec![0, 4, 0],
            overlap_disk: vec![0, 0, 2],
            prefill_tokens: vec![0, 0, 160],
            decode_blocks: vec![0, 3, 0],
            requests: vec![0, 1, 2],
            kv_blocks_total: vec![100; 3],
            kv_blocks_used: vec![0; 3],
            ..Candidates::default()
        }
    }

    #[test]
    fn counts_blocks_to_prefill_and_blocks_in_use() {
        let costs = KvCost::default().costs(&request(), &candidates(), Load::own(&candidates()));
        // 10 - 2 + 10; 10 - 5 - 0.75 * 4 + 3 + 10; 20 - 8 - 0.25 * 2 + 10
        assert_eq!(costs, [18.0, 15.0, 21.5]);
    }

    #[test]
    fn each_weight_changes_its_term() {
        let costs = |cost: KvCost| cost.costs(&request(), &candidates(), Load::own(&candidates()));
        assert_eq!(
            costs(KvCost {
                overlap_credit: 2.0,
                ..KvCost::default()
            }),
            [16.0, 13.0 - 3.0 + 3.0 - 0.0, 13.5]
        );
        assert_eq!(
            costs(KvCost {
                prefill_load_scale: 0.0,
                ..KvCost::default()
            }),
            [10.0, 13.0, 10.0]
        );
        assert_eq!(
            costs(KvCost {
                request_weight: 4.0,
                ..KvCost::default()
            }),
            [18.0, 19.0, 29.5]
        );
        // The third worker is one whole prompt behind: its credit is halved.
        assert_eq!(
            costs(KvCost {
                credit_decay: 1.0,
                ..KvCost::default()
            }),
            [18.0, 15.0, 25.5]
        );
    }

    #[test]
    fn the_credit_never_exceeds_the_prefill() {
        let cost = KvCost {
            overlap_credit: 100.0,
            ..KvCost::default()
        };
        assert_eq!(
            cost.costs(&request(), &candidates(), Load::own(&candidates())),
            [10.0, 13.0, 10.0]
        );
    }

    #[test]
    fn an_overlap_shorter_than_a_tenth_of_the_prompt_counts_as_none() {
        let candidates = Candidates {
            overlap_device: vec![0, 9, 10],
            overlap_host: vec![0; 3],
            overlap_disk: vec![0; 3],
            prefill_tokens: vec![0; 3],
            decode_blocks: vec![0; 3],
            ..candidates()
        };
        let request = Request {
            prompt_tokens: 1_600,
            prompt_blocks: 100,
            ..request()
        };
        let costs = KvCost::default().costs(&request, &candidates, Load::own(&candidates));
        assert_eq!(costs, [200.0, 200.0, 190.0]);
    }

    #[test]
    fn between_equal_workers_the_emptier_cache_costs_less() {
        let candidates = Candidates {
            overlap_device: vec![0; 3],
            overlap_host: vec![0; 3],
            overlap_disk: vec![0; 3],
            prefill_tokens: vec![0; 3],
            decode_blocks: vec![0, 0, 1],
            kv_blocks_used: vec![100, 50, 0],
            ..candidates()
        };
        let costs = KvCost::default().costs(&request(), &candidates, Load::own(&candidates));
        assert_eq!(costs, [20.5, 20.25, 21.0]);
    }

    #[test]
    fn the_column_of_requests_is_wanted_only_where_it_has_weight() {
        let without = Candidates {
            requests: vec![],
            ..candidates()
        };
        assert!(!KvCost::default().columns(false).contains(Columns::REQUESTS));
        let costs = KvCost::default().costs(&request(), &without, Load::own(&without));
        assert_eq!(costs, [18.0, 15.0, 21.5]);
        let weighing = KvCost {
            request_weight: 1.0,
            ..KvCost::default()
        };
        assert!(weighing.columns(false).contains(Columns::REQUESTS));
        assert!(weighing.columns(true).contains(Columns::REQUESTS_ALL));
    }

    #[test]
    fn each_setting_has_the_name_of_its_field() {
        let mut settings = Settings::parse(r#"{"overlap_credit": 2, "disk_weight": 0}"#).expect("valid");
        let expected = KvCost {
            overlap_credit: 2.0,
            disk_weight: 0.0,
            ..KvCost::default()
        };
        assert_eq!(KvCost::from_settings(&mut settings), Ok(expected));
        let mut settings = Settings::parse(r#"{"host_weight": 2}"#).expect("valid");
        assert!(KvCost::from_settings(&mut settings).is_err());
    }
}
