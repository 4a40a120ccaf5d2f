//! Which workers wait for which tokenizer.
//!
//! A large tokenizer takes a second and some hundred megabytes to load, and all workers of a model have the same one. So
//! each tokenizer is loaded once for all workers that wait for it. One of these workers supplies it; if that worker fails
//! or leaves, the next one does.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use signalbox_protocol::{Call, WorkerCard};
use signalbox_request_plane::LinkHandle;
use signalbox_tokenize::{ModelArtifacts, ModelText};

use crate::fetch::fetch;

/// Largest tokenizer and template accepted from a worker.
const MAX_ARTIFACT_BYTES: usize = 128 << 20;

/// The waiting workers by digest of their tokenizer. The first of each queue supplies the tokenizer.
#[derive(Debug, Default)]
pub(crate) struct TokenizerLoads(HashMap<String, VecDeque<Arc<WorkerCard>>>);

impl TokenizerLoads {
    /// Adds a worker that waits for its tokenizer. Returns whether it is the first, so that the load has to begin.
    pub(crate) fn wait(&mut self, card: Arc<WorkerCard>) -> bool {
        let waiting = self.0.entry(card.artifacts_digest.clone()).or_default();
        waiting.push_back(card);
        waiting.len() == 1
    }

    /// The worker that supplies the tokenizer now: the next one that answers or, if none does, the next one. The previous
    /// supplier moves to the end of the queue, and workers that left are removed. Returns `None` when no worker is left; the next worker that waits is the first again.
    pub(crate) fn next(
        &mut self,
        digest: &str,
        is_present: impl Fn(&WorkerCard) -> bool,
        answers: impl Fn(&WorkerCard) -> bool,
    ) -> Option<Arc<WorkerCard>> {
        let waiting = self.0.get_mut(digest)?;
        let suppliers = waiting.len().min(1);
        waiting.rotate_left(suppliers);
        waiting.retain(|card| is_present(card));
        if waiting.is_empty() {
            self.0.remove(digest);
            return None;
        }
        if let Some(place) = waiting.iter().position(|card| answers(card)) {
            waiting.rotate_left(place);
        }
        waiting.front().cloned()
    }

    /// The tokenizer is loaded: removes and returns the workers that waited for it.
    pub(crate) fn loaded(&mut self, digest: &str) -> impl Iterator<Item = Arc<WorkerCard>> + use<> {
        self.0.remove(digest).into_iter().flatten()
    }
}

/// Fetches and loads a worker's tokenizer and template.
pub(crate) async fn load_text(link: LinkHandle, expected: String) -> Result<Arc<ModelText>, String> {
    let call = Call::FetchArtifacts {
        digest: expected.clone(),
    };
    let bytes = fetch(&link, call, MAX_ARTIFACT_BYTES)
        .await
        .map_err(|error| error.to_string())?;
    // Parsing a large vocabulary takes a second: not on an arbiter.
    let loaded = tokio::task::spawn_blocking(move || {
        let artifacts = ModelArtifacts::from_bytes(&bytes).map_err(|error| error.to_string())?;
        if artifacts.digest() != expected {
            return Err(format!(
                "its digest is {}, the worker's card has {expected}",
                artifacts.digest()
            ));
        }
        ModelText::load(&artifacts)
            .map(Arc::new)
            .map_err(|error| error.to_string())
    });
    loaded.await.map_err(|error| error.to_string())?
}

#[cfg(test)]
mod tests {
    use signalbox_protocol::WorkerCard;

    use super::*;

    fn card(id: &str, digest: &str) -> Arc<WorkerCard> {
        let card = serde_json::json!({
            "id": id, "epoch": 1, "model": "m", "address": "", "engine": "sim", "block_size": 16,
            "context_length": 4096, "artifacts_digest": digest, "role": "aggregated", "kv_events": false,
            "capacity": {"kv_blocks": 1, "max_sequences": 1, "max_waiting": 1},
        });
        Arc::new(serde_json::from_value(card).unwrap())
    }

    fn next(loads: &mut TokenizerLoads, digest: &str, present: &[&str]) -> Option<String> {
        next_answering(loads, digest, present, &[])
    }

    fn next_answering(
        loads: &mut TokenizerLoads,
        digest: &str,
        present: &[&str],
        answering: &[&str],
    ) -> Option<String> {
        let is_in = |names: &[&str], card: &WorkerCard| names.contains(&card.id.as_str());
        let next = loads.next(digest, |card| is_in(present, card), |card| is_in(answering, card));
        next.map(|card| card.id.to_string())
    }

    #[test]
    fn a_worker_that_answers_supplies_the_tokenizer_before_those_that_do_not() {
        let mut loads = TokenizerLoads::default();
        let everyone = ["a", "b", "c", "d"];
        for id in everyone {
            loads.wait(card(id, "1"));
        }
        let answering = ["c", "d"];
        let suppliers: Vec<_> = (0..4)
            .filter_map(|_| next_answering(&mut loads, "1", &everyone, &answering))
            .collect();
        assert_eq!(
            suppliers,
            ["c", "d", "c", "d"],
            "one that fails is not asked twice in turn"
        );
    }

    #[test]
    fn one_load_serves_all_that_wait_for_the_same_tokenizer() {
        let mut loads = TokenizerLoads::default();
        let begins =
            [("a", "1"), ("b", "1"), ("c", "2"), ("d", "1")].map(|(id, digest)| loads.wait(card(id, digest)));
        assert_eq!(begins, [true, false, true, false]);
        let served: Vec<_> = loads.loaded("1").map(|card| card.id.to_string()).collect();
        assert_eq!(served, ["a", "b", "d"]);
        assert!(loads.wait(card("e", "1")), "a later load begins anew");
    }

    #[test]
    fn the_next_worker_supplies_the_tokenizer_when_one_fails_or_leaves() {
        let mut loads = TokenizerLoads::default();
        for id in ["a", "b", "c"] {
            loads.wait(card(id, "1"));
        }
        let everyone = ["a", "b", "c"];
        let suppliers: Vec<_> = (0..4).filter_map(|_| next(&mut loads, "1", &everyone)).collect();
        assert_eq!(suppliers, ["b", "c", "a", "b"]);
        assert_eq!(next(&mut loads, "1", &["a"]), Some("a".into()));
        assert_eq!(next(&mut loads, "1", &[]), None);
        assert!(loads.wait(card("d", "1")), "no worker waits, so a load begins");
    }
}
