//! The actor of one link. It dials, waits after a failure or a loss, and dials again, until the link is closed.

use std::{
    future::poll_fn,
    time::{Duration, Instant},
};

use actix::{dev::SendError, prelude::*};
use tokio_util::task::AbortOnDropHandle;

use super::{
    backoff::Backoff,
    dial::{DialError, Dialled, dial},
    link_events::LinkEvent,
    link_log::LinkLog,
    link_state::LinkState,
    pump,
    state::SharedLink,
};
use crate::nats::ADDRESS_PREFIX;

/// The wait before an event is offered again to a watcher whose mailbox was full. (actix's own `Recipient::send` does not
/// wake its caller when a full mailbox gets room.)
const OFFER_AGAIN: Duration = Duration::from_millis(20);

/// The actor of one link. The state that handles and streams read is in the [`SharedLink`].
pub(super) struct WorkerLink {
    link: SharedLink,
    watcher: Option<Recipient<LinkEvent>>,
    backoff: Backoff,
    /// Whether the pump runs. The pump of a closed link ends by itself once no stream is open.
    connected: bool,
    log: LinkLog,
}

/// Stops the actor after the owner has closed the link.
#[derive(Debug)]
pub(super) struct Close;

impl Message for Close {
    type Result = ();
}

impl WorkerLink {
    /// Starts the actor on this arbiter, with the link's state ready to queue calls.
    pub(super) fn start(link: SharedLink, watcher: Option<Recipient<LinkEvent>>) -> Addr<Self> {
        let (config, address) = link.with(|link| {
            link.dialling();
            (link.config.clone(), link.address.clone())
        });
        let backoff = Backoff::new(config.backoff_min, config.backoff_max);
        Actor::start(Self {
            link,
            backoff,
            connected: false,
            log: LinkLog::new(config.losses.clone(), address),
            watcher,
        })
    }

    fn dial(&mut self, ctx: &mut Context<Self>) {
        let (state, address, config) = self.link.with(|link| {
            link.dialling();
            (link.state, link.address.clone(), link.config.clone())
        });
        if state == LinkState::Closed {
            return ctx.stop();
        }
        let dialling = async move { dial(address, &config).await };
        ctx.spawn(
            dialling
                .into_actor(self)
                .map(|dialled, actor, ctx| actor.on_dialled(dialled, ctx)),
        );
    }

    fn on_dialled(&mut self, dialled: Result<Dialled, DialError>, ctx: &mut Context<Self>) {
        let Dialled {
            socket,
            buffer,
            card,
            max_frame_bytes,
        } = match dialled {
            Ok(dialled) => dialled,
            Err(error) => {
                let reason = error.to_string();
                self.link.with(|link| link.lost(&reason));
                return self.wait_or_stop(&reason, false, ctx);
            }
        };
        self.log.connected(&card.id);
        let up_since = Instant::now();
        self.link
            .with(|link| link.connected(card, max_frame_bytes, up_since));
        self.connected = true;
        // A task of its own, so that the bytes of tokens do not pass through the actor's context.
        let pump = actix_rt::spawn(pump::run(socket, buffer, self.link.clone()));
        let pumping = AbortOnDropHandle::new(pump)
            .into_actor(self)
            .map(move |end, actor, ctx| {
                actor.connected = false;
                actor.backoff.after_connection(up_since.elapsed());
                let reason = end.map_or_else(|error| error.to_string(), |end| end.to_string());
                let drained = actor.link.with(|link| link.has_drained);
                actor.wait_or_stop(&reason, drained, ctx);
            });
        ctx.spawn(pumping);
    }

    /// `expected`: the worker has said that it is about to leave.
    fn wait_or_stop(&mut self, reason: &str, expected: bool, ctx: &mut Context<Self>) {
        let (closed, nats) = self.link.with(|link| {
            let is_over_nats = link.address.starts_with(ADDRESS_PREFIX);
            let nats = link.config.nats.clone().filter(|_| is_over_nats);
            (link.state == LinkState::Closed, nats)
        });
        if closed {
            return ctx.stop();
        }
        let wait = self.backoff.after_failure(rand::random());
        self.log.lost(reason, expected);
        // While NATS is away every dial fails, and once it is back the next one must not wait for the longest pause.
        let waiting = async move {
            match nats {
                None => tokio::time::sleep(wait).await,
                Some(nats) => tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = nats.back() => return true,
                },
            }
            false
        };
        ctx.spawn(waiting.into_actor(self).map(|is_nats_back, actor, ctx| {
            if is_nats_back {
                actor.backoff.reset();
            }
            actor.dial(ctx);
        }));
    }

    /// Sends every event to the watcher. An event that meets a full mailbox is offered again until the watcher takes it.
    fn notify(&self, watcher: Recipient<LinkEvent>, ctx: &mut Context<Self>) {
        let link = self.link.clone();
        let notifying = async move {
            loop {
                let event = poll_fn(|cx| link.with(|link| link.poll_event(cx))).await;
                match watcher.try_send(event) {
                    Ok(()) => {}
                    Err(SendError::Closed(_)) => return,
                    Err(SendError::Full(event)) => {
                        link.with(|link| link.put_back(event));
                        tokio::time::sleep(OFFER_AGAIN).await;
                    }
                }
            }
        };
        ctx.spawn(notifying.into_actor(self));
    }
}

impl Actor for WorkerLink {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        if let Some(watcher) = self.watcher.take() {
            self.notify(watcher, ctx);
        }
        self.dial(ctx);
    }
}

impl Handler<Close> for WorkerLink {
    type Result = ();

    fn handle(&mut self, _: Close, ctx: &mut Context<Self>) {
        if !self.connected {
            ctx.stop();
        }
    }
}

impl Drop for WorkerLink {
    /// Fails the calls that are queued for the current dial, which will not end.
    fn drop(&mut self) {
        self.link.with(|link| link.lost("the link stopped"));
    }
}

/// Makes the actor panic, for tests.
#[cfg(test)]
pub(super) struct Panic;

#[cfg(test)]
impl Message for Panic {
    type Result = ();
}

#[cfg(test)]
impl Handler<Panic> for WorkerLink {
    type Result = ();

    fn handle(&mut self, _: Panic, _: &mut Context<Self>) {
        panic!("this panic is part of the test");
    }
}
