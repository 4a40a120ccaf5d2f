//! What can be broken at a running fake engine.

/// The faults of a fake engine, all off at first. They can be changed at any time and take effect on the next batch of
/// events, token or request.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// KV events are no longer published, as if the engine's publisher thread had ended. Replay has none of them either.
    pub events_stopped: bool,
    /// This many batches of events are numbered and can be asked for again, but are not sent.
    pub batches_not_sent: u32,
    /// This many batches of events are numbered, and neither sent nor available for replay.
    pub batches_lost: u32,
    /// Every batch is sent twice under its number, and every stored block is reported twice in it.
    pub events_doubled: bool,
    /// How each stream of tokens goes wrong.
    pub stream: Option<StreamFault>,
    /// The status that every generation is refused with, in place of an answer.
    pub refused_with: Option<u16>,
    /// No generation is answered: its connection stays open without a byte. Health checks are answered.
    pub silent: bool,
    /// How many times as long each step takes; 0 and 1 change nothing.
    pub slowed_by: u32,
}

/// A stream that goes wrong after `after` generated tokens.
#[derive(Debug, Clone, Copy)]
pub struct StreamFault {
    /// Generated tokens that are still sent.
    pub after: usize,
    /// What happens then.
    pub kind: StreamFaultKind,
}

/// How a stream goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamFaultKind {
    /// An `error` object, and then the polite end `[DONE]`: what vLLM sends when its engine process dies.
    ErrorThenDone,
    /// The end `[DONE]`, without a finish reason.
    NoFinishReason,
    /// The connection is reset.
    Reset,
    /// Nothing is sent any more, and the connection stays open.
    Silence,
}
