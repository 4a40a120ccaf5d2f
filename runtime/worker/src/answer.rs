//! Writes the bytes of OpenAI answers.
//!
//! Workers write the bytes that clients read, and routers pass them on unchanged. The work of decoding tokens and
//! writing JSON therefore grows with the number of workers. A streamed answer is server-sent events, one for each piece
//! of text, then `data: [DONE]`. A whole answer is one JSON document at the end. The shapes are those of OpenAI's API
//! reference for chat completions (`chat.completion`, `chat.completion.chunk`) and completions (`text_completion`).
//!
//! The constant part of a choice's events is rendered once. A token costs a copy of that part and the escaping of its
//! text, both into a reused buffer.

use std::sync::Arc;

use signalbox_protocol::{AnswerFormat, Endpoint, FinishReason, GenerateRequest, StreamSummary};

mod json;
mod logprobs;
mod stop;
#[cfg(test)]
mod tests;
mod tool_calls;

pub(crate) use self::tool_calls::{AnswerPart, ToolCallParser, is_mark};
pub use self::{
    logprobs::TokenEntry,
    stop::{StopMatcher, StopScan},
};

use self::json::{push_display, push_string};

/// The parts that are the same in all events of one request's answer.
#[derive(Debug)]
pub struct Answer {
    format: AnswerFormat,
    /// The log probabilities begin with those of the prompt's tokens.
    prompt_logprobs: bool,
    /// `"id":…,"object":…,"created":…,"model":…,"system_fingerprint":…,` without the opening brace.
    head: Vec<u8>,
    /// `"prompt_token_ids":[…]`, if the request asks for it.
    prompt_ids: Option<Arc<[u8]>>,
    prompt_tokens: u32,
}

/// A tool call of an answer.
#[derive(Debug, Default)]
struct ToolCall {
    id: String,
    name: String,
    arguments: String,
}

/// Why a choice ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChoiceEnd<'a> {
    /// The engine generates no more.
    Engine(FinishReason),
    /// The model's own end of an answer.
    Eos,
    /// One of `stop_token_ids`.
    StopToken(u32),
    /// One of `stop`.
    StopText(&'a str),
}

/// What each event of a stream says about usage.
#[derive(Debug, Clone, Copy)]
enum EventUsage {
    None,
    /// It comes in the last event.
    Null,
    /// The counts so far, for a prompt of this many tokens.
    SoFar(u32),
}

/// Writes one choice of an answer: the events of a stream, or the choice's part of a whole answer.
#[derive(Debug)]
pub struct ChoiceWriter {
    chat: bool,
    stream: bool,
    index: u32,
    /// The beginning of every event, up to the choice's `"index":…,`.
    stem: Vec<u8>,
    usage: EventUsage,
    /// The prompt's ids, until they are written.
    prompt_ids: Option<Arc<[u8]>>,
    /// The ids of the tokens that no event has yet, if the request asks for them. For a whole answer, all ids.
    token_ids: Option<Vec<u32>>,
    completion_tokens: u32,
    /// The prompt's text, which precedes the text of a completion. The first piece takes it.
    echo: Option<String>,
    started: bool,
    /// The position of the next token in the text, in characters, for `text_offset`.
    offset: usize,
    /// The text so far, for a whole answer.
    text: String,
    /// The log probabilities so far, for a whole answer.
    entries: Vec<TokenEntry>,
    first_offset: usize,
    wants_logprobs: bool,
    /// The tool calls so far. A stream needs only their number.
    calls: Vec<ToolCall>,
    finish: Option<&'static str>,
    /// `stop_reason` as JSON: which stop text or token ended the choice.
    stop_reason: Option<Vec<u8>>,
}

impl Answer {
    /// The answer to `request` with the tokens of `prompt`. `fingerprint` names the engine and its version: equal
    /// fingerprints and seeds give equal answers.
    pub fn new(request: &GenerateRequest, fingerprint: &str, prompt: &[u32]) -> Self {
        let format = request.format.clone();
        let (id, object) = match (format.endpoint == Endpoint::Chat, format.stream) {
            (true, true) => ("chatcmpl-", "chat.completion.chunk"),
            (true, false) => ("chatcmpl-", "chat.completion"),
            (false, _) => ("cmpl-", "text_completion"),
        };
        let mut head = Vec::new();
        head.extend_from_slice(b"\"id\":");
        push_string(&mut head, &format!("{id}{}", request.id));
        head.extend_from_slice(b",\"object\":");
        push_string(&mut head, object);
        head.extend_from_slice(b",\"created\":");
        push_display(&mut head, format.created);
        head.extend_from_slice(b",\"model\":");
        push_string(&mut head, &request.model);
        head.extend_from_slice(b",\"system_fingerprint\":");
        push_string(&mut head, fingerprint);
        head.push(b',');
        let prompt_ids = format.return_token_ids.then(|| {
            let mut ids = Vec::new();
            push_ids(&mut ids, "prompt_token_ids", prompt);
            ids.into()
        });
        Self {
            format,
            prompt_logprobs: request.sampling.prompt_logprobs,
            head,
            prompt_ids,
            prompt_tokens: prompt.len() as u32,
        }
    }

