//! The store in NATS JetStream, for a cluster: a key-value bucket and an object store bucket.
//!
//! A missing bucket is created, also after the server lost its data. A bucket that an operator created, for example
//! with more replicas, is used as it is. `README.md` beside this crate's manifest describes keys and values.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use signalbox_nats::{
    NatsConnection, Replicas,
    async_nats::jetstream::{
        Context,
        context::ContextBuilder,
        kv::{self, CreateErrorKind, UpdateErrorKind},
        object_store::{self, GetErrorKind, InfoErrorKind, ObjectStore},
        stream::{self, DiscardPolicy},
    },
};
use signalbox_protocol::PlaneState;
use tokio::{io::AsyncReadExt, time::timeout};

use crate::{
    bounds::{
        MAX_ENTRIES_BYTES, MAX_OBJECT_BYTES, MAX_OBJECTS_BYTES, MAX_VALUE_BYTES, check_digest, check_key,
        check_object, check_value, digest_of, verified,
    },
    store::{Revision, SharedStore, StoreEntry, StoreError, StoreFuture, StoreWatch},
};
use keys::KeySpace;
use watch::BucketWatch;

mod keys;
#[cfg(test)]
mod tests;
mod watch;

/// The name of both buckets. Their streams are `KV_signalbox-policies` and `OBJ_signalbox-policies`.
const BUCKET: &str = "signalbox-policies";
/// Values that the bucket keeps per key, for operators to inspect: as many as an activation remembers.
const HISTORY: i64 = 8;
/// Room for the headers of a message, which hold the expected revision.
const MAX_HEADER_BYTES: usize = 4 << 10;
/// Longest wait for the connection, and for an answer: an operator gets the 503 after this time.
const PATIENCE: Duration = Duration::from_secs(3);
/// Longest wait for an object: 1 MiB in eight chunks, each acknowledged, over a slow network.
const OBJECT_PATIENCE: Duration = Duration::from_secs(10);

/// What a server says that has no room: of a bucket, an account or its disk.
const FULL: [&str; 4] = [
    "maximum bytes exceeded",
    "insufficient storage",
    "insufficient resources",
    "resource limits exceeded",
];

/// Objects and entries in JetStream. Clone = handle.
#[derive(Debug, Clone)]
pub struct NatsStore(Arc<StoreClient>);

#[derive(Debug)]
struct StoreClient {
    connection: NatsConnection,
    jetstream: Context,
    keys: KeySpace,
    replicas: Replicas,
}

impl NatsStore {
    /// Opens the store of one namespace. Namespaces on the same server do not see each other's data. Does not wait for
    /// the server. Call it inside a tokio runtime.
    pub fn start(connection: NatsConnection, namespace: &str, replicas: Replicas) -> Arc<Self> {
        let jetstream = ContextBuilder::new()
            .timeout(PATIENCE)
            .build(connection.client().clone());
        Arc::new(Self(Arc::new(StoreClient {
            connection,
            jetstream,
            keys: KeySpace::new(BUCKET, namespace),
            replicas,
        })))
    }

    async fn put(&self, bytes: &[u8]) -> Result<String, StoreError> {
        let digest = digest_of(bytes);
        let name = self.0.keys.object(&digest);
        let objects = self.objects().await?;
        let stored = objects.info(&name).await;
        let expected_len = bytes.len();
        if stored.is_ok_and(|stored| !stored.deleted && stored.size == expected_len) {
            // The stored object is read to verify it; a damaged one is written again below.
            if self.object(&digest).await.is_ok() {
                return Ok(digest);
            }
        }
        let mut reader = bytes;
        objects
            .put(name.as_str(), &mut reader)
            .await
            .map_err(unavailable)?;
        Ok(digest)
    }

