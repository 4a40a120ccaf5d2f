//! Follows what is in etcd.
//!
//! Each session lists everything and then watches from there. A watch could be resumed where the last one broke, but
//! an etcd that lost its data counts its revisions anew, may have come further than we were by the time we are back,
//! and would then go on as if nothing had happened. A list cannot be wrong like that, costs some 400 bytes a worker,
//! and shows the same to whoever looks at [`Membership`], which compares what is with what it told.

use std::{convert::Infallible, sync::Arc};

use etcd_client::{Client, EventType, GetOptions, KeyValue, WatchOptions, WatchStream};
use tokio::sync::watch;

use super::{
    keyspace::Keyspace,
    outage::{Outage, bounded},
    picture::Picture,
};
use crate::{membership::Membership, routers::Routers};

/// Keys listed at once. With cards of the usual size a page has 200 KB.
const PAGE: i64 = 500;

/// Longest answer: a page of the largest cards. The client's default of 4 MiB could not be told to the server, and
/// would make one page of strange keys an outage.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// What outlives a session.
#[derive(Debug)]
pub(crate) struct Watcher {
    keys: Keyspace,
    picture: Picture,
    membership: Arc<Membership>,
    routers: Arc<Routers>,
    /// Set once somebody wants to know: a worker never does.
    wanted: watch::Receiver<bool>,
}

/// The watch cannot go on from where it is: etcd has forgotten what happened since.
#[derive(Debug)]
pub(crate) struct Compacted;

impl Watcher {
    pub(crate) fn new(
        keys: Keyspace,
        membership: Arc<Membership>,
        routers: Arc<Routers>,
        wanted: watch::Receiver<bool>,
    ) -> Self {
        Self {
            picture: Picture::new(keys.clone()),
            keys,
            membership,
            routers,
            wanted,
        }
    }

    /// Follows, for as long as the server answers. May be dropped at any time.
    pub(crate) async fn run(&mut self, mut client: Client) -> Result<Infallible, Outage> {
        if self.wanted.wait_for(|wanted| *wanted).await.is_err() {
            // Nobody is left who could want to know.
            std::future::pending::<()>().await;
        }
        loop {
            let revision = self.list(&mut client).await?;
            let Compacted = self.follow(&mut client, revision + 1).await?;
            tracing::info!("etcd was compacted under a watch that lagged behind; listing again");
        }
    }

    /// Takes what is there for all there is. The revision that shows.
    pub(super) async fn list(&mut self, client: &mut Client) -> Result<i64, Outage> {
        let mut client = client.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES);
        // The range end of a prefix that ends in '/': '0' is the next byte.
        let end = format!("{}0", self.keys.prefix().trim_end_matches('/'));
        let mut listed: Vec<KeyValue> = Vec::new();
        let mut revision = 0;
        loop {
            // From just after the last key; revision 0 is the latest, and all pages show that of the first.
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
        self.picture
            .replace(listed.iter().map(|entry| (entry.key(), entry.value())));
        self.publish();
        Ok(revision)
    }

    /// Applies every change from this revision on.
    pub(super) async fn follow(&mut self, client: &mut Client, revision: i64) -> Result<Compacted, Outage> {
        const WHAT: &str = "the watch";
        let mut stream = self.watch_from(client, revision).await?;
        loop {
            // No timeout: it may be quiet for days. Pings and the registrar notice a server that hangs.
            let message = stream.message().await;
            let message = message.map_err(|error| Outage::Refused(WHAT, Box::new(error)))?;
            let Some(message) = message else {
                return Err(Outage::Ended(WHAT, "the stream is closed".into()));
            };
            if message.canceled() {
                if message.compact_revision() > 0 {
                    return Ok(Compacted);
                }
                return Err(Outage::Ended(WHAT, message.cancel_reason().into()));
            }
            for event in message.events() {
                let Some(entry) = event.kv() else { continue };
                match event.event_type() {
                    EventType::Put => self.picture.put(entry.key(), entry.value()),
                    EventType::Delete => self.picture.delete(entry.key()),
                }
            }
            if !message.events().is_empty() {
                self.publish();
            }
        }
    }

    async fn watch_from(&self, client: &mut Client, revision: i64) -> Result<WatchStream, Outage> {
        let mut client = client.watch_client().max_decoding_message_size(MAX_ANSWER_BYTES);
        // Large answers come in pieces; and notes of progress let etcd's proxies see that somebody listens.
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(revision)
            .with_fragment()
            .with_progress_notify();
        bounded("watching", client.watch(self.keys.prefix(), Some(options))).await
    }

    fn publish(&mut self) {
        let changes = self.picture.take_changes();
        if !changes.is_empty() {
            self.membership.update(changes);
        }
        self.routers.replace(self.picture.routers());
    }
}
