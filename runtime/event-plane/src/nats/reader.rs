//! The router side: one consumer that receives a namespace's events, and notices when some are gone.
//!
//! The position in the stream is kept here, not at the server: whatever ends a consumer, the next one begins where
//! this one was. A loss that cannot be said whose it is becomes a [`Skipped`](crate::Delivery::Skipped) of every
//! worker: one that says nothing more would be believed for ever otherwise.

use std::{
    convert::Infallible,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use metrics::counter;
use signalbox_nats::async_nats::{
    datetime,
    jetstream::{
        Message,
        consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull},
        stream::Stream,
    },
};
use signalbox_protocol::WorkerId;
use tokio::{sync::watch, time::MissedTickBehavior};

use super::{
    log_throttle::LogThrottle,
    position::{Continuity, Extent, Position, beginning},
    stream::{EventStore, STREAM},
};
use crate::{EventPlane, MemoryPlane, decode_batches};

#[cfg(test)]
mod tests;

/// A consumer says that it lives this often; after two without a sign of life another is made.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// The server holds a request for messages this long, then it is made again.
const PULL_EXPIRES: Duration = Duration::from_secs(30);

/// Messages asked for at once; half as many again may be under way. At worst each takes 512 KiB: 48 MiB.
const PULL_MESSAGES: usize = 64;

/// The server drops a consumer that nobody asked for this long.
const INACTIVE: Duration = Duration::from_secs(30);

/// How often the stream is looked at: whatever was removed from it unread is noticed this soon.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Wait before the next consumer is made, doubled up to the longest while none lasts longer than that.
const RETRY: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// Receives a namespace's events into a [`MemoryPlane`].
#[derive(Debug)]
pub(super) struct Reader {
    store: EventStore,
    filter: String,
    received: MemoryPlane,
    /// Whether there was a consumer, ever: from then on nothing is missed unnoticed.
    reading: watch::Sender<bool>,
    position: Option<Position>,
    refusals: LogThrottle,
}

/// One consumer's life.
struct ConsumerSession {
    stream: Stream<()>,
    consumer: PullConsumer,
    /// Messages received of this consumer: it numbers them.
    received: u64,
}

/// Why a consumer is given up.
type ConsumerError = Box<dyn std::error::Error + Send + Sync>;

impl Reader {
    pub(super) fn new(
        store: EventStore,
        filter: String,
        received: MemoryPlane,
        reading: watch::Sender<bool>,
    ) -> Self {
        Self {
            store,
            filter,
            received,
            reading,
            position: None,
            refusals: LogThrottle::default(),
        }
    }

    /// Reads for ever.
    pub(super) async fn run(mut self) {
        let began = datetime::now();
        let mut retry = RETRY;
        loop {
            self.store.usable().await;
            let since = Instant::now();
            let Err(reason) = self.read(began).await;
            tracing::debug!(%reason, "consumer of KV events ended; making another");
            if self.store.connection.is_up() {
                self.store.doubt();
            }
            if since.elapsed() > RETRY_MAX {
                retry = RETRY;
            }
            tokio::time::sleep(retry).await;
            retry = (2 * retry).min(RETRY_MAX);
        }
    }

