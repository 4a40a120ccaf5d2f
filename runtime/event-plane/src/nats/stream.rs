//! The JetStream stream of all KV events: creates it, keeps its settings, and reports its state.

use std::{sync::Arc, time::Duration};

use signalbox_nats::{
    Denial, NatsConnection, Replicas,
    async_nats::jetstream::{
        Context, ErrorCode,
        context::{
            ContextBuilder, CreateStreamError, CreateStreamErrorKind, GetStreamError, GetStreamErrorKind,
            RequestError, RequestErrorKind,
        },
        stream::{Config, DiscardPolicy, Info, RetentionPolicy, StorageType},
    },
};
use signalbox_protocol::PlaneState;
use tokio::{sync::Notify, time::timeout};
use tokio_util::task::AbortOnDropHandle;

use super::health::Health;

pub(super) const STREAM: &str = "SIGNALBOX_KV_EVENTS";

/// Longest age of a message. A router that was away for longer takes snapshots, which are smaller than ten minutes of
/// events.
const MAX_AGE: Duration = Duration::from_secs(600);

/// Most bytes of the stream: 33 million blocks, and little beside the three quarters of its disk that a server allows
/// JetStream.
const MAX_BYTES: i64 = 256 << 20;

/// Most messages of the stream. The server keeps some 30 bytes in memory for each: 30 MiB.
const MAX_MESSAGES: i64 = 1 << 20;

/// Most bytes of a message: the default limit of a NATS server, and twice what [`super::publish_queue`] sends.
pub(super) const MAX_MESSAGE_SIZE: usize = 1 << 20;

/// Longest wait for an answer about the stream. A leader answers within milliseconds, and a change of leaders loses the
/// request: it is sent again to the next one.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// The same for creating and changing the stream, which all its servers agree on.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(5);

/// Wait before the next attempt to ensure the stream, doubled after each failure up to the longest. Half of it is random:
/// all processes of a cluster notice a loss of quorum at the same time.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// How often the stream is looked at while nothing shows a fault, for processes that seldom publish.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// The stream, as the tasks of a plane use it. Clone = handle.
#[derive(Debug, Clone)]
pub(super) struct StreamHandle {
    pub(super) connection: NatsConnection,
    pub(super) jetstream: Context,
    pub(super) health: Health,
    doubted: Arc<Notify>,
}

impl StreamHandle {
    /// Starts the task that ensures the stream whenever a connection is made or a caller doubts that the stream exists.
    pub(super) fn start(connection: NatsConnection, replicas: Replicas) -> (Self, AbortOnDropHandle<()>) {
        let jetstream = ContextBuilder::new()
            .timeout(CHANGE_TIMEOUT)
            .build(connection.client().clone());
        let stream = Self {
            connection,
            jetstream,
            health: Health::new(),
            doubted: Arc::default(),
        };
        let keeper = tokio::spawn(keep(stream.clone(), replicas));
        (stream, AbortOnDropHandle::new(keeper))
    }

    /// Waits until there is a connection and the stream exists.
    pub(super) async fn usable(&self) {
        let mut usable = self.health.usable();
        if usable.wait_for(|usable| *usable).await.is_err() {
            // The connection was closed for good, and with it this plane.
            std::future::pending().await
        }
    }

    /// Makes the task check the stream, after a failure that a missing stream would explain.
    pub(super) fn doubt(&self) {
        self.doubted.notify_one();
    }

    /// Waits for the answer to a request about the stream: `operation` is the part of its subject that names it. A server
    /// that denies the request or its answer answers nothing.
    pub(super) async fn answer<T, E>(
        &self,
        operation: &str,
        limit: Duration,
        answer: impl Future<Output = Result<T, E>>,
    ) -> Result<T, StreamError<E>> {
        let concerns = |denial: &Denial| denial.concerns_request(operation, STREAM);
        match timeout(limit, self.connection.permitted(concerns, answer)).await {
            Ok(Ok(answer)) => answer.map_err(StreamError::Refused),
            Ok(Err(denial)) => Err(StreamError::Denied(denial)),
            Err(_) => Err(StreamError::NoAnswer(limit)),
        }
    }

    /// The state of the stream. An error if it has no leader, and so takes no message.
    pub(super) async fn info(&self) -> Result<Info, ConsumerError> {
        let stream = self.jetstream.get_stream_no_info(STREAM).await?;
        let info = self
            .answer("STREAM.INFO", ANSWER_TIMEOUT, stream.get_info())
            .await?;
        check_leader(&info)?;
        Ok(info)
    }
}

/// Why a consumer is replaced, or an attempt failed.
pub(super) type ConsumerError = Box<dyn std::error::Error + Send + Sync>;

/// Why a request about the stream failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError<E> {
    #[error(transparent)]
    Denied(Denial),
    #[error("the stream {STREAM} did not answer within {0:?}")]
    NoAnswer(Duration),
    #[error("{0}")]
    Refused(E),
}

/// A stream without a leader still answers, and takes nothing.
#[derive(Debug, thiserror::Error)]
#[error("the stream {STREAM} has no leader: fewer than half of its {0} servers are up")]
struct NoLeader(usize);

