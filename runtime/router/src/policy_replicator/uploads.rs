//! Uploads of this router on their way to the store, and the removal of old ones.

use bytes::Bytes;
use signalbox_policy_host::UploadedPolicy;
use signalbox_policy_store::{Revision, StoreError};

use super::{
    Upload,
    change::PolicyChangeError,
    chosen_policy::object,
    entries::UploadEntry,
    io::{PolicyIo, blocking},
    store_view::SurplusUpload,
};
use crate::unix_time::unix_ms;

/// Attempts to announce an upload while other routers announce the same component.
const ANNOUNCE_ATTEMPTS: usize = 3;

/// A component that the registry has admitted and whose object is in the store.
#[derive(Debug)]
pub(super) struct AdmittedUpload {
    pub(super) uploaded: UploadedPolicy,
    pub(super) entry: UploadEntry,
    pub(super) wasm: Bytes,
}

impl PolicyIo {
    /// Admits a component here and stores its object for all routers. What the store does not take is not kept here.
    pub(super) async fn admit(&self, upload: Upload) -> Result<AdmittedUpload, PolicyChangeError> {
        let Upload {
            name,
            wasm,
            settings,
            by,
        } = upload;
        let (registry, component) = (self.registry.clone(), wasm.clone());
        let uploaded = blocking(move || registry.upload(&name, &component, &settings)).await?;
        if let Err(error) = self.store.put_object(wasm.clone()).await {
            self.registry.take_back(uploaded);
            return Err(error.into());
        }
        let record = &uploaded.record;
        let entry = UploadEntry {
            name: record.name.clone(),
            version: record.version.clone(),
            digest: record.digest.clone(),
            settings: object(record.settings.clone()),
            uploaded_unix_ms: unix_ms(),
            by,
        };
        Ok(AdmittedUpload {
            uploaded,
            entry,
            wasm,
        })
    }

    /// Writes the entry of an upload to the store, over whatever is there. Then stores the object once more: another router
    /// may have removed it since, with an older entry of this component.
    pub(super) async fn announce(
        &self,
        entry: &UploadEntry,
        known: Revision,
        wasm: Bytes,
    ) -> Result<Revision, PolicyChangeError> {
        let revision = self.write_upload(entry, known).await?;
        if let Err(error) = self.store.put_object(wasm).await {
            tracing::debug!(digest = entry.digest, %error, "it is not known whether an object is still in the store");
        }
        Ok(revision)
    }

    async fn write_upload(
        &self,
        entry: &UploadEntry,
        known: Revision,
    ) -> Result<Revision, PolicyChangeError> {
        let key = entry.subject().key();
        let mut expected = known;
        for _ in 1..ANNOUNCE_ATTEMPTS {
            match self.store.set(&key, entry.to_value(), expected).await {
                Err(StoreError::Conflict { .. }) => {
                    let present = self.store.get(&key).await?;
                    expected = present.map_or(Revision::ABSENT, |present| present.revision);
                }
                outcome => return Ok(outcome?),
            }
        }
        Ok(self.store.set(&key, entry.to_value(), expected).await?)
    }

    /// Removes these uploads, each entry and then its object. Returns the key and revision of each entry removed. Stops
    /// at the first entry that cannot be removed; the rest stays until the next upload. An object that cannot be removed
    /// is only logged.
    pub(super) async fn remove_surplus(&self, surplus: Vec<SurplusUpload>) -> Vec<(String, Revision)> {
        let mut removed = Vec::new();
        for SurplusUpload {
            key,
            revision,
            object,
        } in surplus
        {
            if let Err(error) = self.store.remove(&key, revision).await {
                tracing::debug!(key, %error, "an old policy stays in the store for now");
                break;
            }
            tracing::info!(
                key,
                "a policy was removed from the store to make room for newer ones"
            );
            if let Some(digest) = object
                && let Err(error) = self.remove_object_of(&key, &digest).await
            {
                tracing::debug!(digest, %error, "the object of an old policy stays in the store");
            }
            removed.push((key, revision));
        }
        removed
    }

    /// Removes an upload from the store: its entry, and its object unless another upload has the same one.
    pub(super) async fn remove_upload(&self, upload: &SurplusUpload) -> Result<(), StoreError> {
        let SurplusUpload {
            key,
            revision,
            object,
        } = upload;
        self.store.remove(key, *revision).await?;
        if let Some(digest) = object
            && let Err(error) = self.remove_object_of(key, digest).await
        {
            tracing::warn!(digest, %error, "the object of a deleted policy stays in the store");
        }
        Ok(())
    }

    /// Removes the object of the entry that was under `key`. Puts it back if another router has uploaded the component again
    /// meanwhile: it found the object there and wrote an entry only.
    async fn remove_object_of(&self, key: &str, digest: &str) -> Result<(), StoreError> {
        let object = self.store.get_object(digest).await.ok();
        self.store.remove_object(digest).await?;
        if let Some(object) = object
            && self.store.get(key).await?.is_some()
        {
            self.store.put_object(object).await?;
        }
        Ok(())
    }
}
