use bytes::Bytes;
use proptest::prelude::*;

use super::{
    replaying::{ANSWER_TIMEOUT, ATTEMPTS, REPLAY_TIMEOUT},
    waiting::{MAX_WAITING, MAX_WAITING_BYTES},
    *,
};

/// The batch of this number of the engine's first process.
fn batch(number: u64) -> Numbered {
    of_process(1, number)
}

/// The batch of this number of the engine's nth process.
fn of_process(process: u64, number: u64) -> Numbered {
    Numbered {
        number,
        payload: Bytes::from(format!("{process}/{number}")),
    }
}

fn answer(number: u64) -> ReplayAnswer {
    ReplayAnswer::Batch(batch(number))
}

fn apply(number: u64) -> Action {
    Action::Apply(batch(number))
}

use Action::{Forget, Replay as Ask, Restart, StopReplay};
use ReplayAnswer::End;

/// Connected at `now`, with the batches before `next` applied.
fn live_until(next: u64, now: Instant) -> Order {
    let mut order = Order::new(true, now);
    assert_eq!(order.connected(now), [Ask { from: 0 }]);
    for number in 0..next {
        assert_eq!(order.replayed(answer(number), now), [apply(number)]);
    }
    assert_eq!(order.replayed(End, now), []);
    assert!(order.is_current());
    order
}

#[test]
fn the_first_connection_replays_all_and_goes_on_live() {
    let now = Instant::now();
    let mut order = Order::new(true, now);
    assert_eq!(order.replay(), Replay::Untried);
    assert_eq!(order.connected(now), [Ask { from: 0 }]);
    assert_eq!(order.live(batch(2), now), [], "held until the replay ends");
    assert_eq!(order.live(batch(3), now), []);
    assert!(!order.is_current());
    for number in 0..3 {
        assert_eq!(order.replayed(answer(number), now), [apply(number)]);
    }
    assert_eq!(order.replayed(End, now), [apply(3)], "2 was replayed, 3 was not");
    assert!(order.is_current());
    assert_eq!(order.live(batch(4), now), [apply(4)]);
    assert_eq!(order.live(batch(4), now), [], "a duplicate");
    assert_eq!(order.replay(), Replay::Available);
    assert_eq!((order.gaps(), order.unfilled_gaps(), order.restarts()), (0, 0, 0));
}

#[test]
fn what_is_no_longer_retained_stays_unknown() {
    let now = Instant::now();
    let mut order = Order::new(true, now);
    order.connected(now);
    assert_eq!(order.replayed(answer(5), now), [Forget, apply(5)]);
    assert_eq!(order.replayed(answer(6), now), [apply(6)]);
    assert_eq!(order.replayed(End, now), []);
    assert_eq!(order.live(batch(7), now), [apply(7)]);
}

#[test]
fn an_engine_that_has_sent_nothing_is_known_from_its_first_batch_on() {
    let now = Instant::now();
    let mut order = live_until(0, now);
    assert_eq!(order.live(batch(0), now), [apply(0)]);
}

#[test]
fn without_replay_a_gap_and_a_new_connection_lose_all() {
    let now = Instant::now();
    let mut order = Order::new(false, now);
    assert_eq!(order.replay(), Replay::NotConfigured);
    assert_eq!(order.connected(now), []);
    assert!(!order.is_current(), "no batch has shown where the engine is");
    assert_eq!(order.deadline(), None);
    assert_eq!(order.live(batch(0), now), [apply(0)]);
    assert!(order.is_current());
    assert_eq!(order.live(batch(2), now), [Forget, apply(2)]);
    assert_eq!((order.gaps(), order.unfilled_gaps()), (1, 1));
    order.disconnected();
    assert!(!order.is_current());
    assert_eq!(order.connected(now), [Restart]);
    assert_eq!(order.live(batch(3), now), [Forget, apply(3)]);

    let mut late = Order::new(false, now);
    late.connected(now);
    assert_eq!(late.live(batch(7), now), [Forget, apply(7)]);
}

#[test]
fn a_gap_is_filled_by_a_replay() {
    let now = Instant::now();
    let mut order = live_until(3, now);
    assert_eq!(order.live(batch(5), now), [Ask { from: 3 }]);
    assert_eq!(order.live(batch(6), now), []);
    assert!(!order.is_current());
    for number in 3..6 {
        assert_eq!(order.replayed(answer(number), now), [apply(number)]);
    }
    assert_eq!(order.replayed(End, now), [apply(6)]);
    // The replay and the connection overlap.
    assert_eq!(order.live(batch(7), now), [apply(7)]);
    assert_eq!((order.gaps(), order.unfilled_gaps(), order.restarts()), (1, 0, 0));
}

