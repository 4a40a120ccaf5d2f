//! The verdict on how exact routing to one worker is, from what its traffic and its events show. Pure state.
//!
//! Evidence comes in three kinds, each kept for the last eight requests that gave any:
//!
//! - *Tokens*: the router's tokens of a prompt against the engine's, on a sample.
//! - *Credit*: the blocks that the router credited the worker with against the tokens that the engine took from its
//!   cache. The last block may differ: an engine always computes at least one token of a prompt.
//! - *Appearance*: whether the blocks of a prompt have appeared in the engine's events 2 s after its answer.
//!
//! One request can go wrong for reasons that pass, such as an event under way or an evicted block, so a verdict needs
//! several. It is reached within 20 requests: the sample takes the first 20 of an incarnation, and another 20 after each
//! difference. The verdict returns to `exact` when the last eight (tokens) or four (credit, appearance) were all right;
//! one good request after a bad series proves little. A state of the event stream itself counts at once.

use std::{collections::VecDeque, time::Duration};

use signalbox_protocol::{Parity, ParityState, SequenceHash};
use tokio::time::Instant;

use self::window::Window;

mod window;

/// Requests of which all are sampled, at the start and after a difference.
const FIRST_SAMPLE: u32 = 20;

/// One in this many is sampled otherwise. A sample costs the engine the ids in its answer, and the adapter an edit.
const SAMPLE_EVERY: u32 = 16;

/// Of the last eight prompts, how many with other tokens make the state degraded, and how many fallback.
const DIFFERENT_DEGRADED: u32 = 2;
const DIFFERENT_FALLBACK: u32 = 6;

/// Requests in a row that were right, after which the evidence of credit or appearance is good again.
const GOOD_AGAIN: u32 = 4;

/// Time for a block to appear in the events after the answer. vLLM's events arrive within 40 ms of their step (measured
/// on 0.32), SGLang's when the request is done.
const APPEARANCE_TIME: Duration = Duration::from_secs(2);

/// Prompts that wait for their blocks to appear. More are not looked at, which makes a sample of a busy worker's.
const MOST_AWAITED: usize = 32;

/// Longest time without a connection to the events. Engines that restart take longer and are another incarnation.
const MOST_DISCONNECTED: Duration = Duration::from_secs(5);

/// Time to read an engine's replay, until what is missing counts as lost.
const CATCH_UP_TIME: Duration = Duration::from_secs(3);

/// What is known about a worker before its first request.
#[derive(Debug, Clone, Default)]
pub(crate) struct ParitySetup {
    /// Tokens per KV block on the worker's card.
    pub(crate) block_size: u32,
    /// Why the router has no tokens of prompts, and the mend; `None` if it has them.
    pub(crate) no_tokenizer: Option<String>,
    /// Why there are no KV events, and the mend; `None` if there are.
    pub(crate) no_events: Option<String>,
    /// Why nothing is cached, and the mend; `None` if prefixes are cached.
    pub(crate) no_caching: Option<String>,
    /// Why the router cannot render chats, and what that means; `None` if it can.
    pub(crate) no_chats: Option<String>,
    /// What differed between the router's tokens and the engine's when both were asked at the start.
    pub(crate) first_difference: Option<String>,
}

/// The state of the worker's stream of KV events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct EventFacts {
    pub(crate) is_connected: bool,
    /// Every block that the engine holds is known.
    pub(crate) is_complete: bool,
    /// Lost batches can be fetched again.
    pub(crate) has_replay: bool,
    /// The events' tokens per block, if it is not the card's.
    pub(crate) other_block_size: Option<u32>,
    /// The events carry pairs in place of tokens.
    pub(crate) has_token_pairs: bool,
}

/// What one answered request shows.
#[derive(Debug)]
pub(crate) struct RequestFacts<'a> {
    /// The router's tokens of the prompt; empty if it has none.
    pub(crate) router_tokens: &'a [u32],
    /// The engine's tokens of the prompt, if the request was one of the sample.
    pub(crate) engine_tokens: Option<&'a [u32]>,
    /// Tokens that the engine took from its cache; `None` if it does not report them.
    pub(crate) cached_tokens: Option<u32>,
    /// Leading blocks that the router credited the worker with.
    pub(crate) credited_blocks: u32,
}

/// Judges one worker.
#[derive(Debug)]
pub(crate) struct ParityJudge {
    setup: ParitySetup,
    events: EventFacts,
    disconnected_since: Option<Instant>,
    /// Since when the events are connected and do not show all blocks.
    incomplete_since: Option<Instant>,
    /// Requests that are still sampled without exception.
    sample_left: u32,
    /// Requests since the last one that was sampled.
    since_sample: u32,
    tokens: Window,
    tokens_state: ParityState,
    /// The difference that led to the present state.
    difference: Option<String>,
    credit: Verdict,
    appearance: Verdict,
    awaited: VecDeque<Awaited>,
}

