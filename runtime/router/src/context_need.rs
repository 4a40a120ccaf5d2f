//! How much context a request needs of the worker that takes it.
//!
//! The workers of a model may have different context lengths. A prompt goes to a worker whose context it fits, with room for
//! the answer, and is refused only if it fits none.

use signalbox_protocol::WorkerCard;

use crate::route_request::RouteRequest;

/// Room, in tokens, that an answer gets if the client sets no limit and a worker has that room. Few answers are longer.
const ORDINARY_ANSWER: u32 = 1_024;

/// What a request needs of a worker's context, in tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ContextNeed {
    /// A worker with less refuses the request.
    pub(crate) least: u32,
    /// With this much, the answer can be as long as the client asks for, or of ordinary length.
    pub(crate) wanted: u32,
    /// Whether the client asks for that length: the request then rather waits for a worker that has it than takes a worker
    /// with less.
    pub(crate) is_limit_set: bool,
}

impl ContextNeed {
    /// The need of a request at workers whose engines read clients' bodies themselves, or do not. Contexts up to `too_short`
    /// have proved too short for it.
    pub(crate) fn of(request: &RouteRequest, reads_body: bool, too_short: u32) -> Self {
        let generate = &request.generate;
        if !generate.format.endpoint.generates() {
            return Self::default();
        }
        let (prompt, limit) = (prompt_tokens(request), generate.sampling.max_tokens);
        let is_limit_set = request.max_output_tokens.is_some();
        let answer = if is_limit_set {
            limit
        } else {
            limit.min(ORDINARY_ANSWER)
        };
        let mut least = too_short.saturating_add(1);
        if !request.tokens.is_empty() {
            least = least.max(count(request.tokens.len()).saturating_add(1));
        }
        if reads_body && is_limit_set {
            // An engine that reads the limit itself refuses one above its context.
            least = least.max(limit);
        }
        Self {
            least,
            wanted: least.max(prompt.saturating_add(answer)),
            is_limit_set,
        }
    }

    /// The context that a worker should have, where the longest is `longest`.
    pub(crate) fn among(self, longest: u32) -> u32 {
        self.wanted.min(longest).max(self.least)
    }
}

/// The limit of an answer at this worker: the request's, or what the prompt leaves of the worker's context.
pub(crate) fn answer_limit(request: &RouteRequest, card: &WorkerCard) -> u32 {
    let limit = request.generate.sampling.max_tokens;
    if request.tokens.is_empty() {
        return limit;
    }
    let room = card.context_length.saturating_sub(prompt_tokens(request));
    limit.min(room.max(1))
}

/// The tokens of the prompt, or about how many it has; without those of an answer that is continued.
fn prompt_tokens(request: &RouteRequest) -> u32 {
    if request.tokens.is_empty() {
        return request.unhashed_tokens;
    }
    let continuation = request.generate.continuation.as_ref();
    let delivered = continuation.map_or(0, |continuation| continuation.delivered_tokens);
    count(request.tokens.len()).saturating_sub(delivered)
}

fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use signalbox_protocol::{Continuation, Endpoint};

    use super::*;
    use crate::test_support::{PATIENCE, card, request};

    /// A request with a prompt of 40 tokens.
    fn asking(max_tokens: u32, limits_answer: bool) -> RouteRequest {
        let mut request = request(PATIENCE);
        request.generate.sampling.max_tokens = max_tokens;
        request.max_output_tokens = limits_answer.then_some(max_tokens);
        request
    }

    fn need(request: &RouteRequest) -> (u32, u32) {
        let need = ContextNeed::of(request, false, 0);
        (need.least, need.wanted)
    }

    #[test]
    fn a_prompt_needs_room_for_itself_and_wants_room_for_its_answer() {
        assert_eq!(need(&asking(100, true)), (41, 140));
        assert_eq!(need(&asking(100, false)), (41, 140));
        assert_eq!(need(&asking(30_000, true)), (41, 30_040));
        assert_eq!(need(&asking(30_000, false)), (41, 40 + ORDINARY_ANSWER));
    }

    #[test]
    fn an_engine_that_reads_the_limit_needs_a_context_of_that_length() {
        let need = ContextNeed::of(&asking(500, true), true, 0);
        assert_eq!((need.least, need.wanted), (500, 540));
        assert_eq!(ContextNeed::of(&asking(500, false), true, 0).least, 41);
    }

    #[test]
    fn a_prompt_of_unknown_length_may_go_anywhere_that_has_not_refused_it() {
        let mut unknown = asking(100, true);
        unknown.tokens.clear();
        unknown.unhashed_tokens = 300;
        assert_eq!(need(&unknown), (1, 400));
        let refused = ContextNeed::of(&unknown, false, 2_048);
        assert_eq!((refused.least, refused.wanted), (2_049, 2_049));
        unknown.generate.format.endpoint = Endpoint::Embeddings;
        assert_eq!(ContextNeed::of(&unknown, true, 0), ContextNeed::default());
    }

    #[test]
    fn the_longest_context_bounds_what_is_wanted_and_not_what_is_needed() {
        let need = ContextNeed::of(&asking(1_000, true), false, 0);
        assert_eq!(
            [2_000, 1_040, 500, 41, 40].map(|longest| need.among(longest)),
            [1_040, 1_040, 500, 41, 41]
        );
    }

    #[test]
    fn the_limit_at_a_worker_is_what_the_prompt_leaves_of_its_context() {
        let card = card("a", 1);
        assert_eq!(answer_limit(&asking(100, true), &card), 100);
        assert_eq!(answer_limit(&asking(5_000, true), &card), 1_024 - 40);
        let mut continued = asking(5_000, true);
        continued.generate.continuation = Some(Continuation {
            delivered_tokens: 10,
            first_piece: String::new(),
        });
        // 30 of the 40 tokens are the prompt's: the limit counts the whole answer.
        assert_eq!(answer_limit(&continued, &card), 1_024 - 30);
        assert_eq!(need(&continued), (41, 5_030));
    }
}
