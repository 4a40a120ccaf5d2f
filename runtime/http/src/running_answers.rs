//! The streamed answers of one HTTP thread, and what ends them from outside: their deadline, and the end of a drain.
//!
//! The HTTP library asks a body for bytes only while the client reads. Without this, a client that reads slowly or not at
//! all would keep the work at the engine past its deadline.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt,
    rc::{Rc, Weak},
};

use signalbox_protocol::{ErrorKind, WireError};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// An answer that can be ended before its worker ends it.
pub(crate) trait EndFromOutside: fmt::Debug {
    /// Cancels the work at the engine. The client receives the error.
    fn end(&self, error: &WireError);
}

/// The answers under way, by deadline.
#[derive(Debug, Default)]
pub(crate) struct RunningAnswers {
    answers: RefCell<BTreeMap<Key, Weak<dyn EndFromOutside>>>,
    next: Cell<u64>,
    /// The deadline that [`run`](Self::run) waits for.
    awaited: Cell<Option<Instant>>,
    /// Notified when an answer has an earlier deadline than the one waited for.
    earlier: Notify,
}

type Key = (Instant, u64);

/// An answer among the running ones until this is dropped.
#[derive(Debug)]
pub(crate) struct Registration {
    answers: Rc<RunningAnswers>,
    key: Key,
}

impl RunningAnswers {
    /// Adds an answer, which is ended at `deadline`.
    pub(crate) fn register(
        self: &Rc<Self>,
        deadline: Instant,
        answer: Weak<dyn EndFromOutside>,
    ) -> Registration {
        let key = (deadline, self.next.replace(self.next.get() + 1));
        self.answers.borrow_mut().insert(key, answer);
        if self.awaited.get().is_none_or(|awaited| deadline < awaited) {
            self.earlier.notify_one();
        }
        Registration {
            answers: Rc::clone(self),
            key,
        }
    }

    /// Ends each answer at its deadline, and all of them when `cut_off` is cancelled, which ends this too.
    pub(crate) async fn run(self: Rc<Self>, cut_off: CancellationToken) {
        loop {
            self.awaited.set(self.first_deadline());
            let due = async {
                match self.awaited.get() {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => self.end_until(Instant::now()),
                () = self.earlier.notified() => {}
                () = cut_off.cancelled() => return self.end_all(),
            }
        }
    }

    fn first_deadline(&self) -> Option<Instant> {
        self.answers
            .borrow()
            .first_key_value()
            .map(|((deadline, _), _)| *deadline)
    }

    fn end_until(&self, now: Instant) {
        let error = not_whole_in_time();
        while self.first_deadline().is_some_and(|deadline| deadline <= now) {
            let first = self.answers.borrow_mut().pop_first();
            // Ended outside of the borrow: an answer that is dropped removes its own entry.
            if let Some(answer) = first.and_then(|(_, answer)| answer.upgrade()) {
                answer.end(&error);
            }
        }
    }

    fn end_all(&self) {
        let answers = std::mem::take(&mut *self.answers.borrow_mut());
        for answer in answers.into_values().filter_map(|answer| answer.upgrade()) {
            answer.end(&shutting_down());
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.answers.answers.borrow_mut().remove(&self.key);
    }
}

/// The deadline passed while the answer was under way.
fn not_whole_in_time() -> WireError {
    WireError::new(
        ErrorKind::DeadlineExceeded,
        "the answer was not whole within the request's deadline",
    )
}

/// The process ends before the answer.
pub(crate) fn shutting_down() -> WireError {
    WireError::new(
        ErrorKind::Unavailable,
        "this server is shutting down; try another server",
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::sleep;

    use super::*;

    #[derive(Debug, Default)]
    struct Recorded(RefCell<Option<WireError>>);

    impl EndFromOutside for Recorded {
        fn end(&self, error: &WireError) {
            *self.0.borrow_mut() = Some(error.clone());
        }
    }

    impl Recorded {
        fn kind(&self) -> Option<ErrorKind> {
            self.0.borrow().as_ref().map(|error| error.kind)
        }
    }

    fn started() -> (Rc<RunningAnswers>, CancellationToken) {
        let (answers, cut_off) = (Rc::<RunningAnswers>::default(), CancellationToken::new());
        actix_rt::spawn(Rc::clone(&answers).run(cut_off.clone()));
        (answers, cut_off)
    }

    #[actix_rt::test]
    async fn an_answer_is_ended_at_its_deadline_whatever_order_they_came_in() {
        tokio::time::pause();
        let (answers, _cut_off) = started();
        let [late, early, over] = [30, 10, 5].map(|seconds| {
            let answer = Rc::new(Recorded::default());
            let deadline = Instant::now() + Duration::from_secs(seconds);
            let registration = answers.register(deadline, Rc::downgrade(&answer) as _);
            (answer, Some(registration))
        });
        drop(over.1);
        sleep(Duration::from_secs(9)).await;
        assert_eq!((early.0.kind(), over.0.kind()), (None, None));
        sleep(Duration::from_secs(2)).await;
        assert_eq!(early.0.kind(), Some(ErrorKind::DeadlineExceeded));
        assert_eq!(
            (late.0.kind(), over.0.kind()),
            (None, None),
            "one ended before its deadline"
        );
        sleep(Duration::from_secs(20)).await;
        assert_eq!(late.0.kind(), Some(ErrorKind::DeadlineExceeded));
        drop((late, early));
        assert!(answers.answers.borrow().is_empty());
    }

    #[actix_rt::test]
    async fn the_end_of_a_drain_ends_all_answers() {
        let (answers, cut_off) = started();
        let answer = Rc::new(Recorded::default());
        let far = Instant::now() + Duration::from_secs(600);
        let _registration = answers.register(far, Rc::downgrade(&answer) as _);
        cut_off.cancel();
        while answer.kind().is_none() {
            tokio::task::yield_now().await;
        }
        assert_eq!(answer.kind(), Some(ErrorKind::Unavailable));
    }
}
