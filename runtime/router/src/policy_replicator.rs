//! Policies, the same on every router: a policy that one router uploads or activates reaches all of them.
//!
//! ```text
//! admin API ──▶ PolicyReplicator ──── objects, entries ───▶ SharedStore ◀──▶ other routers
//!                   │   ▲                                       │
//!            admit, publish └──────────── StoreChange ◀── watch ┘
//!                   ▼
//!              PolicyRegistry ──▶ decisions
//! ```
//!
//! The store holds the choice of a policy for each model; the registry holds what decides on this router. A change
//! takes three steps. The registry admits and tries the policy, so that nothing unsound reaches the store. The store
//! takes the change; when two routers change the same entry at once, it refuses one of them. Then this router publishes
//! the change in its registry. Every other router follows the store's watch.
//!
//! An activation names its component by digest, and reaches the store after that component. While the store is away,
//! the policies that decide go on deciding and changes are refused. Quarantine is local to a router, because it is
//! about faults on that router. Built-in policies need no object: every router of the release has them.
//!
//! [`PolicyReplicator`] is an actor. Its state is pure: [`StoreView`] holds the entries, [`FollowQueue`] the order in
//! which they are followed. [`PolicyIo`] does what takes time, and has no state.

use actix::prelude::*;
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Map, Value};
use signalbox_policy_host::{PolicyRecord, RegistryEvent};
use signalbox_policy_store::{Revision, StoreChange};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::{
    audit::{AuditLog, AuditRecord},
    unix_time::unix_ms,
};
use change::WrittenChoice;
use chosen_policy::ChosenPolicy;
use edit::{Edit, PlannedChange};
use entries::Subject;
use follow_queue::{FollowQueue, FollowStep};
use io::{FollowFailure, PolicyIo, PreparedChoice};
use store_reading::StoreReading;
use store_view::{FollowedRevisions, StoreView};
use uploads::AdmittedUpload;

pub use change::{ChangeRequest, PolicyChange, PolicyChangeError};
pub use entries::QuarantineEvent;
pub use handle::PolicyReplicatorHandle;
pub use history::{ChangeAction, ChangeNote, HistoryItem};

mod change;
mod chosen_policy;
mod edit;
mod entries;
mod follow_queue;
mod handle;
mod history;
mod io;
mod store_reading;
mod store_view;
#[cfg(test)]
mod tests;
mod uploads;

/// Keeps the policy registry of this router equal to the shared store, and writes changes of policies to the store.
#[derive(Debug)]
pub(crate) struct PolicyReplicator {
    io: PolicyIo,
    view: StoreView,
    queue: FollowQueue,
    /// Whether an entry of the queue is being followed. One at a time, so that all routers give uploads the same
    /// versions.
    is_following: bool,
    /// Wakes the actor when the next failed entry is due again.
    retry_timer: Option<SpawnHandle>,
    reading: StoreReading,
    audit: AuditLog,
    /// This router's name in the store.
    router: String,
}

/// Activates a policy for a model on every router.
#[derive(Debug, Message)]
#[rtype(result = "Result<PolicyChange, PolicyChangeError>")]
struct Activate {
    request: ChangeRequest,
    /// `name`, for its newest version on this router, or `name@version`.
    policy: String,
    /// `None` for the settings of the upload.
    settings: Option<Map<String, Value>>,
}

/// Activates an earlier policy of a model again on every router: that of a revision, or else the previous one.
#[derive(Debug, Message)]
#[rtype(result = "Result<PolicyChange, PolicyChangeError>")]
struct RollBack {
    request: ChangeRequest,
    to: Option<Revision>,
}

/// Admits a component and stores it for all routers.
#[derive(Debug, Message)]
#[rtype(result = "Result<(PolicyRecord, bool), PolicyChangeError>")]
struct Upload {
    name: String,
    wasm: Bytes,
    settings: String,
    by: String,
}

/// Removes an upload that no model uses from every router.
#[derive(Debug, Message)]
#[rtype(result = "Result<PolicyRecord, PolicyChangeError>")]
struct Delete {
    /// As [`PolicyRegistry::look_up`](signalbox_policy_host::PolicyRegistry::look_up) takes it.
    policy: String,
    by: String,
}

/// Reads the revision of the choice for a model.
#[derive(Debug, Message)]
#[rtype(result = "u64")]
struct ReadRevision {
    model: String,
}

/// Reads the changes of a model's policy, the latest first. Empty when nothing was chosen.
#[derive(Debug, Message)]
#[rtype(result = "Vec<HistoryItem>")]
struct ReadHistory {
    model: String,
}

/// Reads the latest quarantine of a version at any router.
#[derive(Debug, Message)]
#[rtype(result = "Option<QuarantineEvent>")]
struct ReadQuarantine {
    name: String,
    digest: String,
}

