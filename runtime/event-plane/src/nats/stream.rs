//! The JetStream stream that holds everybody's KV events: makes it, keeps it as it should be, and says how it is.

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

/// A router that was away for longer takes snapshots: they are smaller than ten minutes of events.
const MAX_AGE: Duration = Duration::from_secs(600);

/// 33 million blocks, and little beside what a server sets aside for JetStream: three quarters of its disk.
const MAX_BYTES: i64 = 256 << 20;

/// The server keeps an index entry of some 30 bytes in memory for each message: 30 MiB.
const MAX_MESSAGES: i64 = 1 << 20;

/// What a NATS server takes by default. Twice what [`super::publish_queue`] sends.
pub(super) const MAX_MESSAGE_SIZE: usize = 1 << 20;

/// Longest wait for an answer of JetStream. A server that hangs is noticed by pings within ten seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Wait before a stream that could not be made is tried again, doubled up to the longest.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// The stream, as the tasks of a plane use it. Cloning makes another handle.
#[derive(Debug, Clone)]
pub(super) struct EventStore {
    pub(super) connection: NatsConnection,
    pub(super) jetstream: Context,
    status: watch::Receiver<PlaneStatus>,
    doubted: Arc<Notify>,
}

impl EventStore {
    /// Starts the task that makes the stream whenever a connection is made or somebody doubts that it is there.
    pub(super) fn start(connection: NatsConnection, replicas: usize) -> (Self, AbortOnDropHandle<()>) {
        let jetstream = ContextBuilder::new()
            .timeout(ANSWER_TIMEOUT)
            .build(connection.client().clone());
        let (sender, status) = watch::channel(PlaneStatus::connecting("nats"));
        let store = Self {
            connection,
            jetstream,
            status,
            doubted: Arc::default(),
        };
        let keeper = tokio::spawn(keep(store.clone(), sender, replicas));
        (store, AbortOnDropHandle::new(keeper))
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
            // The connection was given up, and with it this plane.
            std::future::pending().await
        }
    }

    /// Something failed as if the stream were gone: look again.
    pub(super) fn doubt(&self) {
        self.doubted.notify_one();
    }
}

async fn keep(store: EventStore, status: watch::Sender<PlaneStatus>, replicas: usize) {
    let mut connection = store.connection.status();
    let mut retry = RETRY;
    loop {
        let server = connection.borrow_and_update().clone();
        let step = async {
            if server.state != PlaneState::Up {
                status.send_if_modified(|status| status.down(server.detail));
                return std::future::pending().await;
            }
            match ensure(&store.jetstream, replicas).await {
                Ok(()) => {
                    status.send_if_modified(PlaneStatus::up);
                    retry = RETRY;
                    store.doubted.notified().await;
                }
                Err(reason) => {
                    status.send_if_modified(|status| status.down(&reason));
                    tokio::time::sleep(retry).await;
                    retry = (2 * retry).min(RETRY_MAX);
                }
            }
        };
        // A change of the connection ends whatever was waited for on the old one.
        tokio::select! {
            changed = connection.changed() => if changed.is_err() {
                status.send_if_modified(|status| status.down("the connection was given up"));
                return;
            },
            () = step => {}
        }
    }
}

/// Makes the stream, or gives an existing one our limits; whatever else an operator set on it stays. Processes that
/// do so at once agree.
async fn ensure(jetstream: &Context, replicas: usize) -> Result<(), String> {
    let wanted = |config: Config| Config {
        subjects: vec!["signalbox.*.kv_events.*".into()],
        retention: RetentionPolicy::Limits,
        // The oldest go, whosever they are, and no subject has a limit of its own: so the stream only ever loses
        // its front, and a reader sees from the first sequence alone whether it missed something.
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
        tracing::info!(stream = STREAM, "the limits of an existing stream are set");
        jetstream.update_stream(wanted).await.map_err(|error| {
            format!(
                "stream {STREAM} has other settings that cannot be changed ({error}); delete it, and it is made anew"
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
        format!("stream {STREAM} cannot be made: {error}")
    }
}
