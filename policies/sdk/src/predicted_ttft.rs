//! The cost of placing a request, in milliseconds: the time until its first token, and what it costs others.
//!
//! `kv-aware` uses it. This file computes with slices of numbers only, a row for each candidate, and depends on neither
//! the interface of policies nor the rest of the SDK. `runtime/docs/default-policy.md` has the study that chose the
//! formula.
//!
//! ```text
//! prefill(t)   time to compute t tokens: steps of step_tokens, the last one shorter
//! decode(s)    time of a decode step whose sequences occupy the share s of the KV cache
//! wait         = prefill(queued + new) + steps * decode(share)
//! pressure     = pressure_ms for each 1,000 tokens from 90 to 150 % of the cache, this request included
//! interruption = interruption * requests * prefill(new)
//! company      = quiet * answer * ((decode(after) - decode(alone)) + requests * (decode(after) - decode(share)))
//! churn        = churn * (prefill(new) - prefill(0)) * (recent share of the placed blocks / the mean of the candidates)
//! cost         = wait + pressure + interruption + company + churn
//! ```
//!
//! `queued` are the prefill tokens in flight on the worker, `new` the request's tokens that its cache does not hold.
//! `share` is what the sequences there occupy of the cache, `after` the same with the request, `alone` the request by
//! itself. `answer` is the expected length of the answer: at most `answer_tokens`, and at most the client's limit.
//! `quiet` is `company / (1 + (mean requests per worker / company_requests)²)`: in a quiet cluster the speed of an answer
//! depends most on whether its worker has another one, in a busy one all workers have.

/// The weights of the formula. Each setting has the name of its field.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TtftCost {
    /// Most tokens that a worker computes in one step.
    pub step_tokens: f32,
    /// Milliseconds for each 1,000 tokens of active KV above nine tenths of the worker's cache.
    pub pressure_ms: f32,
    /// The weight of the time in which the request's prefill interrupts the answers under way.
    pub interruption: f32,
    /// The weight of what sharing a worker costs the answers: this one and those under way.
    pub company: f32,
    /// At this many requests per worker, `company` has half its weight.
    pub company_requests: f32,
    /// The expected tokens of an answer whose client sets no lower limit.
    pub answer_tokens: f32,
    /// The weight of a cache that has taken in much lately.
    pub churn: f32,
    /// Tokens that a token in host memory saves.
    pub host_weight: f32,
    /// Tokens that a token on disk saves.
    pub disk_weight: f32,
}

/// The share of the KV cache above which the pressure on memory counts. vLLM and others preempt sequences when it is full.
const FULL_SHARE: f32 = 0.9;

/// The share from which on further tokens add nothing to the pressure: those requests wait in the engine's queue, and what
/// is queued counts already.
const CROWDED_SHARE: f32 = 1.5;

impl Default for TtftCost {
    fn default() -> Self {
        Self {
            step_tokens: 8_192.0,
            pressure_ms: 30.0,
            interruption: 0.1,
            company: 0.7,
            company_requests: 0.5,
            answer_tokens: 400.0,
            churn: 0.3,
            host_weight: 0.75,
            disk_weight: 0.25,
        }
    }
}

/// How long the steps of an engine take, in milliseconds: two polynomials.
///
/// The default is the one that NVIDIA Dynamo's mocker fitted to a GPU. For other workers it has the shape, and
/// [`WorkerRows::prefill_scale`] and [`WorkerRows::decode_scale`] have the size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepCurves {
    /// A prefill step of `t` tokens takes `prefill[0] + prefill[1] * t + prefill[2] * t²`.
    pub prefill: [f32; 3],
    /// A decode step at the share `s` of the cache takes `decode[0] + decode[1] * s + decode[2] * s²`.
    pub decode: [f32; 3],
}

impl Default for StepCurves {
    fn default() -> Self {
        Self {
            prefill: [16.501_42, 1.518_344e-2, 4.209_989e-7],
            decode: [5.74, 54.01, -25.74],
        }
    }
}

impl StepCurves {
    /// The time to compute `tokens` in steps of `step_tokens`.
    #[inline]
    #[must_use]
    pub fn prefill_ms(&self, tokens: f32, step_tokens: f32) -> f32 {
        let whole = whole_steps(tokens, step_tokens);
        let rest = tokens - whole * step_tokens;
        let last = if rest > 0.0 {
            self.prefill_step_ms(rest)
        } else {
            0.0
        };
        whole * self.prefill_step_ms(step_tokens) + last
    }

    #[inline]
    fn prefill_step_ms(&self, tokens: f32) -> f32 {
        self.prefill[0] + tokens * (self.prefill[1] + tokens * self.prefill[2])
    }

    /// The time of a decode step whose sequences occupy this share of the cache. It does not shrink past a full cache.
    #[inline]
    #[must_use]
    pub fn decode_ms(&self, share: f32) -> f32 {
        let share = at_most(share, 1.0);
        self.decode[0] + share * (self.decode[1] + share * self.decode[2])
    }
}

/// Whole steps of `step_tokens` in `tokens`. The conversion to an integer and back is one instruction each in SIMD.
#[inline]
fn whole_steps(tokens: f32, step_tokens: f32) -> f32 {
    (tokens / step_tokens) as i32 as f32
}

/// What the formula reads of the request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RequestLength {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens in a KV block.
    pub block_size: u32,
    /// Most tokens of the answer, if the client set a limit.
    pub answer_limit: Option<u32>,
}

