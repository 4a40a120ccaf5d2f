//! The way to the policy replicator from other threads.

use std::{sync::Arc, time::Duration};

use actix::prelude::*;
use bytes::Bytes;
use serde_json::{Map, Value};
use signalbox_policy_host::{PolicyRecord, PolicyRegistry, builtin_policies};
use signalbox_policy_store::{Revision, SharedStore};

use super::{
    Activate, Delete, Happened, PolicyReplicator, ReadHistory, ReadQuarantine, ReadRevision, RollBack,
    Upload,
    change::{ChangeRequest, PolicyChange, PolicyChangeError},
    entries::QuarantineEvent,
    history::HistoryItem,
    io::PolicyIo,
    store_reading::{self, StoreReading},
    store_view::FollowedRevisions,
};
use crate::{audit::AuditLog, supervisor::ActorHandle};

/// Changes policies on every router. Clone = handle.
#[derive(Debug, Clone)]
pub struct PolicyReplicatorHandle {
    registry: PolicyRegistry,
    store: Arc<dyn SharedStore>,
    actor: ActorHandle<PolicyReplicator>,
    reading: StoreReading,
}

impl PolicyReplicatorHandle {
    /// Starts the actor on `arbiter`, where it runs until the arbiter stops. An actor that is started again has an empty
    /// view of the store, and reads every entry again. It follows those that changed meanwhile.
    pub(crate) fn start(
        registry: PolicyRegistry,
        store: Arc<dyn SharedStore>,
        audit: AuditLog,
        arbiter: &ArbiterHandle,
    ) -> Self {
        Self::start_with_patience(registry, store, audit, arbiter, store_reading::PATIENCE)
    }

    /// The same, with another wait for the first reading of the store.
    pub(super) fn start_with_patience(
        registry: PolicyRegistry,
        store: Arc<dyn SharedStore>,
        audit: AuditLog,
        arbiter: &ArbiterHandle,
        patience: Duration,
    ) -> Self {
        let io = PolicyIo::new(registry.clone(), store.clone());
        let followed = FollowedRevisions::default();
        let reading = StoreReading::new(patience);
        let shared = reading.clone();
        let actor = ActorHandle::start_in_arbiter(arbiter, "policy_replicator", move || {
            PolicyReplicator::new(io.clone(), &followed, shared.clone(), audit.clone())
        });
        let listener = actor.clone();
        registry.listen(move |event| {
            if let Err(error) = listener.address().try_send(Happened(event)) {
                tracing::error!(%error, "what happened to a policy is not in the audit log");
            }
        });
        Self {
            registry,
            store,
            actor,
            reading,
        }
    }

    /// The registry of this router.
    pub(crate) fn registry(&self) -> &PolicyRegistry {
        &self.registry
    }

    /// Whether the stored policies were read once, or the store stayed away for so long that the router takes traffic
    /// without them.
    pub fn has_read_store(&self) -> bool {
        self.reading.is_over()
    }

    /// The revision of the choice for `model` that this router received last; 0 when nothing was chosen and the default
    /// policy decides.
    ///
    /// # Errors
    /// [`PolicyChangeError::BrokeOff`]: the actor failed.
    pub async fn revision(&self, model: &str) -> Result<u64, PolicyChangeError> {
        let model = model.to_owned();
        let revision = self.actor.address().send(ReadRevision { model }).await;
        revision.map_err(|_| PolicyChangeError::BrokeOff)
    }

    /// The changes of a model's policy that are known, the latest first. Empty when nothing was chosen.
    ///
    /// # Errors
    /// [`PolicyChangeError::BrokeOff`]: the actor failed.
    pub async fn history(&self, model: &str) -> Result<Vec<HistoryItem>, PolicyChangeError> {
        let model = model.to_owned();
        let history = self.actor.address().send(ReadHistory { model }).await;
        history.map_err(|_| PolicyChangeError::BrokeOff)
    }

    /// The latest quarantine of a version, at this router or another one.
    ///
    /// # Errors
    /// [`PolicyChangeError::BrokeOff`]: the actor failed.
    pub async fn last_quarantine(
        &self,
        policy: &PolicyRecord,
    ) -> Result<Option<QuarantineEvent>, PolicyChangeError> {
        let (name, digest) = (policy.name.clone(), policy.digest.clone());
        let event = self.actor.address().send(ReadQuarantine { name, digest }).await;
        event.map_err(|_| PolicyChangeError::BrokeOff)
    }

    /// The bytes of a version.
    ///
    /// # Errors
    /// The store is away, or does not have them.
    pub async fn component(&self, policy: &PolicyRecord) -> Result<Bytes, PolicyChangeError> {
        let builtin = builtin_policies()
            .into_iter()
            .find(|(name, _)| *name == policy.name);
        match builtin {
            Some((_, wasm)) if policy.builtin => Ok(Bytes::from_static(wasm)),
            _ => Ok(self.store.get_object(&policy.digest).await?),
        }
    }

    /// Lets a policy decide for a model on every router: the one that `policy` means
    /// ([`PolicyRegistry::find`]). `settings` replace those of the upload.
    ///
    /// # Errors
    /// No such policy exists, it is in quarantine or does not take the settings; another change came first; the store
    /// is away.
    pub async fn activate(
        &self,
        request: ChangeRequest,
        policy: &str,
        settings: Option<Map<String, Value>>,
    ) -> Result<PolicyChange, PolicyChangeError> {
        self.send(Activate {
            request,
            policy: policy.to_owned(),
            settings,
        })
        .await
    }

    /// Lets an earlier policy decide for a model again, on every router: that of the revision `to`, else the one before the
    /// present one, where it skips policies that cannot decide any more. A later rollback does not return to the policy
    /// that this one leaves.
    ///
    /// # Errors
    /// The revision is not known, or no earlier policy can decide; another change came first; the store is away.
    pub async fn rollback(
        &self,
        request: ChangeRequest,
        to: Option<u64>,
    ) -> Result<PolicyChange, PolicyChangeError> {
        let to = to.map(Revision);
        self.send(RollBack { request, to }).await
    }

    /// Admits a component and stores it for all routers. Returns its record and whether it is new on this router.
    /// `settings` are a JSON object, or empty for the defaults. `by` asked for it.
    ///
    /// # Errors
    /// The registry does not admit the component; or the store is away or full, and then this router does not keep the
    /// component either.
    pub async fn upload(
        &self,
        name: String,
        wasm: Bytes,
        settings: String,
        by: String,
    ) -> Result<(PolicyRecord, bool), PolicyChangeError> {
        self.send(Upload {
            name,
            wasm,
            settings,
            by,
        })
        .await
    }

    /// Deletes an upload on every router, and returns what it was. `by` asked for it.
    ///
    /// # Errors
    /// There is no such version, it is part of the binary, a model uses it, or the store is away.
    pub async fn delete(&self, policy: &str, by: String) -> Result<PolicyRecord, PolicyChangeError> {
        let policy = policy.to_owned();
        self.send(Delete { policy, by }).await
    }

    async fn send<M, T>(&self, command: M) -> Result<T, PolicyChangeError>
    where
        M: Message<Result = Result<T, PolicyChangeError>> + Send + 'static,
        T: Send + 'static,
        PolicyReplicator: Handler<M>,
    {
        let answer = self.actor.address().send(command).await;
        answer.unwrap_or(Err(PolicyChangeError::BrokeOff))
    }
}