    /// Whether the answer is streamed.
    pub fn is_stream(&self) -> bool {
        self.format.stream
    }

    /// The writer of choice `index`. `wants_logprobs`: the request asks for log probabilities.
    pub fn choice(&self, index: u32, wants_logprobs: bool) -> ChoiceWriter {
        let index = index + self.format.part.map_or(0, |part| part.first_choice);
        let mut stem = Vec::with_capacity(self.head.len() + 48);
        stem.extend_from_slice(b"data: {");
        stem.extend_from_slice(&self.head);
        stem.extend_from_slice(b"\"choices\":[{\"index\":");
        push_display(&mut stem, index);
        stem.push(b',');
        let echo = self
            .format
            .echo
            .clone()
            .filter(|echo| !echo.is_empty() && self.format.endpoint != Endpoint::Chat);
        // The tokens of a prompt with log probabilities count from its beginning.
        let offset = match &echo {
            Some(echo) if !self.prompt_logprobs => echo.chars().count(),
            _ => 0,
        };
        ChoiceWriter {
            chat: self.format.endpoint == Endpoint::Chat,
            stream: self.format.stream,
            index,
            stem,
            usage: match (self.format.include_usage, self.format.continuous_usage) {
                (false, _) => EventUsage::None,
                (true, false) => EventUsage::Null,
                (true, true) => EventUsage::SoFar(self.prompt_tokens),
            },
            prompt_ids: self.prompt_ids.clone(),
            token_ids: self.format.return_token_ids.then(Vec::new),
            completion_tokens: 0,
            echo,
            started: false,
            offset,
            text: String::new(),
            entries: Vec::new(),
            first_offset: offset,
            wants_logprobs,
            calls: Vec::new(),
            finish: None,
            stop_reason: None,
        }
    }

    /// Appends the last events of a stream: the usage, if the request asks for it, and `[DONE]`. A part of an answer has no
    /// end.
    pub fn write_stream_end(&self, usage: StreamSummary, out: &mut Vec<u8>) {
        if self.format.part.is_some() {
            return;
        }
        if self.format.include_usage {
            out.extend_from_slice(b"data: {");
            out.extend_from_slice(&self.head);
            out.extend_from_slice(b"\"choices\":[],");
            push_usage(out, usage);
            out.extend_from_slice(b"}\n\n");
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }

    /// Appends the whole answer: one JSON document with the choices in the given order. A part of an answer ends behind its
    /// last choice.
    pub fn write_document<'a>(
        &self,
        choices: impl Iterator<Item = &'a ChoiceWriter>,
        usage: StreamSummary,
        out: &mut Vec<u8>,
    ) {
        out.push(b'{');
        out.extend_from_slice(&self.head);
        if let (Some(ids), Endpoint::Chat) = (&self.prompt_ids, self.format.endpoint) {
            out.extend_from_slice(ids);
            out.push(b',');
        }
        out.extend_from_slice(b"\"choices\":[");
        for (index, choice) in choices.enumerate() {
            if index > 0 {
                out.push(b',');
            }
            choice.write_whole(out);
        }
        if self.format.part.is_some() {
            return;
        }
        out.extend_from_slice(b"],");
        push_usage(out, usage);
        out.push(b'}');
    }
}

impl ChoiceWriter {
    /// Starts the choice, at its first token. A chat stream gets its event with the role; other answers get nothing.
    pub fn start(&mut self, out: &mut Vec<u8>) {
        if self.started {
            return;
        }
        self.started = true;
        if self.stream && self.chat {
            out.extend_from_slice(&self.stem);
            out.extend_from_slice(b"\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}]");
            if let Some(ids) = self.prompt_ids.take() {
                out.push(b',');
                out.extend_from_slice(&ids);
            }
            self.push_event_usage(out);
        }
    }

