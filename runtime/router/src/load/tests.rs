//! What the table counts, and what ends each count.

use super::*;

const WORKER: WorkerSlot = WorkerSlot(3);

#[test]
fn a_reservation_counts_until_it_is_dropped() {
    let table = LoadTable::default();
    let mut first = table.reserve(WORKER, 100, 7);
    let second = table.reserve(WORKER, 50, 4);
    first.first_token();
    first.first_token();
    assert_eq!(
        table.get(WORKER),
        WorkerLoad {
            prefill_tokens: 50,
            decode_blocks: 11,
            requests: 2,
            ..WorkerLoad::default()
        }
    );
    drop(first);
    drop(second);
    assert_eq!(table.get(WORKER), WorkerLoad::default());
}

#[tokio::test]
async fn every_change_raises_the_signal_until_a_listener_takes_it() {
    let table = LoadTable::default();
    let mut request = table.reserve(WORKER, 100, 7);
    table.changed().await;
    request.first_token();
    table.changed().await;
    drop(request);
    table.changed().await;
    let none = tokio::time::timeout(Duration::from_millis(1), table.changed()).await;
    assert!(none.is_err(), "nothing changed since");
}

#[test]
fn other_routers_count_beside_this_one() {
    let table = LoadTable::default();
    let others = ReplicaLoad {
        prefill_tokens: 10,
        decode_blocks: 20,
        requests: 2,
    };
    table.set_others(WORKER, others);
    let held = table.reserve(WORKER, 100, 7);
    let both = table.get(WORKER);
    assert_eq!((both.own().requests, both.others), (1, others));
    drop(held);
    assert_eq!(table.others(WORKER), Some((others, 0)));
    table.forget_reports(WORKER);
    assert_eq!(table.get(WORKER), WorkerLoad::default());
}

#[test]
fn blocks_in_use_are_the_greater_of_the_reported_and_the_indexed_ones() {
    let table = LoadTable::default();
    let used = || table.own(WORKER).map(|(_, used)| used);
    let mut report = WorkerReport::default();
    report.load.used_kv_blocks = 7;
    table.report(WORKER, &report, 1);
    assert_eq!(used(), Some(7));
    table.set_indexed_blocks(WORKER, 9);
    assert_eq!(used(), Some(9));
    table.set_indexed_blocks(WORKER, 3);
    assert_eq!(used(), Some(7));
    table.forget_reports(WORKER);
    assert_eq!(used(), Some(0));
}

#[test]
fn a_slot_past_the_tables_end_has_no_load() {
    let table = LoadTable::default();
    drop(table.reserve(WorkerSlot(MAX_WORKERS), 1, 1));
    assert_eq!(table.get(WorkerSlot(MAX_WORKERS)), WorkerLoad::default());
}

#[test]
fn each_start_of_learning_is_another_period_and_anything_else_ends_it() {
    let table = LoadTable::default();
    assert_eq!(table.learning_period(WORKER), None);
    table.begin_learning(WORKER);
    let first = table.learning_period(WORKER);
    assert!(first.is_some());
    assert_eq!(table.event_state(WORKER), EventState::Approximate);
    assert!(table.learned_workers().eq([WORKER]));
    table.set_event_state(WORKER, EventState::Resyncing);
    assert_eq!(table.learning_period(WORKER), None);
    table.begin_learning(WORKER);
    let second = table.learning_period(WORKER);
    assert!(second.is_some() && second != first);
    table.forget_reports(WORKER);
    assert_eq!(table.learning_period(WORKER), None);
    assert_eq!(table.learned_workers().count(), 0);
}

#[test]
fn the_load_grows_with_the_answer_and_counts_each_choice() {
    let table = LoadTable::default();
    let mut held = table.reserve(WORKER, 100, 7).of_sequences(3, 16);
    let load = |prefill_tokens, decode_blocks, requests| WorkerLoad {
        prefill_tokens,
        decode_blocks,
        requests,
        ..WorkerLoad::default()
    };
    assert_eq!(table.get(WORKER), load(100, 21, 3));
    held.generated(15);
    assert_eq!(table.get(WORKER), load(0, 21, 3), "the prompt is computed");
    held.generated(1);
    assert_eq!(table.get(WORKER), load(0, 22, 3));
    held.generated(40);
    assert_eq!(table.get(WORKER), load(0, 24, 3));
    drop(held);
    assert_eq!(table.get(WORKER), WorkerLoad::default());
}

/// A change that meets the listener while it lowers the signal is read by the listener, or raises the signal again.
#[test]
fn no_change_is_lost_while_the_signal_is_lowered() {
    const ROUNDS: u32 = 200_000;
    let (signal, load) = (ChangeSignal::default(), AtomicU32::new(0));
    let (ready, done) = (AtomicU32::new(0), AtomicU32::new(0));
    let wait_for = |counter: &AtomicU32, value| {
        while counter.load(SeqCst) < value {
            std::hint::spin_loop();
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                wait_for(&ready, round);
                load.fetch_add(1, SeqCst);
                signal.raise();
                done.store(round, SeqCst);
            }
        });
        for round in 1..=ROUNDS {
            signal.raised.store(true, SeqCst);
            ready.store(round, SeqCst);
            signal.lower();
            let read = load.load(Relaxed);
            wait_for(&done, round);
            let is_raised = signal.raised.load(SeqCst);
            assert!(
                read == round || is_raised,
                "round {round}: neither read nor raised"
            );
        }
    });
}
