//! The traffic to replay: requests with their lengths, their shared prefixes and when each one arrives.
//!
//! A [`Trace`] is read from a file, or made by a [`Workload`](crate::Workload). The file is that of the Mooncake traces:
//! a JSON object a line.
//!
//! | field | what |
//! |---|---|
//! | `timestamp` | milliseconds from the start of the trace to the request's arrival |
//! | `input_length`, `output_length` | tokens of the prompt and of the answer |
//! | `hash_ids` | an id for each block of the prompt; equal ids at equal positions are a shared prefix. The last block, where it is not full, may have none |
//! | `session_id`, `delay` | optional. A session's first line has a `timestamp`; each later line is released `delay` milliseconds after the end of the answer before it (a *closed loop*) |
//!
//! A session that was recorded waits for its answers: at another speed its requests arrive at other times. Replaying
//! its timestamps would send them before their answers exist, and would judge policies by that.

use std::{io::BufRead, time::Duration};

use hashbrown::HashMap;
use serde::Deserialize;

pub use decisions::RecordedCluster;

mod decisions;
#[cfg(test)]
mod tests;

/// Most faulty lines that one error names. A file of another format has a fault in each line.
const MAX_FAULTS: usize = 10;

/// Most tokens of a prompt or an answer. No model has a context this long; a longer one is a fault of the trace.
const MAX_TOKENS: u32 = 100_000_000;

/// The traffic to replay.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// Tokens that an id of [`TraceRequest::blocks`] stands for.
    pub block_tokens: u32,
    /// The requests, in the order of the file.
    pub requests: Vec<TraceRequest>,
}

/// One request of a trace.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceRequest {
    /// When it arrives.
    pub arrival: Arrival,
    /// Tokens of the prompt, at least 1.
    pub input_tokens: u32,
    /// Tokens of the answer, at least 1.
    pub output_tokens: u32,
    /// Ids of the prompt's blocks. Tokens after them are like those of no other request.
    pub blocks: Box<[BlockContent]>,
    /// The number of its session, from 1; 0 if it belongs to none.
    pub session: u64,
}

/// The content of a block of a prompt: equal contents are equal tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockContent {
    /// The session to which the id belongs; 0 if all requests share it.
    pub scope: u64,
    /// The id in the trace.
    pub id: u64,
}

/// When a request arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// This long after the start of the trace.
    At(Duration),
    /// This long after the answer to request number `previous` has ended, which is an earlier request of the trace.
    After {
        /// The index in [`Trace::requests`].
        previous: usize,
        /// The time between the two.
        delay: Duration,
    },
}

/// To which requests an id of a block means the same block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BlockScope {
    /// To the requests of one session, where requests have sessions. Sessions recorded apart number their blocks apart.
    #[default]
    Session,
    /// To all requests of the trace.
    Trace,
}

/// A trace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file cannot be read.
    #[error("line {line} cannot be read")]
    Read {
        /// The line, from 1.
        line: usize,
        /// Why not.
        source: std::io::Error,
    },
    /// Lines are faulty.
    #[error("{}", list(.faults, *.more))]
    Faulty {
        /// The first faulty lines.
        faults: Vec<LineFault>,
        /// How many more there are.
        more: usize,
    },
    /// The file has no request.
    #[error("the trace has no request")]
    Empty,
    /// Recorded decisions are about different things.
    #[error("the decisions have several {what}: {found}; {advice}")]
    Several {
        /// What is to be one.
        what: &'static str,
        /// What was found.
        found: String,
        /// What to do.
        advice: &'static str,
    },
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct LineFault {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong, and what would be right.
    pub what: String,
}

fn list(faults: &[LineFault], more: usize) -> String {
    let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
    let lines = lines.join("\n");
    match more {
        0 => lines,
        more => format!("{lines}\nand {more} more lines"),
    }
}

/// A line as it stands in the file.
#[derive(Deserialize)]
struct Line {
    timestamp: Option<f64>,
    input_length: u32,
    output_length: u32,
    hash_ids: Vec<u64>,
    session_id: Option<SessionId>,
    delay: Option<f64>,
}

#[derive(Deserialize, Debug, Clone, PartialEq, Eq, Hash)]
#[serde(untagged)]
enum SessionId {
    Number(u64),
    Text(String),
}

/// A session while its lines are read.
struct OpenSession {
    number: u64,
    /// The latest request.
    latest: usize,
}

