use proptest::prelude::*;
use signalbox_protocol::WireError;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Workers of one model, in the slots from 0 on.
struct Fleet {
    breakers: Breakers,
    generations: Vec<u32>,
    now: Instant,
}

impl Fleet {
    fn new(workers: u32) -> Self {
        let (mut breakers, now) = (Breakers::default(), Instant::now());
        let generations = (0..workers).map(|slot| breakers.join(slot, "m", now)).collect();
        Self {
            breakers,
            generations,
            now,
        }
    }

    fn id(&self, slot: u32) -> Incarnation {
        Incarnation {
            slot,
            generation: self.generations[slot as usize],
        }
    }

    fn fail(&mut self, slot: u32) -> Option<Ejected> {
        self.breakers.failed(self.id(slot), 100, self.now, 1.0)
    }

    fn answer(&mut self, slot: u32) {
        self.breakers.answered(slot, 1, self.now);
    }

    fn wait(&mut self, time: Duration) -> Vec<Incarnation> {
        self.now += time;
        self.breakers.due(self.now)
    }

    fn probed(&mut self, slot: u32, has_answered: bool) -> Option<bool> {
        self.breakers.probed(self.id(slot), has_answered, self.now, 1.0)
    }

    fn ejected(&self) -> usize {
        self.breakers.marks().filter(|(_, mark)| mark.is_ejected).count()
    }
}

#[test]
fn only_faults_of_the_worker_count() {
    use ErrorKind::*;
    let refused = |kind| LinkError::Refused(WireError::new(kind, "refused"));
    let address = || "a:1".to_owned();
    let reason = || "reset".to_owned();
    let table = [
        (refused(Internal), Some(Fault::Error)),
        (refused(Unavailable), Some(Fault::Error)),
        (refused(InvalidRequest), None),
        (refused(ContextLengthExceeded), None),
        (refused(NotFound), None),
        (refused(Overloaded), None),
        (refused(Cancelled), None),
        (refused(DeadlineExceeded), None),
        (
            LinkError::Lost {
                address: address(),
                reason: reason(),
            },
            Some(Fault::Lost),
        ),
        (
            LinkError::Unreachable {
                address: address(),
                reason: reason(),
            },
            None,
        ),
        (LinkError::Draining { address: address() }, None),
        (
            LinkError::Full {
                address: address(),
                limit: 1,
            },
            None,
        ),
    ];
    for (error, expected) in table {
        assert_eq!(Fault::of(&error), expected, "{error:?}");
    }
}

#[test]
fn the_third_failure_in_a_row_ejects() {
    let mut fleet = Fleet::new(2);
    assert_eq!((fleet.fail(0), fleet.fail(0)), (None, None));
    fleet.answer(0);
    assert_eq!(
        (fleet.fail(0), fleet.fail(0)),
        (None, None),
        "counted from one again"
    );
    let ejected = fleet.fail(0).unwrap();
    assert_eq!((ejected.wait, ejected.in_row), (SECOND, 3));
    assert_eq!(fleet.breakers.state(0), BreakerState::Open);
    assert!(fleet.breakers.mark(0).is_ejected && !fleet.breakers.mark(1).is_ejected);
}

#[test]
fn a_worker_that_fails_half_of_its_requests_is_ejected_though_it_answers_between() {
    let mut fleet = Fleet::new(2);
    let ejected = (0..20).find_map(|_| {
        fleet.now += SECOND / 10;
        fleet.answer(0);
        fleet.fail(0)
    });
    assert!(ejected.is_some());
    let mut seldom = Fleet::new(2);
    for _ in 0..100 {
        seldom.now += SECOND / 10;
        (0..3).for_each(|_| seldom.answer(0));
        assert_eq!(seldom.fail(0), None, "one in four");
    }
}

#[test]
fn failures_of_long_ago_do_not_eject() {
    let mut fleet = Fleet::new(2);
    for _ in 0..4 {
        fleet.answer(0);
        fleet.fail(0);
    }
    fleet.wait(WINDOW);
    fleet.answer(0);
    assert_eq!(fleet.fail(0), None, "two requests in the window");
}

#[test]
fn one_probe_decides_and_the_waits_double_up_to_the_longest() {
    let mut fleet = Fleet::new(2);
    (0..3).for_each(|_| _ = fleet.fail(0));
    assert_eq!(fleet.wait(SECOND / 2), []);
    for wait in [1, 2, 4, 6, 6] {
        let due = fleet.wait(SECOND * wait);
        assert_eq!(due, [fleet.id(0)], "after {wait} s");
        assert_eq!(fleet.breakers.state(0), BreakerState::HalfOpen);
        assert_eq!(fleet.wait(SECOND), [], "one probe at a time");
        assert_eq!(fleet.probed(0, false), Some(false));
        assert_eq!(fleet.breakers.state(0), BreakerState::Open);
    }
    fleet.wait(SECOND * 8);
    assert_eq!(fleet.probed(0, true), Some(true));
    assert_eq!(fleet.breakers.state(0), BreakerState::Closed);
    assert_eq!(fleet.fail(0), None, "its past is forgotten");
    (0..2).for_each(|_| _ = fleet.fail(0));
    assert_eq!(
        fleet.wait(SECOND * 5),
        [],
        "an ejection soon after another is not short"
    );
}

