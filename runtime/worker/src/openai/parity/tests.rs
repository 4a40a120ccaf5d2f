use super::*;

const TOKENS: &[u32] = &[7; 100];
const OTHER: &[u32] = &[8; 100];

struct Case {
    judge: ParityJudge,
    now: Instant,
    /// Whether blocks appear in the events.
    appears: bool,
}

impl Case {
    fn of(setup: ParitySetup) -> Self {
        let now = Instant::now();
        let setup = ParitySetup {
            block_size: 16,
            ..setup
        };
        let mut judge = ParityJudge::new(setup, now);
        judge.on_events(good_events(), now);
        Self {
            judge,
            now,
            appears: true,
        }
    }

    fn new() -> Self {
        Self::of(ParitySetup::default())
    }

    fn request(&mut self, engine: Option<&[u32]>, credited_blocks: u32, cached_tokens: Option<u32>) {
        let facts = RequestFacts {
            router_tokens: TOKENS,
            engine_tokens: engine,
            cached_tokens,
            credited_blocks,
        };
        self.judge.on_answer(&facts, || Some(SequenceHash(1)), self.now);
        self.wait(APPEARANCE_TIME);
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        let appears = self.appears;
        self.judge.look_for_blocks(self.now, |_| appears);
    }

    fn check(&self, state: ParityState, words: &[&str]) {
        let verdict = self.judge.verdict(self.now);
        assert_eq!(verdict.state, state, "{verdict:?}");
        for word in words {
            assert!(verdict.cause.contains(word), "{word:?} in {:?}", verdict.cause);
        }
        assert_eq!(verdict.cause.is_empty(), state == ParityState::Exact);
    }
}

fn good_events() -> EventFacts {
    EventFacts {
        is_connected: true,
        is_complete: true,
        has_replay: true,
        other_block_size: None,
        has_token_pairs: false,
    }
}

#[test]
fn good_evidence_is_exact() {
    let mut case = Case::new();
    for _ in 0..30 {
        case.request(Some(TOKENS), 6, Some(96));
    }
    case.check(ParityState::Exact, &[]);
}

#[test]
fn what_is_known_from_the_start_counts_at_once() {
    let cause = || Some(String::from("the cause"));
    for setup in [
        ParitySetup {
            no_tokenizer: cause(),
            ..ParitySetup::default()
        },
        ParitySetup {
            no_events: cause(),
            ..ParitySetup::default()
        },
        ParitySetup {
            no_caching: cause(),
            ..ParitySetup::default()
        },
    ] {
        Case::of(setup).check(ParityState::Fallback, &["the cause"]);
    }
    for setup in [
        ParitySetup {
            no_chats: cause(),
            ..ParitySetup::default()
        },
        ParitySetup {
            first_difference: cause(),
            ..ParitySetup::default()
        },
    ] {
        Case::of(setup).check(ParityState::Degraded, &["the cause"]);
    }
}

#[test]
fn other_tokens_lead_to_fallback_within_20_requests_and_equal_ones_back() {
    let mut case = Case::new();
    case.request(Some(OTHER), 0, None);
    case.check(ParityState::Exact, &[]);
    case.request(Some(OTHER), 0, None);
    case.check(ParityState::Degraded, &["at token 0 (7 and 8", "--tokenizer"]);
    for _ in 0..5 {
        case.request(Some(OTHER), 0, None);
    }
    case.check(ParityState::Fallback, &["at token 0 (7 and 8", "--tokenizer"]);
    for _ in 0..7 {
        case.request(Some(TOKENS), 0, None);
    }
    case.check(ParityState::Degraded, &["at token 0"]);
    case.request(Some(TOKENS), 0, None);
    case.check(ParityState::Exact, &[]);
}

#[test]
fn a_part_of_the_prompts_that_differs_is_degraded() {
    let mut case = Case::new();
    for number in 0..20 {
        case.request(Some(if number % 4 == 0 { OTHER } else { TOKENS }), 0, None);
    }
    case.check(ParityState::Degraded, &["differ"]);
}

#[test]
fn blocks_that_do_not_appear_lead_to_fallback() {
    let mut case = Case::new();
    for _ in 0..10 {
        case.request(None, 0, None);
    }
    case.appears = false;
    for _ in 0..6 {
        case.request(None, 0, None);
    }
    case.check(ParityState::Fallback, &["did not appear", "stopped"]);
    case.appears = true;
    for _ in 0..3 {
        case.request(None, 0, None);
    }
    case.check(ParityState::Fallback, &["did not appear"]);
    case.request(None, 0, None);
    case.check(ParityState::Exact, &[]);
}

