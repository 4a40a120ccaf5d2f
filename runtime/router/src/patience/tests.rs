//! Which silence is too long.

use signalbox_protocol::{LoadReport, WorkerReport};

use super::*;
use crate::load::Reservation;

const WORKER: WorkerSlot = WorkerSlot(2);
const SECOND: Duration = Duration::from_secs(1);

/// A worker that computes 1,000 prompt tokens a second, in steps of 10 ms.
struct Rig {
    patience: Patience,
    queued: Vec<Reservation>,
}

impl Rig {
    fn new() -> Self {
        let load = LoadTable::default();
        Self {
            patience: Patience::new(TokenTimeouts::default(), load, LatencyTable::default()),
            queued: Vec::new(),
        }
    }

    /// The worker has done this many steps, the last one `ago`.
    fn report(&self, steps_done: u64, ago: Duration) -> &Self {
        let report = WorkerReport {
            load: LoadReport {
                prefill_tokens_per_s: 1_000,
                decode_step_us: 10_000,
                steps_done,
                ..LoadReport::default()
            },
            ..WorkerReport::default()
        };
        let at = std::time::Instant::now().checked_sub(ago).unwrap();
        let at_ms = self.patience.load.clock_ms(at);
        self.patience.load.report(WORKER, &report, at_ms);
        self
    }

    fn is_stuck(&self, quiet: Duration) -> bool {
        self.patience.is_stuck(WORKER, quiet, SECOND, Expected::default())
    }
}

/// The clock of the table begins when it is made, and these tests look some seconds back.
fn forward(rig: &mut Rig) {
    let earlier = std::time::Instant::now().checked_sub(100 * SECOND).unwrap();
    rig.patience.load = rig.patience.load.clone().since(earlier);
}

fn rig() -> Rig {
    let mut rig = Rig::new();
    forward(&mut rig);
    rig
}

#[test]
fn a_silent_worker_without_progress_is_stuck_after_the_least_time_and_some_steps() {
    let rig = rig();
    rig.report(5, 10 * SECOND);
    assert!(!rig.is_stuck(SECOND));
    assert!(rig.is_stuck(SECOND + Duration::from_millis(210)));
}

#[test]
fn a_worker_whose_engine_makes_steps_is_alive_however_long_it_is_silent() {
    let rig = rig();
    rig.report(5, 10 * SECOND);
    assert!(rig.is_stuck(60 * SECOND));
    rig.report(6, Duration::ZERO);
    assert!(!rig.is_stuck(60 * SECOND));
    // The same number again is no progress.
    rig.report(7, 10 * SECOND).report(7, Duration::ZERO);
    assert!(rig.is_stuck(60 * SECOND));
}

#[test]
fn a_long_prompt_or_queue_takes_its_time() {
    let mut rig = rig();
    rig.report(5, 90 * SECOND);
    rig.queued.push(rig.patience.load.reserve(WORKER, 5_000, 1));
    assert!(!rig.is_stuck(20 * SECOND), "5 s of prefill, four times over");
    assert!(rig.is_stuck(22 * SECOND));
    rig.patience.load.set_others(
        WORKER,
        signalbox_protocol::ReplicaLoad {
            prefill_tokens: 5_000,
            ..Default::default()
        },
    );
    assert!(!rig.is_stuck(40 * SECOND), "those of other routers count");
    rig.queued.clear();
    assert!(rig.is_stuck(22 * SECOND));
}

#[test]
fn a_worker_that_reports_no_steps_is_given_ten_times_as_long() {
    let rig = rig();
    rig.report(0, 10 * SECOND);
    assert!(!rig.is_stuck(12 * SECOND));
    assert!(rig.is_stuck(13 * SECOND));
}

#[test]
fn a_worker_of_unknown_speed_is_given_long() {
    let rig = rig();
    assert!(!rig.is_stuck(300 * SECOND));
    assert!(rig.is_stuck(400 * SECOND));
}

#[test]
fn a_whole_answer_of_an_engine_next_door_and_a_grammar_take_their_time() {
    let rig = rig();
    rig.report(5, 90 * SECOND);
    let is_stuck = |tokens, compiles| {
        let expected = Expected { tokens, compiles };
        rig.patience.is_stuck(WORKER, 5 * SECOND, SECOND, expected)
    };
    assert!(is_stuck(0, false) && is_stuck(90, false));
    assert!(!is_stuck(1_000, false) && !is_stuck(0, true));
}

#[tokio::test(start_paused = true)]
async fn a_piece_breaks_the_silence() {
    let rig = rig();
    rig.report(5, 90 * SECOND);
    let mut silence = Silence::of(WORKER, Rc::new(rig.patience)).unwrap();
    let wait = async |time| {
        tokio::time::advance(time).await;
        Instant::now()
    };
    let now = wait(SECOND).await;
    silence.is_broken = true;
    assert_eq!(silence.too_long(now, true), None);
    let now = wait(SECOND).await;
    assert_eq!(silence.too_long(now, true), None);
    let now = wait(SECOND).await;
    assert_eq!(silence.too_long(now, true), Some(2 * SECOND));
    assert_eq!(silence.too_long(now, false), None, "nobody could continue");
    let now = wait(15 * SECOND).await;
    assert_eq!(silence.too_long(now, false), Some(17 * SECOND));
}
