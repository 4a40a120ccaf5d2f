use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// The two ends of one direction, with the messages in flight between them.
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

    fn in_flight(&self) -> usize {
        let sent = self.data.iter().map(|(_, payload)| payload);
        sent.chain(&self.arrived)
            .map(|payload| cost(*payload) as usize)
            .sum()
    }
}

const LARGEST: usize = 256 << 10;

proptest! {
    /// For any interleaving of sends, arrivals, reads and credit: a correct sender breaks no rule, the bytes in flight are
    /// bounded, and once everything is read the window has room again.
    #[test]
    fn correct_sides_agree_and_never_stall(steps in prop::collection::vec((0..4u8, 0..LARGEST), 1..400)) {
        let mut direction = Direction::new();
        for (step, payload) in steps {
            match step {
                0 => { direction.send(payload); }
                1 => { direction.receive().unwrap(); }
                2 => { direction.read(); }
                _ => { direction.take_credit(); }
            }
            prop_assert!(direction.in_flight() <= WINDOW_BYTES as usize + cost(LARGEST) as usize);
        }
        while direction.receive().unwrap() || direction.read() || direction.take_credit() {}
        prop_assert!(direction.send(1));
    }

    /// A message lost, repeated or overtaken is noticed at the first message with a wrong number.
    #[test]
    fn any_other_order_is_noticed(messages in 2..50u64, index in 0..48usize, fault in 0..3u8) {
        let mut numbers: Vec<u64> = (1..=messages).collect();
        let index = index % (numbers.len() - 1);
        match fault {
            0 => { numbers.remove(index); }
            1 => numbers.insert(index, numbers[index]),
            _ => numbers.swap(index, index + 1),
        }
        let mut receiving = Receiving::new();
        let accepted = numbers.iter().take_while(|number| receiving.take(**number).is_ok()).count();
        prop_assert_eq!(accepted, if fault == 1 { index + 1 } else { index });
    }
}

#[test]
fn a_sender_that_ignores_its_window_is_noticed() {
    let mut receiving = Receiving::new();
    let messages = (0..).take_while(|_| receiving.take_data(LARGEST).is_ok()).count();
    assert_eq!(
        messages, 4,
        "the last message may pass the window, and none may follow it"
    );
    receiving.read(LARGEST);
    assert!(
        receiving.take_data(1).is_err(),
        "only credit gives window, not the read itself"
    );
    receiving.take_credit();
    assert!(receiving.take_data(1).is_ok());
}

#[test]
fn credit_never_raises_the_window_above_its_maximum() {
    let mut sending = Sending::new(u32::MAX);
    sending.credit(u32::MAX);
    assert_eq!(sending.window, MAX_WINDOW_BYTES);
}
