//! Finds tool calls in an answer's text as it arrives.
//!
//! Models write a call as an object of JSON with its name and arguments, and mark it in the way of their family:
//!
//! ```text
//! Hermes, Qwen   <tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>
//! SmolLM         <tool_call>[{"name": "f", "arguments": {"x": 1}}, …]</tool_call>
//! Mistral        [TOOL_CALLS][{"name": "f", "arguments": {"x": 1}}]      later ones: [TOOL_CALLS]f{"x": 1}
//! Llama 3        {"name": "f", "parameters": {"x": 1}}                   sometimes behind <|python_tag|>
//! ```
//!
//! The marks of all families are known, and without a mark a call is one only at the beginning of an answer. What looks like a
//! call and has no name, or is no JSON, is text. An answer that has to be calls is an array of them, and one that has to be
//! the call of a named tool is its arguments.

use signalbox_protocol::ToolOutput;

use self::object::{Members, Scan, begins_call, members};
use super::stop::partial_match;

mod object;
#[cfg(test)]
mod tests;

/// Marks before a call.
const OPENERS: [&str; 3] = ["<tool_call>", MISTRAL, "<|python_tag|>"];
const MISTRAL: &str = "[TOOL_CALLS]";

/// Marks behind a call and between two.
const CLOSERS: [&str; 2] = ["</tool_call>", ARGS];
const ARGS: &str = "[ARGS]";

/// Longest name of a tool, and most calls of an answer. What is longer or more is text.
const MAX_NAME: usize = 256;
const MAX_CALLS: u32 = 128;

/// Most bytes of an object that are held back while its name is not known.
const MAX_HELD: usize = 4 << 10;