/// What the formula reads of the workers: a row for each candidate in each slice.
#[derive(Debug, Clone, Copy)]
pub struct WorkerRows<'a> {
    /// Leading KV blocks of the prompt in device memory.
    pub overlap_device: &'a [u32],
    /// KV blocks of the prompt after those, in host memory.
    pub overlap_host: &'a [u32],
    /// KV blocks of the prompt after those two, on disk.
    pub overlap_disk: &'a [u32],
    /// Prompt tokens in flight that wait for their first output token.
    pub prefill_tokens: &'a [u32],
    /// KV blocks of the requests in flight.
    pub decode_blocks: &'a [u32],
    /// Requests in flight.
    pub requests: &'a [u32],
    /// KV blocks of the cache; 0 if unknown.
    pub kv_blocks_total: &'a [u32],
    /// How many times as long as [`StepCurves`] says the worker's prefill steps take.
    pub prefill_scale: &'a [f32],
    /// The same for its decode steps.
    pub decode_scale: &'a [f32],
    /// What was placed on the worker lately, over the mean of the candidates.
    pub recent_share: &'a [f32],
}

impl TtftCost {
    /// A cost for each candidate, in milliseconds.
    #[must_use]
    pub fn costs(&self, curves: &StepCurves, request: &RequestLength, workers: &WorkerRows<'_>) -> Vec<f32> {
        let rows = workers.overlap_device.len();
        // All slices have the same known length, so the loop has no bounds checks and the compiler makes SIMD of it.
        let (device, host, disk) = (
            &workers.overlap_device[..rows],
            &workers.overlap_host[..rows],
            &workers.overlap_disk[..rows],
        );
        let (queued, blocks, requests) = (
            &workers.prefill_tokens[..rows],
            &workers.decode_blocks[..rows],
            &workers.requests[..rows],
        );
        let (total, recent) = (&workers.kv_blocks_total[..rows], &workers.recent_share[..rows]);
        let (prefill_scale, decode_scale) = (&workers.prefill_scale[..rows], &workers.decode_scale[..rows]);

        let block_tokens = request.block_size.max(1) as f32;
        let prompt_tokens = request.prompt_tokens as f32;
        let own_blocks = request.prompt_tokens.div_ceil(request.block_size.max(1)) as f32;
        let answer_tokens = self.expected_answer(request.answer_limit) * self.quiet(requests);
        let pressure_per_block = self.pressure_ms * block_tokens / 1_000.0;
        (0..rows)
            .map(|row| {
                let (queued, blocks, requests) =
                    (float(queued[row]), float(blocks[row]), float(requests[row]));
                let cached = float(device[row])
                    + self.host_weight * float(host[row])
                    + self.disk_weight * float(disk[row]);
                // The last token is always computed.
                let new = at_least(prompt_tokens - cached * block_tokens, 1.0);
                let to_prefill = queued + new;

                let capacity = float(total[row]);
                // Of a worker whose capacity is unknown, only the queue is known.
                let per_block = if capacity > 0.0 { 1.0 / capacity } else { 0.0 };
                let (share, after) = (blocks * per_block, (blocks + own_blocks) * per_block);
                let decode_ms = curves.decode_ms(share);
                let decode_after_ms = curves.decode_ms(after);
                let decode_alone_ms = curves.decode_ms(own_blocks * per_block);
                let new_ms = curves.prefill_ms(new, self.step_tokens);

                let steps = whole_steps(to_prefill, self.step_tokens) + 1.0;
                let prefill_ms = curves.prefill_ms(to_prefill, self.step_tokens)
                    + self.interruption * requests * new_ms
                    + self.churn * recent[row] * (new_ms - curves.prefill[0]);
                let slower_ms =
                    (decode_after_ms - decode_alone_ms) + requests * (decode_after_ms - decode_ms);
                let filled = at_most(after, CROWDED_SHARE);
                let full = at_least((filled - FULL_SHARE) * capacity, 0.0);
                prefill_scale[row] * prefill_ms
                    + decode_scale[row] * (steps * decode_ms + answer_tokens * slower_ms)
                    + pressure_per_block * full
            })
            .collect()
    }

    /// The time to prefill the whole prompt, in milliseconds: the scale on which costs are nearly equal.
    #[must_use]
    pub fn prompt_ms(&self, curves: &StepCurves, request: &RequestLength) -> f32 {
        curves.prefill_ms(request.prompt_tokens as f32, self.step_tokens)
    }

    fn expected_answer(&self, limit: Option<u32>) -> f32 {
        match limit {
            Some(limit) => self.answer_tokens.min(limit as f32),
            None => self.answer_tokens,
        }
    }

    /// The weight of `company` at the mean number of requests of the candidates.
    fn quiet(&self, requests: &[u32]) -> f32 {
        let sum: f32 = requests.iter().map(|&requests| float(requests)).sum();
        let crowd = sum / (requests.len().max(1) as f32 * self.company_requests);
        self.company / (1.0 + crowd * crowd)
    }
}

/// A count as a float, at most 2^31 - 1. SIMD converts signed numbers in one instruction, unsigned ones in eight.
#[inline]
fn float(count: u32) -> f32 {
    count.min(i32::MAX as u32) as i32 as f32
}

/// `value`, or `least` if it is less. `f32::max` also handles NaN, which takes SIMD one lane at a time.
#[inline]
fn at_least(value: f32, least: f32) -> f32 {
    if value > least { value } else { least }
}

/// `value`, or `most` if it is more.
#[inline]
fn at_most(value: f32, most: f32) -> f32 {
    if value < most { value } else { most }
}

#[cfg(test)]
mod tests;
