//! The JetStream stream of all KV events: creates it, keeps its settings, and reports its state.

use std::{sync::Arc, time::Duration};

use signalbox_nats::{
    NatsConnection,
    async_nats::jetstream::{
        Context, ErrorCode,
        context::{ContextBuilder, CreateStreamError, CreateStreamErrorKind},
        stream::{Config, DiscardPolicy, RetentionPolicy, StorageType},
    },
};
use signalbox_protocol::{PlaneState, PlaneStatus};
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;

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

/// Longest wait for an answer of JetStream. Pings detect a server that hangs within ten seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Wait before the next attempt to create the stream, doubled after each failure up to the longest.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// The stream, as the tasks of a plane use it. Clone = handle.
#[derive(Debug, Clone)]
pub(super) struct StreamHandle {
    pub(super) connection: NatsConnection,
    pub(super) jetstream: Context,
    status: watch::Receiver<PlaneStatus>,
    doubted: Arc<Notify>,
}

impl StreamHandle {
    /// Starts the task that ensures the stream whenever a connection is made or a caller doubts that the stream exists.
    pub(super) fn start(connection: NatsConnection, replicas: usize) -> (Self, AbortOnDropHandle<()>) {
        let jetstream = ContextBuilder::new()
            .timeout(ANSWER_TIMEOUT)
            .build(connection.client().clone());
        let (sender, status) = watch::channel(PlaneStatus::connecting("nats"));
        let stream = Self {
            connection,
            jetstream,
            status,
            doubted: Arc::default(),
        };
        let keeper = tokio::spawn(keep(stream.clone(), sender, replicas));
        (stream, AbortOnDropHandle::new(keeper))
    }

    pub(super) fn status(&self) -> watch::Receiver<PlaneStatus> {
        self.status.clone()
    }

    /// Waits until there is a connection and the stream exists.
    pub(super) async fn usable(&self) {
        let mut status = self.status.clone();
        let ended = status
            .wait_for(|status| status.state == PlaneState::Up)
            .await
            .is_err();
        if ended {
            // The connection was closed for good, and with it this plane.
            std::future::pending().await
        }
    }

    /// Makes the task check the stream, after a failure that a missing stream would explain.
    pub(super) fn doubt(&self) {
        self.doubted.notify_one();
    }
}

/// Ensures the stream for each connection and each doubt, and reports the state.
async fn keep(stream: StreamHandle, status: watch::Sender<PlaneStatus>, replicas: usize) {
    let mut connection = stream.connection.status();
    let mut retry = RETRY;
    loop {
        let server = connection.borrow_and_update().clone();
        let step = async {
            if server.state != PlaneState::Up {
                status.send_if_modified(|status| status.down(server.detail));
                return std::future::pending().await;
            }
            match ensure(&stream.jetstream, replicas).await {
                Ok(()) => {
                    status.send_if_modified(PlaneStatus::up);
                    retry = RETRY;
                    stream.doubted.notified().await;
                }
                Err(reason) => {
                    status.send_if_modified(|status| status.down(&reason));
                    tokio::time::sleep(retry).await;
                    retry = (2 * retry).min(RETRY_MAX);
                }
            }
        };
        // A change of the connection ends a wait on the old one.
        tokio::select! {
            changed = connection.changed() => if changed.is_err() {
                status.send_if_modified(|status| status.down("the connection was closed"));
                return;
            },
            () = step => {}
        }
    }
}

/// Creates the stream, or sets the limits of an existing one; other settings of an operator stay. Processes that do so
/// at the same time agree.
async fn ensure(jetstream: &Context, replicas: usize) -> Result<(), String> {
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
        num_replicas: replicas,
        ..config
    };
    let new = wanted(Config {
        name: STREAM.into(),
        storage: StorageType::File,
        ..Config::default()
    });
    let stream = jetstream
        .get_or_create_stream(new)
        .await
        .map_err(|error| describe(&error))?;
    let found = &stream.cached_info().config;
    let wanted = wanted(found.clone());
    if *found != wanted {
        tracing::info!(stream = STREAM, "setting the limits of an existing stream");
        jetstream.update_stream(wanted).await.map_err(|error| {
            format!(
                "the stream {STREAM} has other settings, which cannot be changed ({error}); delete it to have it created again"
            )
        })?;
    }
    Ok(())
}

fn describe(error: &CreateStreamError) -> String {
    let disabled = match error.kind() {
        CreateStreamErrorKind::JetStreamUnavailable => true,
        CreateStreamErrorKind::JetStream(error) => matches!(
            error.error_code(),
            ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT
        ),
        _ => false,
    };
    if disabled {
        "JetStream is not enabled on the server; start nats-server with --jetstream".into()
    } else {
        format!("the stream {STREAM} cannot be created: {error}")
    }
}
