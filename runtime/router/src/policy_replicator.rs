//! Policies, the same on every router: what is uploaded or activated at one is so at all.
//!
//! ```text
//! admin API ──▶ PolicyReplicator ──── objects, entries ───▶ SharedStore ◀──▶ other routers
//!                   │   ▲                                    │
//!              admit, publish └────────── Follower ◀── watch ┘
//!                   ▼
//!              PolicyRegistry ──▶ decisions
//! ```
//!
//! The store says who decides for a model; the registry is what decides here. A change is admitted and tried by the registry
//! first, so that nothing unsound reaches the store; then it is put into the store, where of two who change the same at
//! once one is refused; then it is published here. Everybody else follows the store ([`follower`]). An activation names
//! its component by digest, and is never visible before that component is.
//!
//! While the store is away, policies decide as they are and changes are refused. Quarantine is each router's own: it is
//! about faults here. Built-in policies need no object: every router of the release has them.

use std::sync::Arc;

use parking_lot::Mutex;
use signalbox_policy_store::{Revision, SharedStore, StoreEntry, StoreError};
use signalbox_policy_host::{Activation, PolicyRegistry, PreparedPolicy, RegistryError, Succession};

use entries::{ActiveEntry, ChosenPolicy, Subject, object, settings_text};
use store_view::StoreView;

mod entries;
mod follower;
mod store_view;
#[cfg(test)]
mod tests;
mod uploads;

/// Changes policies on every router and keeps the registry of this one as the store says. Clone = handle.
#[derive(Debug, Clone)]
pub struct PolicyReplicator(Arc<Replicator>);

#[derive(Debug)]
struct Replicator {
    registry: PolicyRegistry,
    store: Arc<dyn SharedStore>,
    store_view: Mutex<StoreView>,
    /// Held from asking the store until that is done here too, so that what is done last is what was asked last.
    turn: tokio::sync::Mutex<()>,
}

/// A change of who decides for a model.
#[derive(Debug, Clone)]
pub struct PolicyChange {
    /// What decided here before.
    pub before: Arc<Activation>,
    /// What decides here now.
    pub active: Arc<Activation>,
    /// Which change of the store this was.
    pub revision: u64,
}

/// Why a change was not made.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PolicyChangeError {
    /// The registry does not accept it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody else changed it first, or it cannot be done as things stand.
    #[error("{0}")]
    Conflict(String),
    /// A defect here.
    #[error("the policy registry broke off; see the log")]
    BrokeOff,
}

impl PolicyReplicator {
    /// A replicator that has seen nothing of the store yet.
    pub(crate) fn new(registry: PolicyRegistry, store: Arc<dyn SharedStore>) -> Self {
        Self(Arc::new(Replicator {
            registry,
            store,
            store_view: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }))
    }

    /// What decides here.
    pub(crate) fn registry(&self) -> &PolicyRegistry {
        &self.0.registry
    }

    /// Which change of the store the choice for `model` is, as far as it is known here; 0 where nothing was chosen and
    /// the default policy decides.
    #[must_use]
    pub fn revision(&self, model: &str) -> u64 {
        self.0.store_view.lock().active.revision(model).0
    }

    /// Lets a policy (its newest version here, unless `policy` is `name@version`) decide for `model` on every router.
    /// `settings` (a JSON object, or empty for the defaults) replace those it was uploaded with. `expected` is the
    /// revision of the choice that was looked at; without it, the last one seen here is meant.
    ///
    /// # Errors
    /// There is no such policy, it is in quarantine or does not take the settings; somebody else was faster; the store
    /// is away.
    pub async fn activate(
        &self,
        model: &str,
        policy: &str,
        settings: Option<serde_json::Map<String, serde_json::Value>>,
        expected: Option<u64>,
    ) -> Result<PolicyChange, PolicyChangeError> {
        let expected = Revision(expected.unwrap_or_else(|| self.revision(model)));
        let _turn = self.0.turn.lock().await;
        let record = self.0.registry.find(policy)?;
        let settings = settings.unwrap_or_else(|| object(record.settings.clone()));
        let choice = ChosenPolicy::of_record(&record, settings);
        if !self.is_everywhere(&choice) {
            return Err(PolicyChangeError::Conflict(format!(
                "{} is known to this router alone; upload it again, so that all routers can have it",
                choice.label()
            )));
        }
        let present = self.looked_at(model, expected).await?;
        let prepared = self.prepare(model, &choice).await?;
        let default = ChosenPolicy::of_activation(&self.0.registry.deciding(model));
        let entry = ActiveEntry::after(present.as_ref(), default, choice);
        self.commit(model, entry, expected, prepared, Succession::Forward)
            .await
    }

