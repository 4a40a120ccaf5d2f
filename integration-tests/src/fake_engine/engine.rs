//! The engine's process: its model, its ranks with their KV caches and events, and the requests that run on them.
//!
//! A request waits for a seat and for KV blocks, takes the blocks that its prompt shares with earlier ones, computes the
//! rest of its prompt in chunks, and then generates a step at a time. What the cache changes is published after each
//! step. Dropping a request frees its blocks, which stay in the cache.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use super::{
    adapters::Adapters,
    cache::{CacheEvent, CacheKey, PrefixCache, Sequence},
    faults::Faults,
    log::EventLog,
    options::EngineOptions,
    payload,
    phase::Phase,
    request::Refusal,
    text::Text,
};

/// Requests that are remembered for tests to look at.
const REMEMBERED: usize = 1000;

/// A generating request that reached the engine.
#[derive(Debug, Clone)]
pub struct SeenRequest {
    /// Its path.
    pub path: String,
    /// Its headers, with names in lower case.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: bytes::Bytes,
}

/// One run of the engine, from its start to its end.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) options: EngineOptions,
    pub(super) text: Text,
    pub(super) faults: Arc<Mutex<Faults>>,
    pub(super) phase: watch::Receiver<Phase>,
    /// In seconds of the Unix epoch.
    pub(super) started: f64,
    pub(super) ranks: Vec<Arc<Rank>>,
    pub(super) adapters: Adapters,
    turns: AtomicUsize,
    seen: Mutex<VecDeque<SeenRequest>>,
}

/// One data-parallel rank.
#[derive(Debug)]
pub(super) struct Rank {
    number: u32,
    cache: Mutex<PrefixCache>,
    /// Changes of the cache that the next batch reports.
    unpublished: Mutex<Vec<CacheEvent>>,
    pub(super) log: Arc<EventLog>,
    seats: Arc<Semaphore>,
    /// Wakes requests that wait for KV blocks.
    freed: Notify,
    pub(super) running: AtomicU32,
    pub(super) waiting: AtomicU32,
    pub(super) queried_tokens: AtomicUsize,
    pub(super) hit_tokens: AtomicUsize,
}

impl Engine {
    pub(super) fn new(
        options: EngineOptions,
        text: Text,
        faults: Arc<Mutex<Faults>>,
        phase: watch::Receiver<Phase>,
    ) -> Self {
        let rank = |number| {
            let cache = PrefixCache::new(
                options.kv_blocks as usize,
                options.block_size as usize,
                options.prefix_caching,
            );
            let buffer = if options.replay { options.event_buffer } else { 0 };
            Arc::new(Rank {
                number,
                cache: Mutex::new(cache),
                unpublished: Mutex::default(),
                log: Arc::new(EventLog::new(buffer)),
                seats: Arc::new(Semaphore::new(options.max_sequences as usize)),
                freed: Notify::new(),
                running: AtomicU32::new(0),
                waiting: AtomicU32::new(0),
                queried_tokens: AtomicUsize::new(0),
                hit_tokens: AtomicUsize::new(0),
            })
        };
        Self {
            ranks: (0..options.ranks.max(1)).map(rank).collect(),
            adapters: Adapters::new(options.adapters.clone()),
            options,
            text,
            faults,
            phase,
            started: now(),
            turns: AtomicUsize::new(0),
            seen: Mutex::default(),
        }
    }

    /// The rank for a request that names none: one with the fewest requests, in turns.
    pub(super) fn idlest_rank(&self) -> usize {
        let first = self.turns.fetch_add(1, Ordering::Relaxed);
        let in_turn = (0..self.ranks.len()).map(|offset| (first + offset) % self.ranks.len());
        in_turn
            .min_by_key(|rank| self.ranks[*rank].requests())
            .unwrap_or(0)
    }

    /// Checks the request's `model`. Returns the LoRA adapter that the request means, if any.
    pub(super) fn check_model(&self, body: &Value) -> Result<Option<String>, Refusal> {
        self.adapters.check_model(body, &self.options)
    }

    /// How long a step takes now that takes this long when nothing is broken.
    fn slowed(&self, step: Duration) -> Duration {
        step * self.faults.lock().slowed_by.max(1)
    }

    /// `system_fingerprint`
    pub(super) fn fingerprint(&self) -> String {
        format!("vllm-{}-116971d1", self.options.version)
    }

    /// Remembers a request, and forgets the oldest one past [`REMEMBERED`].
    pub(super) fn remember(&self, request: SeenRequest) {
        let mut seen = self.seen.lock();
        if seen.len() == REMEMBERED {
            seen.pop_front();
        }
        seen.push_back(request);
    }

    pub(super) fn seen(&self) -> Vec<SeenRequest> {
        self.seen.lock().iter().cloned().collect()
    }
}

impl Rank {
    fn requests(&self) -> u32 {
        self.running.load(Ordering::Relaxed) + self.waiting.load(Ordering::Relaxed)
    }

    /// The share of KV blocks that running requests hold.
    pub(super) fn usage(&self) -> f64 {
        self.cache.lock().usage()
    }

    /// How many different blocks a request could find.
    pub(super) fn held_blocks(&self) -> usize {
        self.cache.lock().held().len()
    }

    /// Empties the cache. As in vLLM, the event is published with the next step.
    pub(super) fn clear(&self) {
        let event = self.cache.lock().clear();
        self.unpublished.lock().push(event);
    }

