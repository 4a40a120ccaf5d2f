//! Components on their way to all routers and from them.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use signalbox_policy_store::{Revision, StoreError};
use signalbox_policy_host::PolicyRecord;

use super::{
    PolicyChangeError, PolicyReplicator, blocking,
    entries::{Subject, UploadEntry, object},
};

/// How often an upload is tried that others of the same component are faster than.
const UPLOAD_ATTEMPTS: usize = 3;

impl PolicyReplicator {
    /// Admits a component, stores it for all routers, and says whether it is new here. `settings` are a JSON object,
    /// or empty for the defaults.
    ///
    /// # Errors
    /// It is not admitted, or the store is away; then it is known here alone, and cannot be activated.
    pub async fn upload(
        &self,
        name: String,
        wasm: Bytes,
        settings: String,
    ) -> Result<(PolicyRecord, bool), PolicyChangeError> {
        let (registry, component) = (self.0.registry.clone(), wasm.clone());
        let (record, known_before) = blocking(move || {
            let before = registry.list();
            let record = registry.upload(&name, &component, &settings)?;
            let same = |known: &PolicyRecord| (&known.name, &known.digest) == (&record.name, &record.digest);
            let known_before = before.iter().any(same);
            Ok((record, known_before))
        })
        .await?;
        self.0.store.put_object(wasm).await?;
        let entry = UploadEntry {
            name: record.name.clone(),
            version: record.version.clone(),
            digest: record.digest.clone(),
            settings: object(record.settings.clone()),
            uploaded_unix_ms: unix_ms(),
        };
        self.announce(entry).await?;
        self.make_room().await;
        Ok((record, !known_before))
    }

    /// Tells all routers of an upload whose object is in the store.
    async fn announce(&self, entry: UploadEntry) -> Result<(), PolicyChangeError> {
        let _turn = self.0.turn.lock().await;
        let (name, digest) = (entry.name.clone(), entry.digest.clone());
        let key = Subject::Upload { name, digest }.key();
        let mut expected = self.0.store_view.lock().uploads.revision(&key);
        for attempt in 1.. {
            match self.0.store.set(&key, entry.to_value(), expected).await {
                Ok(revision) => {
                    let uploads = &mut self.0.store_view.lock().uploads;
                    uploads.note(&key, revision, Some(entry));
                    uploads.followed(&key, revision);
                    break;
                }
                Err(StoreError::Conflict { .. }) if attempt < UPLOAD_ATTEMPTS => {
                    let present = self.0.store.get(&key).await?;
                    expected = present.map_or(Revision::ABSENT, |present| present.revision);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Removes the oldest uploads that nobody needs from the store. What fails is left for the next upload.
    async fn make_room(&self) {
        loop {
            let surplus = self.0.store_view.lock().surplus();
            let Some(surplus) = surplus else { return };
            if let Err(error) = self.0.store.remove(&surplus.key, surplus.revision).await {
                return tracing::debug!(key = surplus.key, %error, "an old policy stays in the store for now");
            }
            tracing::info!(
                key = surplus.key,
                "policy removed from the store to make room for newer ones"
            );
            self.0.store_view.lock().uploads.forget(&surplus.key);
            if let Some(digest) = surplus.object
                && let Err(error) = self.0.store.remove_object(&digest).await
            {
                tracing::debug!(digest, %error, "the object of an old policy stays in the store");
            }
        }
    }

    /// Admits what was uploaded to another router.
    pub(super) async fn fetch(
        &self,
        name: &str,
        version: &str,
        digest: &str,
        settings: String,
    ) -> Result<(), PolicyChangeError> {
        let wasm = self.0.store.get_object(digest).await?;
        let (registry, name, version) = (self.0.registry.clone(), name.to_owned(), version.to_owned());
        blocking(move || registry.restore(&name, &version, &wasm, &settings).map(drop)).await
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}