    /// Counts the next token, before its text.
    pub fn count_token(&mut self, token: u32) {
        self.completion_tokens += 1;
        if let Some(ids) = &mut self.token_ids {
            ids.push(token);
        }
    }

    /// Appends the next piece of text, with the log probabilities of its tokens. The text may be empty if there are log
    /// probabilities. Without either, nothing is written.
    pub fn push(&mut self, text: &str, entries: &mut Vec<TokenEntry>, out: &mut Vec<u8>) {
        self.start(out);
        if text.is_empty() && entries.is_empty() {
            return;
        }
        if !self.stream {
            self.text.push_str(text);
            self.entries.append(entries);
            return;
        }
        out.extend_from_slice(&self.stem);
        out.extend_from_slice(if self.chat {
            b"\"delta\":{\"content\":"
        } else {
            b"\"text\":"
        });
        match self.echo.take() {
            Some(echo) => push_string(out, &(echo + text)),
            None => push_string(out, text),
        }
        out.extend_from_slice(if self.chat {
            b"},\"logprobs\":"
        } else {
            b",\"logprobs\":"
        });
        self.offset = self.push_logprobs(entries, self.offset, out);
        entries.clear();
        out.extend_from_slice(b",\"finish_reason\":null");
        self.end_event(out);
    }

    /// Begins a tool call with this id.
    pub(crate) fn push_call(&mut self, id: String, name: String, out: &mut Vec<u8>) {
        self.start(out);
        if self.stream {
            self.begin_call_event(self.calls.len(), out);
            out.extend_from_slice(b"\"id\":");
            push_string(out, &id);
            out.extend_from_slice(b",\"type\":\"function\",\"function\":{\"name\":");
            push_string(out, &name);
            out.extend_from_slice(b",\"arguments\":\"\"");
            self.end_call_event(out);
        }
        self.calls.push(ToolCall {
            id,
            name,
            arguments: String::new(),
        });
    }

    /// Appends to the arguments of the last tool call.
    pub(crate) fn push_arguments(&mut self, text: &str, out: &mut Vec<u8>) {
        if self.stream {
            self.begin_call_event(self.calls.len().saturating_sub(1), out);
            out.extend_from_slice(b"\"function\":{\"arguments\":");
            push_string(out, text);
            self.end_call_event(out);
        } else if let Some(call) = self.calls.last_mut() {
            call.arguments.push_str(text);
        }
    }