    fn publish(&self, engine: &Engine) {
        let mut unpublished = self.unpublished.lock();
        if unpublished.is_empty() || !engine.options.events {
            unpublished.clear();
            return;
        }
        let mut events = std::mem::take(&mut *unpublished);
        if engine.faults.lock().events_doubled {
            let again: Vec<_> = events
                .iter()
                .filter(|event| matches!(event, CacheEvent::Stored(_)))
                .cloned()
                .collect();
            events.extend(again);
        }
        let options = &engine.options;
        if let Ok(payload) = payload::encode(options.flavour, now(), &events, self.number, options.block_size)
        {
            self.log.append(payload, &engine.faults);
        }
    }
}

/// A request whose prompt is computed. Dropping it is the end of the request.
#[derive(Debug)]
pub(super) struct Running {
    engine: Arc<Engine>,
    rank: Arc<Rank>,
    sequences: Vec<(Sequence, Vec<u32>)>,
    _seat: OwnedSemaphorePermit,
}

/// Counts a request as waiting until it is dropped.
struct Waiting(Arc<Rank>);

impl Waiting {
    fn new(rank: &Arc<Rank>) -> Self {
        rank.waiting.fetch_add(1, Ordering::Relaxed);
        Self(rank.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Running {
    /// Waits until the request runs, and computes its prompts. `sequences` are prompts with the number of tokens that will
    /// be generated after each. Returns `None` if the cache is too small for the request.
    pub(super) async fn begin(
        engine: Arc<Engine>,
        rank: usize,
        sequences: Vec<(Vec<u32>, usize)>,
        key: &CacheKey,
    ) -> Option<Self> {
        let rank = engine.ranks[rank].clone();
        let waiting = Waiting::new(&rank);
        let seat = rank.seats.clone().acquire_owned().await.ok()?;
        let mut running = Self {
            engine,
            rank,
            sequences: Vec::new(),
            _seat: seat,
        };
        running.admit(sequences, key).await?;
        drop(waiting);
        for number in 0..running.sequences.len() {
            running.prefill(number).await;
        }
        Some(running)
    }

    /// Takes the blocks of all sequences at once, when there are enough.
    async fn admit(&mut self, sequences: Vec<(Vec<u32>, usize)>, key: &CacheKey) -> Option<()> {
        let chunk = self.engine.options.prefill_chunk as usize;
        loop {
            let freed = self.rank.freed.notified();
            {
                let mut cache = self.rank.cache.lock();
                let needed: usize = sequences
                    .iter()
                    .map(|(prompt, more)| cache.needed(prompt.len() + more))
                    .sum();
                if needed > self.engine.options.kv_blocks as usize {
                    return None;
                }
                if cache.has_room(needed) {
                    // From here on dropping the request undoes this.
                    self.rank.running.fetch_add(1, Ordering::Relaxed);
                    let mut unpublished = self.rank.unpublished.lock();
                    for (prompt, more) in sequences {
                        let (mut sequence, events) =
                            cache.admit(&prompt, prompt.len() + more, key.clone())?;
                        unpublished.extend(events);
                        // As in vLLM, blocks can be found from the moment their computation is scheduled.
                        let scheduled = prompt.len().min(sequence.cached() + chunk);
                        unpublished.extend(cache.computed(&mut sequence, &prompt[..scheduled]));
                        self.rank
                            .queried_tokens
                            .fetch_add(prompt.len(), Ordering::Relaxed);
                        self.rank
                            .hit_tokens
                            .fetch_add(sequence.cached(), Ordering::Relaxed);
                        self.sequences.push((sequence, prompt));
                    }
                    return Some(());
                }
            }
            freed.await;
        }
    }

    async fn prefill(&mut self, number: usize) {
        let options = &self.engine.options;
        let (sequence, prompt) = &mut self.sequences[number];
        let mut computed = sequence.cached();
        while computed < prompt.len() {
            let chunk = (prompt.len() - computed).min(options.prefill_chunk as usize);
            tokio::time::sleep(self.engine.slowed(options.prefill_per_token) * chunk as u32).await;
            computed += chunk;
            let event = self.rank.cache.lock().computed(sequence, &prompt[..computed]);
            self.rank.unpublished.lock().extend(event);
            self.rank.publish(&self.engine);
        }
    }

    /// One step: `tokens` are those that each sequence gets. The last token of a sequence is computed by the next step.
    pub(super) async fn step(&mut self, tokens: &[&[u32]]) {
        tokio::time::sleep(self.engine.slowed(self.engine.options.per_token)).await;
        for ((sequence, all), new) in self.sequences.iter_mut().zip(tokens) {
            all.extend_from_slice(new);
            if !new.is_empty() {
                let computed = &all[..all.len() - 1];
                let event = self.rank.cache.lock().computed(sequence, computed);
                self.rank.unpublished.lock().extend(event);
            }
        }
        self.rank.publish(&self.engine);
    }

    /// Tokens of the prompt of sequence `number` that were cached.
    pub(super) fn cached(&self, number: usize) -> usize {
        self.sequences[number].0.cached()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.sequences.is_empty() {
            return;
        }
        let mut cache = self.rank.cache.lock();
        for (sequence, _) in &self.sequences {
            cache.release(sequence);
        }
        drop(cache);
        self.rank.running.fetch_sub(1, Ordering::Relaxed);
        self.rank.freed.notify_waiters();
    }
}

/// Seconds of the Unix epoch.
pub(super) fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
