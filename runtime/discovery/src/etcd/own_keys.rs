//! Watches the workers' keys that this process writes, so that it learns at once when another process changes one: a second
//! worker with the same id, or an operator by mistake.

use std::collections::BTreeSet;

use etcd_client::{Client, EventType, WatchOptions, WatchStream};

use super::outage::{Outage, bounded, next_message};

/// Most keys watched. A process has one key, or one for each rank or simulated worker; the keys beyond are verified in
/// intervals only.
const MAX_WATCHED: usize = 64;

/// The watch of one session.
#[derive(Debug, Default)]
pub(crate) struct OwnKeys {
    stream: Option<WatchStream>,
    watched: BTreeSet<String>,
}

impl OwnKeys {
    /// Watches a key for changes from `revision` on, unless it is watched already.
    pub(crate) async fn add(&mut self, client: &mut Client, key: &str, revision: i64) -> Result<(), Outage> {
        const WHAT: &str = "watching this process's keys";
        if self.watched.contains(key) || self.watched.len() >= MAX_WATCHED {
            return Ok(());
        }
        let options = Some(WatchOptions::new().with_start_revision(revision));
        match &mut self.stream {
            Some(stream) => bounded(WHAT, stream.watch(key, options)).await?,
            None => self.stream = Some(bounded(WHAT, client.watch(key, options)).await?),
        }
        self.watched.insert(key.to_owned());
        Ok(())
    }

    /// Waits until other processes have changed keys, and returns these. `lease` is this process's own.
    pub(crate) async fn changed(&mut self, lease: Option<i64>) -> Result<Vec<String>, Outage> {
        const WHAT: &str = "the watch of this process's keys";
        let Some(stream) = &mut self.stream else {
            return std::future::pending().await;
        };
        loop {
            let message = next_message(WHAT, stream).await?;
            if message.canceled() {
                // All keys are verified now, and watched again by that.
                let keys = std::mem::take(&mut self.watched);
                self.stream = None;
                return Ok(keys.into_iter().collect());
            }
            let is_foreign = |event: &&etcd_client::Event| {
                event.event_type() == EventType::Delete
                    || event.kv().map(etcd_client::KeyValue::lease) != lease
            };
            let foreign = message.events().iter().filter(is_foreign);
            let keys: Vec<String> = foreign
                .filter_map(|event| Some(String::from_utf8_lossy(event.kv()?.key()).into_owned()))
                .collect();
            if !keys.is_empty() {
                return Ok(keys);
            }
        }
    }
}