    async fn object(&self, digest: &str) -> Result<Bytes, StoreError> {
        let missing = || StoreError::Missing {
            digest: digest.to_owned(),
        };
        let damaged = |reason: String| StoreError::Damaged {
            digest: digest.to_owned(),
            reason,
        };
        let name = self.0.keys.object(digest);
        let found = self.objects().await?.get(&name).await;
        let object = found.map_err(|error| match error.kind() {
            GetErrorKind::NotFound => missing(),
            _ => unavailable(error),
        })?;
        let mut bytes = Vec::new();
        // One byte more than allowed, to detect an object that is too large.
        let mut limited = object.take(MAX_OBJECT_BYTES as u64 + 1);
        limited
            .read_to_end(&mut bytes)
            .await
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::InvalidData => damaged(error.to_string()),
                _ => unavailable(error),
            })?;
        if bytes.len() > MAX_OBJECT_BYTES {
            return Err(damaged(format!(
                "it has more than the allowed {MAX_OBJECT_BYTES} bytes"
            )));
        }
        verified(digest, bytes.into())
    }

    async fn remove_bytes(&self, digest: &str) -> Result<(), StoreError> {
        let objects = self.objects().await?;
        let name = self.0.keys.object(digest);
        match objects.info(&name).await {
            Ok(stored) if stored.deleted => Ok(()),
            Ok(_) => objects.delete(&name).await.map_err(unavailable),
            Err(error) if error.kind() == InfoErrorKind::NotFound => Ok(()),
            Err(error) => Err(unavailable(error)),
        }
    }

    async fn entry(&self, key: &str) -> Result<Option<StoreEntry>, StoreError> {
        let entry = self
            .entries()
            .await?
            .entry(self.0.keys.encode(key))
            .await
            .map_err(unavailable)?;
        let present = entry.filter(|entry| entry.operation == kv::Operation::Put);
        Ok(present.map(|entry| StoreEntry {
            value: entry.value,
            revision: Revision(entry.revision),
        }))
    }

    async fn change(&self, key: &str, value: Bytes, expected: Revision) -> Result<Revision, StoreError> {
        let conflict = || StoreError::Conflict { key: key.to_owned() };
        let (bucket, encoded) = (self.entries().await?, self.0.keys.encode(key));
        if expected == Revision::ABSENT {
            // `create` also replaces the marker of a removed entry, whose revision is unknown here.
            let created = bucket.create(encoded, value).await;
            return created.map(Revision).map_err(|error| match error.kind() {
                CreateErrorKind::AlreadyExists => conflict(),
                _ => unavailable(error),
            });
        }
        let updated = bucket.update(encoded, value, expected.0).await;
        updated.map(Revision).map_err(|error| match error.kind() {
            UpdateErrorKind::WrongLastRevision => conflict(),
            _ => unavailable(error),
        })
    }

    async fn remove_entry(&self, key: &str, expected: Revision) -> Result<(), StoreError> {
        let conflict = || StoreError::Conflict { key: key.to_owned() };
        let present = self.entry(key).await?;
        if present.map_or(Revision::ABSENT, |entry| entry.revision) != expected {
            return Err(conflict());
        }
        if expected == Revision::ABSENT {
            return Ok(());
        }
        let encoded = self.0.keys.encode(key);
        let removed = self
            .entries()
            .await?
            .delete_expect_revision(encoded, Some(expected.0))
            .await;
        removed.map_err(|error| match error.kind() {
            UpdateErrorKind::WrongLastRevision => conflict(),
            _ => unavailable(error),
        })
    }

    /// The bucket of entries; created if it is missing.
    async fn entries(&self) -> Result<kv::Store, StoreError> {
        if let Ok(bucket) = self.0.jetstream.get_key_value(BUCKET).await {
            return Ok(bucket);
        }
        // The same settings as the client's own call, which first requests account details that only recent servers
        // send in the form it reads.
        let config = stream::Config {
            name: format!("KV_{BUCKET}"),
            description: Some("Signalbox: policies, and which of them decides".into()),
            subjects: vec![format!("$KV.{BUCKET}.>")],
            max_messages_per_subject: HISTORY,
            max_message_size: (MAX_VALUE_BYTES + MAX_HEADER_BYTES) as i32,
            max_bytes: MAX_ENTRIES_BYTES as i64,
            discard: DiscardPolicy::New,
            num_replicas: self.0.replicas.of_new(),
            allow_rollup: true,
            allow_direct: true,
            deny_delete: true,
            ..stream::Config::default()
        };
        let jetstream = &self.0.jetstream;
        jetstream.create_stream(config).await.map_err(unavailable)?;
        jetstream.get_key_value(BUCKET).await.map_err(unavailable)
    }

    /// The bucket of objects; created if it is missing.
    async fn objects(&self) -> Result<ObjectStore, StoreError> {
        if let Ok(bucket) = self.0.jetstream.get_object_store(BUCKET).await {
            return Ok(bucket);
        }
        let config = object_store::Config {
            bucket: BUCKET.into(),
            description: Some("Signalbox: policy components".into()),
            max_bytes: MAX_OBJECTS_BYTES as i64,
            num_replicas: self.0.replicas.of_new(),
            ..object_store::Config::default()
        };
        self.0
            .jetstream
            .create_object_store(config)
            .await
            .map_err(unavailable)
    }

    /// Lets both buckets have as many copies as the setting says. A bucket that does not exist gets them when it is created.
    async fn keep_replicas(&self) {
        for stream in [format!("KV_{BUCKET}"), format!("OBJ_{BUCKET}")] {
            if let Ok(found) = self.0.jetstream.get_stream(&stream).await {
                let config = &found.cached_info().config;
                self.0
                    .replicas
                    .keep(&self.0.connection, &self.0.jetstream, config)
                    .await;
            }
        }
    }

    /// Waits for the connection and then for the answer, each for a bounded time.
    async fn bounded<T>(
        &self,
        patience: Duration,
        answer: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let mut status = self.0.connection.status();
        let up = timeout(PATIENCE, status.wait_for(|status| status.state == PlaneState::Up));
        if up.await.is_err() {
            let detail = self.0.connection.status().borrow().detail.clone();
            return Err(StoreError::Unavailable(format!(
                "NATS is not connected: {detail}"
            )));
        }
        timeout(patience, answer).await.unwrap_or_else(|_| {
            Err(StoreError::Unavailable(format!(
                "NATS did not answer within {} s; check whether the change was made before trying again",
                patience.as_secs()
            )))
        })
    }
}

