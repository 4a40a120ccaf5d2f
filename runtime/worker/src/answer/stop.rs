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
    /// A stop text begins at this byte. The answer ends before it.
    Stop(usize),
}

impl StopMatcher {
    /// A matcher for `stops`. Empty texts are ignored.
    pub fn new(stops: &[String]) -> Self {
        Self {
            stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(),
        }
    }

    /// Scans `pending`: the text held back so far and the text that arrived since. The stop text whose end comes first
    /// wins, so that the result does not depend on how the text was split into pieces.
    pub fn scan(&self, pending: &str) -> StopScan {
        let matches = self.stops.iter().filter_map(|stop| {
            let start = pending.find(stop.as_str())?;
            Some((start + stop.len(), start))
        });
        if let Some((_, start)) = matches.min() {
            return StopScan::Stop(start);
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
fn partial_match(text: &str, stop: &str) -> usize {
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
            match matcher.scan(&pending) {
                StopScan::Emit(length) => emitted.extend(pending.drain(..length)),
                StopScan::Stop(start) => return (emitted + &pending[..start], true),
            }
        }
        (emitted + &pending, false)
    }

    #[test]
    fn a_stop_text_over_two_tokens_is_found_and_not_emitted() {
        let stops = matcher(&["\n\nUser:", ""]);
        assert_eq!(stops.scan("Hi.\n"), StopScan::Emit(3));
        assert_eq!(emit(&stops, &["Hi.\n", "\nUs", "er: more"]), ("Hi.".into(), true));
        assert_eq!(
            emit(&stops, &["Hi.\n", "\nUs", "ual"]),
            ("Hi.\n\nUsual".into(), false)
        );
    }

    #[test]
    fn the_stop_text_that_ends_first_wins() {
        assert_eq!(matcher(&["abcd", "c"]).scan("abcd"), StopScan::Stop(2));
        assert_eq!(matcher(&["bc", "abc"]).scan("abc"), StopScan::Stop(0));
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
