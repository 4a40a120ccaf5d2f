//! Stop texts, found across token boundaries.

/// Looks for stop texts in text that arrives piece by piece. Text that may yet become one is held back.
#[derive(Debug, Default)]
pub struct StopMatcher {
    stops: Vec<String>,
}

/// What may be said of the text so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopVerdict {
    /// The first so many bytes are certain to be part of the answer; the rest may be the beginning of a stop text.
    Say(usize),
    /// A stop text begins at this byte: the answer ends before it.
    Stop(usize),
}

impl StopMatcher {
    /// Empty texts are no stop texts.
    pub fn new(stops: &[String]) -> Self {
        Self {
            stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(),
        }
    }

    /// Judges `pending`: what was held back before, and what came since. The stop text that is complete first wins,
    /// so that the verdict does not depend on how the text was cut into pieces.
    pub fn judge(&self, pending: &str) -> StopVerdict {
        let found = self
            .stops
            .iter()
            .filter_map(|stop| pending.find(stop.as_str()).map(|at| (at + stop.len(), at)));
        if let Some((_, at)) = found.min() {
            return StopVerdict::Stop(at);
        }
        let held = self
            .stops
            .iter()
            .map(|stop| held_back(pending, stop))
            .max()
            .unwrap_or(0);
        StopVerdict::Say(pending.len() - held)
    }
}

/// Length of the longest end of `text` that is a beginning of `stop`.
fn held_back(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len().saturating_sub(1));
    (1..=longest)
        .rev()
        .find(|length| text.as_bytes().ends_with(&stop.as_bytes()[..*length]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matcher(stops: &[&str]) -> StopMatcher {
        StopMatcher::new(&stops.iter().map(|stop| (*stop).to_owned()).collect::<Vec<_>>())
    }

    /// What is said of text that comes in `pieces`, and whether it was stopped.
    fn say(matcher: &StopMatcher, pieces: &[&str]) -> (String, bool) {
        let (mut said, mut pending) = (String::new(), String::new());
        for piece in pieces {
            pending.push_str(piece);
            match matcher.judge(&pending) {
                StopVerdict::Say(length) => said.extend(pending.drain(..length)),
                StopVerdict::Stop(at) => return (said + &pending[..at], true),
            }
        }
        (said + &pending, false)
    }

    #[test]
    fn a_stop_text_over_two_tokens_is_found_and_not_said() {
        let stops = matcher(&["\n\nUser:", ""]);
        assert_eq!(stops.judge("Hi.\n"), StopVerdict::Say(3));
        assert_eq!(say(&stops, &["Hi.\n", "\nUs", "er: more"]), ("Hi.".into(), true));
        assert_eq!(
            say(&stops, &["Hi.\n", "\nUs", "ual"]),
            ("Hi.\n\nUsual".into(), false)
        );
    }

    #[test]
    fn the_stop_text_that_is_complete_first_wins() {
        assert_eq!(matcher(&["abcd", "c"]).judge("abcd"), StopVerdict::Stop(2));
        assert_eq!(matcher(&["bc", "abc"]).judge("abc"), StopVerdict::Stop(0));
    }

    #[test]
    fn characters_are_never_cut() {
        // "é" and "è" share their first byte.
        assert_eq!(say(&matcher(&["è!"]), &["né", "e"]), ("née".into(), false));
    }

    proptest! {
        #[test]
        fn how_the_text_is_cut_does_not_matter(
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            pieces in prop::collection::vec("[abcé]{0,3}", 0..12),
        ) {
            let stops = StopMatcher::new(&stops);
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let whole = pieces.concat();
            let characters: Vec<String> = whole.chars().map(String::from).collect();
            let characters: Vec<&str> = characters.iter().map(String::as_str).collect();
            prop_assert_eq!(say(&stops, &pieces), say(&stops, &characters));
            prop_assert_eq!(say(&stops, &pieces), say(&stops, &[&whole]));
        }
    }
}