/// A prompt whose blocks should appear in the events.
#[derive(Debug)]
struct Awaited {
    block: SequenceHash,
    due: Instant,
}

/// Evidence that turns bad with a series of bad requests, and good again with a series of good ones.
#[derive(Debug, Default)]
struct Verdict {
    window: Window,
    is_bad: bool,
}

impl Verdict {
    fn add(&mut self, is_good: bool) {
        self.window.add(is_good);
        let (bad, seen) = (self.window.bad(), self.window.seen());
        if self.is_bad {
            self.is_bad = self.window.good_in_a_row() < GOOD_AGAIN;
        } else {
            self.is_bad = bad >= 3 && 2 * bad > seen;
        }
    }
}

impl ParityJudge {
    /// Of a worker that has just started.
    pub(crate) fn new(setup: ParitySetup, now: Instant) -> Self {
        let mut judge = Self {
            events: EventFacts::default(),
            disconnected_since: Some(now),
            incomplete_since: None,
            sample_left: FIRST_SAMPLE,
            since_sample: 0,
            tokens: Window::default(),
            tokens_state: ParityState::Exact,
            difference: None,
            credit: Verdict::default(),
            appearance: Verdict::default(),
            awaited: VecDeque::new(),
            setup,
        };
        if let Some(difference) = judge.setup.first_difference.take() {
            // The engine's own answer about its tokens is worth as much as two requests of unknown kinds.
            for _ in 0..DIFFERENT_DEGRADED {
                judge.compare(Some(difference.clone()));
            }
        }
        judge
    }

    /// Whether the next request should be one of the sample whose tokens are compared.
    pub(crate) fn takes_sample(&mut self) -> bool {
        if self.sample_left > 0 {
            self.sample_left -= 1;
            self.since_sample = 0;
            return true;
        }
        self.since_sample += 1;
        let is_due = self.since_sample >= SAMPLE_EVERY;
        if is_due {
            self.since_sample = 0;
        }
        is_due
    }

    /// Takes an answered request. `block` is a block of its prompt that the engine has computed or found in its cache,
    /// and is asked for only if its appearance will be looked at.
    pub(crate) fn on_answer(
        &mut self,
        facts: &RequestFacts<'_>,
        block: impl FnOnce() -> Option<SequenceHash>,
        now: Instant,
    ) {
        if facts.router_tokens.is_empty() {
            return;
        }
        if let Some(engine) = facts.engine_tokens {
            self.compare(first_difference(facts.router_tokens, engine));
        }
        if facts.credited_blocks > 0
            && let Some(cached) = facts.cached_tokens
        {
            self.credit.add(self.is_held(facts, cached));
        }
        // Blocks from before the adapter's start never appear if there is no replay.
        let can_appear = self.events.is_complete || facts.cached_tokens == Some(0);
        if self.setup.no_events.is_none()
            && self.events.is_connected
            && can_appear
            && self.awaited.len() < MOST_AWAITED
            && let Some(block) = block()
        {
            let due = now + APPEARANCE_TIME;
            self.awaited.push_back(Awaited { block, due });
        }
    }

    /// Takes the state of the event stream.
    pub(crate) fn on_events(&mut self, facts: EventFacts, now: Instant) {
        self.disconnected_since = match facts.is_connected {
            true => None,
            false => self.disconnected_since.or(Some(now)),
        };
        self.incomplete_since = match facts.is_connected && !facts.is_complete {
            true => self.incomplete_since.or(Some(now)),
            false => None,
        };
        self.events = facts;
    }

    /// Looks at the prompts whose time to appear is over. `has_appeared` is whether the events have shown a block.
    pub(crate) fn look_for_blocks(&mut self, now: Instant, has_appeared: impl Fn(SequenceHash) -> bool) {
        while self.awaited.front().is_some_and(|awaited| awaited.due <= now) {
            if let Some(awaited) = self.awaited.pop_front() {
                self.appearance.add(has_appeared(awaited.block));
            }
        }
    }

    /// The verdict now.
    pub(crate) fn verdict(&self, now: Instant) -> Parity {
        if let Some(cause) = self.fallback_cause(now) {
            return Parity::impaired(ParityState::Fallback, cause);
        }
        match self.degraded_cause(now) {
            Some(cause) => Parity::impaired(ParityState::Degraded, cause),
            None => Parity::default(),
        }
    }

