//! The router side: one consumer that receives the events of a namespace and detects losses.
//!
//! The position in the stream is kept here, not at the server, so that the next consumer begins where the last one
//! ended. A loss that may concern any worker becomes a [`Skipped`](crate::Delivery::Skipped) of every worker: the index
//! would otherwise stay wrong for a worker that sends no more events.

use std::{
    convert::Infallible,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use metrics::counter;
use signalbox_nats::{
    Denial,
    async_nats::{
        datetime,
        jetstream::{
            Message,
            consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull},
        },
    },
};
use signalbox_protocol::WorkerId;
use tokio::{sync::watch, time::MissedTickBehavior};

use super::{
    log_throttle::LogThrottle,
    position::{Continuity, Extent, Position, beginning},
    stream::{ConsumerError, STREAM, StreamHandle},
};
use crate::{codec::decode_batches, memory::MemoryPlane, plane::EventPlane};

#[cfg(test)]
mod tests;

/// The server sends a heartbeat this often; after two missing ones the consumer is replaced. So a consumer that was lost
/// with its server is replaced within a second or two, and an idle router receives two small messages a second.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// A consumer that lasts this long has sent heartbeats: one that sends none is replaced after two of them.
const LASTING: Duration = Duration::from_millis(1_500);

/// The server serves one pull request this long; then the client sends the next.
const PULL_EXPIRES: Duration = Duration::from_secs(30);

/// Messages per pull request; half as many more may be in flight. Each has at most 512 KiB, which makes 48 MiB.
const PULL_MESSAGES: usize = 64;

/// The server drops a consumer after this long without a pull request.
const INACTIVE: Duration = Duration::from_secs(30);

/// How often the stream is checked for messages that were removed before they were read.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Wait before the next consumer is created; doubled up to the longest while no consumer lasts longer than that.
const RETRY: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_millis(500);

/// Longest wait for an answer about the consumer, and for a new one.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
const CREATE_TIMEOUT: Duration = Duration::from_secs(2);

/// Wait after the server has denied something that reading needs, which only a person can mend.
const DENIED_RETRY: Duration = Duration::from_secs(5);

/// Receives a namespace's events into a [`MemoryPlane`].
#[derive(Debug)]
pub(super) struct Reader {
    stream: StreamHandle,
    filter: String,
    received: MemoryPlane,
    /// Whether a consumer has existed: from then on every loss is detected.
    reading: watch::Sender<bool>,
    position: Option<Position>,
    /// Consumers that failed one after another before they had lasted for [`LASTING`].
    brief: u32,
    refusals: LogThrottle,
}

/// One consumer, from its creation until it fails.
struct ConsumerSession {
    consumer: PullConsumer,
    /// Messages received from this consumer, which numbers them.
    received: u64,
    began: Instant,
    /// Whether a check has succeeded.
    is_checked: bool,
}

impl Reader {
    pub(super) fn new(
        stream: StreamHandle,
        filter: String,
        received: MemoryPlane,
        reading: watch::Sender<bool>,
    ) -> Self {
        Self {
            stream,
            filter,
            received,
            reading,
            position: None,
            brief: 0,
            refusals: LogThrottle::default(),
        }
    }

    /// Reads for ever. Replaces a consumer that fails.
    pub(super) async fn run(mut self) {
        let began = datetime::now();
        let mut retry = RETRY;
        loop {
            self.stream.usable().await;
            let since = Instant::now();
            let Err(reason) = self.read(began).await;
            tracing::debug!(%reason, "the consumer of KV events failed; creating another");
            let is_denied = is_denied(&*reason);
            if self.stream.connection.is_up() && !is_denied {
                self.stream.doubt();
            }
            self.brief = if since.elapsed() < LASTING {
                self.brief + 1
            } else {
                1
            };
            // One failure is a change of leaders, or the loss of the consumer's server.
            if self.brief > 1 {
                self.fails(&*reason);
            }
            if since.elapsed() > RETRY_MAX {
                retry = RETRY;
            }
            tokio::time::sleep(if is_denied { DENIED_RETRY } else { retry }).await;
            retry = (2 * retry).min(RETRY_MAX);
        }
    }

    /// Reads with one consumer, until it fails.
    async fn read(&mut self, began: datetime::DateTime) -> Result<Infallible, ConsumerError> {
        let mut connection = self.stream.connection.status();
        connection.mark_unchanged();
        let mut session = self
            .start(began)
            .await
            .inspect_err(|reason| self.fails(&**reason))?;
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
        let handle = self.stream.clone();
        let denied = handle.connection.permitted(
            |denial| denial.concerns_request("CONSUMER.MSG.NEXT", STREAM),
            std::future::pending::<Infallible>(),
        );
        let mut denied = pin!(denied);
        loop {
            tokio::select! {
                message = messages.next() => {
                    let message = message.ok_or("no more messages")??;
                    self.receive(&mut session, &message)?;
                    // A burst must not keep the subscriptions from reading.
                    tokio::task::yield_now().await;
                }
                _ = checks.tick() => {
                    self.check(&mut session).await.inspect_err(|reason| self.fails(&**reason))?;
                }
                Err(denial) = &mut denied => {
                    self.fails(&denial);
                    return Err(denial.into());
                }
                // Messages in flight on the old connection are lost.
                _ = connection.changed() => return Err("the connection changed".into()),
            }
        }
    }

