use signalbox_protocol::{CacheTier, SequenceHash};

use super::*;

const EPOCH: WorkerEpoch = WorkerEpoch(7);

fn stored(block: u64) -> Vec<KvEvent> {
    vec![KvEvent::Stored {
        tier: CacheTier::Device,
        parent: None,
        blocks: vec![SequenceHash(block)],
    }]
}

fn batch(epoch: WorkerEpoch, sequence: u64) -> KvEventBatch {
    KvEventBatch {
        epoch,
        sequence,
        events: stored(sequence),
    }
}

fn snapshot(epoch: WorkerEpoch, next_sequence: u64) -> KvSnapshot {
    KvSnapshot {
        epoch,
        next_sequence,
        stored: stored(100),
    }
}

/// A stream that has started, and the resync it is in.
fn resyncing() -> (StreamState, Resync) {
    let mut state = StreamState::new(EPOCH);
    match state.start() {
        Some(Action::Resync {
            resync,
            reason: ResyncReason::Start,
            delay: Duration::ZERO,
        }) => (state, resync),
        other => panic!("{other:?}"),
    }
}

/// A stream that follows from batch `next`, and the resync it is in.
fn following(next: u64) -> (StreamState, Resync) {
    let (mut state, resync) = resyncing();
    let snapshot = snapshot(EPOCH, next);
    assert_eq!(
        state.on_snapshot(resync, Ok(&snapshot)),
        Some(Action::Follow {
            resync,
            stored: &snapshot.stored,
            next: (EPOCH, next),
        })
    );
    (state, resync)
}

/// Checks that `action` begins a resync, and returns that resync and its reason.
fn resync_of(action: Option<Action<'_>>) -> (Resync, ResyncReason) {
    match action {
        Some(Action::Resync { resync, reason, .. }) => (resync, reason),
        other => panic!("no resync but {other:?}"),
    }
}

fn retry_delay(action: Option<Action<'_>>) -> Duration {
    match action {
        Some(Action::RetryAfter { delay, .. }) => delay,
        other => panic!("no retry but {other:?}"),
    }
}

