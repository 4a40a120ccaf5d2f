//! What takes time when policies change: the store's answers, and compiling and starting components.
//!
//! None of it needs the actor's state, so that the actor goes on working meanwhile.

use std::sync::Arc;

use serde_json::{Map, Value};
use signalbox_policy_host::{PolicyRegistry, PreparedPolicy, RegistryError, Succession};
use signalbox_policy_store::{Revision, SharedStore, StoreEntry, StoreError};
use tokio::sync::Mutex;

use super::{
    change::{PlannedChoice, PolicyChangeError, WrittenChoice},
    entries::{ActiveEntry, ChosenPolicy, Subject, UploadEntry, object, settings_text},
    store_view::EntryToFollow,
};

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

    /// Prepares a choice here and writes it to the store.
    pub(super) async fn write_activation(
        &self,
        plan: PlannedChoice,
    ) -> Result<WrittenChoice, PolicyChangeError> {
        let PlannedChoice {
            model,
            choice,
            expected,
            present,
        } = plan;
        let present = match present {
            Some(present) => present,
            None => self.read_choice(&model, expected).await?,
        };
        let prepared = self.prepare(&model, &choice).await?;
        let default = ChosenPolicy::of_activation(&self.registry.deciding(&model));
        let entry = ActiveEntry::after(present.as_ref(), default, choice);
        self.write(model, entry, expected, prepared, Succession::Forward)
            .await
    }

    /// Prepares the first of `earlier` that can decide here, and writes it to the store.
    pub(super) async fn write_rollback(
        &self,
        model: String,
        earlier: Vec<ActiveEntry>,
        expected: Revision,
    ) -> Result<WrittenChoice, PolicyChangeError> {
        for entry in earlier {
            match self.prepare(&model, &entry.choice).await {
                Ok(prepared) => {
                    return self
                        .write(model, entry, expected, prepared, Succession::Back)
                        .await;
                }
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
    PolicyChangeError::Conflict(format!(
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
