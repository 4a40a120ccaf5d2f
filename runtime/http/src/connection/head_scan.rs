//! Finds the end of a request's head among the bytes that arrive, and line feeds without a carriage return before it.

use memchr::memchr_iter;

/// A head of which a part has arrived. It holds no bytes.
#[derive(Debug, Default)]
pub(super) struct HeadScan {
    /// Bytes of the line that is not complete yet.
    line_bytes: usize,
    /// The last byte that arrived is a carriage return.
    after_return: bool,
    /// A line with content has arrived. Empty lines before it are no end: the library skips them.
    has_begun: bool,
    is_complete: bool,
}

/// What is known after some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scanned {
    Incomplete,
    /// The head is complete. Bytes behind it, and later ones, are not looked at.
    Complete {
        /// There are such bytes.
        has_more: bool,
    },
    /// A line ends with a line feed alone.
    BareLineFeed,
}

impl HeadScan {
    /// Whether a part of the head has arrived.
    pub(super) fn has_bytes(&self) -> bool {
        self.has_begun || self.line_bytes > 0
    }

    /// Looks at the next bytes.
    pub(super) fn scan(&mut self, bytes: &[u8]) -> Scanned {
        if self.is_complete {
            return Scanned::Complete {
                has_more: !bytes.is_empty(),
            };
        }
        let mut line_start = 0;
        for end in memchr_iter(b'\n', bytes) {
            let returns = match end.checked_sub(1) {
                Some(before) => bytes[before] == b'\r',
                None => self.after_return,
            };
            if !returns {
                return Scanned::BareLineFeed;
            }
            let content = self.line_bytes + (end - line_start) - 1;
            self.line_bytes = 0;
            line_start = end + 1;
            if content > 0 {
                self.has_begun = true;
            } else if self.has_begun {
                self.is_complete = true;
                return Scanned::Complete {
                    has_more: line_start < bytes.len(),
                };
            }
        }
        self.line_bytes += bytes.len() - line_start;
        if let Some(last) = bytes.last() {
            self.after_return = *last == b'\r';
        }
        Scanned::Incomplete
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The result after `bytes`, which arrive in pieces that end at `cuts`.
    fn scan(bytes: &[u8], cuts: &[usize]) -> Scanned {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let mut scan = HeadScan::default();
        let mut has_more = false;
        for piece in cuts.windows(2) {
            match scan.scan(&bytes[piece[0]..piece[1]]) {
                Scanned::Incomplete => {}
                Scanned::BareLineFeed => return Scanned::BareLineFeed,
                Scanned::Complete { has_more: more } => has_more |= more,
            }
        }
        if scan.is_complete {
            Scanned::Complete { has_more }
        } else {
            Scanned::Incomplete
        }
    }

    proptest! {
        #[test]
        fn the_pieces_in_which_a_head_arrives_make_no_difference(
            lines in prop::collection::vec("[a-z: ]{0,6}(\r\n|\n|\r|)", 0..12),
            cuts in prop::collection::vec(any::<usize>(), 0..12),
        ) {
            let bytes = lines.concat().into_bytes();
            prop_assert_eq!(scan(&bytes, &cuts), scan(&bytes, &[]));
        }
    }

    #[test]
    fn a_head_is_complete_at_its_empty_line() {
        let head = b"POST / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(scan(head, &[]), Scanned::Complete { has_more: false });
        assert_eq!(scan(&head[..head.len() - 1], &[]), Scanned::Incomplete);
        assert_eq!(scan(b"\r\n\r\nGET / HTTP/1.1\r\n", &[]), Scanned::Incomplete);
        let body = [&head[..], b"a\nb"].concat();
        assert_eq!(
            scan(&body, &[]),
            Scanned::Complete { has_more: true },
            "bodies may have any line feed"
        );
    }

    #[test]
    fn a_bare_line_feed_is_found_wherever_a_piece_ends() {
        for head in [
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\n",
            "\nGET / HTTP/1.1\r\n\r\n",
        ] {
            for cut in 0..head.len() {
                assert_eq!(
                    scan(head.as_bytes(), &[cut]),
                    Scanned::BareLineFeed,
                    "{head:?} {cut}"
                );
            }
        }
    }
}
