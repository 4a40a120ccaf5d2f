//! Finds stop texts across token boundaries.

/// Finds stop texts in text that arrives piece by piece. Text that may be the beginning of a stop text is held back.
#[derive(Debug, Default)]
pub struct StopMatcher {
    stops: Vec<String>,
}

/// The result of a scan for stop texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopScan {
    /// This many bytes, from the first on, belong to the answer. The rest may be the beginning of a stop text.
    Emit(usize),
    /// A stop text begins at byte `start`. The answer ends before it.
    Stop {
        /// Where it begins.
        start: usize,
        /// Its place among the stop texts.
        index: usize,
    },
}

impl StopMatcher {
    /// The stop text at this place, as [`StopScan::Stop`] gives it.
    pub fn stop_text(&self, index: usize) -> &str {
        self.stops.get(index).map_or("", String::as_str)
    }

    /// A matcher for `stops`. Empty texts are ignored.
    pub fn new(stops: &[String]) -> Self {
        Self {
            stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(),
        }
    }

    /// Scans `pending`: the text held back so far and the text that arrived since. The stop text whose end comes first
    /// wins, so that the result does not depend on how the text was split into pieces.
    /// A text that ends within the first `unchecked` bytes does not count.
    pub fn scan(&self, pending: &str, unchecked: usize) -> StopScan {
        let matches = self.stops.iter().enumerate().filter_map(|(index, stop)| {
            let from = (unchecked + 1).saturating_sub(stop.len());
            // A match begins with the first byte of a character, so it is one of whole characters.
            let start = from + memchr::memmem::find(pending.as_bytes().get(from..)?, stop.as_bytes())?;
            Some((start + stop.len(), start, index))
        });
        if let Some((_, start, index)) = matches.min() {
            return StopScan::Stop { start, index };
        }
        let held_back = self
            .stops
            .iter()
            .map(|stop| partial_match(pending, stop))
            .max()
            .unwrap_or(0);
        StopScan::Emit(pending.len() - held_back)
    }
}

/// Length in bytes of the longest suffix of `text` that is a proper prefix of `stop`.
pub(super) fn partial_match(text: &str, stop: &str) -> usize {
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

    /// The text emitted for `pieces`, and whether a stop text ended it.
    fn emit(matcher: &StopMatcher, pieces: &[&str]) -> (String, bool) {
        let (mut emitted, mut pending) = (String::new(), String::new());
        for piece in pieces {
            pending.push_str(piece);
            match matcher.scan(&pending, 0) {
                StopScan::Emit(length) => emitted.extend(pending.drain(..length)),
                StopScan::Stop { start, .. } => return (emitted + &pending[..start], true),
            }
        }
        (emitted + &pending, false)
    }

    #[test]
    fn a_stop_text_over_two_tokens_is_found_and_not_emitted() {
        let stops = matcher(&["\n\nUser:", ""]);
        assert_eq!(stops.scan("Hi.\n", 0), StopScan::Emit(3));
        assert_eq!(emit(&stops, &["Hi.\n", "\nUs", "er: more"]), ("Hi.".into(), true));
        assert_eq!(
            emit(&stops, &["Hi.\n", "\nUs", "ual"]),
            ("Hi.\n\nUsual".into(), false)
        );
    }

    #[test]
    fn the_stop_text_that_ends_first_wins() {
        let first = |stops: &[&str], text| matcher(stops).scan(text, 0);
        assert_eq!(
            first(&["abcd", "c"], "abcd"),
            StopScan::Stop { start: 2, index: 1 }
        );
        assert_eq!(
            first(&["bc", "abc"], "abc"),
            StopScan::Stop { start: 0, index: 1 }
        );
    }

    #[test]
    fn a_stop_text_counts_only_if_it_ends_behind_the_unchecked_text() {
        let stops = matcher(&["aba"]);
        assert_eq!(
            stops.scan("xabab", 4),
            StopScan::Emit(3),
            "the end may begin another one"
        );
        assert_eq!(stops.scan("xababa", 4), StopScan::Stop { start: 3, index: 0 });
        assert_eq!(stops.scan("xaba", 3), StopScan::Stop { start: 1, index: 0 });
        assert_eq!(stops.scan("xaba", 9), StopScan::Emit(3));
    }

    #[test]
    fn characters_are_never_split() {
        // "é" and "è" share their first byte.
        assert_eq!(emit(&matcher(&["è!"]), &["né", "e"]), ("née".into(), false));
    }

    proptest! {
        #[test]
        fn the_result_does_not_depend_on_how_the_text_is_split(
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            pieces in prop::collection::vec("[abcé]{0,3}", 0..12),
        ) {
            let stops = StopMatcher::new(&stops);
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let whole = pieces.concat();
            let characters: Vec<String> = whole.chars().map(String::from).collect();
            let characters: Vec<&str> = characters.iter().map(String::as_str).collect();
            prop_assert_eq!(emit(&stops, &pieces), emit(&stops, &characters));
            prop_assert_eq!(emit(&stops, &pieces), emit(&stops, &[&whole]));
        }
    }
}
