use std::time::Duration;

use super::*;
use crate::test_support::{PATIENCE, request};

fn continuation(first_piece: &Bytes, failed: usize, kept: &KeptBytes) -> Option<Continuation> {
    let mut request = request(PATIENCE);
    request.generate.wants_token_ids = true;
    let failed = (1..).map(WorkerSlot).take(failed).collect();
    let deadline = Instant::now() + Duration::from_secs(60);
    Continuation::new(request, first_piece, WorkerSlot(0), failed, deadline, kept)
}

fn lost() -> LinkError {
    LinkError::Lost {
        address: "a:1".into(),
        reason: "reset".into(),
    }
}

#[test]
fn what_answers_keep_is_bounded_and_given_back() {
    let (kept, piece) = (KeptBytes::default(), Bytes::from("data: {}\n\n"));
    let held = continuation(&piece, 0, &kept).unwrap();
    // 40 tokens of the prompt, 16 of the answer, and the body `{}`.
    assert_eq!(kept.0.load(Relaxed), 56 * 4 + 2);
    let rest = kept.reserve(MAX_KEPT_BYTES - kept.0.load(Relaxed)).unwrap();
    assert!(continuation(&piece, 0, &kept).is_none());
    drop(held);
    let again = continuation(&piece, 0, &kept);
    assert!(again.is_some());
    drop((rest, again));
    assert_eq!(kept.0.load(Relaxed), 0);
}

#[test]
fn the_fourth_worker_that_fails_is_the_last() {
    let (kept, piece) = (KeptBytes::default(), Bytes::from("data: {}\n\n"));
    let third = continuation(&piece, 2, &kept)
        .unwrap()
        .interrupted(lost())
        .unwrap();
    assert_eq!(third.failed, [1, 2, 0].map(WorkerSlot));
    assert!(
        continuation(&piece, 3, &kept)
            .unwrap()
            .interrupted(lost())
            .is_err()
    );
}

#[test]
fn a_first_piece_that_is_too_large_is_not_kept() {
    let (kept, piece) = (
        KeptBytes::default(),
        Bytes::from(vec![b' '; MAX_FIRST_PIECE_BYTES + 1]),
    );
    assert!(continuation(&piece, 0, &kept).is_none());
}
