//! Traffic made up from a few numbers: groups of prompts with a shared beginning, chats of several turns, bursts.
//!
//! The random numbers are those of the seed. Logarithms and powers come from `libm`, because the C library's differ in
//! the last bit from machine to machine.

use std::{str::FromStr, time::Duration};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::trace::{Arrival, BlockContent, Trace, TraceRequest};

/// Tokens that one id stands for: the size of the largest KV blocks in use.
const BLOCK_TOKENS: u32 = 64;

/// A burst begins this often, and lasts a sixth of it.
const BURST_PERIOD_S: f64 = 60.0;
const BURST_S: f64 = 10.0;

/// Scope of the ids of shared beginnings. Sessions are numbered from 1.
const SHARED: u64 = 0;

/// Most tokens of a prompt or an answer.
const MAX_TOKENS: f64 = 1e6;

/// What traffic to make. `NAME=NUMBER` for each field, with commas between: `requests=5000,rate=4,turns=3`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Workload {
    /// Requests.
    pub requests: u32,
    /// Chats that begin in a second, in the mean; a Poisson process. A chat of one turn is one request.
    pub rate: f64,
    /// How many times as many begin in a burst: ten seconds of each minute.
    pub burst: f64,
    /// Groups of chats; all of one group begin with the same tokens, for example a system prompt.
    pub groups: u32,
    /// How unequal the groups are: a group's share is its number, from 1, to the power of minus this (Zipf).
    pub zipf: f64,
    /// Tokens that the chats of a group begin with.
    pub shared: u32,
    /// Tokens of a turn's own text, in the mean (exponential).
    pub prompt: f64,
    /// Tokens of an answer, in the mean (exponential).
    pub answer: f64,
    /// Turns of a chat. A later turn's prompt is all that was said before, and its own text.
    pub turns: u32,
    /// Seconds from an answer to the next turn, in the mean (exponential).
    pub pause: f64,
}

impl Default for Workload {
    /// Chats with ten assistants.
    fn default() -> Self {
        Self {
            requests: 2_000,
            rate: 2.0,
            burst: 1.0,
            groups: 10,
            zipf: 1.0,
            shared: 1_024,
            prompt: 500.0,
            answer: 200.0,
            turns: 1,
            pause: 10.0,
        }
    }
}

/// A workload is not what it must be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkloadError {
    /// A part is not `NAME=NUMBER`.
    #[error("`{0}` is not NAME=NUMBER")]
    Syntax(String),
    /// There is no such field.
    #[error("`{0}` is unknown; known: {NAMES}")]
    Unknown(String),
    /// A number is out of range.
    #[error("`{name}` is {value}; it must be {must}")]
    Range {
        /// The field.
        name: String,
        /// The number.
        value: String,
        /// What it must be.
        must: &'static str,
    },
}

const NAMES: &str = "requests, rate, burst, groups, zipf, shared, prompt, answer, turns, pause";

impl FromStr for Workload {
    type Err = WorkloadError;

    fn from_str(text: &str) -> Result<Self, WorkloadError> {
        let mut workload = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (name, value) = part
                .split_once('=')
                .ok_or_else(|| WorkloadError::Syntax(part.into()))?;
            let number: f64 = value.parse().map_err(|_| WorkloadError::Syntax(part.into()))?;
            let checked = |is_right: bool, must| {
                if is_right {
                    Ok(number)
                } else {
                    Err(WorkloadError::Range {
                        name: name.into(),
                        value: value.into(),
                        must,
                    })
                }
            };
            let is_whole = number.fract() == 0.0;
            let count = || {
                checked(
                    is_whole && (1.0..=1e6).contains(&number),
                    "a whole number from 1 to 1000000",
                )
            };
            let tokens = || checked((1.0..=1e5).contains(&number), "1 to 100000");
            match name {
                "requests" => workload.requests = count()? as u32,
                "groups" => workload.groups = count()? as u32,
                "turns" => workload.turns = count()? as u32,
                "shared" => {
                    let must = "a whole number from 0 to 100000";
                    workload.shared = checked(is_whole && (0.0..=1e5).contains(&number), must)? as u32;
                }
                "prompt" => workload.prompt = tokens()?,
                "answer" => workload.answer = tokens()?,
                "rate" => workload.rate = checked((1e-3..=1e5).contains(&number), "0.001 to 100000")?,
                "burst" => workload.burst = checked((1.0..=1e3).contains(&number), "1 to 1000")?,
                "zipf" => workload.zipf = checked((0.0..=10.0).contains(&number), "0 to 10")?,
                "pause" => workload.pause = checked((0.0..=1e5).contains(&number), "0 to 100000")?,
                _ => return Err(WorkloadError::Unknown(name.into())),
            }
        }
        Ok(workload)
    }
}