/// Something happened to a policy of this router by itself.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Happened(RegistryEvent);

type Answer<T> = ResponseActFuture<PolicyReplicator, Result<T, PolicyChangeError>>;

impl PolicyReplicator {
    fn new(io: PolicyIo, followed: &FollowedRevisions, reading: StoreReading, audit: AuditLog) -> Self {
        Self {
            io,
            view: StoreView::new(followed),
            queue: FollowQueue::default(),
            is_following: false,
            retry_timer: None,
            reading,
            audit: audit.clone(),
            router: audit.router().to_owned(),
        }
    }

    /// What a change needs to know of this router's view.
    fn plan(&self, request: ChangeRequest, edit: Edit) -> PlannedChange {
        let known = self.view.active.revision(&request.model);
        let expected = request.expected.map_or(known, Revision);
        let present = (known == expected).then(|| self.view.active.entry(&request.model).cloned());
        PlannedChange {
            request,
            edit,
            expected,
            present,
            uploads: self.view.upload_names(),
        }
    }

    /// Makes a change of a model's entry, for all routers.
    fn edit(&mut self, request: ChangeRequest, edit: Edit) -> Answer<PolicyChange> {
        let model = request.model.clone();
        let (io, plan) = (self.io.clone(), self.plan(request, edit));
        self.change(&model, async move { io.write_change(plan).await })
    }

    /// Drops an upload that the store has no longer, unless a model uses it.
    fn drop_upload(&self, name: &str, digest: &str) {
        if let Err(reason) = self.io.registry.remove(name, digest) {
            debug!(policy.name = name, %reason, "the policy store no longer has an upload, and this router keeps it");
        }
    }

    /// Writes a choice for `model` to the store and then activates it here. The model's entry is not followed meanwhile:
    /// the watch may deliver the change before the store's answer to it arrives.
    fn change(
        &mut self,
        model: &str,
        write: impl Future<Output = Result<WrittenChoice, PolicyChangeError>> + 'static,
    ) -> Answer<PolicyChange> {
        let subject = Subject::active(model);
        self.queue.hold(subject.clone());
        Box::pin(write.into_actor(self).map(move |written, actor, ctx| {
            actor.queue.release(&subject);
            let change = written.and_then(|written| actor.publish(written));
            actor.follow_next(ctx);
            change
        }))
    }

    /// Activates on this router a choice that the store accepted.
    fn publish(&mut self, written: WrittenChoice) -> Result<PolicyChange, PolicyChangeError> {
        let WrittenChoice {
            model,
            entry,
            revision,
            prepared,
            succession,
        } = written;
        let before = self.io.registry.deciding(&model);
        self.audit.record(entry.audit_record(&model, revision, true));
        self.view.active.note(&model, revision, Some(entry));
        // Two changes of this router may complete in either order: the later one decides.
        if !self.view.active.follows_later_than(&model, revision) {
            self.io.registry.publish(prepared, succession)?;
            self.view.active.mark_followed(&model, revision);
        }
        Ok(PolicyChange {
            before,
            active: self.io.registry.deciding(&model),
            revision: revision.0,
        })
    }

    /// Announces an upload to all routers, then removes the oldest uploads from the store when it holds too many. An upload
    /// that cannot be announced is not kept here either. If the store has taken it all the same, this router receives it
    /// as from another router.
    fn announce(&mut self, upload: AdmittedUpload) -> Answer<(PolicyRecord, bool)> {
        let AdmittedUpload {
            uploaded,
            entry,
            wasm,
        } = upload;
        let known = self.view.uploads.revision(&entry.subject().key());
        let (io, written) = (self.io.clone(), entry.clone());
        self.queue.hold(entry.subject());
        let announced = async move { io.announce(&written, known, wasm).await };
        Box::pin(announced.into_actor(self).then(move |announced, actor, ctx| {
            actor.queue.release(&entry.subject());
            let (answer, surplus) = match announced {
                Ok(revision) => {
                    let key = entry.subject().key();
                    actor.audit.record(entry.audit_record(revision, true));
                    actor.view.uploads.note(&key, revision, Some(entry));
                    actor.view.uploads.mark_followed(&key, revision);
                    let is_new = uploaded.is_new();
                    (Ok((uploaded.record, is_new)), actor.view.surplus())
                }
                Err(error) => {
                    actor.io.registry.take_back(uploaded);
                    (Err(error), Vec::new())
                }
            };
            actor.follow_next(ctx);
            let io = actor.io.clone();
            let removed = async move { io.remove_surplus(surplus).await };
            removed.into_actor(actor).map(move |removed, actor, _| {
                for (key, revision) in removed {
                    actor.view.uploads.forget_revision(&key, revision);
                }
                answer
            })
        }))
    }