#[test]
fn batches_after_the_snapshot_apply_once_and_in_order() {
    let (mut state, resync) = following(3);
    let applied = [2, 3, 3, 4, 1].map(|sequence| {
        let batch = batch(EPOCH, sequence);
        match state.on_batch(resync, &batch) {
            Some(Action::Apply(events)) => events == batch.events,
            None => false,
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(applied, [false, true, false, true, false]);
}

#[test]
fn a_gap_starts_a_resync_and_what_belongs_to_the_former_one_is_ignored() {
    let (mut state, first) = following(3);
    let (second, reason) = resync_of(state.on_batch(first, &batch(EPOCH, 5)));
    assert_eq!(
        reason,
        ResyncReason::Gap {
            expected: 3,
            received: 5
        }
    );
    assert_ne!(first, second);
    assert_eq!(state.on_snapshot(first, Ok(&snapshot(EPOCH, 6))), None);
    assert_eq!(state.on_batch(first, &batch(EPOCH, 3)), None);
    assert_eq!(state.on_skipped(first), None);
    assert_eq!(state.on_retry(first), None);
    assert_eq!(
        state.on_batch(second, &batch(EPOCH, 3)),
        None,
        "no batch applies before its snapshot"
    );
    let snapshot = snapshot(EPOCH, 6);
    assert!(matches!(
        state.on_snapshot(second, Ok(&snapshot)),
        Some(Action::Follow { next: (EPOCH, 6), .. })
    ));
}

#[test]
fn a_snapshot_of_another_epoch_is_requested_again() {
    let (mut state, resync) = resyncing();
    for epoch in [WorkerEpoch(EPOCH.0 - 1), WorkerEpoch(EPOCH.0 + 1)] {
        retry_delay(state.on_snapshot(resync, Ok(&snapshot(epoch, 0))));
        assert_eq!(state.on_retry(resync), Some(Action::FetchSnapshot { resync }));
    }
}

#[test]
fn a_second_snapshot_of_one_resync_is_ignored() {
    let (mut state, resync) = following(3);
    assert_eq!(state.on_snapshot(resync, Ok(&snapshot(EPOCH, 9))), None);
    assert_eq!(state.on_retry(resync), None);
    let batch = batch(EPOCH, 3);
    assert_eq!(state.on_batch(resync, &batch), Some(Action::Apply(&batch.events)));
}

#[test]
fn the_retry_delay_doubles_to_its_bound_and_a_snapshot_resets_it() {
    let (mut state, resync) = resyncing();
    let failed = || Err("the worker cannot be reached".to_owned());
    let delays: Vec<_> = (0..8)
        .map(|_| retry_delay(state.on_snapshot(resync, failed())).as_millis())
        .collect();
    assert_eq!(delays, [50, 100, 200, 400, 800, 1600, 2000, 2000]);
    state.on_snapshot(resync, Ok(&snapshot(EPOCH, 0)));
    let (resync, _) = resync_of(state.on_batch(resync, &batch(EPOCH, 1)));
    assert_eq!(retry_delay(state.on_snapshot(resync, failed())), SNAPSHOT_RETRY);
}

#[test]
fn a_skip_before_the_first_batch_is_no_loss_and_a_later_one_is() {
    let (mut state, resync) = following(3);
    assert_eq!(
        state.on_skipped(resync),
        None,
        "the snapshot contains what was skipped"
    );
    state.on_batch(resync, &batch(EPOCH, 2));
    assert_eq!(state.on_skipped(resync), None, "a duplicate changes nothing");
    state.on_batch(resync, &batch(EPOCH, 3));
    let (_, reason) = resync_of(state.on_skipped(resync));
    assert_eq!(reason, ResyncReason::Skipped);
}

#[test]
fn a_loss_before_the_first_batch_shows_as_a_gap() {
    let (mut state, resync) = following(3);
    state.on_skipped(resync);
    let (_, reason) = resync_of(state.on_batch(resync, &batch(EPOCH, 4)));
    assert_eq!(
        reason,
        ResyncReason::Gap {
            expected: 3,
            received: 4
        }
    );
}

#[test]
fn a_loss_before_a_worker_becomes_idle_shows_as_lag_at_the_second_tick() {
    let (mut state, _) = following(3);
    assert_eq!(state.on_tick(true, 5), None, "the batches may be under way");
    let (resync, reason) = resync_of(state.on_tick(true, 5));
    assert_eq!(
        reason,
        ResyncReason::Lag {
            expected: 3,
            reported: 5
        }
    );
    assert_eq!(state.on_tick(true, 5), None, "a resync is under way");
    state.on_snapshot(resync, Ok(&snapshot(EPOCH, 5)));
    assert_eq!([state.on_tick(true, 5), state.on_tick(true, 5)], [None, None]);
}

/// Each tick is (whether the plane is up, the next batch the worker reports, the batch applied before the tick).
#[test]
fn lag_needs_a_plane_that_is_up_and_a_stream_that_stands_still() {
    type Tick = (bool, u64, Option<u64>);
    let cases: [(&str, &[Tick], bool); 6] = [
        (
            "it stands still short of the report",
            &[(true, 5, None), (true, 9, None)],
            true,
        ),
        (
            "a batch arrived in between",
            &[(true, 5, None), (true, 9, Some(3))],
            false,
        ),
        (
            "the batches were reported only now",
            &[(true, 3, None), (true, 9, None)],
            false,
        ),
        (
            "nothing was published",
            &[(true, 3, None), (true, 3, None)],
            false,
        ),
        ("the plane was down", &[(false, 5, None), (true, 5, None)], false),
        ("the plane is down", &[(true, 5, None), (false, 5, None)], false),
    ];
    for (case, ticks, is_loss) in cases {
        let (mut state, resync) = following(3);
        let mut last = None;
        for (plane_is_up, reported, arrived) in ticks {
            if let Some(sequence) = arrived {
                state.on_batch(resync, &batch(EPOCH, *sequence));
            }
            last = state.on_tick(*plane_is_up, *reported);
        }
        assert_eq!(last.is_some(), is_loss, "{case}");
    }
}

#[test]
fn a_batch_of_another_epoch_changes_nothing() {
    let (mut state, resync) = following(3);
    let (earlier, later) = (WorkerEpoch(EPOCH.0 - 1), WorkerEpoch(EPOCH.0 + 1));
    assert_eq!(state.on_batch(resync, &batch(earlier, 3)), None);
    assert_eq!(
        state.on_batch(resync, &batch(later, 0)),
        Some(Action::LogLaterEpoch(later))
    );
    assert_eq!(state.on_batch(resync, &batch(later, 1)), None, "it was logged");
    let batch = batch(EPOCH, 3);
    assert_eq!(state.on_batch(resync, &batch), Some(Action::Apply(&batch.events)));
}

#[test]
fn a_stopped_stream_does_nothing() {
    for (mut state, resync) in [resyncing(), following(3)] {
        state.on_tick(true, 9);
        state.stop();
        assert_eq!(state.start(), None);
        assert_eq!(state.on_snapshot(resync, Ok(&snapshot(EPOCH, 3))), None);
        assert_eq!(state.on_snapshot(resync, Err("the link is closed".into())), None);
        assert_eq!(state.on_retry(resync), None);
        assert_eq!(state.on_batch(resync, &batch(EPOCH, 3)), None);
        assert_eq!(state.on_batch(resync, &batch(EPOCH, 9)), None);
        assert_eq!(state.on_skipped(resync), None);
        assert_eq!(state.on_tick(true, 9), None);
    }
}

fn delay_of(action: Option<Action<'_>>) -> (Resync, Duration) {
    match action {
        Some(Action::Resync { resync, delay, .. }) => (resync, delay),
        other => panic!("no resync but {other:?}"),
    }
}

/// The index after the batches before some position: this many blocks.
fn credit(blocks: u64) -> Credit {
    Credit {
        digest: digest(blocks),
        is_partial: false,
    }
}

fn digest(blocks: u64) -> KvDigest {
    let mut digest = KvDigest::default();
    (0..blocks).for_each(|block| digest.add(CacheTier::Device, SequenceHash(block)));
    digest
}

#[test]
fn resyncs_that_follow_each_other_closely_wait_longer_and_longer() {
    let (mut state, mut resync) = following(3);
    let mut delays = Vec::new();
    for _ in 0..12 {
        let delay;
        (resync, delay) = delay_of(state.on_batch(resync, &batch(EPOCH, 9)));
        assert_eq!(state.on_batch(resync, &batch(EPOCH, 12)), None, "it waits");
        delays.push(delay.as_millis());
        assert_eq!(state.on_retry(resync), Some(Action::FetchSnapshot { resync }));
        state.on_snapshot(resync, Ok(&snapshot(EPOCH, 3)));
    }
    assert_eq!(
        delays,
        [
            0, 100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000
        ]
    );
    for _ in 1..CALM_TICKS {
        assert_eq!(state.on_tick(true, 3), None);
    }
    let (resync, delay) = delay_of(state.on_batch(resync, &batch(EPOCH, 9)));
    assert_eq!(delay, RESYNC_DELAY_MAX, "not calm for long enough");
    state.on_snapshot(resync, Ok(&snapshot(EPOCH, 3)));
    for _ in 0..CALM_TICKS {
        assert_eq!(state.on_tick(true, 3), None);
    }
    assert_eq!(
        delay_of(state.on_batch(resync, &batch(EPOCH, 9))).1,
        Duration::ZERO
    );
}

#[test]
fn a_credit_that_differs_from_what_the_worker_holds_is_rebuilt() {
    let agreeing = (credit(5), digest(5));
    let missing = Credit {
        is_partial: true,
        ..credit(4)
    };
    let phantoms = Credit {
        is_partial: true,
        ..credit(6)
    };
    let other = {
        let mut other = digest(5);
        other.sum += 1;
        other
    };
    let cases = [
        ("they agree", agreeing, false),
        ("a block too many", (credit(6), digest(5)), true),
        ("a block too few", (credit(4), digest(5)), true),
        ("another block", (credit(5), other), true),
        ("a full index lacks one", (missing, digest(5)), false),
        ("a full index has one too many", (phantoms, digest(5)), true),
    ];
    for (case, (held, reported), differs) in cases {
        for report_comes_first in [true, false] {
            let (mut state, resync) = following(3);
            state.on_batch(resync, &batch(EPOCH, 3));
            let found = if report_comes_first {
                assert_eq!(state.on_report(4, reported), None, "{case}");
                state.on_applied(held)
            } else {
                assert_eq!(state.on_applied(held), None, "{case}");
                state.on_report(4, reported)
            };
            assert_eq!(found.is_some(), differs, "{case}");
            if let Some(action) = found {
                let (resync, reason) = resync_of(Some(action));
                assert_eq!(reason.label(), "mismatch");
                state.on_snapshot(resync, Ok(&snapshot(EPOCH, 4)));
                assert_eq!(state.on_applied(credit(5)).is_some(), reported == other);
            }
        }
    }
}

#[test]
fn a_report_is_compared_at_its_own_position() {
    let (mut state, resync) = following(0);
    for sequence in 0..300 {
        state.on_batch(resync, &batch(EPOCH, sequence));
        assert_eq!(state.on_applied(credit(sequence + 1)), None);
    }
    assert_eq!(state.on_report(250, digest(250)), None, "an earlier position");
    assert_eq!(state.on_report(400, digest(7)), None, "a later one");
    assert_eq!(
        state.on_report(100, digest(7)),
        None,
        "one that is not kept any more"
    );
    resync_of(state.on_report(251, digest(7)));
}

/// Another process publishes three batches under the worker's name, behind its last one.
#[test]
fn batches_that_the_worker_never_published_are_found_and_ignored_from_then_on() {
    let (mut state, resync) = following(3);
    assert_eq!(state.on_report(3, digest(1)), None);
    for sequence in 3..6 {
        assert!(matches!(
            state.on_batch(resync, &batch(EPOCH, sequence)),
            Some(Action::Apply(_))
        ));
        assert_eq!(state.on_applied(credit(9)), None);
    }
    for _ in 0..AHEAD_TICKS {
        assert_eq!(state.on_tick(true, 3), None, "the report may be on its way");
    }
    let (resync, reason) = resync_of(state.on_tick(true, 3));
    assert_eq!(
        reason,
        ResyncReason::Ahead {
            expected: 6,
            reported: 3
        }
    );
    state.on_snapshot(resync, Ok(&snapshot(EPOCH, 3)));
    assert_eq!(state.on_applied(credit(1)), None);
    for sequence in 3..6 {
        assert_eq!(
            state.on_batch(resync, &batch(EPOCH, sequence)),
            None,
            "the plane still has them"
        );
    }
    for _ in 0..3 * AHEAD_TICKS {
        assert_eq!(state.on_tick(true, 3), None);
    }
    // The worker publishes two batches of its own under numbers that are taken.
    assert_eq!(state.on_report(5, digest(4)), None);
    assert_eq!(state.on_tick(true, 5), None);
    let (resync, reason) = resync_of(state.on_tick(true, 5));
    assert_eq!(reason.label(), "lag");
    state.on_snapshot(resync, Ok(&snapshot(EPOCH, 6)));
    assert!(matches!(
        state.on_batch(resync, &batch(EPOCH, 6)),
        Some(Action::Apply(_))
    ));
}

#[test]
fn a_stream_whose_worker_keeps_reporting_is_never_ahead() {
    let (mut state, resync) = following(0);
    for step in 0..50 {
        state.on_report(step * 2, digest(1));
        for sequence in step * 2..step * 2 + 2 {
            state.on_batch(resync, &batch(EPOCH, sequence));
        }
        assert_eq!(
            state.on_tick(true, step * 2),
            None,
            "two batches ahead of the report"
        );
    }
    let (mut state, resync) = following(0);
    for sequence in 0..5 {
        state.on_batch(resync, &batch(EPOCH, sequence));
    }
    for _ in 0..50 {
        assert_eq!(state.on_tick(true, 3), None, "it does not report what it holds");
    }
}