impl Workload {
    /// Makes the traffic of a seed.
    #[must_use]
    pub fn trace(&self, seed: u64) -> Trace {
        let mut random = StdRng::seed_from_u64(seed);
        let popularity = Popularity::new(self.groups, self.zipf);
        let mut requests = Vec::with_capacity(self.requests as usize);
        let (mut at_s, mut chat) = (0.0, 0);
        while requests.len() < self.requests as usize {
            chat += 1;
            at_s += exponential(&mut random, 1.0 / self.rate_at(at_s));
            let group = popularity.draw(&mut random);
            self.add_chat(&mut requests, chat, group, at_s, &mut random);
        }
        requests.truncate(self.requests as usize);
        Trace {
            block_tokens: BLOCK_TOKENS,
            requests,
        }
    }

    /// Chats that begin in a second at that time.
    fn rate_at(&self, at_s: f64) -> f64 {
        if at_s % BURST_PERIOD_S < BURST_S {
            self.rate * self.burst
        } else {
            self.rate
        }
    }

    fn add_chat(
        &self,
        requests: &mut Vec<TraceRequest>,
        chat: u64,
        group: u32,
        at_s: f64,
        random: &mut StdRng,
    ) {
        let shared = (0..self.shared / BLOCK_TOKENS).map(|block| BlockContent {
            scope: SHARED,
            id: (u64::from(group) << 32) | u64::from(block),
        });
        let mut blocks: Vec<_> = shared.collect();
        // A whole number of blocks, so that the same text is the same blocks in every turn.
        let mut said = blocks.len() as u32 * BLOCK_TOKENS;
        let mut arrival = Arrival::At(seconds(at_s));
        for _ in 0..self.turns {
            let input_tokens = said + length(random, self.prompt);
            let output_tokens = length(random, self.answer);
            while (blocks.len() as u32) < input_tokens.div_ceil(BLOCK_TOKENS) {
                let id = blocks.len() as u64;
                blocks.push(BlockContent { scope: chat, id });
            }
            requests.push(TraceRequest {
                arrival,
                input_tokens,
                output_tokens,
                blocks: blocks.clone().into_boxed_slice(),
                session: chat,
            });
            said = input_tokens + output_tokens;
            arrival = Arrival::After {
                previous: requests.len() - 1,
                delay: seconds(exponential(random, self.pause)),
            };
        }
    }
}

/// How often each group is chosen.
struct Popularity {
    /// The sums of the groups' weights up to each one.
    sums: Vec<f64>,
}

impl Popularity {
    fn new(groups: u32, exponent: f64) -> Self {
        let mut sum = 0.0;
        let sums = (1..=groups)
            .map(|rank| {
                sum += libm::pow(f64::from(rank), -exponent);
                sum
            })
            .collect();
        Self { sums }
    }

    fn draw(&self, random: &mut StdRng) -> u32 {
        let drawn = unit(random) * self.sums.last().copied().unwrap_or(1.0);
        self.sums.partition_point(|sum| *sum <= drawn) as u32
    }
}

/// A random number of at least 0 and less than 1, of 53 random bits.
fn unit(random: &mut StdRng) -> f64 {
    (random.random::<u64>() >> 11) as f64 / (1_u64 << 53) as f64
}

/// An exponential random number.
fn exponential(random: &mut StdRng, mean: f64) -> f64 {
    -mean * libm::log(1.0 - unit(random))
}