    fn begin_call_event(&self, index: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.stem);
        out.extend_from_slice(b"\"delta\":{\"tool_calls\":[{\"index\":");
        push_display(out, index);
        out.push(b',');
    }

    fn end_call_event(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"}}]},\"logprobs\":null,\"finish_reason\":null");
        self.end_event(out);
    }

    fn push_whole_calls(&self, out: &mut Vec<u8>) {
        if self.calls.is_empty() {
            return;
        }
        out.extend_from_slice(b",\"tool_calls\":[");
        for (index, call) in self.calls.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            out.extend_from_slice(b"{\"id\":");
            push_string(out, &call.id);
            out.extend_from_slice(b",\"type\":\"function\",\"function\":{\"name\":");
            push_string(out, &call.name);
            out.extend_from_slice(b",\"arguments\":");
            push_string(out, &call.arguments);
            out.extend_from_slice(b"}}");
        }
        out.push(b']');
    }

    /// Finishes the choice, after its last piece.
    pub fn finish(&mut self, end: ChoiceEnd<'_>, out: &mut Vec<u8>) {
        self.start(out);
        let (reason, stop_reason) = match end {
            ChoiceEnd::Engine(reason) => (reason, None),
            ChoiceEnd::Eos => (FinishReason::Stop, None),
            ChoiceEnd::StopToken(token) => (FinishReason::Stop, Some(token.to_string().into_bytes())),
            ChoiceEnd::StopText(text) => {
                let mut json = Vec::with_capacity(text.len() + 2);
                push_string(&mut json, text);
                (FinishReason::Stop, Some(json))
            }
        };
        let reason = match reason {
            FinishReason::Stop if !self.calls.is_empty() => "tool_calls",
            reason => reason.as_str(),
        };
        (self.finish, self.stop_reason) = (Some(reason), stop_reason);
        if !self.stream {
            return;
        }
        out.extend_from_slice(&self.stem);
        if self.chat {
            out.extend_from_slice(b"\"delta\":{}");
        } else {
            out.extend_from_slice(b"\"text\":");
            push_string(out, &self.echo.take().unwrap_or_default());
        }
        out.extend_from_slice(b",\"logprobs\":null,\"finish_reason\":");
        push_string(out, reason);
        self.push_stop_reason(out);
        self.end_event(out);
    }

    /// Appends what follows a choice's `finish_reason` in an event.
    fn end_event(&mut self, out: &mut Vec<u8>) {
        if let Some(ids) = self.prompt_ids.take() {
            out.push(b',');
            out.extend_from_slice(&ids);
        }
        if let Some(ids) = &mut self.token_ids {
            out.push(b',');
            push_ids(out, "token_ids", ids);
            ids.clear();
        }
        out.extend_from_slice(b"}]");
        self.push_event_usage(out);
    }

    /// Appends what follows the choices in an event.
    fn push_event_usage(&self, out: &mut Vec<u8>) {
        match self.usage {
            EventUsage::None => {}
            EventUsage::Null => out.extend_from_slice(b",\"usage\":null"),
            EventUsage::SoFar(prompt_tokens) => {
                out.extend_from_slice(b",\"usage\":{");
                push_counts(out, prompt_tokens, self.completion_tokens);
                out.push(b'}');
            }
        }
        out.extend_from_slice(b"}\n\n");
    }

    fn push_stop_reason(&self, out: &mut Vec<u8>) {
        if let Some(stop_reason) = &self.stop_reason {
            out.extend_from_slice(b",\"stop_reason\":");
            out.extend_from_slice(stop_reason);
        }
    }

    fn write_whole(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"index\":");
        push_display(out, self.index);
        if self.chat {
            out.extend_from_slice(b",\"message\":{\"role\":\"assistant\",\"content\":");
            if self.text.is_empty() && !self.calls.is_empty() {
                out.extend_from_slice(b"null");
            } else {
                push_string(out, &self.text);
            }
            out.extend_from_slice(b",\"refusal\":null");
            self.push_whole_calls(out);
            out.push(b'}');
        } else {
            out.extend_from_slice(b",\"text\":");
            match &self.echo {
                Some(echo) => push_string(out, &[echo, self.text.as_str()].concat()),
                None => push_string(out, &self.text),
            }
        }
        out.extend_from_slice(b",\"logprobs\":");
        self.push_logprobs(&self.entries, self.first_offset, out);
        out.extend_from_slice(b",\"finish_reason\":");
        match self.finish {
            Some(reason) => push_string(out, reason),
            None => out.extend_from_slice(b"null"),
        }
        self.push_stop_reason(out);
        if let (Some(ids), false) = (&self.prompt_ids, self.chat) {
            out.push(b',');
            out.extend_from_slice(ids);
        }
        if let Some(ids) = &self.token_ids {
            out.push(b',');
            push_ids(out, "token_ids", ids);
        }
        out.push(b'}');
    }

    /// Appends the log probabilities of `entries`, which begin at `offset`. Returns the offset of the next token.
    fn push_logprobs(&self, entries: &[TokenEntry], offset: usize, out: &mut Vec<u8>) -> usize {
        match (self.wants_logprobs, self.chat) {
            (false, _) => {
                out.extend_from_slice(b"null");
                offset
            }
            (true, true) => {
                logprobs::push_chat(entries, out);
                offset
            }
            (true, false) => logprobs::push_completion(entries, offset, out),
        }
    }
}

fn push_counts(out: &mut Vec<u8>, prompt_tokens: u32, completion_tokens: u32) {
    out.extend_from_slice(b"\"prompt_tokens\":");
    push_display(out, prompt_tokens);
    out.extend_from_slice(b",\"completion_tokens\":");
    push_display(out, completion_tokens);
    out.extend_from_slice(b",\"total_tokens\":");
    push_display(out, u64::from(prompt_tokens) + u64::from(completion_tokens));
}

/// Appends `"name":[…]`.
fn push_ids(out: &mut Vec<u8>, name: &str, ids: &[u32]) {
    push_string(out, name);
    out.extend_from_slice(b":[");
    for (index, id) in ids.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        push_display(out, id);
    }
    out.push(b']');
}

fn push_usage(out: &mut Vec<u8>, usage: StreamSummary) {
    out.extend_from_slice(b"\"usage\":{");
    push_counts(out, usage.prompt_tokens, usage.completion_tokens);
    out.extend_from_slice(b",\"prompt_tokens_details\":{\"cached_tokens\":");
    push_display(out, usage.cached_tokens);
    out.extend_from_slice(b"}}");
}
