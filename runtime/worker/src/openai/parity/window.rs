//! Which of the last eight requests were right.

/// How many requests are remembered.
const LENGTH: u32 = 8;

/// The outcomes of the last eight requests.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Window {
    /// A bit for each outcome, the latest lowest; 1 is bad.
    bad: u8,
    seen: u32,
}

impl Window {
    pub(super) fn add(&mut self, is_good: bool) {
        self.bad = self.bad << 1 | u8::from(!is_good);
        self.seen = (self.seen + 1).min(LENGTH);
    }

    /// How many outcomes there are, at most eight.
    pub(super) fn seen(self) -> u32 {
        self.seen
    }

    /// How many of them are bad.
    pub(super) fn bad(self) -> u32 {
        self.bad.count_ones()
    }

    /// How many of the latest were good before one was bad.
    pub(super) fn good_in_a_row(self) -> u32 {
        self.bad.trailing_zeros().min(self.seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_outcomes_are_forgotten() {
        let mut window = Window::default();
        assert_eq!((window.seen(), window.bad(), window.good_in_a_row()), (0, 0, 0));
        window.add(false);
        assert_eq!((window.seen(), window.bad(), window.good_in_a_row()), (1, 1, 0));
        for good in 1..8 {
            window.add(true);
            assert_eq!((window.bad(), window.good_in_a_row()), (1, good));
        }
        window.add(true);
        assert_eq!((window.seen(), window.bad(), window.good_in_a_row()), (8, 0, 8));
    }
}