fn length(random: &mut StdRng, mean: f64) -> u32 {
    exponential(random, mean).clamp(1.0, MAX_TOKENS) as u32
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_nanos((seconds * 1e9) as u64)
}

#[cfg(test)]
mod tests {
    use signalbox_worker::sim::scramble;

    use super::*;

    fn workload(text: &str) -> Workload {
        text.parse().unwrap()
    }

    #[test]
    fn equal_seeds_give_equal_traffic() {
        let workload = workload("requests=300,turns=2");
        assert_eq!(workload.trace(1), workload.trace(1));
        assert_ne!(workload.trace(1), workload.trace(2));
    }

    /// Computed once. It would differ on a machine with other logarithms, or after a change of the generator.
    #[test]
    fn the_traffic_of_a_seed_never_changes() {
        let trace = workload("requests=2000,turns=3,burst=4,zipf=1.2").trace(7);
        let mut sum = 0;
        for request in &trace.requests {
            let (Arrival::At(time) | Arrival::After { delay: time, .. }) = request.arrival;
            for word in [
                time.as_nanos() as u64,
                request.input_tokens.into(),
                request.output_tokens.into(),
            ] {
                sum = scramble(sum ^ word);
            }
        }
        assert_eq!(sum, RECORDED);
    }

    const RECORDED: u64 = 2_359_737_176_385_209_307;

    #[test]
    fn rate_lengths_and_groups_are_as_asked_for() {
        let trace = workload("requests=20000,rate=5,groups=3,zipf=1,prompt=300,answer=100").trace(0);
        let Arrival::At(last) = trace.requests[19_999].arrival else {
            panic!("one turn")
        };
        assert!((3_880.0..4_120.0).contains(&last.as_secs_f64()), "{last:?}");
        let mean = |tokens: fn(&TraceRequest) -> u32| {
            trace
                .requests
                .iter()
                .map(|request| f64::from(tokens(request)))
                .sum::<f64>()
                / 20_000.0
        };
        let (input, output) = (
            mean(|request| request.input_tokens),
            mean(|request| request.output_tokens),
        );
        assert!((1_314.0..1_334.0).contains(&input), "{input}");
        assert!((96.0..104.0).contains(&output), "{output}");
        // 1 : 1/2 : 1/3
        let of_first = trace
            .requests
            .iter()
            .filter(|request| request.blocks[0].id == 0)
            .count();
        assert!((10_500..11_300).contains(&of_first), "{of_first}");
    }

    #[test]
    fn a_turn_repeats_what_was_said_and_waits_for_the_answer() {
        let trace = workload("requests=4,turns=2,shared=128").trace(0);
        let [first, second] = [&trace.requests[0], &trace.requests[1]];
        assert!(matches!(second.arrival, Arrival::After { previous: 0, .. }));
        assert_eq!(first.session, second.session);
        assert!(second.input_tokens > first.input_tokens + first.output_tokens);
        assert_eq!(second.blocks[..first.blocks.len()], first.blocks[..]);
    }

    #[test]
    fn in_bursts_more_chats_begin() {
        let trace = workload("requests=6000,rate=2,burst=10").trace(0);
        let in_burst = |request: &&TraceRequest| matches!(request.arrival, Arrival::At(at) if at.as_secs_f64() % 60.0 < 10.0);
        // 10 s at twenty a second, 50 s at two.
        let share = trace.requests.iter().filter(in_burst).count() as f64 / 6_000.0;
        assert!((0.62..0.71).contains(&share), "{share}");
    }

    #[test]
    fn wrong_workloads_are_refused() {
        for (text, what) in [
            ("rate", "`rate` is not NAME=NUMBER"),
            ("rate=fast", "`rate=fast` is not NAME=NUMBER"),
            ("rates=1", "`rates` is unknown; known: requests, rate"),
            ("turns=1.5", "`turns` is 1.5; it must be a whole number from 1"),
            ("rate=0", "`rate` is 0; it must be 0.001 to 100000"),
            ("answer=NaN", "`answer` is NaN; it must be 1 to 100000"),
        ] {
            let error = text.parse::<Workload>().unwrap_err().to_string();
            assert!(error.starts_with(what), "{error}");
        }
    }
}
