//! The ids of an answer's tokens, in step with the events that the client gets.
//!
//! A router can continue an answer at another worker from the ids of what was delivered. That holds while each event is
//! the plain text of its tokens, so the ids end where an engine parses the text: reasoning and tool calls.

use std::sync::LazyLock;

use memchr::memmem::Finder;

use super::token_ids::TokenLists;

/// The ids of one answer that can be continued so far.
#[derive(Debug)]
pub(crate) struct PieceIds<'a> {
    /// The router's tokens of the prompt, until the engine has shown that they are its own.
    unconfirmed_prompt: Option<&'a [u32]>,
    /// Of the events in the next piece.
    ready: Vec<u32>,
    /// Of the events that wait for the end of the answer.
    held: Vec<u32>,
}

impl<'a> PieceIds<'a> {
    /// For an answer to a prompt of these tokens.
    pub(crate) fn new(prompt: &'a [u32]) -> Self {
        Self {
            unconfirmed_prompt: Some(prompt),
            ready: Vec::new(),
            held: Vec::new(),
        }
    }

    /// Whether the answer can be continued behind this event of an engine, whose lists are `lists`. `opens`: the event
    /// only opens the answer.
    pub(crate) fn admit(&mut self, event: &[u8], lists: &TokenLists, opens: bool) -> bool {
        static PARSED: LazyLock<[Finder<'static>; 5]> = LazyLock::new(|| {
            [
                "\"reasoning\":",
                "\"reasoning_content\":",
                "\"tool_calls\":",
                "\"function_call\":",
                // An engine's parser waits for more text.
                "\"delta\":{}",
            ]
            .map(Finder::new)
        });
        if let Some(shown) = &lists.prompt
            && let Some(own) = self.unconfirmed_prompt.take()
            && own != *shown
        {
            return false;
        }
        let is_parsed = PARSED.iter().any(|key| {
            key.find(event).is_some_and(|at| {
                let value = event[at + key.needle().len()..].trim_ascii_start();
                !value.starts_with(b"null")
            })
        });
        let is_known = self.unconfirmed_prompt.is_none() && (opens || lists.has_generated);
        is_known && !is_parsed
    }

    /// Takes the ids of an event that the client gets now, or at the end of the answer.
    pub(crate) fn push(&mut self, ids: &[u32], is_held: bool) {
        if is_held {
            self.held.extend_from_slice(ids);
        } else {
            self.ready.append(&mut self.held);
            self.ready.extend_from_slice(ids);
        }
    }

    /// The ids of the next piece.
    pub(crate) fn take(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.ready)
    }
}