impl Trace {
    /// Reads a trace whose ids stand for `block_tokens` tokens each, at least 1. Empty lines count as lines and are no
    /// requests.
    ///
    /// # Errors
    /// A line cannot be read or is faulty, or there is no request.
    pub fn read(input: impl BufRead, block_tokens: u32, scope: BlockScope) -> Result<Self, TraceError> {
        let block_tokens = block_tokens.max(1);
        let mut requests = Vec::new();
        let mut sessions: HashMap<SessionId, OpenSession> = HashMap::new();
        let (mut faults, mut more) = (Vec::new(), 0);
        for (index, text) in input.lines().enumerate() {
            let line = index + 1;
            let text = text.map_err(|source| TraceError::Read { line, source })?;
            if text.trim().is_empty() {
                continue;
            }
            let request = parse(&text)
                .and_then(|parsed| request_of(parsed, requests.len(), block_tokens, scope, &mut sessions));
            match request {
                Ok(request) => requests.push(request),
                Err(what) if faults.len() < MAX_FAULTS => faults.push(LineFault { line, what }),
                Err(_) => more += 1,
            }
        }
        if !faults.is_empty() {
            return Err(TraceError::Faulty { faults, more });
        }
        if requests.is_empty() {
            return Err(TraceError::Empty);
        }
        Ok(Self {
            block_tokens,
            requests,
        })
    }

    /// The same requests, `speed` times as fast: the times between arrivals and the delays of sessions are divided by
    /// it. `speed` is a positive number.
    #[must_use]
    pub fn at_speed(mut self, speed: f64) -> Self {
        for request in &mut self.requests {
            let (Arrival::At(time) | Arrival::After { delay: time, .. }) = &mut request.arrival;
            *time = Duration::from_nanos((time.as_nanos() as f64 / speed) as u64);
        }
        self
    }

    /// The first `count` requests.
    #[must_use]
    pub fn limited_to(mut self, count: usize) -> Self {
        self.requests.truncate(count);
        self
    }

    /// For each request, the request that arrives after its answer, if there is one.
    pub(crate) fn successors(&self) -> Vec<Option<usize>> {
        let mut successors = vec![None; self.requests.len()];
        for (index, request) in self.requests.iter().enumerate() {
            if let Arrival::After { previous, .. } = request.arrival {
                successors[previous] = Some(index);
            }
        }
        successors
    }
}

/// serde names the place as "line 1 column 7": the line is always 1, since each line is a document.
fn parse(text: &str) -> Result<Line, String> {
    serde_json::from_str(text).map_err(|error| {
        let message = error.to_string();
        match message.rsplit_once(" at line 1 column ") {
            Some((what, column)) => format!("{what}, at column {column}"),
            None => message,
        }
    })
}

fn request_of(
    line: Line,
    index: usize,
    block_tokens: u32,
    scope: BlockScope,
    sessions: &mut HashMap<SessionId, OpenSession>,
) -> Result<TraceRequest, String> {
    for (name, tokens) in [
        ("input_length", line.input_length),
        ("output_length", line.output_length),
    ] {
        if tokens == 0 || tokens > MAX_TOKENS {
            return Err(format!(
                "`{name}` is {tokens}; it must be 1 to {MAX_TOKENS} tokens"
            ));
        }
    }
    // The last block has no id where the tool that wrote the trace knew no content for it.
    let (ids, whole_blocks) = (line.hash_ids.len(), line.input_length / block_tokens);
    if ids < whole_blocks as usize {
        return Err(format!(
            "`hash_ids` has {ids} ids; `input_length` {} has {whole_blocks} whole blocks of {block_tokens} tokens",
            line.input_length
        ));
    }
    let timestamp = line.timestamp.map(|time| millis("timestamp", time)).transpose()?;
    let delay = line.delay.map(|time| millis("delay", time)).transpose()?;
    let at = |timestamp: Option<Duration>| {
        timestamp
            .map(Arrival::At)
            .ok_or("`timestamp` is missing: only a session's later requests have none")
    };
    let (arrival, session) = match line.session_id {
        None => (at(timestamp)?, 0),
        Some(id) => match sessions.get_mut(&id) {
            None => {
                let arrival = at(timestamp)?;
                let number = sessions.len() as u64 + 1;
                sessions.insert(
                    id,
                    OpenSession {
                        number,
                        latest: index,
                    },
                );
                (arrival, number)
            }
            Some(open) => {
                let delay = delay.ok_or(
                    "`delay` is missing: a session's later requests need the milliseconds after its previous answer",
                )?;
                let previous = std::mem::replace(&mut open.latest, index);
                (Arrival::After { previous, delay }, open.number)
            }
        },
    };
    let scope = if scope == BlockScope::Session { session } else { 0 };
    let used = line.input_length.div_ceil(block_tokens) as usize;
    let blocks = line.hash_ids.into_iter().take(used);
    Ok(TraceRequest {
        arrival,
        input_tokens: line.input_length,
        output_tokens: line.output_length,
        blocks: blocks.map(|id| BlockContent { scope, id }).collect(),
        session,
    })
}

fn millis(name: &str, value: f64) -> Result<Duration, String> {
    Duration::try_from_secs_f64(value / 1e3)
        .map_err(|_| format!("`{name}` is {value}; it must be milliseconds, 0 or more"))
}