    fn fallback_cause(&self, now: Instant) -> Option<String> {
        let setup = &self.setup;
        if let Some(cause) = setup.no_tokenizer.as_ref().or(setup.no_caching.as_ref()) {
            return Some(cause.clone());
        }
        if let Some(cause) = &setup.no_events {
            return Some(cause.clone());
        }
        if let Some(size) = self.events.other_block_size {
            return Some(format!(
                "the engine's KV events have blocks of {size} tokens and the worker's card says {}: give --block-size \
                 {size}",
                setup.block_size
            ));
        }
        if self.events.has_token_pairs {
            return Some(
                "the engine's KV events carry pairs of tokens, as SGLang's do with EAGLE speculative decoding: turn \
                 that off to route by KV cache"
                    .into(),
            );
        }
        if self.tokens_state == ParityState::Fallback {
            return self.difference.clone();
        }
        if self
            .disconnected_since
            .is_some_and(|since| now.saturating_duration_since(since) >= MOST_DISCONNECTED)
        {
            return Some(
                "the engine's KV events cannot be reached: check that the port of its --kv-events-config is open to \
                 this worker, and that its endpoint has a * for the host; --kv-events names another address"
                    .into(),
            );
        }
        self.appearance.is_bad.then(|| {
            "the blocks of recent prompts did not appear in the engine's KV events: the events have stopped, or are of \
             another engine"
                .into()
        })
    }

    fn degraded_cause(&self, now: Instant) -> Option<String> {
        if self.tokens_state == ParityState::Degraded {
            return self.difference.clone();
        }
        if self.setup.no_chats.is_some() {
            return self.setup.no_chats.clone();
        }
        if !self.events.is_connected {
            return Some("the engine's KV events are not connected yet".into());
        }
        if let Some(since) = self.incomplete_since
            && now.saturating_duration_since(since) < CATCH_UP_TIME
        {
            return Some("the engine's KV events are still being read".into());
        }
        if !self.events.is_complete {
            return Some(match self.events.has_replay {
                true => "the blocks that the engine holds are not all known: its replay of KV events did not reach back \
                         to its start, and its restart would make them known"
                    .into(),
                false => "the blocks that the engine stored before this worker started are not known: set \
                          replay_endpoint in the engine's --kv-events-config, or give --kv-replay"
                    .into(),
            });
        }
        self.credit.is_bad.then(|| {
            "the engine took fewer tokens from its KV cache than the router credited it with: blocks are gone without a \
             KV event, or another engine's are counted"
                .into()
        })
    }

    /// Takes the comparison of one prompt's tokens.
    fn compare(&mut self, difference: Option<String>) {
        self.tokens.add(difference.is_none());
        if let Some(difference) = difference {
            // Of a series of differences the first is kept, so that the cause does not change with every request.
            self.difference.get_or_insert(difference);
            self.sample_left = FIRST_SAMPLE;
        }
        let bad = self.tokens.bad();
        self.tokens_state = match self.tokens_state {
            _ if bad >= DIFFERENT_FALLBACK => ParityState::Fallback,
            ParityState::Fallback if 2 * bad > self.tokens.seen() => ParityState::Fallback,
            ParityState::Exact if bad < DIFFERENT_DEGRADED => ParityState::Exact,
            _ if bad == 0 => ParityState::Exact,
            _ => ParityState::Degraded,
        };
        if bad == 0 {
            self.difference = None;
        }
    }

    /// Whether the engine held what it was credited with, its last block aside.
    fn is_held(&self, facts: &RequestFacts<'_>, cached: u32) -> bool {
        let block = u64::from(self.setup.block_size.max(1));
        // Of a prompt that is cached in whole, the last token is computed, and with it its block.
        let most = (facts.router_tokens.len() as u64).saturating_sub(1) / block * block;
        let credited = (u64::from(facts.credited_blocks) * block).min(most);
        u64::from(cached) + block >= credited
    }
}

/// Where two token sequences differ, for a person; `None` if they are equal.
pub(crate) fn first_difference(router: &[u32], engine: &[u32]) -> Option<String> {
    if router == engine {
        return None;
    }
    let at = router.iter().zip(engine).take_while(|(a, b)| a == b).count();
    let token = |tokens: &[u32]| tokens.get(at).map_or_else(|| "the end".into(), u32::to_string);
    Some(format!(
        "the router's tokens of a prompt differ from the engine's at token {at} ({} and {}; {} and {} tokens in all): the \
         tokenizer or chat template is not the engine's; give the engine's with --tokenizer FOLDER",
        token(router),
        token(engine),
        router.len(),
        engine.len()
    ))
}

#[cfg(test)]
mod tests;