#[test]
fn after_a_quiet_minute_the_first_wait_is_short_again() {
    let mut fleet = Fleet::new(2);
    for _ in 0..3 {
        (0..3).for_each(|_| _ = fleet.fail(0));
        fleet.wait(SECOND * 8);
        fleet.probed(0, true);
    }
    fleet.wait(FORGOTTEN_AFTER);
    let ejected = (0..3).find_map(|_| fleet.fail(0)).unwrap();
    assert_eq!(ejected.wait, SECOND);
}

#[test]
fn a_probe_without_a_result_is_sent_again() {
    let mut fleet = Fleet::new(2);
    (0..3).for_each(|_| _ = fleet.fail(0));
    assert_eq!(fleet.wait(SECOND).len(), 1);
    assert_eq!(fleet.wait(PROBE_LOST_AFTER).len(), 1);
}

#[test]
fn the_only_worker_is_never_ejected() {
    let mut alone = Fleet::new(1);
    assert!((0..100).all(|_| alone.fail(0).is_none()));
}

#[test]
fn workers_of_another_model_do_not_count() {
    let mut fleet = Fleet::new(1);
    (1..9).for_each(|slot| _ = fleet.breakers.join(slot, "other", fleet.now));
    assert!((0..100).all(|_| fleet.fail(0).is_none()));
}

#[test]
fn failures_count_as_load_until_they_age_out() {
    let mut fleet = Fleet::new(1);
    fleet.fail(0);
    fleet.wait(SECOND * 5);
    fleet.fail(0);
    let mark = |fleet: &Fleet| {
        let mark = fleet.breakers.mark(0);
        (mark.failures, mark.prefill_tokens)
    };
    assert_eq!(mark(&fleet), (2, 200));
    fleet.wait(SECOND * 5);
    assert_eq!(mark(&fleet), (1, 100));
    fleet.wait(SECOND * 5);
    assert_eq!(mark(&fleet), (0, 0));
    (0..100).for_each(|_| _ = fleet.fail(0));
    assert_eq!(mark(&fleet).0, MOST_COUNTED as u32);
}

#[test]
fn the_failures_of_an_earlier_incarnation_do_not_count() {
    let mut fleet = Fleet::new(2);
    let earlier = fleet.id(0);
    fleet.generations[0] = fleet.breakers.join(0, "m", fleet.now);
    for _ in 0..9 {
        assert_eq!(fleet.breakers.failed(earlier, 1, fleet.now, 1.0), None);
    }
    assert_eq!(fleet.breakers.mark(0), Mark::default());
    fleet.breakers.leave(0);
    assert_eq!(fleet.fail(0), None, "it has left");
}

#[test]
fn without_a_number_of_failures_nobody_is_ejected() {
    let mut breakers = Breakers::new(BreakerConfig {
        failures: 0,
        ..BreakerConfig::default()
    });
    let now = Instant::now();
    let generation = breakers.join(0, "m", now);
    breakers.join(1, "m", now);
    let id = Incarnation { slot: 0, generation };
    assert!((0..100).all(|_| breakers.failed(id, 1, now, 1.0).is_none()));
    assert_eq!(
        breakers.mark(0).failures,
        MOST_COUNTED as u32,
        "they count as load"
    );
}

proptest! {
    /// Whatever happens, at most half of the workers are ejected, each ejected one is probed within the longest wait, and a
    /// worker that answers its probe gets requests.
    #[test]
    fn at_most_half_are_ejected_and_each_returns(
        workers in 1_u32..9,
        steps in prop::collection::vec((0_u32..9, 0_u8..4, 0_u64..3_000, any::<bool>()), 0..200),
    ) {
        let mut fleet = Fleet::new(workers);
        for (slot, what, wait_ms, has_answered) in steps {
            let slot = slot % workers;
            match what {
                0 => fleet.answer(slot),
                1 | 2 => _ = fleet.fail(slot),
                _ => for due in fleet.wait(Duration::from_millis(wait_ms)) {
                    fleet.probed(due.slot, has_answered);
                },
            }
            prop_assert!(fleet.ejected() * 2 <= workers as usize);
        }
        let mut waited = Duration::ZERO;
        while waited <= BreakerConfig::default().eject_max {
            for due in fleet.wait(SECOND / 4) {
                fleet.probed(due.slot, true);
            }
            waited += SECOND / 4;
        }
        prop_assert_eq!(fleet.ejected(), 0);
    }
}