impl SharedStore for NatsStore {
    fn put_object(&self, bytes: Bytes) -> StoreFuture<'_, String> {
        Box::pin(async move {
            check_object(&bytes)?;
            self.bounded(OBJECT_PATIENCE, self.put(&bytes)).await
        })
    }

    fn get_object<'a>(&'a self, digest: &'a str) -> StoreFuture<'a, Bytes> {
        Box::pin(async move {
            check_digest(digest)?;
            self.bounded(OBJECT_PATIENCE, self.object(digest)).await
        })
    }

    fn remove_object<'a>(&'a self, digest: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            check_digest(digest)?;
            self.bounded(PATIENCE, self.remove_bytes(digest)).await
        })
    }

    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<StoreEntry>> {
        Box::pin(async move {
            check_key(key)?;
            self.bounded(PATIENCE, self.entry(key)).await
        })
    }

    fn set<'a>(&'a self, key: &'a str, value: Bytes, expected: Revision) -> StoreFuture<'a, Revision> {
        Box::pin(async move {
            check_key(key)?;
            check_value(&value)?;
            self.bounded(PATIENCE, self.change(key, value, expected)).await
        })
    }

    fn remove<'a>(&'a self, key: &'a str, expected: Revision) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            check_key(key)?;
            self.bounded(PATIENCE, self.remove_entry(key, expected)).await
        })
    }

    fn watch(&self) -> StoreWatch {
        StoreWatch::new(BucketWatch::start(self.clone()))
    }
}

fn unavailable(error: impl std::fmt::Display) -> StoreError {
    let reason = error.to_string();
    // The client passes the server's refusals on as text.
    if FULL.iter().any(|full| reason.contains(full)) {
        StoreError::Full(reason)
    } else {
        StoreError::Unavailable(reason)
    }
}
