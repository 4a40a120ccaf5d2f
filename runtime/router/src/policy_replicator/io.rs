//! What takes time when policies change: the store's answers, and compiling and starting components.
//!
//! None of it needs the actor's state, so that the actor goes on working meanwhile.

use std::sync::Arc;

use serde_json::{Map, Value};
use signalbox_policy_host::{PolicyRegistry, PreparedPolicy, RegistryError, Succession};
use signalbox_policy_store::{Revision, SharedStore, StoreEntry, StoreError};
use tokio::sync::Mutex;

use super::{
    change::{ChangeRequest, PolicyChangeError, WrittenChoice},
    chosen_policy::{ChosenPolicy, object, settings_text},
    edit::{Edit, PlannedChange},
    entries::{ActiveEntry, QuarantineEvent, Subject, UploadEntry},
    history::ChangeNote,
    store_view::EntryToFollow,
};
use crate::unix_time::unix_ms;

/// Attempts to write a quarantine while another router writes one of the same version.
const QUARANTINE_ATTEMPTS: usize = 3;

/// The registry of this router and the store of all. Clone = handle.
#[derive(Debug, Clone)]
pub(super) struct PolicyIo {
    pub(super) registry: PolicyRegistry,
    pub(super) store: Arc<dyn SharedStore>,
    /// Held while a policy is prepared, so that many activations at once do not take all cores.
    preparing: Arc<Mutex<()>>,
}

/// A choice of another router that this one can publish.
#[derive(Debug)]
pub(super) struct PreparedChoice {
    pub(super) entry: ActiveEntry,
    pub(super) prepared: PreparedPolicy,
}

/// Why an entry of another router cannot be followed.
#[derive(Debug)]
pub(super) struct FollowFailure {
    /// `name@version`
    pub(super) policy: String,
    pub(super) error: PolicyChangeError,
}

impl FollowFailure {
    pub(super) fn of(choice: &ChosenPolicy, error: PolicyChangeError) -> Self {
        Self {
            policy: choice.label(),
            error,
        }
    }
}

impl PolicyIo {
    pub(super) fn new(registry: PolicyRegistry, store: Arc<dyn SharedStore>) -> Self {
        Self {
            registry,
            store,
            preparing: Arc::default(),
        }
    }

    /// The policy that `policy` (`name` or `name@version`) means here, with `settings` or else its own.
    pub(super) fn choice(
        &self,
        policy: &str,
        settings: Option<Map<String, Value>>,
    ) -> Result<ChosenPolicy, RegistryError> {
        let record = self.registry.find(policy)?;
        let settings = settings.unwrap_or_else(|| object(record.settings.clone()));
        Ok(ChosenPolicy::of_record(&record, settings))
    }

    /// Prepares what a change makes of a model's entry, and writes it to the store.
    pub(super) async fn write_change(&self, plan: PlannedChange) -> Result<WrittenChoice, PolicyChangeError> {
        let PlannedChange {
            request,
            edit,
            expected,
            present,
            uploads,
        } = plan;
        let ChangeRequest { model, by, .. } = request;
        let present = match present {
            Some(present) => present,
            None => self.read_choice(&model, expected).await?,
        };
        let note = ChangeNote {
            action: edit.action(),
            at_unix_ms: unix_ms(),
            by,
            reason: None,
        };
        let succession = match &edit {
            Edit::Activate(_) => Succession::Forward,
            Edit::RollBack { .. } => Succession::Back,
        };
        let is_only_one = matches!(edit, Edit::Activate(_) | Edit::RollBack { to: Some(_) });
        let default = ChosenPolicy::of_activation(&self.registry.deciding(&model));
        for entry in edit.entries(&model, present.as_ref(), expected, &default, &note)? {
            let prepared = match self.check_everywhere(&entry.choice, &uploads) {
                Ok(()) => self.prepare(&model, &entry.choice).await,
                Err(error) => Err(error),
            };
            match prepared {
                Ok(prepared) => return self.write(model, entry, expected, prepared, succession).await,
                Err(error) if is_only_one => return Err(error),
                Err(PolicyChangeError::Store(error @ StoreError::Unavailable(_))) => return Err(error.into()),
                Err(error) => {
                    tracing::info!(model, policy.name = entry.choice.label(), %error, "an earlier policy cannot decide; the rollback skips it");
                }
            }
        }
        Err(PolicyChangeError::Conflict(format!(
            "no earlier policy can decide for {model:?}"
        )))
    }

    /// Refuses a choice whose component not every router has or can fetch.
    fn check_everywhere(
        &self,
        choice: &ChosenPolicy,
        uploads: &[(String, String)],
    ) -> Result<(), PolicyChangeError> {
        let record = self.registry.by_digest(&choice.policy, &choice.digest);
        let is_upload =
            |(name, digest): &(String, String)| *name == choice.policy && *digest == choice.digest;
        match record {
            Some(record) if record.builtin => Ok(()),
            _ if uploads.iter().any(is_upload) => Ok(()),
            Some(_) => Err(PolicyChangeError::Conflict(format!(
                "only this router has {}; upload it again, so that all routers can have it",
                choice.label()
            ))),
            None => Err(PolicyChangeError::Conflict(format!(
                "{} is not stored any more; upload it again",
                choice.label()
            ))),
        }
    }

