//! Writes the registrations of this process to etcd, under one lease.
//!
//! The lease is granted with the first registration and kept alive at a third of its time to live. It outlasts
//! connections: after a reconnect, the next keep-alive shows whether etcd still has the lease. If not, the registrar
//! gets another lease and puts every key again.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use etcd_client::{
    Client, Compare, CompareOp, LeaseKeepAliveStream, LeaseKeeper, PutOptions, Txn, TxnOp, TxnOpResponse,
};
use signalbox_protocol::{WorkerCard, WorkerEpoch};
use tokio::sync::watch;

use super::{
    keyspace::Keyspace,
    outage::{Outage, bounded},
    own_keys::OwnKeys,
    registrations::{Outcome, Registrations, Wanted, Work},
};

/// Longest time between two requests, also without a lease, so that a server that hangs is detected within ten seconds.
const MAX_REQUEST_INTERVAL: Duration = Duration::from_secs(5);

/// Attempts at a key that other processes change meanwhile. Two processes that want the same key settle it in two or
/// three.
const MAX_ATTEMPTS: u32 = 5;

/// The writer to etcd, and what it keeps from session to session.
#[derive(Debug)]
pub(crate) struct Registrar {
    keys: Keyspace,
    registrations: Arc<Registrations>,
    ttl: Duration,
    lease: Option<i64>,
}

/// A session with one server.
struct LeaseSession<'a> {
    registrar: &'a mut Registrar,
    client: Client,
    keep_alive: Option<(LeaseKeeper, LeaseKeepAliveStream)>,
    next_keep_alive: Instant,
    own_keys: OwnKeys,
}

impl Registrar {
    pub(crate) fn new(keys: Keyspace, registrations: Arc<Registrations>, ttl: Duration) -> Self {
        Self {
            keys,
            registrations,
            ttl,
            lease: None,
        }
    }

    /// Does what is due, as long as the server answers. The future may be dropped at any time.
    pub(crate) async fn run(&mut self, client: Client) -> Result<Infallible, Outage> {
        let changed = self.registrations.subscribe();
        let session = LeaseSession {
            registrar: self,
            client,
            keep_alive: None,
            next_keep_alive: Instant::now(),
            own_keys: OwnKeys::default(),
        };
        session.run(changed).await
    }
}

