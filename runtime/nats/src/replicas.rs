//! How many servers keep a copy of what is stored in JetStream.
//!
//! One rule for every stream and bucket. The process that creates one gives it the copies of its setting. A router raises the
//! number of an existing one to its setting, and nobody lowers it: processes of another namespace share the streams, and
//! one that was started without the setting must not take copies away. Where setting and stream still differ, a warning
//! says so once.

use std::{collections::BTreeMap, sync::Arc};

use async_nats::jetstream::{Context, stream::Config};
use parking_lot::Mutex;

use crate::NatsConnection;

/// The setting of a process. Clone = handle.
#[derive(Debug, Clone, Default)]
pub struct Replicas(Arc<Setting>);

#[derive(Debug, Default)]
struct Setting {
    wanted: Option<usize>,
    raises: bool,
    /// The number of copies at the last warning, by stream.
    warned: Mutex<BTreeMap<String, usize>>,
}

impl Replicas {
    /// The setting of a process that raises the number of existing streams, as routers do. `None` is no setting: one copy
    /// of what this process creates.
    pub fn raised_to(wanted: Option<usize>) -> Self {
        Self::new(wanted, true)
    }

    /// The setting of a process that only creates streams, as workers do.
    pub fn at_creation(wanted: Option<usize>) -> Self {
        Self::new(wanted, false)
    }

    fn new(wanted: Option<usize>, raises: bool) -> Self {
        Self(Arc::new(Setting {
            wanted,
            raises,
            warned: Mutex::default(),
        }))
    }

    /// The copies of a stream that this process creates.
    pub fn of_new(&self) -> usize {
        self.0.wanted.unwrap_or(1)
    }

    /// Raises the number of copies of an existing stream, or warns that it differs. Nothing fails for it: fewer copies
    /// carry events and policies too.
    pub async fn keep(&self, connection: &NatsConnection, jetstream: &Context, found: &Config) {
        let Some(wanted) = self.0.wanted.filter(|wanted| *wanted != found.num_replicas) else {
            self.0.warned.lock().remove(&found.name);
            return;
        };
        let mut reason = "more copies stay; `nats stream edit` lowers them".to_owned();
        if found.num_replicas < wanted {
            if !self.0.raises {
                // A router does it, or warns.
                return;
            }
            match raise(connection, jetstream, found, wanted).await {
                Ok(()) => {
                    tracing::info!(
                        stream = found.name,
                        replicas = wanted,
                        "more servers keep a copy of a stream"
                    );
                    self.0.warned.lock().remove(&found.name);
                    return;
                }
                Err(error) => reason = error,
            }
        }
        let before = self
            .0
            .warned
            .lock()
            .insert(found.name.clone(), found.num_replicas);
        if before != Some(found.num_replicas) {
            tracing::warn!(
                stream = found.name,
                wanted,
                found = found.num_replicas,
                reason,
                "a stream has another number of copies than --nats-replicas"
            );
        }
    }
}

async fn raise(
    connection: &NatsConnection,
    jetstream: &Context,
    found: &Config,
    wanted: usize,
) -> Result<(), String> {
    let config = Config {
        num_replicas: wanted,
        ..found.clone()
    };
    let update = jetstream.update_stream(config);
    match connection
        .permitted(
            |denial| denial.concerns_request("STREAM.UPDATE", &found.name),
            update,
        )
        .await
    {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(denial) => Err(denial.to_string()),
    }
}