#[test]
fn live_batches_that_a_replay_had_already_are_no_restart() {
    let now = Instant::now();
    let mut order = live_until(3, now);
    order.live(batch(4), now);
    for number in 3..9 {
        order.replayed(answer(number), now);
    }
    assert_eq!(order.replayed(End, now), []);
    for number in 5..9 {
        assert_eq!(order.live(batch(number), now), []);
    }
    assert_eq!(order.live(batch(9), now), [apply(9)]);
    assert_eq!(order.restarts(), 0);
}

#[test]
fn a_gap_that_a_replay_does_not_fill_forgets_what_is_held() {
    let now = Instant::now();
    // The oldest retained batch is later than the gap.
    let mut order = live_until(3, now);
    order.live(batch(8), now);
    assert_eq!(order.replayed(answer(6), now), [Forget, apply(6)]);
    assert_eq!(order.replayed(answer(7), now), [apply(7)]);
    assert_eq!(order.replayed(End, now), [apply(8)]);
    assert_eq!((order.gaps(), order.unfilled_gaps()), (1, 1));
    // Nothing is retained.
    let mut order = live_until(3, now);
    order.live(batch(8), now);
    assert_eq!(order.replayed(End, now), [Forget, apply(8)]);
    // The replay has a hole.
    let mut order = live_until(3, now);
    order.live(batch(8), now);
    order.replayed(answer(3), now);
    assert_eq!(order.replayed(answer(5), now), [Forget, apply(5)]);
    assert!(order.restarts() == 0);
}

#[test]
fn a_gap_among_the_batches_that_waited_is_filled_by_another_replay() {
    let now = Instant::now();
    let mut order = live_until(3, now);
    order.live(batch(4), now);
    order.live(batch(6), now);
    order.live(batch(7), now);
    order.replayed(answer(3), now);
    order.replayed(answer(4), now);
    assert_eq!(order.replayed(End, now), [Ask { from: 5 }]);
    assert_eq!(
        order.replayed(End, now),
        [Forget, apply(6), apply(7)],
        "5 is lost at the engine too"
    );

    let mut order = live_until(3, now);
    order.live(batch(4), now);
    order.live(batch(5), now);
    order.live(batch(7), now);
    order.replayed(answer(3), now);
    assert_eq!(order.replayed(End, now), [apply(4), apply(5), Ask { from: 6 }]);
    assert_eq!(order.replayed(answer(6), now), [apply(6)]);
    assert_eq!(order.replayed(End, now), [apply(7)]);
}

#[test]
fn numbers_that_fall_mean_that_the_engine_started_again() {
    let now = Instant::now();
    let mut order = live_until(3, now);
    order.live(batch(3), now);
    order.live(batch(4), now);
    let (first, second) = (of_process(2, 0), of_process(2, 1));
    assert_eq!(order.live(first.clone(), now), [Restart, Action::Apply(first)]);
    assert_eq!(order.live(second.clone(), now), [Action::Apply(second)]);
    assert_eq!((order.restarts(), order.gaps()), (1, 0));

    // Its first batches were lost.
    let mut order = live_until(3, now);
    order.live(batch(3), now);
    assert_eq!(order.live(of_process(2, 2), now), [Restart, Ask { from: 0 }]);
    for number in 0..3 {
        let batch = of_process(2, number);
        assert_eq!(
            order.replayed(ReplayAnswer::Batch(batch.clone()), now),
            [Action::Apply(batch)]
        );
    }
    // It starts again during a replay.
    let mut order = live_until(3, now);
    order.live(batch(8), now);
    let first = of_process(2, 0);
    assert_eq!(
        order.live(first.clone(), now),
        [Restart, StopReplay, Action::Apply(first)]
    );
}

#[test]
fn a_new_connection_to_the_same_engine_keeps_what_is_held() {
    let now = Instant::now();
    let mut order = live_until(3, now);
    order.disconnected();
    assert_eq!(order.deadline(), None);
    assert_eq!(order.connected(now), [Ask { from: 2 }]);
    assert_eq!(order.live(batch(5), now), []);
    assert_eq!(
        order.replayed(answer(2), now),
        [],
        "the last batch applied, unchanged"
    );
    for number in 3..6 {
        assert_eq!(order.replayed(answer(number), now), [apply(number)]);
    }
    assert_eq!(order.replayed(End, now), []);
    assert_eq!((order.restarts(), order.gaps()), (0, 0));
    assert!(order.is_current());
}

