//! Passes an engine's stream of events to the client, takes out what the adapter asked for, and checks its end.
//!
//! An engine reports failures inside of a stream that then ends politely, so the bytes alone do not show whether an
//! answer is whole. A chat or completion is whole when a choice has a finish reason and `[DONE]` came; `/v1/responses`
//! and `/v1/messages` have closing events. Anything else is a [`StreamFault`].
//!
//! Most events are one token, and none of them is parsed: a search for a few keys tells whether there is anything to
//! do. The search is for `"key":` with its quotes, which cannot occur inside a JSON string, because quotes are escaped
//! there.

use std::sync::LazyLock;

use memchr::memmem::Finder;
use serde_json::Value;
use signalbox_protocol::{Endpoint, StreamSummary};

use super::{
    json_members::value_length,
    piece_ids::PieceIds,
    request_body::Added,
    sse::{EventSplitter, EventTooLong, MAX_EVENT_BYTES, data_of},
    token_ids::TokenLists,
    usage::Usage,
};

/// Why a stream is not a whole answer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StreamFault {
    /// The engine reported an error in the stream.
    #[error("{message}")]
    Engine {
        /// The engine's words.
        message: String,
        /// The event's data.
        body: String,
    },
    /// The stream ended before the answer was whole.
    #[error("the engine's stream ended before the answer was complete")]
    Incomplete,
    /// An event is longer than the bound.
    #[error("the engine sent an event of more than {MAX_EVENT_BYTES} bytes")]
    TooLong,
}

impl From<EventTooLong> for StreamFault {
    fn from(_: EventTooLong) -> Self {
        Self::TooLong
    }
}

/// One stream of an engine on its way to a client.
#[derive(Debug)]
pub(crate) struct AnswerFilter<'a> {
    endpoint: Endpoint,
    added: Added,
    keys: &'static Keys,
    events: EventSplitter,
    usage: Usage,
    /// Tokens in the events that were passed on, by the adapter's count.
    tokens: u32,
    has_begun: bool,
    is_finished: bool,
    is_done: bool,
    /// The last chunk of a choice, until the event behind it is there; in an answer that can be continued, until its end
    /// is there. A router that has the last token of such an answer then has its end too.
    held: Vec<u8>,
    /// The ids of the tokens; `None` if the answer cannot be continued.
    ids: Option<PieceIds<'a>>,
    /// The ids in the event at hand.
    event_ids: Vec<u32>,
    /// The engine's tokens of the prompt, if they were asked for and have arrived.
    prompt_ids: Option<Vec<u32>>,
}

/// What to do with an event.
enum Verdict {
    /// Pass it on, with this many tokens in it.
    Pass(u32),
    /// Pass on the changed text, with this many tokens in it.
    Changed(Vec<u8>, u32),
    /// Pass this on before the next event that is passed on.
    Hold(Vec<u8>, u32),
    /// Pass nothing on.
    Drop,
}

impl<'a> AnswerFilter<'a> {
    /// A stream of a request to `endpoint` to which `added` was added.
    pub(crate) fn new(endpoint: Endpoint, added: Added) -> Self {
        Self {
            endpoint,
            added,
            keys: Keys::get(),
            events: EventSplitter::default(),
            usage: Usage::default(),
            tokens: 0,
            has_begun: false,
            is_finished: false,
            is_done: false,
            held: Vec::new(),
            ids: None,
            event_ids: Vec::new(),
            prompt_ids: None,
        }
    }

    /// The same stream, with the ids of its tokens: of an answer to a prompt of these tokens that can be continued.
    pub(crate) fn with_ids(mut self, prompt: &'a [u32]) -> Self {
        self.ids = Some(PieceIds::new(prompt));
        self
    }

    /// The ids of the tokens in what was appended last; `None` if the answer cannot be continued any more.
    pub(crate) fn take_ids(&mut self) -> Option<Vec<u32>> {
        self.ids.as_mut().map(PieceIds::take)
    }

    /// Takes bytes of the engine and appends what the client gets to `out`. Returns the number of tokens in it.
    ///
    /// Nothing is appended before the first event with data: its arrival means that the prefill is done, which headers
    /// and comments do not.
    pub(crate) fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<u32, StreamFault> {
        self.events.push(bytes)?;
        let before = self.tokens;
        // Taken out of `self` while an event in it is borrowed.
        let mut events = std::mem::take(&mut self.events);
        let outcome = loop {
            let Some(event) = events.next_event() else {
                break Ok(());
            };
            match self.judge(event) {
                Ok(Verdict::Pass(tokens)) => self.pass(event, tokens, false, out),
                Ok(Verdict::Changed(text, tokens)) => self.pass(&text, tokens, false, out),
                Ok(Verdict::Hold(text, tokens)) => self.pass(&text, tokens, true, out),
                Ok(Verdict::Drop) => {}
                Err(fault) => {
                    // Another worker writes the end of an answer that is continued.
                    if self.ids.is_none() {
                        out.append(&mut self.held);
                    }
                    break Err(fault);
                }
            }
        };
        self.events = events;
        outcome.map(|()| self.tokens - before)
    }

