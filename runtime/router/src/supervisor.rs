//! Starts an actor again when it fails.
//!
//! actix ends an actor that panics and closes its address; the arbiter runs on, and nothing starts the actor again. An
//! [`ActorHandle`] does: a task awaits the end of the actor and starts a new one, built from scratch. Senders hold the
//! handle, which has the address of the present actor.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use actix::{
    dev::channel::{AddressReceiver, channel},
    prelude::*,
};
use arc_swap::ArcSwap;
use tracing::{Instrument, error};

/// Wait before a failed actor is started again. It doubles with each failure, up to the longest, so that an actor that
/// fails at every start neither fills the log nor takes a core.
const RESTART_MIN: Duration = Duration::from_millis(10);
const RESTART_MAX: Duration = Duration::from_secs(1);

/// After this long without failure, the restart delay is reset to its shortest.
const STABLE_AFTER: Duration = Duration::from_secs(60);

/// Messages that may wait for an actor: actix's default. An actor that needs more sets its own bound when it starts.
const MAILBOX: usize = 16;

/// Starts an actor again whenever it ends, until the last clone is dropped. Clone = handle.
///
/// Dropping the last clone does not end the actor itself: that ends with its arbiter, or when its mailbox closes.
///
/// Whenever the actor ends, by a panic or otherwise, another one starts after a short wait. Messages that are sent
/// during the wait are kept for it; those that the failed actor had not handled are lost.
pub struct ActorHandle<A: Actor>(Arc<ArcSwap<Addr<A>>>);

impl<A: Actor<Context = Context<A>>> ActorHandle<A> {
    /// Starts the actor on this thread's arbiter. `name` is the value of the `actor` label of
    /// `signalbox_actor_restarts_total`; `build` builds the actor at every start.
    pub fn start(name: &'static str, build: impl FnMut() -> A + 'static) -> Self {
        let (handle, mailbox) = Self::new();
        let supervisor = supervise(name, Arc::downgrade(&handle.0), mailbox, build);
        actix_rt::spawn(supervisor.in_current_span());
        handle
    }

    /// Starts the actor on another arbiter, like [`ActorHandle::start`]. Does nothing if that arbiter has stopped.
    pub fn start_in_arbiter(
        arbiter: &ArbiterHandle,
        name: &'static str,
        build: impl FnMut() -> A + Send + 'static,
    ) -> Self {
        let (handle, mailbox) = Self::new();
        let address = Arc::downgrade(&handle.0);
        arbiter.spawn_fn(move || {
            actix_rt::spawn(supervise(name, address, mailbox, build));
        });
        handle
    }

    fn new() -> (Self, AddressReceiver<A>) {
        let (sender, mailbox) = channel(MAILBOX);
        (Self(Arc::new(ArcSwap::from_pointee(Addr::new(sender)))), mailbox)
    }

    /// The address of the present actor. It closes when that actor ends: do not keep it.
    pub fn address(&self) -> Addr<A> {
        Addr::clone(&self.0.load())
    }
}

/// Runs one actor after another for as long as a handle holds `address`.
async fn supervise<A: Actor<Context = Context<A>>>(
    name: &'static str,
    address: Weak<ArcSwap<Addr<A>>>,
    mut mailbox: AddressReceiver<A>,
    mut build: impl FnMut() -> A,
) {
    let mut delay = RESTART_MIN;
    loop {
        let started = Instant::now();
        // A panic while the actor is built is a failure like any other.
        let reason = match catch_unwind(AssertUnwindSafe(&mut build)) {
            Ok(actor) => {
                let end = actix_rt::spawn(Context::with_receiver(mailbox).into_future(actor)).await;
                end.map_or_else(|panic| panic.to_string(), |()| "it stopped".into())
            }
            Err(_) => "it panicked before it started".into(),
        };
        let Some(handle) = address.upgrade() else { return };
        let (sender, next_mailbox) = channel(MAILBOX);
        handle.store(Arc::new(Addr::new(sender)));
        drop(handle);
        mailbox = next_mailbox;
        if started.elapsed() >= STABLE_AFTER {
            delay = RESTART_MIN;
        }
        error!(actor = name, reason, retry_in = ?delay, "an actor failed and is started again");
        metrics::counter!("signalbox_actor_restarts_total", "actor" => name).increment(1);
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(RESTART_MAX);
        if address.strong_count() == 0 {
            return;
        }
    }
}

impl<A: Actor> Clone for ActorHandle<A> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<A: Actor> fmt::Debug for ActorHandle<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActorHandle").finish_non_exhaustive()
    }
}

/// Makes an actor fail in a test.
#[cfg(test)]
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Panic;

#[cfg(test)]
mod tests {
    use std::{cell::Cell, rc::Rc};

    use super::*;

    /// Counts in `started` how often it starts.
    struct Fragile {
        started: Rc<Cell<u32>>,
        /// How many starts fail.
        failing: u32,
    }

    #[derive(Message)]
    #[rtype(result = "u32")]
    struct Starts;

    #[derive(Message)]
    #[rtype(result = "()")]
    struct Stop;

    impl Actor for Fragile {
        type Context = Context<Self>;

        fn started(&mut self, _: &mut Self::Context) {
            self.started.set(self.started.get() + 1);
            assert!(
                self.started.get() > self.failing,
                "this panic is part of the test"
            );
        }
    }

    impl Handler<Starts> for Fragile {
        type Result = u32;

        fn handle(&mut self, _: Starts, _: &mut Self::Context) -> u32 {
            self.started.get()
        }
    }

    impl Handler<Panic> for Fragile {
        type Result = ();

        fn handle(&mut self, _: Panic, _: &mut Self::Context) {
            panic!("this panic is part of the test");
        }
    }

    impl Handler<Stop> for Fragile {
        type Result = ();

        fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
            ctx.stop();
        }
    }

    fn fragile(failing: u32) -> ActorHandle<Fragile> {
        let started = Rc::new(Cell::new(0));
        ActorHandle::start("fragile", move || Fragile {
            started: started.clone(),
            failing,
        })
    }

    /// Sends until an actor answers: a message to an actor that fails before handling it is lost.
    async fn starts(handle: &ActorHandle<Fragile>) -> u32 {
        loop {
            if let Ok(starts) = handle.address().send(Starts).await {
                return starts;
            }
            tokio::task::yield_now().await;
        }
    }

    #[actix_rt::test]
    async fn an_actor_that_panics_or_stops_is_started_again() {
        let handle = fragile(0);
        assert_eq!(starts(&handle).await, 1);
        assert!(handle.address().send(Panic).await.is_err());
        assert_eq!(starts(&handle).await, 2);
        handle.address().send(Stop).await.unwrap();
        assert_eq!(starts(&handle).await, 3);
    }

    #[actix_rt::test]
    async fn an_actor_that_fails_at_its_start_is_started_until_it_runs() {
        let handle = fragile(3);
        assert_eq!(starts(&handle).await, 4);
    }

    #[actix_rt::test]
    async fn an_actor_whose_last_handle_is_dropped_is_not_started_again() {
        let (handle, mailbox) = ActorHandle::new();
        let started = Rc::new(Cell::new(0));
        let counter = started.clone();
        let build = move || Fragile {
            started: counter.clone(),
            failing: 0,
        };
        let supervisor = actix_rt::spawn(supervise("fragile", Arc::downgrade(&handle.0), mailbox, build));
        let address = handle.address();
        assert_eq!(starts(&handle).await, 1);
        drop(handle);
        assert!(address.send(Panic).await.is_err());
        supervisor.await.unwrap();
        assert_eq!(started.get(), 1);
    }
}