    /// Reports a failure, unless the connection's own state shows it. The fault stands until a check has succeeded.
    fn fails(&self, reason: &(dyn std::error::Error + 'static)) {
        if self.stream.connection.is_up() {
            self.stream.health.reading_fails(&reason.to_string());
        }
    }

    /// Creates a consumer that begins at the position, or at the front of the stream if the position is gone.
    async fn start(&mut self, began: datetime::DateTime) -> Result<ConsumerSession, ConsumerError> {
        let extent = Extent::of(&self.stream.info().await?);
        let stream = self.stream.jetstream.get_stream_no_info(STREAM).await?;
        let (start, lost) = match &self.position {
            None => (None, !extent.reaches_back(began)),
            Some(position) => match position.check(&extent) {
                Continuity::Whole => (Some(position.next), false),
                Continuity::FrontLost { next } => (Some(next), true),
                Continuity::Renumbered => (Some(extent.first), true),
            },
        };
        let config = pull::Config {
            deliver_policy: match start {
                None => DeliverPolicy::ByStartTime {
                    start_time: beginning(began),
                },
                Some(start_sequence) => DeliverPolicy::ByStartSequence { start_sequence },
            },
            filter_subject: self.filter.clone(),
            ack_policy: AckPolicy::None,
            inactive_threshold: INACTIVE,
            // The consumer need not survive the server: the next one begins at the position.
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let created = self
            .stream
            .answer("CONSUMER.CREATE", CREATE_TIMEOUT, stream.create_consumer(config));
        let consumer = created.await?;
        self.position = Some(Position {
            stream: extent.created,
            next: start.unwrap_or_else(|| consumer.cached_info().delivered.stream_sequence + 1),
        });
        // Reported only now, so that a snapshot taken because of it misses no later event.
        if lost {
            self.report_loss("the stream no longer has the next message");
        }
        self.reading.send_replace(true);
        Ok(ConsumerSession {
            consumer,
            received: 0,
            began: Instant::now(),
            is_checked: false,
        })
    }

    fn receive(&mut self, session: &mut ConsumerSession, message: &Message) -> Result<(), ConsumerError> {
        let info = message.info()?;
        if info.consumer_sequence != session.received + 1 {
            return Err("messages were lost in transit".into());
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
                // The content is lost, and no later event may show it.
                self.received.skip(&worker);
            }
            (Err(error), _) => self.refuse(message, &error),
        }
    }

    fn refuse(&mut self, message: &Message, error: &dyn std::error::Error) {
        counter!("signalbox_event_messages_refused_total").increment(1);
        if let Some(more) = self.refusals.allow() {
            tracing::warn!(subject = %message.subject, %error, more, "a message without valid KV events is ignored");
        }
    }

    /// Checks whether messages were removed from the stream before they were received.
    async fn check(&mut self, session: &mut ConsumerSession) -> Result<(), ConsumerError> {
        let extent = Extent::of(&self.stream.info().await?);
        let Some(position) = &mut self.position else {
            return Ok(());
        };
        match position.check(&extent) {
            Continuity::Whole => {}
            Continuity::FrontLost { next } => {
                position.next = next;
                self.report_loss("messages were removed from the stream before they were read");
                return Ok(());
            }
            // The next session reports the loss, as soon as it has a consumer.
            Continuity::Renumbered => return Err("the stream was created again".into()),
        }
        // The first time in any case: what reading needs is permitted, or the plane does not work.
        if extent.next > position.next || !session.is_checked {
            let consumer = self
                .stream
                .answer("CONSUMER.INFO", ANSWER_TIMEOUT, session.consumer.get_info())
                .await?;
            if consumer.num_pending == 0 && consumer.delivered.consumer_sequence == session.received {
                // All other messages are of other namespaces: their removal would be no loss.
                position.next = position.next.max(extent.next);
            }
        }
        session.is_checked = true;
        if session.began.elapsed() >= LASTING || session.received > 0 {
            self.brief = 0;
        }
        if self.brief == 0 {
            self.stream.health.reading_works();
        }
        Ok(())
    }

    fn report_loss(&self, reason: &str) {
        counter!("signalbox_kv_event_losses_total").increment(1);
        tracing::warn!(
            reason,
            "KV events were lost; every worker's index is rebuilt from a snapshot"
        );
        self.received.skip_all();
    }
}

fn is_denied(reason: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    reason.is::<Denial>() || reason.to_string().contains("does not permit")
}