    async fn write(
        &self,
        model: String,
        entry: ActiveEntry,
        expected: Revision,
        prepared: PreparedPolicy,
        succession: Succession,
    ) -> Result<WrittenChoice, PolicyChangeError> {
        let key = Subject::active(&model).key();
        match self.store.set(&key, entry.to_value(), expected).await {
            Ok(revision) => Ok(WrittenChoice {
                model,
                entry,
                revision,
                prepared,
                succession,
            }),
            Err(StoreError::Conflict { .. }) => {
                let present = self.store.get(&key).await?;
                Err(changed_meanwhile(&model, expected, present.as_ref()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Stores a quarantine for all routers. The latest one of a version replaces the one before it.
    pub(super) async fn write_quarantine(&self, event: &QuarantineEvent) -> Result<(), StoreError> {
        let key = event.subject().key();
        let mut last = Ok(());
        for _ in 0..QUARANTINE_ATTEMPTS {
            let present = self.store.get(&key).await?;
            let expected = present.map_or(Revision::ABSENT, |present| present.revision);
            match self.store.set(&key, event.to_value(), expected).await {
                Err(error @ StoreError::Conflict { .. }) => last = Err(error),
                outcome => return outcome.map(drop),
            }
        }
        last
    }

    /// The entry of this revision; `None` when it is absent or unreadable.
    async fn read_choice(
        &self,
        model: &str,
        revision: Revision,
    ) -> Result<Option<ActiveEntry>, PolicyChangeError> {
        match self.store.get(&Subject::active(model).key()).await? {
            Some(present) if present.revision == revision => Ok(serde_json::from_slice(&present.value).ok()),
            other => Err(changed_meanwhile(model, revision, other.as_ref())),
        }
    }

    /// Admits an upload of another router, or prepares a choice of another router and returns it.
    pub(super) async fn prepare_entry(
        &self,
        entry: EntryToFollow,
    ) -> Result<Option<PreparedChoice>, FollowFailure> {
        match entry {
            EntryToFollow::Upload(upload) => {
                let UploadEntry {
                    name,
                    version,
                    digest,
                    ..
                } = &upload;
                let fetched = self
                    .fetch(name, version, digest, settings_text(&upload.settings))
                    .await;
                let policy = format!("{name}@{version}");
                fetched
                    .map(|()| None)
                    .map_err(|error| FollowFailure { policy, error })
            }
            EntryToFollow::Active { model, entry } => match self.prepare(&model, &entry.choice).await {
                Ok(prepared) => Ok(Some(PreparedChoice { entry, prepared })),
                Err(error) => Err(FollowFailure::of(&entry.choice, error)),
            },
        }
    }

    /// Prepares a choice here. Fetches its component when the registry does not have it.
    async fn prepare(&self, model: &str, choice: &ChosenPolicy) -> Result<PreparedPolicy, PolicyChangeError> {
        let ChosenPolicy {
            policy,
            version,
            digest,
            settings,
        } = choice.clone();
        if self.registry.by_digest(&policy, &digest).is_none() {
            self.fetch(&policy, &version, &digest, String::new()).await?;
        }
        let (registry, model) = (self.registry.clone(), model.to_owned());
        let _one_at_a_time = self.preparing.lock().await;
        blocking(move || registry.prepare(&model, &policy, &digest, &settings_text(&settings))).await
    }

    /// Fetches a component from the store and admits it here.
    async fn fetch(
        &self,
        name: &str,
        version: &str,
        digest: &str,
        settings: String,
    ) -> Result<(), PolicyChangeError> {
        let wasm = self.store.get_object(digest).await?;
        let (registry, name, version) = (self.registry.clone(), name.to_owned(), version.to_owned());
        blocking(move || registry.restore(&name, &version, &wasm, &settings).map(drop)).await
    }
}

/// The conflict error, naming the current choice.
fn changed_meanwhile(model: &str, expected: Revision, present: Option<&StoreEntry>) -> PolicyChangeError {
    let (label, revision) = match present {
        Some(present) => {
            let entry = serde_json::from_slice::<ActiveEntry>(&present.value);
            let label = entry.map_or_else(|_| "an unreadable choice".into(), |entry| entry.choice.label());
            (label, present.revision)
        }
        None => ("the default policy".into(), Revision::ABSENT),
    };
    PolicyChangeError::Changed(format!(
        "the choice for {model:?} has changed from revision {expected}: now {label} decides, at revision {revision}; \
         repeat the request with revision {revision} to replace it"
    ))
}

/// Runs what compiles, tries or starts policies on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, PolicyChangeError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| PolicyChangeError::BrokeOff)?
        .map_err(PolicyChangeError::Registry)
}