#[test]
fn a_new_connection_to_another_engine_forgets_all() {
    let now = Instant::now();
    let reconnected = || {
        let mut order = live_until(3, now);
        order.disconnected();
        order.connected(now);
        order
    };
    // It has sent less than the one before.
    let mut order = reconnected();
    assert_eq!(order.replayed(End, now), [Restart, Ask { from: 0 }]);
    let first = of_process(2, 0);
    assert_eq!(
        order.replayed(ReplayAnswer::Batch(first.clone()), now),
        [Action::Apply(first)]
    );
    // It has sent as much, and other batches.
    let mut order = reconnected();
    let other = ReplayAnswer::Batch(of_process(2, 2));
    assert_eq!(order.replayed(other, now), [Restart, Ask { from: 0 }]);
    // It has sent more than it retains. This may be the same engine, which nothing shows.
    let mut order = reconnected();
    let later = of_process(2, 9);
    assert_eq!(
        order.replayed(ReplayAnswer::Batch(later.clone()), now),
        [Restart, Forget, Action::Apply(later)]
    );
    assert_eq!(order.restarts(), 1);
}

#[test]
fn a_replay_without_answer_is_asked_for_again_and_then_given_up() {
    let mut now = Instant::now();
    let mut order = Order::new(true, now);
    order.connected(now);
    order.live(batch(4), now);
    order.live(batch(5), now);
    assert_eq!(order.timed_out(now), [], "not yet");
    for _ in 1..ATTEMPTS {
        now = order.deadline().unwrap();
        assert_eq!(order.timed_out(now), [Ask { from: 0 }]);
    }
    now = order.deadline().unwrap();
    assert_eq!(order.timed_out(now), [StopReplay, Forget, apply(4), apply(5)]);
    assert_eq!(order.replay(), Replay::Unanswered);
    assert!(order.is_current(), "what comes from now on is known");
    // A gap afterwards.
    order.live(batch(7), now);
    for _ in 1..ATTEMPTS {
        assert_eq!(order.replay_failed(now), [Ask { from: 6 }]);
    }
    assert_eq!(order.replay_failed(now), [StopReplay, Forget, apply(7)]);
    assert_eq!(order.replay_failed(now), [], "no replay is under way");
    // Not even the same engine can be told from another one.
    order.disconnected();
    assert_eq!(order.connected(now), [Ask { from: 7 }]);
    order.replay_failed(now);
    order.replay_failed(now);
    assert_eq!(order.replay_failed(now), [StopReplay, Restart]);
    assert_eq!(order.live(batch(8), now), [Forget, apply(8)]);
}

#[test]
fn silence_is_looked_into() {
    let start = Instant::now();
    let mut order = live_until(3, start);
    assert_eq!(order.deadline(), Some(start + SILENCE));
    let mut now = start + SILENCE;
    assert_eq!(order.timed_out(now), [Ask { from: 2 }]);
    assert!(order.is_current(), "nothing is missing, as far as anything shows");
    order.replayed(answer(2), now);
    assert_eq!(order.replayed(answer(3), now), [apply(3)], "a lost batch");
    assert_eq!(order.live(batch(4), now), [], "held");
    assert_eq!(order.replayed(End, now), [apply(4)]);
    // Nobody answers, and that changes nothing.
    now = order.deadline().unwrap();
    assert_eq!(order.timed_out(now), [Ask { from: 4 }]);
    now = order.deadline().unwrap();
    assert_eq!(order.timed_out(now), [StopReplay]);
    assert!(order.is_current());
    assert_eq!(order.live(batch(5), now), [apply(5)]);
    // A live batch does not wait for it.
    now = order.deadline().unwrap();
    assert_eq!(order.timed_out(now), [Ask { from: 5 }]);
    assert_eq!(order.live(batch(6), now), [StopReplay, apply(6)]);
    assert_eq!((order.gaps(), order.restarts()), (0, 0));
}

#[test]
fn a_connection_on_which_nothing_arrives_is_replaced() {
    let start = Instant::now();
    let now = start + SILENCE;
    // The engine has sent more.
    let mut order = live_until(3, start);
    order.timed_out(now);
    order.replayed(answer(2), now);
    assert_eq!(order.replayed(answer(3), now), [apply(3)]);
    assert_eq!(order.replayed(End, now), [Action::Reconnect]);
    // The engine has sent no more.
    let mut order = live_until(3, start);
    order.timed_out(now);
    order.replayed(answer(2), now);
    assert_eq!(order.replayed(End, now), []);
    // The engine is another one.
    for other in [
        End,
        ReplayAnswer::Batch(of_process(2, 2)),
        ReplayAnswer::Batch(of_process(2, 7)),
    ] {
        let mut order = live_until(3, start);
        order.timed_out(now);
        assert_eq!(
            order.replayed(other, now),
            [Restart, StopReplay, Action::Reconnect]
        );
        order.disconnected();
        assert_eq!(order.connected(now), [Ask { from: 0 }]);
    }
}

