//! The way to the policy replicator from other threads.

use std::{sync::Arc, time::Duration};

use actix::prelude::*;
use bytes::Bytes;
use serde_json::{Map, Value};
use signalbox_policy_host::{PolicyRecord, PolicyRegistry};
use signalbox_policy_store::{Revision, SharedStore};

use super::{
    Activate, PolicyReplicator, ReadRevision, RollBack, Upload,
    change::{PolicyChange, PolicyChangeError},
    io::PolicyIo,
    store_reading::{self, StoreReading},
    store_view::FollowedRevisions,
};
use crate::supervisor::ActorHandle;

/// Changes policies on every router. Clone = handle.
#[derive(Debug, Clone)]
pub struct PolicyReplicatorHandle {
    registry: PolicyRegistry,
    actor: ActorHandle<PolicyReplicator>,
    reading: StoreReading,
}

impl PolicyReplicatorHandle {
    /// Starts the actor on `arbiter`, where it runs until the arbiter stops. An actor that is started again has an empty
    /// view of the store, and reads every entry again. It follows those that changed meanwhile.
    pub(crate) fn start(
        registry: PolicyRegistry,
        store: Arc<dyn SharedStore>,
        arbiter: &ArbiterHandle,
    ) -> Self {
        Self::start_with_patience(registry, store, arbiter, store_reading::PATIENCE)
    }

    /// The same, with another wait for the first reading of the store.
    pub(super) fn start_with_patience(
        registry: PolicyRegistry,
        store: Arc<dyn SharedStore>,
        arbiter: &ArbiterHandle,
        patience: Duration,
    ) -> Self {
        let io = PolicyIo::new(registry.clone(), store);
        let followed = FollowedRevisions::default();
        let reading = StoreReading::new(patience);
        let shared = reading.clone();
        let actor = ActorHandle::start_in_arbiter(arbiter, "policy_replicator", move || {
            PolicyReplicator::new(io.clone(), &followed, shared.clone())
        });
        Self {
            registry,
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

    /// Lets a policy decide for `model` on every router: its newest version here, unless `policy` is `name@version`.
    /// `settings` replace those of the upload. `expected` is the revision of the choice that the caller wants to
    /// replace; `None` means the last one that this router received.
    ///
    /// # Errors
    /// No such policy exists, it is in quarantine or does not take the settings; another change came first; the store
    /// is away.
    pub async fn activate(
        &self,
        model: &str,
        policy: &str,
        settings: Option<Map<String, Value>>,
        expected: Option<u64>,
    ) -> Result<PolicyChange, PolicyChangeError> {
        let (model, policy) = (model.to_owned(), policy.to_owned());
        self.send(Activate {
            model,
            policy,
            settings,
            expected: expected.map(Revision),
        })
        .await
    }

    /// Lets the policy before the present one decide for `model` again, on every router. It skips policies that cannot
    /// decide any more. A later rollback does not return to the policy that this one leaves.
    ///
    /// # Errors
    /// No earlier policy can decide; another change came first; the store is away.
    pub async fn rollback(&self, model: &str) -> Result<PolicyChange, PolicyChangeError> {
        let model = model.to_owned();
        self.send(RollBack { model }).await
    }

    /// Admits a component and stores it for all routers. Returns its record and whether it is new on this router.
    /// `settings` are a JSON object, or empty for the defaults.
    ///
    /// # Errors
    /// The registry does not admit the component; or the store is away or full, and then this router does not keep the
    /// component either.
    pub async fn upload(
        &self,
        name: String,
        wasm: Bytes,
        settings: String,
    ) -> Result<(PolicyRecord, bool), PolicyChangeError> {
        self.send(Upload { name, wasm, settings }).await
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
