//! Follows the keys in etcd.
//!
//! Each session lists all keys and then watches from that revision. It does not resume the watch of the last session:
//! an etcd that lost its data begins its revisions at 1, may have passed the old revision meanwhile, and would then
//! resume without an error. A list is always right and costs some 400 bytes per worker. Watches of [`Membership`]
//! deliver only the differences.

use std::{convert::Infallible, sync::Arc};

use etcd_client::{Client, EventType, GetOptions, KeyValue, WatchOptions, WatchStream};
use tokio::sync::watch;

use super::{
    keyspace::Keyspace,
    observed::ObservedKeys,
    outage::{Outage, bounded, next_message},
};
use crate::{membership::Membership, routers::Routers};

/// Keys per page of a list. With cards of the usual size a page has 200 KB.
const PAGE: i64 = 500;

/// Most bytes of an answer: a page of the largest cards. With the client's default of 4 MiB, which the server does not
/// know of, one page of large values would count as an outage.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// The reader of etcd, and what it keeps from session to session.
#[derive(Debug)]
pub(crate) struct Watcher {
    keys: Keyspace,
    observed: ObservedKeys,
    membership: Arc<Membership>,
    routers: Arc<Routers>,
    /// Set when this process needs the membership. A worker process never does.
    needed: watch::Receiver<bool>,
}

/// etcd no longer has the revisions that the watch needs next.
#[derive(Debug)]
pub(crate) struct Compacted;

impl Watcher {
    pub(crate) fn new(
        keys: Keyspace,
        membership: Arc<Membership>,
        routers: Arc<Routers>,
        needed: watch::Receiver<bool>,
    ) -> Self {
        Self {
            observed: ObservedKeys::new(keys.clone()),
            keys,
            membership,
            routers,
            needed,
        }
    }

    /// Lists and watches as long as the server answers. The future may be dropped at any time.
    pub(crate) async fn run(&mut self, mut client: Client) -> Result<Infallible, Outage> {
        if self.needed.wait_for(|needed| *needed).await.is_err() {
            // The owner is gone, so that the membership will never be needed.
            std::future::pending::<()>().await;
        }
        loop {
            let revision = self.list(&mut client).await?;
            let Compacted = self.follow(&mut client, revision + 1).await?;
            tracing::info!("etcd compacted revisions that a slow watch still needed; listing again");
        }
    }

    /// Lists all keys and replaces the observed ones. Returns the revision of the list.
    pub(super) async fn list(&mut self, client: &mut Client) -> Result<i64, Outage> {
        let mut client = client.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES);
        // The range end of a prefix that ends in '/': '0' is the next byte.
        let end = format!("{}0", self.keys.prefix().trim_end_matches('/'));
        let mut listed: Vec<KeyValue> = Vec::new();
        let mut revision = 0;
        loop {
            // Each page begins just after the last key. Revision 0 is the latest; all pages have the first one's.
            let start = listed.last().map_or_else(
                || self.keys.prefix().as_bytes().to_vec(),
                |last| [last.key(), b"\0"].concat(),
            );
            let options = GetOptions::new()
                .with_range(end.as_str())
                .with_limit(PAGE)
                .with_revision(revision);
            let mut page = bounded("listing", client.get(start, Some(options))).await?;
            if revision == 0 {
                revision = page.header().map_or(0, |header| header.revision());
            }
            let more = page.more();
            listed.extend(page.take_kvs());
            if !more {
                break;
            }
        }
        listed.sort_by_key(KeyValue::mod_revision);
        self.observed
            .replace(listed.iter().map(|entry| (entry.key(), entry.value())));
        self.publish();
        Ok(revision)
    }

    /// Applies each change from `revision` on until the watch ends: with [`Compacted`] if etcd no longer has the next
    /// revisions, with an [`Outage`] otherwise.
    pub(super) async fn follow(&mut self, client: &mut Client, revision: i64) -> Result<Compacted, Outage> {
        const WHAT: &str = "the watch";
        let mut stream = self.watch_from(client, revision).await?;
        loop {
            let message = next_message(WHAT, &mut stream).await?;
            if message.canceled() {
                if message.compact_revision() > 0 {
                    return Ok(Compacted);
                }
                return Err(Outage::Ended(WHAT, message.cancel_reason().into()));
            }
            for event in message.events() {
                let Some(entry) = event.kv() else { continue };
                match event.event_type() {
                    EventType::Put => self.observed.put(entry.key(), entry.value()),
                    EventType::Delete => self.observed.delete(entry.key()),
                }
            }
            if !message.events().is_empty() {
                self.publish();
            }
        }
    }

    async fn watch_from(&self, client: &mut Client, revision: i64) -> Result<WatchStream, Outage> {
        let mut client = client.watch_client().max_decoding_message_size(MAX_ANSWER_BYTES);
        // Large answers come in fragments. Progress notifications show etcd's proxies that the watch is in use.
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(revision)
            .with_fragment()
            .with_progress_notify();
        bounded("watching", client.watch(self.keys.prefix(), Some(options))).await
    }

    fn publish(&mut self) {
        let changes = self.observed.take_changes();
        if !changes.is_empty() {
            self.membership.update(changes);
        }
        self.routers.replace(self.observed.routers());
    }
}
