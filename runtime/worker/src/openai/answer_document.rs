//! Reads the token counts of an engine's JSON answer, and takes out what the adapter asked for.

use bytes::Bytes;
use signalbox_protocol::StreamSummary;

use super::{json_members::JsonMembers, request_body::Added, token_ids::TokenLists, usage::Usage};

/// A whole answer of an engine.
#[derive(Debug)]
pub(crate) struct AnswerDocument {
    /// The bytes for the client.
    pub(crate) body: Bytes,
    /// The token counts; 0 where the engine reports none.
    pub(crate) summary: StreamSummary,
    /// Tokens that the engine took from its KV cache; `None` if it does not report them.
    pub(crate) cached_tokens: Option<u32>,
    /// The engine's tokens of the prompt, if they were asked for.
    pub(crate) prompt_ids: Option<Vec<u32>>,
}

impl AnswerDocument {
    /// Reads the body of an answer to a request to which `added` was added. A body that is no JSON object passes as it
    /// is.
    pub(crate) fn read(body: Bytes, added: Added) -> Self {
        let usage = JsonMembers::find(&body)
            .and_then(|members| members.get("usage"))
            .and_then(Usage::read)
            .unwrap_or_default();
        let lists = match added.token_ids {
            true => TokenLists::find(&body),
            false => TokenLists::default(),
        };
        let edited = lists.without(&body).map(Bytes::from);
        let prompt_ids = lists.prompt;
        let prompt_tokens = prompt_ids.as_ref().map_or(0, |ids: &Vec<u32>| ids.len() as u32);
        Self {
            summary: usage.summary(prompt_tokens, 0),
            cached_tokens: usage.cached_tokens(),
            prompt_ids,
            body: edited.unwrap_or(body),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = include_str!("captures/chat-plain.txt");
    const WITH_IDS: &str = include_str!("captures/chat-return-token-ids.txt");

    fn read(text: &str, token_ids: bool) -> AnswerDocument {
        let added = Added {
            token_ids,
            usage: false,
            continuable: false,
        };
        AnswerDocument::read(Bytes::copy_from_slice(text.trim_end().as_bytes()), added)
    }

    #[test]
    fn the_answer_is_the_one_without_token_ids() {
        let (asked, plain) = (read(WITH_IDS, true), read(PLAIN, true));
        let after_id = |body: &Bytes| {
            let text = String::from_utf8(body.to_vec()).unwrap();
            text[text.find("\"model\"").unwrap()..].to_owned()
        };
        assert_eq!(after_id(&asked.body), after_id(&plain.body));
        assert_eq!(asked.prompt_ids.unwrap().len(), 26);
        assert_eq!(plain.prompt_ids, None);
        assert_eq!(
            (asked.summary.prompt_tokens, asked.summary.completion_tokens),
            (26, 12)
        );
        assert_eq!(asked.cached_tokens, Some(0));
    }

    #[test]
    fn an_answer_to_which_nothing_was_added_passes_as_it_is() {
        assert_eq!(read(WITH_IDS, false).body, WITH_IDS.trim_end());
        assert_eq!(read("[1, 2", true).body, "[1, 2");
        let embeddings = r#"{"data":[{"embedding":[0.1]}],"usage":{"prompt_tokens":3,"total_tokens":3}}"#;
        let document = read(embeddings, false);
        assert_eq!(
            (document.summary.prompt_tokens, document.cached_tokens),
            (3, None)
        );
    }
}