    /// Reads with one consumer, until it fails.
    async fn read(&mut self, began: datetime::DateTime) -> Result<Infallible, ConsumerError> {
        let mut connection = self.store.connection.status();
        connection.mark_unchanged();
        let mut session = self.start(began).await?;
        let messages = session
            .consumer
            .stream()
            .max_messages_per_batch(PULL_MESSAGES)
            .expires(PULL_EXPIRES)
            .heartbeat(HEARTBEAT)
            .messages()
            .await?;
        let mut messages = pin!(messages);
        let mut checks = tokio::time::interval(CHECK_INTERVAL);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = messages.next() => {
                    let message = message.ok_or("no more messages")??;
                    self.receive(&mut session, &message)?;
                    // A burst must not keep those who follow from reading along.
                    tokio::task::yield_now().await;
                }
                _ = checks.tick() => self.check(&session).await?,
                // What was under way on the old connection is lost.
                _ = connection.changed() => return Err("the connection changed".into()),
            }
        }
    }

    /// Makes a consumer that goes on at the position, or where the stream begins if that is gone.
    async fn start(&mut self, began: datetime::DateTime) -> Result<ConsumerSession, ConsumerError> {
        let stream = self.store.jetstream.get_stream_no_info(STREAM).await?;
        let extent = Extent::of(&stream.get_info().await?);
        let (start, lost) = match &self.position {
            None => (None, !extent.reaches_back(began)),
            Some(position) => match position.check(&extent) {
                Continuity::Whole => (Some(position.next), false),
                Continuity::FrontLost { next } => (Some(next), true),
                Continuity::Renumbered => (Some(extent.first), true),
            },
        };
        let consumer = stream
            .create_consumer(pull::Config {
                deliver_policy: match start {
                    None => DeliverPolicy::ByStartTime {
                        start_time: beginning(began),
                    },
                    Some(start_sequence) => DeliverPolicy::ByStartSequence { start_sequence },
                },
                filter_subject: self.filter.clone(),
                ack_policy: AckPolicy::None,
                inactive_threshold: INACTIVE,
                // It need not outlive its server: another one begins where this one was.
                memory_storage: true,
                num_replicas: 1,
                ..pull::Config::default()
            })
            .await?;
        self.position = Some(Position {
            stream: extent.created,
            next: start.unwrap_or_else(|| consumer.cached_info().delivered.stream_sequence + 1),
        });
        // Only now, so that whoever takes a snapshot because of it misses nothing that comes after.
        if lost {
            self.tell_lost("the stream no longer has what comes next");
        }
        self.reading.send_replace(true);
        Ok(ConsumerSession {
            stream,
            consumer,
            received: 0,
        })
    }

    fn receive(&mut self, session: &mut ConsumerSession, message: &Message) -> Result<(), ConsumerError> {
        let info = message.info()?;
        if info.consumer_sequence != session.received + 1 {
            return Err("messages were lost on the way".into());
        }
        session.received += 1;
        if let Some(position) = &mut self.position {
            position.next = info.stream_sequence + 1;
        }
        counter!("signalbox_kv_event_messages_total", "direction" => "in").increment(1);
        counter!("signalbox_kv_event_bytes_total", "direction" => "in")
            .increment(message.payload.len() as u64);
        self.deliver(message);
        Ok(())
    }

    fn deliver(&mut self, message: &Message) {
        let name = message.subject.rsplit('.').next().unwrap_or_default();
        let worker = name.parse::<WorkerId>();
        let batches = decode_batches(&message.payload);
        match (worker, batches) {
            (Ok(worker), Ok(batches)) => {
                counter!("signalbox_kv_event_batches_total", "direction" => "in")
                    .increment(batches.len() as u64);
                for batch in batches {
                    self.received.publish(&worker, Arc::new(batch));
                }
            }
            (Ok(worker), Err(error)) => {
                self.refuse(message, &error);
                // Whatever it said is missing now, and it may say nothing more.
                self.received.skip(&worker);
            }
            (Err(error), _) => self.refuse(message, &error),
        }
    }

    fn refuse(&mut self, message: &Message, error: &dyn std::error::Error) {
        counter!("signalbox_event_messages_refused_total").increment(1);
        if let Some(more) = self.refusals.tell() {
            tracing::warn!(subject = %message.subject, %error, more, "a message that holds no KV events is ignored");
        }
    }

    /// Looks whether something was removed from the stream that was never received.
    async fn check(&mut self, session: &ConsumerSession) -> Result<(), ConsumerError> {
        let extent = Extent::of(&session.stream.get_info().await?);
        let Some(position) = &mut self.position else {
            return Ok(());
        };
        match position.check(&extent) {
            Continuity::Whole => {}
            Continuity::FrontLost { next } => {
                position.next = next;
                self.tell_lost("messages were removed from the stream before they were read");
                return Ok(());
            }
            // The next session tells, as soon as it has a consumer.
            Continuity::Renumbered => return Err("the stream was made anew".into()),
        }
        if extent.next > position.next {
            let consumer = session.consumer.get_info().await?;
            if consumer.num_pending == 0 && consumer.delivered.consumer_sequence == session.received {
                // What else the stream had is of other namespaces. The messages it has now may go.
                position.next = extent.next;
            }
        }
        Ok(())
    }

    fn tell_lost(&self, reason: &str) {
        counter!("signalbox_kv_event_losses_total").increment(1);
        tracing::warn!(reason, "KV events were lost: every worker's are read anew");
        self.received.skip_all();
    }
}
