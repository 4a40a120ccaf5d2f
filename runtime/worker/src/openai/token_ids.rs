//! Takes the token ids, which `return_token_ids` brought into an answer, out of it again.
//!
//! vLLM writes `"token_ids":null` and `"prompt_token_ids":null` where it is not asked for them, so `null` in place of
//! each list gives the answer that the client would have received from the engine itself.

use std::{ops::Range, sync::LazyLock};

use memchr::memmem::Finder;

use super::json_members::value_length;

/// The lists of token ids in a part of an answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct TokenLists {
    /// Their places, in ascending order.
    places: Vec<Range<usize>>,
    /// The tokens of the prompt, of the first list of such.
    pub(crate) prompt: Option<Vec<u32>>,
    /// The generated tokens.
    pub(crate) generated: Vec<u32>,
    /// Whether there is a list of generated tokens, be it empty.
    pub(crate) has_generated: bool,
}

impl TokenLists {
    /// Finds the lists in JSON text.
    pub(crate) fn find(text: &[u8]) -> Self {
        static GENERATED: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"token_ids\":"));
        static PROMPT: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"prompt_token_ids\":"));
        let mut lists = Self::default();
        for place in places_of(&GENERATED, text) {
            let ids: Vec<u32> = serde_json::from_slice(&text[place.clone()]).unwrap_or_default();
            lists.generated.extend(ids);
            lists.has_generated = true;
            lists.places.push(place);
        }
        for place in places_of(&PROMPT, text) {
            if lists.prompt.is_none() {
                lists.prompt = serde_json::from_slice(&text[place.clone()]).ok();
            }
            lists.places.push(place);
        }
        lists.places.sort_by_key(|place| place.start);
        lists
    }

    /// The text with `null` in place of each list; `None` if there is no list.
    pub(crate) fn without(&self, text: &[u8]) -> Option<Vec<u8>> {
        if self.places.is_empty() {
            return None;
        }
        let mut changed = Vec::with_capacity(text.len());
        let mut copied = 0;
        for place in &self.places {
            // Inside a list that is gone already.
            if place.start < copied {
                continue;
            }
            changed.extend_from_slice(&text[copied..place.start]);
            changed.extend_from_slice(b"null");
            copied = place.end;
        }
        changed.extend_from_slice(&text[copied..]);
        Some(changed)
    }
}

/// The places of the lists that are values of a key.
fn places_of(key: &Finder<'_>, text: &[u8]) -> impl Iterator<Item = Range<usize>> {
    key.find_iter(text).filter_map(|at| {
        let start = at + key.needle().len();
        let spaces = text[start..].iter().take_while(|byte| byte.is_ascii_whitespace());
        let start = start + spaces.count();
        let length = text[start..]
            .starts_with(b"[")
            .then(|| value_length(&text[start..]))??;
        Some(start..start + length)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_become_null_and_are_read() {
        let text = r#"{"choices":[{"token_ids":[5, 6],"t":"\"token_ids\":[1]"},{"token_ids":[]}],"prompt_token_ids":[1,2,3]}"#;
        let lists = TokenLists::find(text.as_bytes());
        assert_eq!(
            (&lists.generated[..], lists.prompt.as_deref()),
            (&[5, 6][..], Some(&[1, 2, 3][..]))
        );
        let without = String::from_utf8(lists.without(text.as_bytes()).unwrap()).unwrap();
        assert_eq!(
            without,
            r#"{"choices":[{"token_ids":null,"t":"\"token_ids\":[1]"},{"token_ids":null}],"prompt_token_ids":null}"#
        );
    }

    #[test]
    fn a_list_inside_another_goes_with_it() {
        let text = r#"{"token_ids":[{"prompt_token_ids":[1],"token_ids":[2]}],"x":3}"#;
        let without = TokenLists::find(text.as_bytes()).without(text.as_bytes());
        assert_eq!(without.unwrap(), br#"{"token_ids":null,"x":3}"#);
    }

    #[test]
    fn text_without_lists_is_left_alone() {
        for text in ["", "{\"token_ids\":null}", "\"token_ids\":", "\"token_ids\":[1"] {
            assert_eq!(
                TokenLists::find(text.as_bytes()).without(text.as_bytes()),
                None,
                "{text}"
            );
        }
    }
}
