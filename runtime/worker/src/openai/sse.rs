//! Cuts a stream of server-sent events into whole events.
//!
//! Format: <https://html.spec.whatwg.org/multipage/server-sent-events.html>. Lines end with LF or CR LF, and an empty
//! line ends an event. Engines next door write no lone CR.

use memchr::memchr;

/// Longest event. A `data:` line can carry the log probabilities of many tokens, or a whole tool call.
pub(crate) const MAX_EVENT_BYTES: usize = 4 << 20;

/// An event is longer than [`MAX_EVENT_BYTES`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct EventTooLong;

/// Holds the bytes of events that have not ended.
#[derive(Debug, Default)]
pub(crate) struct EventSplitter {
    buffer: Vec<u8>,
    /// The start of the first event that was not returned.
    start: usize,
    /// Everything before it was searched for the end of that event.
    searched: usize,
}

impl EventSplitter {
    /// Adds bytes as they arrived.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), EventTooLong> {
        self.buffer.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        if self.buffer.len() + bytes.len() > MAX_EVENT_BYTES {
            return Err(EventTooLong);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// The next whole event, with the empty line that ends it.
    pub(crate) fn next_event(&mut self) -> Option<&[u8]> {
        loop {
            let line_end = self.searched + memchr(b'\n', &self.buffer[self.searched..])?;
            let after = &self.buffer[line_end + 1..];
            let blank = match after {
                [b'\n', ..] => 1,
                [b'\r', b'\n', ..] => 2,
                // The bytes that decide have not arrived.
                [] | [b'\r'] => {
                    self.searched = line_end;
                    return None;
                }
                _ => {
                    self.searched = line_end + 1;
                    continue;
                }
            };
            let event = self.start..line_end + 1 + blank;
            self.start = event.end;
            self.searched = event.end;
            return Some(&self.buffer[event]);
        }
    }

    /// The bytes of an event that has not ended.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.buffer[self.start..]
    }
}

/// The place of the first `data:` line's content in an event; `None` for comments and events without data.
pub(crate) fn data_of(event: &[u8]) -> Option<std::ops::Range<usize>> {
    let mut start = 0;
    loop {
        let line = &event[start..];
        let end = start + memchr(b'\n', line)?;
        if line.starts_with(b"data:") {
            let content = start + 5 + usize::from(line.get(5) == Some(&b' '));
            let end = end - usize::from(event[end - 1] == b'\r');
            return Some(content..end.max(content));
        }
        start = end + 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events(pieces: &[&[u8]]) -> (Vec<String>, String) {
        let (mut splitter, mut events) = (EventSplitter::default(), Vec::new());
        for piece in pieces {
            splitter.push(piece).unwrap();
            while let Some(event) = splitter.next_event() {
                events.push(String::from_utf8_lossy(event).into_owned());
            }
        }
        (events, String::from_utf8_lossy(splitter.rest()).into_owned())
    }

    #[test]
    fn an_event_ends_with_an_empty_line() {
        let (whole, rest) = events(&[b"data: 1\n\nevent: x\r\ndata: 2\r\n\r\n: c\n", b"\ndata: 3\n"]);
        assert_eq!(whole, ["data: 1\n\n", "event: x\r\ndata: 2\r\n\r\n", ": c\n\n"]);
        assert_eq!(rest, "data: 3\n");
    }

    #[test]
    fn data_is_found_behind_other_lines() {
        let data = |event: &'static str| data_of(event.as_bytes()).map(|place| &event[place]);
        assert_eq!(data("data: {}\n\n"), Some("{}"));
        assert_eq!(data("data:{}\r\n\r\n"), Some("{}"));
        assert_eq!(data("event: e\nid: 1\ndata: x \n\n"), Some("x "));
        assert_eq!(data("data:\n\n"), Some(""));
        assert_eq!(data("data:\r\n\r\n"), Some(""));
        assert_eq!(data(": keep-alive\n\n"), None);
    }

    #[test]
    fn an_event_without_an_end_is_refused_at_the_bound() {
        let mut splitter = EventSplitter::default();
        let megabyte = vec![b'x'; 1 << 20];
        for _ in 0..4 {
            splitter.push(&megabyte).unwrap();
            assert!(splitter.next_event().is_none());
        }
        assert_eq!(splitter.push(b"x"), Err(EventTooLong));
    }

    proptest! {
        #[test]
        fn the_cuts_of_the_network_change_nothing(
            text in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b'a')], 0..60),
            cuts in prop::collection::vec(0..60_usize, 0..6),
        ) {
            let mut places: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            places.extend([0, text.len()]);
            places.sort_unstable();
            let pieces: Vec<&[u8]> = places.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            let (cut, whole) = (events(&pieces), events(&[&text]));
            prop_assert_eq!(&cut, &whole);
            prop_assert_eq!(cut.0.concat() + &cut.1, String::from_utf8(text).unwrap());
        }
    }
}
