//! What decisions and the admin API see of failures.

use super::*;
use crate::test_support::{TestRecorder, card};

const SICK: WorkerSlot = WorkerSlot(3);

fn table() -> HealthTable {
    let table = HealthTable::new(BreakerConfig::default(), 8);
    table.join(SICK, &card("sick", 1));
    table.join(WorkerSlot(4), &card("well", 1));
    table
}

fn fail(table: &HealthTable) {
    table.attempt(SICK, 50).failed(Fault::Error, "broken");
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_a_mark_until_it_ages_out() {
    let table = table();
    assert!(!table.has_marks());
    fail(&table);
    assert!(table.has_marks());
    let mark = table.mark(SICK);
    assert_eq!(
        (mark.is_ejected, mark.failures, mark.prefill_tokens),
        (false, 1, 50)
    );
    assert_eq!(table.mark(WorkerSlot(4)), Mark::default());
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(table.tend(), []);
    assert!(!table.has_marks());
}

#[tokio::test(start_paused = true)]
async fn an_ejected_worker_returns_when_it_answers_a_probe() {
    let recorder = TestRecorder::default();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let table = table();
    (0..3).for_each(|_| fail(&table));
    assert!(table.mark(SICK).is_ejected);
    let health = table.view(SICK);
    assert_eq!(
        (health.state, health.recent_failures, &*health.last_failure),
        (BreakerState::Open, 3, "broken")
    );
    assert_eq!(recorder.raised("signalbox_worker_ejected", "worker"), ["sick"]);
    assert_eq!(recorder.count("signalbox_worker_failures_total"), 3);
    tokio::time::advance(Duration::from_secs(1)).await;
    let due = table.tend();
    assert_eq!(due.len(), 1);
    assert_eq!(table.view(SICK).state, BreakerState::HalfOpen);
    assert!(table.mark(SICK).is_ejected, "clients do not probe");
    table.probed(due[0], true);
    assert!(!table.mark(SICK).is_ejected);
    assert!(recorder.raised("signalbox_worker_ejected", "worker").is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_answer_between_failures_breaks_the_row() {
    let table = table();
    for _ in 0..2 {
        fail(&table);
        fail(&table);
        table.attempt(SICK, 50).answered();
    }
    drop(table.attempt(SICK, 50));
    assert!(!table.mark(SICK).is_ejected);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_leaves_takes_its_failures_along() {
    let table = table();
    let late = table.attempt(SICK, 1);
    (0..3).for_each(|_| fail(&table));
    table.leave(SICK);
    assert!(!table.has_marks());
    table.join(SICK, &card("next", 2));
    late.failed(Fault::Lost, "of the worker before");
    assert_eq!(table.mark(SICK), Mark::default());
}

#[test]
fn marks_are_packed_without_loss() {
    for mark in [
        Mark::default(),
        Mark {
            is_ejected: true,
            failures: 16,
            prefill_tokens: u32::MAX,
        },
    ] {
        assert_eq!(unpack(pack(mark)), mark);
    }
}