    /// Appends an event to what the client gets, or to what is held.
    fn pass(&mut self, text: &[u8], tokens: u32, holds: bool, out: &mut Vec<u8>) {
        self.tokens += tokens;
        let is_held = match &mut self.ids {
            Some(ids) => {
                let is_held = self.is_finished && !self.is_done;
                ids.push(&self.event_ids, is_held);
                is_held
            }
            None => holds,
        };
        self.event_ids.clear();
        if !is_held || self.ids.is_none() {
            out.append(&mut self.held);
        }
        let target = if is_held { &mut self.held } else { out };
        target.extend_from_slice(text);
    }

    /// The end of the engine's stream. `prompt_tokens` is the router's count of the prompt, for engines that report none.
    pub(crate) fn end(
        &mut self,
        out: &mut Vec<u8>,
        prompt_tokens: u32,
    ) -> Result<StreamSummary, StreamFault> {
        // The last event may lack its empty line.
        if !self.events.rest().trim_ascii().is_empty() {
            self.push(b"\n\n", out)?;
        }
        out.append(&mut self.held);
        if !self.is_whole() {
            return Err(StreamFault::Incomplete);
        }
        Ok(self.usage.summary(prompt_tokens, self.tokens))
    }

    /// Whether the answer is whole: what follows is only the end of the connection's message.
    pub(crate) fn is_whole(&self) -> bool {
        match self.endpoint {
            Endpoint::Chat | Endpoint::Completions => self.is_finished && self.is_done,
            Endpoint::Responses | Endpoint::Messages => self.is_finished,
            // No known engine streams these. A stream without events would be no answer.
            _ => self.has_begun,
        }
    }

    /// The tokens that the engine took from its KV cache; `None` if it does not report them, or not yet.
    pub(crate) fn cached_tokens(&self) -> Option<u32> {
        self.usage.cached_tokens()
    }

    /// The engine's tokens of the prompt, once.
    pub(crate) fn take_prompt_ids(&mut self) -> Option<Vec<u32>> {
        self.prompt_ids.take()
    }

    fn judge(&mut self, event: &[u8]) -> Result<Verdict, StreamFault> {
        let Some(place) = data_of(event) else {
            return Ok(if self.has_begun {
                Verdict::Pass(0)
            } else {
                Verdict::Drop
            });
        };
        let data = &event[place];
        if self.keys.error.find(data).is_some()
            && let Some(fault) = error_in(data)
        {
            return Err(fault);
        }
        let verdict = match self.endpoint {
            Endpoint::Chat | Endpoint::Completions => self.judge_chunk(event, data),
            _ => self.judge_typed(data),
        };
        self.has_begun |= !matches!(verdict, Verdict::Drop);
        Ok(verdict)
    }

    /// A chunk of a chat or completion.
    fn judge_chunk(&mut self, event: &[u8], data: &[u8]) -> Verdict {
        if data.trim_ascii() == b"[DONE]" {
            self.is_done = true;
            return Verdict::Pass(0);
        }
        let mut has_finish = false;
        for at in self.keys.finish_reason.find_iter(data) {
            let value = data[at + self.keys.finish_reason.needle().len()..].trim_ascii_start();
            has_finish |= !value.starts_with(b"null");
        }
        self.is_finished |= has_finish;
        let mut is_usage_alone = false;
        if let Some(usage) = self.usage_in(data) {
            self.usage.update(usage);
            is_usage_alone = self.keys.no_choices.find(data).is_some();
        }
        if is_usage_alone && self.added.usage {
            self.move_fingerprint(data);
            return Verdict::Drop;
        }
        if is_usage_alone {
            return Verdict::Pass(0);
        }
        let verdict = match self.added.token_ids {
            true => self.without_ids(event, has_finish),
            false => Verdict::Pass(self.tokens_in(data)),
        };
        match verdict {
            Verdict::Pass(tokens) if self.holds(has_finish) => Verdict::Hold(event.to_vec(), tokens),
            Verdict::Changed(text, tokens) if self.holds(has_finish) => Verdict::Hold(text, tokens),
            verdict => verdict,
        }
    }

    /// Whether the chunk that ends a choice waits for the event behind it, which follows at once.
    fn holds(&self, has_finish: bool) -> bool {
        has_finish && self.added.usage
    }