/// Whether decoding should keep this special token, because it marks tool calls.
pub(crate) fn is_mark(token_text: &[u8]) -> bool {
    let marks = OPENERS.iter().chain(&CLOSERS);
    marks.into_iter().any(|mark| mark.as_bytes() == token_text)
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AnswerPart {
    /// Text of the message.
    Text(String),
    /// A call begins.
    Call {
        /// Its place among the calls.
        index: u32,
        /// The tool's name.
        name: String,
    },
    /// More of a call's arguments, which together are JSON.
    Arguments {
        /// The call's place.
        index: u32,
        /// The next part.
        text: String,
    },
}

/// Splits the text of one choice into parts.
#[derive(Debug)]
pub(crate) struct ToolCallParser {
    output: ToolOutput,
    /// Text that is not decided yet.
    pending: String,
    state: State,
    calls: u32,
    /// Whether the answer has had text that is not whitespace.
    has_text: bool,
}

#[derive(Debug)]
enum State {
    /// Text, perhaps with a mark.
    Text,
    /// Behind a mark or a call: whitespace, commas and brackets, then a call. `named`: the name may come before the object.
    Between { named: bool },
    /// In an object whose name is not known. `pending` has it from its first byte on.
    Object(Scan),
    /// In the arguments of a call, whose bytes are written as they arrive. Behind them is the rest of an object, or the next
    /// call.
    Arguments { scan: Scan, in_object: bool },
    /// Behind the arguments, in the rest of the object: its nesting.
    Rest(Scan),
    /// The arguments of the only call.
    Named,
}

impl ToolCallParser {
    pub(crate) fn new(output: ToolOutput) -> Self {
        let state = match &output {
            ToolOutput::Auto { .. } => State::Text,
            ToolOutput::Required { .. } => State::Between { named: false },
            ToolOutput::Named { .. } => State::Named,
        };
        Self {
            output,
            pending: String::new(),
            state,
            calls: 0,
            has_text: false,
        }
    }

    /// Whether the answer has calls.
    pub(crate) fn has_calls(&self) -> bool {
        self.calls > 0
    }

    /// Takes more text and appends the parts that are decided.
    pub(crate) fn push(&mut self, text: &str, parts: &mut Vec<AnswerPart>) {
        self.pending.push_str(text);
        while self.step(parts) {}
    }

    /// Ends the answer: what is pending is text, or the end of the arguments.
    pub(crate) fn finish(&mut self, parts: &mut Vec<AnswerPart>) {
        let pending = std::mem::take(&mut self.pending);
        match self.state {
            State::Text | State::Object(_) => self.text(&pending, parts),
            State::Arguments { .. } => self.arguments(pending, parts),
            State::Between { .. } | State::Rest(_) | State::Named => {}
        }
    }

    /// Decides about the beginning of the pending text. Whether there may be more to decide.
    fn step(&mut self, parts: &mut Vec<AnswerPart>) -> bool {
        match self.state {
            State::Text => self.step_text(parts),
            State::Between { named } => self.step_between(named, parts),
            State::Object(scan) => self.step_object(scan, parts),
            State::Arguments { scan, in_object } => self.step_arguments(scan, in_object, parts),
            State::Rest(scan) => self.step_rest(scan),
            State::Named => {
                if !self.has_calls()
                    && let ToolOutput::Named { name } = &self.output
                {
                    parts.push(AnswerPart::Call {
                        index: 0,
                        name: name.clone(),
                    });
                    self.calls = 1;
                }
                let text = std::mem::take(&mut self.pending);
                self.arguments(text, parts);
                false
            }
        }
    }

    fn step_text(&mut self, parts: &mut Vec<AnswerPart>) -> bool {
        if !self.has_text {
            // An answer may be a call without a mark.
            let start = self.pending.trim_start();
            if start.is_empty() {
                return false;
            }
            if start.starts_with(['{', '[']) {
                match begins_call(start) {
                    Some(true) => {
                        self.state = State::Between { named: false };
                        return true;
                    }
                    Some(false) => {}
                    None => return false,
                }
            }
        }
        let opener = OPENERS
            .iter()
            .filter_map(|opener| Some((self.pending.find(opener)?, *opener)))
            .min();
        if let Some((start, opener)) = opener {
            let before: String = self.pending.drain(..start).collect();
            self.text(before.trim_end(), parts);
            self.pending.drain(..opener.len());
            self.state = State::Between {
                named: opener == MISTRAL,
            };
            return true;
        }
        // The beginning of a mark is held back, and the whitespace before it.
        let held = OPENERS
            .iter()
            .map(|opener| partial_match(&self.pending, opener))
            .max()
            .unwrap_or(0);
        let length = self.pending[..self.pending.len() - held].trim_end().len();
        let text: String = self.pending.drain(..length).collect();
        self.text(&text, parts);
        false
    }

    fn step_between(&mut self, named: bool, parts: &mut Vec<AnswerPart>) -> bool {
        let skipped = |c: char| c.is_whitespace() || matches!(c, ',' | ';' | '[' | ']');
        let mark = |pending: &str| {
            let marks = OPENERS.iter().chain(&CLOSERS);
            marks
                .into_iter()
                .find(|mark| pending.starts_with(**mark))
                .copied()
        };
        if let Some(mark) = mark(&self.pending) {
            self.pending.drain(..mark.len());
            self.state = State::Between {
                named: mark == MISTRAL,
            };
            return true;
        }
        let is_partial = |mark: &&str| mark.starts_with(self.pending.as_str());
        let Some(first) = self.pending.chars().next() else {
            return false;
        };
        if OPENERS.iter().chain(&CLOSERS).any(is_partial) {
            return false;
        }
        if skipped(first) {
            self.pending.drain(..first.len_utf8());
            return true;
        }
        if first == '{' {
            self.state = State::Object(Scan::default());
            return true;
        }
        if named {
            match self.pending.find(['{', '[']) {
                None if self.pending.len() <= MAX_NAME => return false,
                Some(end) if end <= MAX_NAME && !self.pending[..end].trim().is_empty() => {
                    let rest = &self.pending[end..];
                    let length = if rest.starts_with(ARGS) { ARGS.len() } else { 0 };
                    if length == 0 && ARGS.starts_with(rest) {
                        return false;
                    }
                    if length > 0 || rest.starts_with('{') {
                        let name = self.pending[..end].trim().to_owned();
                        self.pending.drain(..end + length);
                        self.call(name, parts);
                        self.state = State::Arguments {
                            scan: Scan::default(),
                            in_object: false,
                        };
                        return true;
                    }
                }
                _ => {}
            }
        }
        // Text behind the calls, or in their place.
        self.state = State::Text;
        self.has_text = true;
        true
    }

    fn step_object(&mut self, mut scan: Scan, parts: &mut Vec<AnswerPart>) -> bool {
        let bytes = self.pending.as_bytes();
        let mut is_whole = false;
        while scan.at < bytes.len() && !is_whole {
            is_whole = scan.push(bytes[scan.at]);
        }
        let found = members(&self.pending[..scan.at]);
        if let Some(name) = &found.name
            && let Some(start) = found.arguments
            && name.len() <= MAX_NAME
            && self.calls < self.most_calls()
        {
            self.pending.drain(..start);
            self.call(name.clone(), parts);
            self.state = State::Arguments {
                scan: Scan::default(),
                in_object: true,
            };
            return true;
        }
        if is_whole {
            return self.end_object(&found, scan.at, parts);
        }
        if self.pending.len() > MAX_HELD {
            self.state = State::Text;
            self.has_text = true;
            return true;
        }
        self.state = State::Object(scan);
        false
    }

    /// The object ends before its arguments could be written as they arrived.
    fn end_object(&mut self, found: &Members, end: usize, parts: &mut Vec<AnswerPart>) -> bool {
        let object: String = self.pending.drain(..end).collect();
        self.state = State::Between { named: false };
        let is_json = serde_json::from_str::<serde::de::IgnoredAny>(&object).is_ok();
        match (&found.name, is_json) {
            (Some(_), true) if self.calls >= self.most_calls() => {}
            (Some(name), true) => {
                self.call(name.clone(), parts);
                self.arguments(
                    found.whole_arguments(&object).unwrap_or_else(|| "{}".into()),
                    parts,
                );
            }
            _ => self.text(&object, parts),
        }
        true
    }

    fn step_arguments(&mut self, mut scan: Scan, in_object: bool, parts: &mut Vec<AnswerPart>) -> bool {
        let bytes = self.pending.as_bytes();
        let mut is_whole = false;
        while scan.at < bytes.len() && !is_whole {
            is_whole = scan.push(bytes[scan.at]);
        }
        let text: String = self.pending.drain(..scan.at).collect();
        self.arguments(text, parts);
        scan.at = 0;
        self.state = match (is_whole, in_object) {
            (false, _) => State::Arguments { scan, in_object },
            (true, true) => State::Rest(Scan {
                depth: 1,
                ..Scan::default()
            }),
            (true, false) => State::Between { named: false },
        };
        is_whole
    }

    fn step_rest(&mut self, mut scan: Scan) -> bool {
        let ends_at = self.pending.bytes().position(|byte| scan.push(byte));
        match ends_at {
            Some(at) => {
                self.pending.drain(..=at);
                self.state = State::Between { named: false };
            }
            None => {
                self.pending.clear();
                self.state = State::Rest(scan);
            }
        }
        ends_at.is_some()
    }

    fn most_calls(&self) -> u32 {
        match &self.output {
            ToolOutput::Auto { one_call: true } | ToolOutput::Required { one_call: true } => 1,
            _ => MAX_CALLS,
        }
    }

    fn call(&mut self, name: String, parts: &mut Vec<AnswerPart>) {
        parts.push(AnswerPart::Call {
            index: self.calls,
            name,
        });
        self.calls += 1;
    }

    fn arguments(&self, text: String, parts: &mut Vec<AnswerPart>) {
        if let (Some(index), false) = (self.calls.checked_sub(1), text.is_empty()) {
            parts.push(AnswerPart::Arguments { index, text });
        }
    }

    fn text(&mut self, text: &str, parts: &mut Vec<AnswerPart>) {
        let is_blank = text.trim().is_empty();
        // Whitespace around calls is no message.
        if text.is_empty() || (is_blank && self.has_calls()) {
            return;
        }
        self.has_text |= !is_blank;
        match parts.last_mut() {
            Some(AnswerPart::Text(last)) => last.push_str(text),
            _ => parts.push(AnswerPart::Text(text.to_owned())),
        }
    }
}
