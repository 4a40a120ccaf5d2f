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
        Some(Action::Resync { resync, reason }) => (resync, reason),
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