fn check_leader(info: &Info) -> Result<(), NoLeader> {
    match &info.cluster {
        Some(cluster) if cluster.leader.as_ref().is_none_or(String::is_empty) => {
            Err(NoLeader(info.config.num_replicas))
        }
        _ => Ok(()),
    }
}

/// Ensures the stream for each connection and each doubt, and reports the state.
async fn keep(stream: StreamHandle, replicas: Replicas) {
    let mut connection = stream.connection.status();
    let mut retry = RETRY;
    loop {
        let server = connection.borrow_and_update().clone();
        let step = async {
            if server.state != PlaneState::Up {
                if server.has_reason() {
                    stream.health.stream_fails(server.detail);
                }
                return std::future::pending().await;
            }
            match ensure(&stream, &replicas).await {
                Ok(()) => {
                    stream.health.stream_works();
                    retry = RETRY;
                    // A denied or lost message is no reason to ask at once, over and over.
                    let _ = timeout(CHECK_INTERVAL.mul_f64(jitter()), stream.doubted.notified()).await;
                }
                Err(reason) => {
                    stream.health.stream_fails(reason);
                    tokio::time::sleep(retry.mul_f64(jitter())).await;
                    retry = (2 * retry).min(RETRY_MAX);
                }
            }
        };
        // A change of the connection ends a wait on the old one.
        tokio::select! {
            changed = connection.changed() => if changed.is_err() {
                stream.health.stream_fails("the connection was closed".into());
                return;
            },
            () = step => {}
        }
    }
}

fn jitter() -> f64 {
    rand::random_range(0.5..=1.0)
}

/// Creates the stream, or sets the limits of an existing one; other settings of an operator stay. Processes that do so
/// at the same time agree.
async fn ensure(stream: &StreamHandle, replicas: &Replicas) -> Result<(), String> {
    let wanted = |config: Config| Config {
        subjects: vec!["signalbox.*.kv_events.*".into()],
        retention: RetentionPolicy::Limits,
        // The oldest messages of all workers are removed first, and no subject has its own limit: so the stream loses
        // its front only, and the first sequence shows a reader whether it missed a message.
        discard: DiscardPolicy::Old,
        max_messages_per_subject: -1,
        max_age: MAX_AGE,
        max_bytes: MAX_BYTES,
        max_messages: MAX_MESSAGES,
        max_message_size: MAX_MESSAGE_SIZE as i32,
        ..config
    };
    let jetstream = &stream.jetstream;
    let info = match stream
        .answer("STREAM.INFO", ANSWER_TIMEOUT, jetstream.get_stream(STREAM))
        .await
    {
        Ok(found) => found.cached_info().clone(),
        Err(StreamError::Refused(error)) if is_missing(&error) => {
            let new = wanted(Config {
                name: STREAM.into(),
                storage: StorageType::File,
                num_replicas: replicas.of_new(),
                ..Config::default()
            });
            match stream
                .answer("STREAM.CREATE", CHANGE_TIMEOUT, jetstream.create_stream(new))
                .await
            {
                Ok(created) => created.cached_info().clone(),
                Err(StreamError::Refused(error)) => return Err(describe(&error)),
                Err(error) => return Err(format!("the stream {STREAM} cannot be created: {error}")),
            }
        }
        Err(StreamError::Refused(error)) if is_disabled(&error) => return Err(DISABLED.into()),
        Err(error) => return Err(error.to_string()),
    };
    check_leader(&info).map_err(|error| error.to_string())?;
    let found = &info.config;
    let limited = wanted(found.clone());
    if *found != limited {
        tracing::info!(stream = STREAM, "setting the limits of an existing stream");
        let update = jetstream.update_stream(limited);
        stream.answer("STREAM.UPDATE", CHANGE_TIMEOUT, update).await.map_err(|error| {
            format!(
                "the stream {STREAM} has other settings, which cannot be changed ({error}); delete it to have it created again"
            )
        })?;
    }
    replicas
        .keep(&stream.connection, jetstream, &wanted(found.clone()))
        .await;
    Ok(())
}

const DISABLED: &str = "JetStream is not enabled on the server; start nats-server with --jetstream";

fn is_missing(error: &GetStreamError) -> bool {
    match error.kind() {
        GetStreamErrorKind::JetStream(error) => error.error_code() == ErrorCode::STREAM_NOT_FOUND,
        _ => false,
    }
}

fn is_disabled(error: &GetStreamError) -> bool {
    match error.kind() {
        GetStreamErrorKind::JetStream(error) => is_disabled_code(error.error_code()),
        // Nobody serves the API.
        GetStreamErrorKind::Request => {
            let cause =
                std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<RequestError>());
            cause.is_some_and(|cause| cause.kind() == RequestErrorKind::NoResponders)
        }
        _ => false,
    }
}

fn is_disabled_code(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT
    )
}

fn describe(error: &CreateStreamError) -> String {
    let disabled = match error.kind() {
        CreateStreamErrorKind::JetStreamUnavailable => true,
        CreateStreamErrorKind::JetStream(error) => is_disabled_code(error.error_code()),
        _ => false,
    };
    if disabled {
        DISABLED.into()
    } else {
        format!("the stream {STREAM} cannot be created: {error}")
    }
}