    /// Adds the fingerprint of the usage chunk to the last chunk of the answer, where vLLM writes it for requests that do
    /// not ask for usage.
    fn move_fingerprint(&mut self, usage: &[u8]) {
        let key = self.keys.fingerprint.needle();
        let Some(at) = self.keys.fingerprint.find(usage) else {
            return;
        };
        let Some(length) = value_length(&usage[at + key.len()..]) else {
            return;
        };
        let member = &usage[at..at + key.len() + length];
        let has_own = self.keys.fingerprint.find(&self.held).is_some();
        if let Some(close) = self
            .held
            .iter()
            .rposition(|byte| *byte == b'}')
            .filter(|_| !has_own)
        {
            let behind = self.held.split_off(close);
            self.held.push(b',');
            self.held.extend_from_slice(member);
            self.held.extend_from_slice(&behind);
        }
    }

    /// Counts the tokens of a chunk without token ids: one, unless it only opens the answer.
    fn tokens_in(&self, data: &[u8]) -> u32 {
        u32::from(!self.opens(data))
    }

    /// Whether a chunk only opens the answer.
    fn opens(&self, data: &[u8]) -> bool {
        self.tokens == 0
            && self.keys.role.find(data).is_some()
            && self.keys.empty_content.find(data).is_some()
    }

    /// Takes the token ids out of a chunk, so that it is what the engine writes without `return_token_ids`: `null` in
    /// place of each list, and no chunk that has nothing else.
    fn without_ids(&mut self, event: &[u8], has_finish: bool) -> Verdict {
        let mut lists = TokenLists::find(event);
        let tokens = lists.generated.len() as u32;
        let opens = self.opens(event);
        self.ids.take_if(|ids| !ids.admit(event, &lists, opens));
        if self.prompt_ids.is_none() {
            self.prompt_ids = lists.prompt.take();
        }
        // Without `return_token_ids` vLLM does not send a chunk while its tool parser waits for more text.
        if !has_finish && self.keys.empty_delta.find(event).is_some() {
            self.tokens += tokens;
            return Verdict::Drop;
        }
        let changed = lists.without(event);
        self.event_ids = lists.generated;
        match changed {
            Some(changed) => Verdict::Changed(changed, tokens),
            None => Verdict::Pass(tokens),
        }
    }

    /// An event of `/v1/responses` or `/v1/messages`, which names its type.
    fn judge_typed(&mut self, data: &[u8]) -> Verdict {
        self.is_finished |= self
            .keys
            .closing
            .iter()
            .any(|closing| closing.find(data).is_some());
        if let Some(usage) = self.usage_in(data) {
            self.usage.update(usage);
        }
        Verdict::Pass(u32::from(self.keys.delta.find(data).is_some()))
    }

    fn usage_in(&self, data: &[u8]) -> Option<Usage> {
        let at = self.keys.usage.find(data)?;
        let value = data[at + self.keys.usage.needle().len()..].trim_ascii_start();
        let object = value.starts_with(b"{").then(|| value_length(value))??;
        Usage::read(&value[..object])
    }
}

/// The error that an event reports. An `error` of `null`, or one deeper inside, is none.
fn error_in(data: &[u8]) -> Option<StreamFault> {
    let event: Value = serde_json::from_slice(data).ok()?;
    let error = event.get("error").filter(|error| !error.is_null())?;
    let message = error
        .get("message")
        .and_then(Value::as_str)
        .map_or_else(|| error.to_string(), str::to_owned);
    Some(StreamFault::Engine {
        message,
        body: String::from_utf8_lossy(data).into_owned(),
    })
}

/// The searches, prepared once for all streams.
#[derive(Debug)]
struct Keys {
    error: Finder<'static>,
    finish_reason: Finder<'static>,
    usage: Finder<'static>,
    no_choices: Finder<'static>,
    role: Finder<'static>,
    empty_content: Finder<'static>,
    empty_delta: Finder<'static>,
    fingerprint: Finder<'static>,
    delta: Finder<'static>,
    /// The types of the events that close an answer.
    closing: [Finder<'static>; 4],
}

impl Keys {
    fn get() -> &'static Self {
        static KEYS: LazyLock<Keys> = LazyLock::new(|| {
            let finder = |text: &'static str| Finder::new(text);
            Keys {
                error: finder("\"error\":"),
                finish_reason: finder("\"finish_reason\":"),
                usage: finder("\"usage\":"),
                no_choices: finder("\"choices\":[]"),
                role: finder("\"role\":"),
                empty_content: finder("\"content\":\"\""),
                empty_delta: finder("\"delta\":{}"),
                fingerprint: finder("\"system_fingerprint\":"),
                delta: finder("\"delta\":"),
                closing: [
                    finder("\"message_stop\""),
                    finder("\"response.completed\""),
                    finder("\"response.incomplete\""),
                    finder("\"response.failed\""),
                ],
            }
        });
        &KEYS
    }
}

#[cfg(test)]
mod tests;