    /// Starts to follow the next entry that is due, unless one is being followed.
    fn follow_next(&mut self, ctx: &mut Context<Self>) {
        if self.is_following {
            return;
        }
        while let Some(step) = self.queue.take_due(Instant::now()) {
            let Some(entry) = self.view.to_follow(&step.subject, step.revision) else {
                continue;
            };
            let io = self.io.clone();
            let prepared = async move { io.prepare_entry(entry).await };
            self.is_following = true;
            ctx.spawn(prepared.into_actor(self).map(|prepared, actor, ctx| {
                actor.is_following = false;
                actor.finish_step(step, prepared);
                actor.follow_next(ctx);
            }));
            return;
        }
        self.reading.nothing_new_waits();
        if let Some(timer) = self.retry_timer.take() {
            ctx.cancel_future(timer);
        }
        if let Some(due) = self.queue.next_due() {
            let wait = due.saturating_duration_since(Instant::now());
            self.retry_timer = Some(ctx.run_later(wait, |actor, ctx| {
                actor.retry_timer = None;
                actor.follow_next(ctx);
            }));
        }
    }

    /// Does what a prepared entry requires, or queues the entry again.
    fn finish_step(&mut self, step: FollowStep, prepared: Result<Option<PreparedChoice>, FollowFailure>) {
        let followed = prepared.and_then(|prepared| self.follow(&step, prepared));
        let Err(FollowFailure { policy, error }) = followed else {
            return;
        };
        let (key, revision) = (step.subject.key(), step.revision);
        if !error.may_pass() {
            return error!(key, %revision, policy.name = policy, %error, "an entry of the policy store cannot be followed on this router; the active policy stays");
        }
        if step.is_first_attempt() {
            warn!(key, %revision, policy.name = policy, %error, "an entry of the policy store cannot be followed yet; trying again");
        } else {
            debug!(key, %revision, policy.name = policy, %error, "an entry of the policy store cannot be followed yet");
        }
        self.queue.retry(step, Instant::now());
    }

    /// Publishes a choice of another router, and records that the entry is followed.
    fn follow(&mut self, step: &FollowStep, prepared: Option<PreparedChoice>) -> Result<(), FollowFailure> {
        let (Subject::Active { model }, Some(PreparedChoice { entry, prepared })) = (&step.subject, prepared)
        else {
            let key = step.subject.key();
            if let Some(upload) = self.view.uploads.entry(&key).filter(|_| self.reading.is_over()) {
                self.audit.record(upload.audit_record(step.revision, false));
            }
            self.view.uploads.mark_followed(&key, step.revision);
            return Ok(());
        };
        if self.view.active.to_follow(model, step.revision).is_none() {
            // A change of this router replaced the choice meanwhile.
            return Ok(());
        }
        if self.reading.is_over() {
            self.audit.record(entry.audit_record(model, step.revision, false));
        }
        let deciding = ChosenPolicy::of_activation(&self.io.registry.deciding(model));
        let published = self
            .io
            .registry
            .publish(prepared, entry.succession_after(&deciding));
        published.map_err(|error| FollowFailure::of(&entry.choice, error.into()))?;
        self.view.active.mark_followed(model, step.revision);
        info!(model, policy.name = entry.choice.label(), revision = %step.revision, "another router activated a policy");
        Ok(())
    }
}

impl Actor for PolicyReplicator {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.add_stream(stream::unfold(self.io.store.watch(), |mut watch| async {
            Some((watch.next().await, watch))
        }));
        ctx.run_later(self.reading.patience(), |actor, _| actor.reading.give_up());
    }
}

impl StreamHandler<StoreChange> for PolicyReplicator {
    fn handle(&mut self, change: StoreChange, ctx: &mut Self::Context) {
        match change {
            StoreChange::Set { key, entry } => {
                let Some(subject) = Subject::parse(&key) else {
                    return debug!(key, "this release does not know such a key of the policy store");
                };
                let revision = entry.revision;
                self.view.note(&subject, &entry);
                self.queue.push(subject, revision, Instant::now());
                self.follow_next(ctx);
            }
            StoreChange::Removed { key } => {
                let Some(subject) = Subject::parse(&key) else {
                    return;
                };
                match &subject {
                    Subject::Active { model } => warn!(
                        model,
                        "the policy store no longer has a choice for the model; the active policy stays"
                    ),
                    Subject::Upload { name, digest } => self.drop_upload(name, digest),
                    Subject::Quarantine { .. } => {}
                }
                self.queue.remove(&subject);
                self.view.forget(&subject);
            }
            StoreChange::Complete => {
                info!("all entries of the policy store were received");
                self.reading.all_received();
                self.follow_next(ctx);
            }
        }
    }
}

impl Handler<ReadRevision> for PolicyReplicator {
    type Result = u64;

