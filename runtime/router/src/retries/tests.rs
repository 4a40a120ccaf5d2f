use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const POISON: PromptId = PromptId(7);

fn worker(slot: u32) -> Incarnation {
    Incarnation { slot, generation: 1 }
}

#[test]
fn retries_are_a_fifth_of_the_requests_beside_a_few_a_second() {
    let mut now = Instant::now();
    let mut budget = RetryBudget::new(now);
    while budget.take(now) {}
    assert!(!budget.take(now), "what was saved is used up");
    let mut retried = 0;
    for _ in 0..10 {
        now += SECOND / 10;
        budget.add_requests(100);
        retried += (0..100).filter(|_| budget.take(now)).count();
    }
    assert_eq!(retried, 210, "a fifth of 1,000, and 10 in a second");
}

#[test]
fn what_is_saved_is_bounded() {
    let now = Instant::now();
    let mut budget = RetryBudget::new(now);
    budget.add_requests(1_000_000);
    let later = now + SECOND * 3_600;
    assert_eq!((0..1_000).filter(|_| budget.take(later)).count(), 100);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_was_lost_twice_is_refused_for_a_while() {
    let retries = Retries::default();
    assert!(!retries.lost(POISON, worker(0)));
    assert!(
        !retries.lost(POISON, worker(0)),
        "another client of the same worker"
    );
    assert!(!retries.is_refused(POISON));
    assert!(retries.lost(POISON, worker(1)));
    assert!(retries.is_refused(POISON) && !retries.is_refused(PromptId(8)));
    tokio::time::advance(REMEMBERED_FOR).await;
    assert!(!retries.is_refused(POISON));
    assert!(!retries.lost(POISON, worker(2)), "counted from one again");
}

#[tokio::test(start_paused = true)]
async fn an_answer_clears_a_request() {
    let retries = Retries::default();
    for slot in 0..5 {
        assert!(!retries.lost(POISON, worker(slot)));
        retries.answered(POISON);
    }
}

proptest! {
    /// The table stays bounded, and the latest losses are in it.
    #[test]
    fn the_latest_losses_are_remembered(prompts in prop::collection::vec(0_u64..6_000, 0..9_000)) {
        let (mut lost, mut now) = (LostRequests::default(), Instant::now());
        for prompt in prompts {
            now += Duration::from_micros(1);
            let before = lost.losses(PromptId(prompt), now);
            prop_assert_eq!(lost.add(PromptId(prompt), worker(before), now), before + 1);
            prop_assert!(lost.0.len() <= MOST_REMEMBERED);
        }
    }
}
