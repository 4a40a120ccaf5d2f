use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// Two ends of one direction, with what is under way between them.
struct Direction {
    sending: Sending,
    receiving: Receiving,
    data: VecDeque<(u64, usize)>,
    credit: VecDeque<u32>,
    arrived: VecDeque<usize>,
}

impl Direction {
    fn new() -> Self {
        Self {
            sending: Sending::new(WINDOW_BYTES),
            receiving: Receiving::new(),
            data: VecDeque::new(),
            credit: VecDeque::new(),
            arrived: VecDeque::new(),
        }
    }

    fn send(&mut self, payload: usize) -> bool {
        let room = self.sending.has_room();
        if room {
            self.sending.sent(payload);
            self.data.push_back((self.sending.next_number(), payload));
        }
        room
    }

    fn receive(&mut self) -> Result<bool, Broken> {
        let Some((number, payload)) = self.data.pop_front() else {
            return Ok(false);
        };
        self.receiving.take(number)?;
        self.receiving.take_data(payload)?;
        self.arrived.push_back(payload);
        Ok(true)
    }

    fn read(&mut self) -> bool {
        let Some(payload) = self.arrived.pop_front() else {
            return false;
        };
        self.receiving.read(payload);
        self.receiving.read_message();
        if self.receiving.owes_credit() {
            self.credit.push_back(self.receiving.take_credit());
        }
        true
    }

    fn take_credit(&mut self) -> bool {
        let credit = self.credit.pop_front();
        credit.into_iter().for_each(|bytes| self.sending.credit(bytes));
        credit.is_some()
    }

    fn under_way(&self) -> usize {
        let sent = self.data.iter().map(|(_, payload)| payload);
        sent.chain(&self.arrived)
            .map(|payload| cost(*payload) as usize)
            .sum()
    }
}

const LARGEST: usize = 256 << 10;

proptest! {
    /// However sending, arriving, reading and credit interleave: an honest sender breaks no rule, what is under way
    /// is bounded, and once everything is read there is room again.
    #[test]
    fn honest_sides_agree_and_never_stall(steps in prop::collection::vec((0..4u8, 0..LARGEST), 1..400)) {
        let mut direction = Direction::new();
        for (step, payload) in steps {
            match step {
                0 => { direction.send(payload); }
                1 => { direction.receive().unwrap(); }
                2 => { direction.read(); }
                _ => { direction.take_credit(); }
            }
            prop_assert!(direction.under_way() <= WINDOW_BYTES as usize + cost(LARGEST) as usize);
        }
        while direction.receive().unwrap() || direction.read() || direction.take_credit() {}
        prop_assert!(direction.send(1));
    }

    /// A message lost, repeated or overtaken is noticed at the first that arrives after it, or as it.
    #[test]
    fn any_other_order_is_noticed(messages in 2..50u64, at in 0..48usize, what in 0..3u8) {
        let mut numbers: Vec<u64> = (1..=messages).collect();
        let at = at % (numbers.len() - 1);
        match what {
            0 => { numbers.remove(at); }
            1 => numbers.insert(at, numbers[at]),
            _ => numbers.swap(at, at + 1),
        }
        let mut receiving = Receiving::new();
        let good = numbers.iter().take_while(|number| receiving.take(**number).is_ok()).count();
        prop_assert_eq!(good, if what == 1 { at + 1 } else { at });
    }
}

#[test]
fn a_sender_that_ignores_its_window_is_noticed() {
    let mut receiving = Receiving::new();
    let messages = (0..).take_while(|_| receiving.take_data(LARGEST).is_ok()).count();
    assert_eq!(
        messages, 4,
        "the last may pass the window, and none comes after it"
    );
    receiving.read(LARGEST);
    assert!(receiving.take_data(1).is_err(), "reading gives nothing by itself");
    receiving.take_credit();
    assert!(receiving.take_data(1).is_ok());
}

#[test]
fn credit_makes_no_larger_window_than_may_be() {
    let mut sending = Sending::new(u32::MAX);
    sending.credit(u32::MAX);
    assert_eq!(sending.window, MAX_WINDOW_BYTES);
}