    fn handle(&mut self, ReadRevision { model }: ReadRevision, _: &mut Self::Context) -> u64 {
        self.view.active.revision(&model).0
    }
}

impl Handler<Activate> for PolicyReplicator {
    type Result = Answer<PolicyChange>;

    fn handle(&mut self, command: Activate, _: &mut Self::Context) -> Self::Result {
        let Activate {
            request,
            policy,
            settings,
        } = command;
        match self.io.choice(&policy, settings) {
            Ok(choice) => self.edit(request, Edit::Activate(choice)),
            Err(error) => Box::pin(fut::err(error.into())),
        }
    }
}

impl Handler<RollBack> for PolicyReplicator {
    type Result = Answer<PolicyChange>;

    fn handle(&mut self, RollBack { request, to }: RollBack, _: &mut Self::Context) -> Self::Result {
        self.edit(request, Edit::RollBack { to })
    }
}

impl Handler<Upload> for PolicyReplicator {
    type Result = Answer<(PolicyRecord, bool)>;

    fn handle(&mut self, upload: Upload, _: &mut Self::Context) -> Self::Result {
        let io = self.io.clone();
        let admitted = async move { io.admit(upload).await };
        Box::pin(
            admitted
                .into_actor(self)
                .then(|admitted, actor, _| match admitted {
                    Ok(upload) => actor.announce(upload),
                    Err(error) => Box::pin(fut::err(error)),
                }),
        )
    }
}

impl Handler<Delete> for PolicyReplicator {
    type Result = Answer<PolicyRecord>;

    fn handle(&mut self, Delete { policy, by }: Delete, _: &mut Self::Context) -> Self::Result {
        let planned = self.io.registry.look_up(&policy).map_err(PolicyChangeError::from);
        let planned = planned.and_then(|record| {
            if record.builtin || !record.models.is_empty() {
                // The registry's own refusal says why.
                self.io.registry.remove(&record.name, &record.digest)?;
            }
            let upload = self.view.removable(&record.name, &record.digest);
            Ok((record, upload.map_err(PolicyChangeError::Conflict)?))
        });
        let (record, upload) = match planned {
            Ok(planned) => planned,
            Err(error) => return Box::pin(fut::err(error)),
        };
        let io = self.io.clone();
        let removed = async move { io.remove_upload(&upload).await.map(|()| upload) };
        Box::pin(removed.into_actor(self).map(move |removed, actor, _| {
            let upload = removed?;
            actor.view.uploads.forget_revision(&upload.key, upload.revision);
            actor.io.registry.remove(&record.name, &record.digest)?;
            actor.audit.record(AuditRecord {
                at_unix_ms: unix_ms(),
                action: "delete".into(),
                by,
                here: true,
                policy: format!("{}@{}", record.name, record.version),
                digest: record.digest.clone(),
                ..AuditRecord::default()
            });
            Ok(record)
        }))
    }
}

impl Handler<ReadHistory> for PolicyReplicator {
    type Result = MessageResult<ReadHistory>;

    fn handle(&mut self, ReadHistory { model }: ReadHistory, _: &mut Self::Context) -> Self::Result {
        let revision = self.view.active.revision(&model);
        let entry = self.view.active.entry(&model);
        MessageResult(entry.map(|entry| entry.changes(revision)).unwrap_or_default())
    }
}

impl Handler<ReadQuarantine> for PolicyReplicator {
    type Result = Option<QuarantineEvent>;

    fn handle(&mut self, read: ReadQuarantine, _: &mut Self::Context) -> Self::Result {
        let ReadQuarantine { name, digest } = read;
        let key = Subject::Quarantine { name, digest }.key();
        self.view.quarantines.entry(&key).cloned()
    }
}

impl Handler<Happened> for PolicyReplicator {
    type Result = ();

    fn handle(&mut self, Happened(event): Happened, ctx: &mut Self::Context) {
        let RegistryEvent::Quarantined {
            policy,
            models,
            reason,
        } = event;
        let label = format!("{}@{}", policy.name, policy.version);
        self.audit.record(AuditRecord {
            at_unix_ms: unix_ms(),
            action: "quarantine".into(),
            here: true,
            policy: label.clone(),
            digest: policy.digest.clone(),
            reason: Some(reason.clone()),
            ..AuditRecord::default()
        });
        let event = QuarantineEvent {
            policy: policy.name,
            version: policy.version,
            digest: policy.digest,
            reason,
            models,
            at_unix_ms: unix_ms(),
            router: self.router.clone(),
        };
        let io = self.io.clone();
        let written = async move { io.write_quarantine(&event).await };
        ctx.spawn(written.into_actor(self).map(move |written, _, _| {
            if let Err(error) = written {
                warn!(policy.name = label, %error, "the other routers do not learn of a quarantine");
            }
        }));
    }
}