impl LeaseSession<'_> {
    async fn run(mut self, mut changed: watch::Receiver<()>) -> Result<Infallible, Outage> {
        let registrations = self.registrar.registrations.clone();
        loop {
            changed.borrow_and_update();
            let now = Instant::now();
            if registrations.is_withdrawing() {
                self.revoke().await?;
                registrations.withdrawn(now);
            } else if self.next_keep_alive <= now {
                self.renew().await?;
            } else if let Some(work) = registrations.next_work(now) {
                match self.settle(&work).await {
                    Ok(outcome) => registrations.done(&work, outcome, Instant::now()),
                    Err(outage) if outage.is_lost_lease() => self.lease_lost(),
                    Err(outage) => return Err(outage),
                }
            } else {
                let next = registrations
                    .next_due()
                    .map_or(self.next_keep_alive, |due| due.min(self.next_keep_alive));
                tokio::select! {
                    _ = changed.changed() => {}
                    keys = self.own_keys.changed(self.registrar.lease) => {
                        registrations.verify(&keys?, Instant::now());
                    }
                    () = tokio::time::sleep_until(next.into()) => {}
                }
            }
        }
    }

    /// Keeps the lease alive; without a lease, sends a request that detects a server that hangs.
    async fn renew(&mut self) -> Result<(), Outage> {
        self.next_keep_alive = Instant::now() + (self.registrar.ttl / 3).min(MAX_REQUEST_INTERVAL);
        let Some(lease) = self.registrar.lease else {
            return probe(&mut self.client, &self.registrar.keys).await;
        };
        match self.keep_alive(lease).await {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.lease_lost();
                Ok(())
            }
            Err(outage) if outage.is_lost_lease() => {
                self.lease_lost();
                Ok(())
            }
            Err(outage) => Err(outage),
        }
    }

    /// Keeps the lease alive. Returns whether etcd still has it.
    async fn keep_alive(&mut self, lease: i64) -> Result<bool, Outage> {
        const WHAT: &str = "keeping the lease alive";
        let Some((keeper, answers)) = &mut self.keep_alive else {
            // Opening the stream also sends the first keep-alive.
            self.keep_alive = Some(bounded(WHAT, self.client.lease_keep_alive(lease)).await?);
            return Ok(true);
        };
        // Sending fails when the stream is closed; the lease may still exist then.
        let answer = match keeper.keep_alive().await {
            Ok(()) => bounded(WHAT, answers.message()).await?,
            Err(_) => None,
        };
        match answer {
            Some(answer) => Ok(answer.ttl() > 0),
            None => Err(Outage::Ended(WHAT, "the stream is closed".into())),
        }
    }

    fn lease_lost(&mut self) {
        tracing::warn!("etcd no longer has the lease; registering again");
        self.registrar.lease = None;
        self.keep_alive = None;
        self.registrar.registrations.lease_lost(Instant::now());
    }

    async fn settle(&mut self, work: &Work) -> Result<Outcome, Outage> {
        match (&work.wanted, self.registrar.lease) {
            (Some(wanted), _) => {
                let lease = self.lease().await?;
                self.put(&work.key, wanted, lease).await
            }
            (None, Some(lease)) => self.delete(&work.key, lease).await,
            (None, None) => Ok(Outcome::Settled),
        }
    }

    async fn lease(&mut self) -> Result<i64, Outage> {
        if let Some(lease) = self.registrar.lease {
            return Ok(lease);
        }
        let seconds = self.registrar.ttl.as_secs() as i64;
        let granted = bounded("granting a lease", self.client.lease_grant(seconds, None)).await?;
        self.registrar.lease = Some(granted.id());
        self.keep_alive = None;
        self.next_keep_alive = Instant::now() + (self.registrar.ttl / 3).min(MAX_REQUEST_INTERVAL);
        Ok(granted.id())
    }

    /// Puts the card, unless a later incarnation of the worker holds the key.
    async fn put(&mut self, key: &str, wanted: &Wanted, lease: i64) -> Result<Outcome, Outage> {
        // The revision of the key's last change, as far as known; 0 if the key does not exist.
        let mut known_revision = 0;
        for _ in 0..MAX_ATTEMPTS {
            let options = Some(PutOptions::new().with_lease(lease));
            let transaction = Txn::new()
                .when([Compare::mod_revision(key, CompareOp::Equal, known_revision)])
                .and_then([TxnOp::put(key, &*wanted.value, options)])
                .or_else([TxnOp::get(key, None)]);
            let answer = bounded("registering", self.client.txn(transaction)).await?;
            if wanted.incarnation.is_some() {
                let next_revision = answer.header().map_or(0, |header| header.revision() + 1);
                self.own_keys.add(&mut self.client, key, next_revision).await?;
            }
            if answer.succeeded() {
                return Ok(Outcome::Settled);
            }
            let found = answer
                .op_responses()
                .into_iter()
                .find_map(|response| match response {
                    TxnOpResponse::Get(mut found) => found.take_kvs().pop(),
                    _ => None,
                });
            let Some(found) = found else {
                known_revision = 0;
                continue;
            };
            if found.lease() == lease && *found.value() == *wanted.value {
                return Ok(Outcome::Settled);
            }
            if let Some(later) = later_epoch(wanted, found.value()) {
                return Ok(Outcome::Refused(later));
            }
            known_revision = found.mod_revision();
        }
        tracing::warn!(
            key,
            "other processes keep changing a key in etcd; check whether two workers have the same id"
        );
        Ok(Outcome::Contended)
    }

    /// Deletes the key if it is still under this lease.
    async fn delete(&mut self, key: &str, lease: i64) -> Result<Outcome, Outage> {
        let transaction = Txn::new()
            .when([Compare::lease(key, CompareOp::Equal, lease)])
            .and_then([TxnOp::delete(key, None)]);
        bounded("withdrawing", self.client.txn(transaction)).await?;
        Ok(Outcome::Settled)
    }

    /// Revokes the lease, which deletes every key under it at once.
    async fn revoke(&mut self) -> Result<(), Outage> {
        if let Some(lease) = self.registrar.lease {
            match bounded("revoking the lease", self.client.lease_revoke(lease)).await {
                Err(outage) if !outage.is_lost_lease() => return Err(outage),
                _ => {}
            }
            self.registrar.lease = None;
            self.keep_alive = None;
        }
        Ok(())
    }
}

/// Reads a key that no process writes. An answer shows that the server has a leader and accepts the user.
pub(crate) async fn probe(client: &mut Client, keys: &Keyspace) -> Result<(), Outage> {
    bounded("reading", client.get(keys.prefix(), None)).await?;
    Ok(())
}

/// The epoch of the card in the key, if it is later than the one to be written. An unreadable card counts as none.
fn later_epoch(wanted: &Wanted, found: &[u8]) -> Option<WorkerEpoch> {
    let (_, epoch) = wanted.incarnation.as_ref()?;
    let found: WorkerCard = serde_json::from_slice(found).ok()?;
    (found.epoch > *epoch).then_some(found.epoch)
}