#[test]
fn blocks_get_time_to_appear() {
    let mut case = Case::new();
    case.appears = false;
    let facts = RequestFacts {
        router_tokens: TOKENS,
        engine_tokens: None,
        cached_tokens: None,
        credited_blocks: 0,
    };
    for _ in 0..100 {
        case.judge.on_answer(&facts, || Some(SequenceHash(1)), case.now);
    }
    assert_eq!(case.judge.awaited.len(), MOST_AWAITED, "the queue is bounded");
    case.wait(APPEARANCE_TIME - Duration::from_millis(1));
    case.check(ParityState::Exact, &[]);
    case.wait(Duration::from_millis(1));
    case.check(ParityState::Fallback, &["did not appear"]);
}

#[test]
fn credit_that_the_engine_does_not_hold_is_degraded() {
    let mut case = Case::new();
    // A missing last block is usual, and so is a whole prompt of which one token is computed.
    for _ in 0..20 {
        case.request(None, 6, Some(80));
    }
    case.check(ParityState::Exact, &[]);
    for _ in 0..5 {
        case.request(None, 6, Some(16));
    }
    case.check(ParityState::Degraded, &["fewer tokens", "credited"]);
    for _ in 0..4 {
        case.request(None, 6, Some(96));
    }
    case.check(ParityState::Exact, &[]);
    for _ in 0..20 {
        case.request(None, 6, None);
        case.request(None, 0, Some(96));
    }
    case.check(ParityState::Exact, &[]);
}

#[test]
fn the_state_of_the_event_stream_counts() {
    for (events, state, words) in [
        (
            EventFacts {
                other_block_size: Some(32),
                ..good_events()
            },
            ParityState::Fallback,
            &["32", "16", "--block-size 32"][..],
        ),
        (
            EventFacts {
                has_token_pairs: true,
                ..good_events()
            },
            ParityState::Fallback,
            &["pairs", "EAGLE"],
        ),
        (
            EventFacts {
                is_complete: false,
                ..good_events()
            },
            ParityState::Degraded,
            &["replay"],
        ),
        (
            EventFacts {
                is_complete: false,
                has_replay: false,
                ..good_events()
            },
            ParityState::Degraded,
            &["replay_endpoint", "--kv-replay"],
        ),
        (
            EventFacts::default(),
            ParityState::Degraded,
            &["not connected yet"],
        ),
    ] {
        let mut case = Case::new();
        let is_incomplete = events.is_connected && !events.is_complete;
        case.judge.on_events(events, case.now);
        if is_incomplete {
            case.check(ParityState::Degraded, &["still being read"]);
            case.wait(CATCH_UP_TIME);
        }
        case.check(state, words);
        case.judge.on_events(good_events(), case.now);
        case.check(ParityState::Exact, &[]);
    }
}

#[test]
fn events_that_stay_away_lead_to_fallback() {
    let mut case = Case::new();
    case.judge.on_events(EventFacts::default(), case.now);
    case.wait(MOST_DISCONNECTED);
    case.judge.on_events(EventFacts::default(), case.now);
    case.check(ParityState::Fallback, &["cannot be reached", "--kv-events"]);
    case.judge.on_events(good_events(), case.now);
    case.check(ParityState::Exact, &[]);
}

#[test]
fn the_sample_is_dense_at_the_start_and_after_a_difference() {
    let mut case = Case::new();
    let sampled =
        |case: &mut Case, requests: u32| (0..requests).filter(|_| case.judge.takes_sample()).count();
    assert_eq!(sampled(&mut case, 20), 20);
    assert_eq!(sampled(&mut case, 160), 10);
    case.request(Some(OTHER), 0, None);
    assert_eq!(sampled(&mut case, 20), 20);
}

#[test]
fn a_prompt_without_tokens_shows_nothing() {
    let mut case = Case::new();
    case.appears = false;
    let facts = RequestFacts {
        router_tokens: &[],
        engine_tokens: Some(TOKENS),
        cached_tokens: Some(0),
        credited_blocks: 9,
    };
    for _ in 0..20 {
        case.judge.on_answer(&facts, || Some(SequenceHash(1)), case.now);
        case.wait(APPEARANCE_TIME);
    }
    case.check(ParityState::Exact, &[]);
}

#[test]
fn a_difference_names_its_place() {
    assert_eq!(first_difference(&[1, 2], &[1, 2]), None);
    let text = first_difference(&[1, 2], &[1, 2, 3]).unwrap();
    assert!(
        text.contains("at token 2 (the end and 3; 2 and 3 tokens"),
        "{text}"
    );
    assert!(
        first_difference(&[5], &[6])
            .unwrap()
            .contains("at token 0 (5 and 6")
    );
}