#[test]
fn silence_of_an_engine_that_has_sent_nothing_is_looked_into() {
    let start = Instant::now();
    let mut order = live_until(0, start);
    let now = start + SILENCE;
    assert_eq!(order.timed_out(now), [Ask { from: 0 }]);
    assert_eq!(order.replayed(answer(0), now), [apply(0)]);
    assert_eq!(order.replayed(End, now), [Action::Reconnect]);
    assert_eq!(order.restarts(), 0);
}

#[test]
fn a_replay_without_an_end_is_given_up() {
    let start = Instant::now();
    let mut order = Order::new(true, start);
    order.connected(start);
    let mut now = start;
    for number in 0.. {
        now += ANSWER_TIMEOUT / 2;
        if !order.timed_out(now).is_empty() {
            break;
        }
        order.replayed(answer(number), now);
        assert!(number < 100, "the replay goes on for ever");
    }
    assert!(now >= start + REPLAY_TIMEOUT);
}

#[test]
fn the_batches_that_wait_are_bounded() {
    let now = Instant::now();
    let mut order = Order::new(true, now);
    order.connected(now);
    let sent = MAX_WAITING as u64 + 1000;
    for number in 0..sent {
        assert_eq!(order.live(batch(number), now), []);
    }
    assert_eq!(order.waiting.batches.len(), MAX_WAITING);
    assert_eq!(order.replayed(End, now).len(), MAX_WAITING);
    assert_eq!((order.waiting.batches.len(), order.waiting.bytes), (0, 0));
    assert_eq!(
        order.live(batch(sent), now),
        [Ask {
            from: MAX_WAITING as u64
        }]
    );
    // Bytes are bounded too.
    let large = Bytes::from(vec![0; MAX_WAITING_BYTES / 2]);
    for number in sent + 1..sent + 10 {
        let payload = large.clone();
        order.live(Numbered { number, payload }, now);
    }
    assert!(
        order.waiting.bytes <= MAX_WAITING_BYTES + 16,
        "{}",
        order.waiting.bytes
    );
}

#[test]
fn the_greatest_number_overflows_nothing() {
    let now = Instant::now();
    let mut order = Order::new(false, now);
    order.connected(now);
    order.live(batch(u64::MAX), now);
    order.live(batch(u64::MAX), now);
    order.live(batch(0), now);
    assert!(order.is_current());
}

#[derive(Debug, Clone)]
enum Fact {
    Connected,
    Disconnected,
    Live(u64),
    Replayed(u64),
    End,
    Failed,
    Pass(u64),
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    /// Whatever arrives, batches are applied in order: each follows the one before, unless what is held was forgotten.
    #[test]
    fn no_batch_is_applied_out_of_order(
        has_replay: bool,
        facts in prop::collection::vec(prop_oneof![
            2 => Just(Fact::Connected),
            1 => Just(Fact::Disconnected),
            8 => (0..12_u64).prop_map(Fact::Live),
            8 => (0..12_u64).prop_map(Fact::Replayed),
            2 => Just(Fact::End),
            2 => Just(Fact::Failed),
            2 => (0..30_u64).prop_map(Fact::Pass),
        ], 1..80),
    ) {
        let mut now = Instant::now();
        let mut order = Order::new(has_replay, now);
        let mut next = None;
        let mut is_connected = false;
        for fact in facts {
            let actions = match fact {
                Fact::Connected if !is_connected => {
                    is_connected = true;
                    order.connected(now)
                }
                Fact::Disconnected => {
                    is_connected = false;
                    order.disconnected();
                    Vec::new()
                }
                Fact::Live(number) if is_connected => order.live(batch(number), now),
                Fact::Replayed(number) => order.replayed(answer(number), now),
                Fact::End => order.replayed(End, now),
                Fact::Failed => order.replay_failed(now),
                Fact::Pass(seconds) => {
                    now += Duration::from_secs(seconds);
                    order.timed_out(now)
                }
                Fact::Connected | Fact::Live(_) => Vec::new(),
            };
            for action in actions {
                match action {
                    Action::Apply(batch) => {
                        let follows = next.map_or(batch.number == 0, |next| batch.number == next);
                        prop_assert!(follows || next == Some(u64::MAX), "{} after {next:?}", batch.number);
                        next = Some(batch.number + 1);
                    }
                    Forget => next = Some(u64::MAX),
                    Restart => next = None,
                    Action::Replay { .. } => prop_assert!(has_replay),
                    StopReplay | Action::Reconnect => {}
                }
            }
            prop_assert!(is_connected || order.waiting.batches.is_empty());
            if let Some(deadline) = order.deadline() {
                prop_assert!(deadline <= now + SILENCE);
            }
        }
    }
}