    /// Lets what decided for `model` before decide again on every router: the latest that can. What was left by that
    /// is not gone back to again.
    ///
    /// # Errors
    /// Nothing that can decide did so before; somebody else was faster; the store is away.
    pub async fn rollback(&self, model: &str) -> Result<PolicyChange, PolicyChangeError> {
        let expected = Revision(self.revision(model));
        let _turn = self.0.turn.lock().await;
        let present = self.looked_at(model, expected).await?;
        let mut before = present.map(|entry| entry.before).unwrap_or_default();
        while !before.is_empty() {
            let choice = before.remove(0);
            if !self.is_everywhere(&choice) {
                continue;
            }
            let prepared = match self.prepare(model, &choice).await {
                Ok(prepared) => prepared,
                Err(PolicyChangeError::Store(error @ StoreError::Unavailable(_))) => return Err(error.into()),
                Err(error) => {
                    tracing::info!(model, policy.name = choice.label(), %error, "rollback goes further back");
                    continue;
                }
            };
            let entry = ActiveEntry { choice, before };
            return self
                .commit(model, entry, expected, prepared, Succession::Back)
                .await;
        }
        Err(PolicyChangeError::Conflict(format!(
            "no policy decided for {model:?} before the present one that could do so again"
        )))
    }

    /// Puts a choice into the store and, once it is there, publishes what was prepared. Callers have the turn.
    async fn commit(
        &self,
        model: &str,
        entry: ActiveEntry,
        expected: Revision,
        prepared: PreparedPolicy,
        succession: Succession,
    ) -> Result<PolicyChange, PolicyChangeError> {
        let key = Subject::Active { model: model.into() }.key();
        let revision = match self.0.store.set(&key, entry.to_value(), expected).await {
            Ok(revision) => revision,
            Err(StoreError::Conflict { .. }) => {
                let present = self.0.store.get(&key).await?;
                return Err(changed_meanwhile(model, expected, present.as_ref()));
            }
            Err(error) => return Err(error.into()),
        };
        self.0.store_view.lock().active.note(model, revision, Some(entry));
        let before = self.0.registry.publish(prepared, succession)?;
        self.0.store_view.lock().active.followed(model, revision);
        Ok(PolicyChange {
            before,
            active: self.0.registry.deciding(model),
            revision: revision.0,
        })
    }

    /// The choice of this revision, which may be one that did not reach this router yet; `None` where nothing was
    /// chosen, or what was chosen cannot be read.
    async fn looked_at(
        &self,
        model: &str,
        revision: Revision,
    ) -> Result<Option<ActiveEntry>, PolicyChangeError> {
        {
            let store_view = self.0.store_view.lock();
            if store_view.active.revision(model) == revision {
                return Ok(store_view.active.entry(model).cloned());
            }
        }
        let key = Subject::Active { model: model.into() }.key();
        match self.0.store.get(&key).await? {
            Some(present) if present.revision == revision => Ok(serde_json::from_slice(&present.value).ok()),
            other => Err(changed_meanwhile(model, revision, other.as_ref())),
        }
    }

    /// Whether every router has, or can get, the component of a choice.
    fn is_everywhere(&self, choice: &ChosenPolicy) -> bool {
        let record = self.0.registry.by_digest(&choice.policy, &choice.digest);
        record.is_some_and(|record| record.builtin) || self.0.store_view.lock().has_upload(choice)
    }

    /// Gets a choice ready to decide here, fetching its component where it is not known yet.
    async fn prepare(&self, model: &str, choice: &ChosenPolicy) -> Result<PreparedPolicy, PolicyChangeError> {
        if self
            .0
            .registry
            .by_digest(&choice.policy, &choice.digest)
            .is_none()
        {
            self.fetch(&choice.policy, &choice.version, &choice.digest, String::new())
                .await?;
        }
        let (registry, model, choice) = (self.0.registry.clone(), model.to_owned(), choice.clone());
        let settings = settings_text(&choice.settings);
        blocking(move || registry.prepare(&model, &choice.policy, &choice.digest, &settings)).await
    }
}

/// Says what is there instead of what was expected.
fn changed_meanwhile(model: &str, expected: Revision, present: Option<&StoreEntry>) -> PolicyChangeError {
    let (label, revision) = match present {
        Some(present) => {
            let entry = serde_json::from_slice::<ActiveEntry>(&present.value);
            let label = entry.map_or_else(|_| "something unreadable".into(), |entry| entry.choice.label());
            (label, present.revision)
        }
        None => ("the default policy".into(), Revision::ABSENT),
    };
    PolicyChangeError::Conflict(format!(
        "the policy of {model:?} is another one than was looked at: {label} decides, at revision {revision} rather than \
         {expected}; repeat this with revision {revision} if it still holds"
    ))
}

/// Runs what compiles, tries or starts policies off this thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, PolicyChangeError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| PolicyChangeError::BrokeOff)?
        .map_err(PolicyChangeError::Registry)
}
