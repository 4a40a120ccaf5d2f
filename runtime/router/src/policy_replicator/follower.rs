//! Makes the registry do as the store says.
//!
//! Entries are followed one after the other in the order of their revisions, so that all routers give uploads the same
//! versions. What cannot be followed yet, such as an activation whose object is not to be had, is tried again, with
//! growing pauses and without holding up the rest; what is refused here for good is told once and left.

use std::{collections::HashMap, panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt;
use serde::de::DeserializeOwned;
use signalbox_policy_store::{Revision, StoreChange, StoreEntry, StoreError};
use signalbox_policy_host::Succession;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

use super::{
    PolicyChangeError, PolicyReplicator,
    entries::{ChosenPolicy, Subject, settings_text},
};

/// Wait before an entry is tried again, doubled up to the longest after each failure.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Wait before following begins anew after a panic.
const RESTART: Duration = Duration::from_secs(1);

/// An entry that could not be followed yet.
#[derive(Debug)]
struct Waiting {
    subject: Subject,
    revision: Revision,
    due: Instant,
    pause: Duration,
}

impl PolicyReplicator {
    /// Follows the store for as long as the runtime lives, also over a panic in here.
    pub(crate) async fn follow(self) {
        loop {
            // What a panic may leave half done is followed again from the start.
            let run = AssertUnwindSafe(Follower::new(self.clone()).run());
            if run.catch_unwind().await.is_err() {
                tracing::error!("following the policy store broke off, it begins anew");
            }
            sleep(RESTART).await;
        }
    }
}

#[derive(Debug)]
struct Follower {
    replicator: PolicyReplicator,
    /// By key.
    waiting: HashMap<String, Waiting>,
}

impl Follower {
    fn new(replicator: PolicyReplicator) -> Self {
        Self {
            replicator,
            waiting: HashMap::new(),
        }
    }

    async fn run(mut self) {
        let mut watch = self.replicator.0.store.watch();
        loop {
            let next_try = self.waiting.iter().min_by_key(|(_, waiting)| waiting.due);
            let next_try = next_try.map(|(key, waiting)| (key.clone(), waiting.due));
            let retry = async {
                match next_try {
                    Some((key, due)) => {
                        sleep_until(due).await;
                        key
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                change = watch.next() => self.take(change).await,
                key = retry => self.retry(&key).await,
            }
        }
    }

    async fn take(&mut self, change: StoreChange) {
        match change {
            StoreChange::Set { key, entry } => {
                let Some(subject) = Subject::parse(&key) else {
                    return debug!(key, "a key of the policy store means nothing to this release");
                };
                // What waited is out of date.
                self.waiting.remove(&key);
                self.note(&key, &subject, &entry);
                self.attempt(key, subject, entry.revision, RETRY).await;
            }
            StoreChange::Removed { key } => {
                self.waiting.remove(&key);
                let mut store_view = self.replicator.0.store_view.lock();
                match Subject::parse(&key) {
                    Some(Subject::Active { model }) => {
                        warn!(
                            model,
                            "the store has no policy for the model any more; what decides goes on"
                        );
                        store_view.active.forget(&model);
                    }
                    Some(Subject::Upload { .. }) => store_view.uploads.forget(&key),
                    None => {}
                }
            }
            StoreChange::Complete => info!("policies are as the store says"),
        }
    }

    fn note(&self, key: &str, subject: &Subject, entry: &StoreEntry) {
        let mut store_view = self.replicator.0.store_view.lock();
        match subject {
            Subject::Upload { .. } => store_view.uploads.note(key, entry.revision, read(key, entry)),
            Subject::Active { model } => store_view.active.note(model, entry.revision, read(key, entry)),
        }
    }

    async fn retry(&mut self, key: &str) {
        if let Some(Waiting {
            subject,
            revision,
            pause,
            ..
        }) = self.waiting.remove(key)
        {
            self.attempt(key.to_owned(), subject, revision, (pause * 2).min(RETRY_MAX))
                .await;
        }
    }

    /// Follows an entry, or sees to it that this is tried again after `pause`.
    async fn attempt(&mut self, key: String, subject: Subject, revision: Revision, pause: Duration) {
        let outcome = match &subject {
            Subject::Upload { .. } => self.follow_upload(&key, revision).await,
            Subject::Active { model } => self.follow_active(model, revision).await,
        };
        let first = pause == RETRY;
        match outcome {
            Ok(()) => {}
            Err((policy, error)) if may_pass(&error) => {
                if first {
                    warn!(key, %revision, policy.name = policy, %error, "the policy store cannot be followed yet; trying again");
                } else {
                    debug!(key, %revision, policy.name = policy, %error, "the policy store cannot be followed yet");
                }
                let due = Instant::now() + pause;
                self.waiting.insert(
                    key,
                    Waiting {
                        subject,
                        revision,
                        due,
                        pause,
                    },
                );
            }
            Err((policy, error)) => {
                tracing::error!(key, %revision, policy.name = policy, %error, "the policy store cannot be followed here; what decides goes on");
            }
        }
    }

    /// Admits an upload of another router.
    async fn follow_upload(&self, key: &str, revision: Revision) -> Result<(), (String, PolicyChangeError)> {
        let replicator = &self.replicator;
        let due = {
            // An operator here may be about to note that this is followed.
            let _turn = replicator.0.turn.lock().await;
            replicator.0.store_view.lock().uploads.due(key, revision).cloned()
        };
        let Some(upload) = due else { return Ok(()) };
        let settings = settings_text(&upload.settings);
        let fetched = replicator.fetch(&upload.name, &upload.version, &upload.digest, settings);
        fetched
            .await
            .map_err(|error| (format!("{}@{}", upload.name, upload.version), error))?;
        replicator.0.store_view.lock().uploads.followed(key, revision);
        Ok(())
    }

    /// Lets another router's choice decide here.
    async fn follow_active(
        &self,
        model: &str,
        revision: Revision,
    ) -> Result<(), (String, PolicyChangeError)> {
        let replicator = &self.replicator;
        let due = replicator
            .0
            .store_view
            .lock()
            .active
            .due(model, revision)
            .cloned();
        let Some(entry) = due else { return Ok(()) };
        let named = |error| (entry.choice.label(), error);
        let prepared = replicator.prepare(model, &entry.choice).await.map_err(named)?;
        let _turn = replicator.0.turn.lock().await;
        if replicator
            .0
            .store_view
            .lock()
            .active
            .due(model, revision)
            .is_none()
        {
            // An operator here was faster meanwhile.
            return Ok(());
        }
        // What decides now and is not remembered by the choice was left by a rollback.
        let deciding = ChosenPolicy::of_activation(&replicator.0.registry.deciding(model));
        let succession = if entry.before.iter().any(|before| before.is(&deciding)) {
            Succession::Forward
        } else {
            Succession::Back
        };
        let published = replicator.0.registry.publish(prepared, succession);
        published.map_err(|error| named(error.into()))?;
        replicator.0.store_view.lock().active.followed(model, revision);
        info!(model, policy.name = entry.choice.label(), %revision, "policy activated by the store");
        Ok(())
    }
}

/// Whether waiting can help.
fn may_pass(error: &PolicyChangeError) -> bool {
    match error {
        PolicyChangeError::Store(error) => !matches!(error, StoreError::Refused(_)),
        PolicyChangeError::Registry(_) | PolicyChangeError::Conflict(_) | PolicyChangeError::BrokeOff => {
            false
        }
    }
}

/// What an entry says, or `None` where it cannot be read.
fn read<T: DeserializeOwned>(key: &str, entry: &StoreEntry) -> Option<T> {
    serde_json::from_slice(&entry.value)
        .inspect_err(|error| warn!(key, revision = %entry.revision, %error, "an entry of the policy store cannot be read"))
        .ok()
}
