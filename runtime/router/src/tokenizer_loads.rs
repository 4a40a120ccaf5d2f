//! Who waits for which tokenizer.
//!
//! A large tokenizer takes a second and some hundred megabytes to load, and the workers of a model have the same one. So
//! it is loaded once for all that wait for it, however many come at once: from one of them, and from another where
//! that one fails or leaves.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use signalbox_protocol::WorkerCard;

/// By digest, the workers that wait; the first is the one asked.
#[derive(Debug, Default)]
pub(crate) struct TokenizerLoads(HashMap<String, VecDeque<Arc<WorkerCard>>>);

impl TokenizerLoads {
    /// The worker waits for its tokenizer; whether it is the first to, so that a load is to begin.
    pub(crate) fn wait(&mut self, card: Arc<WorkerCard>) -> bool {
        let waiting = self.0.entry(card.artifacts_digest.clone()).or_default();
        waiting.push_back(card);
        waiting.len() == 1
    }

    /// Whom to ask now: whoever was asked before comes last. Those not present any more are forgotten; `None` where
    /// nobody is left, and the next to wait is the first again.
    pub(crate) fn next(
        &mut self,
        digest: &str,
        is_present: impl Fn(&WorkerCard) -> bool,
    ) -> Option<Arc<WorkerCard>> {
        let waiting = self.0.get_mut(digest)?;
        let asked = waiting.len().min(1);
        waiting.rotate_left(asked);
        waiting.retain(|card| is_present(card));
        if waiting.is_empty() {
            self.0.remove(digest);
            return None;
        }
        waiting.front().cloned()
    }

    /// The tokenizer is here: everyone who waited for it.
    pub(crate) fn loaded(&mut self, digest: &str) -> impl Iterator<Item = Arc<WorkerCard>> + use<> {
        self.0.remove(digest).into_iter().flatten()
    }
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
        loads
            .next(digest, |card| present.contains(&card.id.as_str()))
            .map(|card| card.id.to_string())
    }

    #[test]
    fn one_load_serves_all_that_wait_for_the_same_tokenizer() {
        let mut loads = TokenizerLoads::default();
        let begins =
            [("a", "1"), ("b", "1"), ("c", "2"), ("d", "1")].map(|(id, digest)| loads.wait(card(id, digest)));
        assert_eq!(begins, [true, false, true, false]);
        let served: Vec<_> = loads.loaded("1").map(|card| card.id.to_string()).collect();
        assert_eq!(served, ["a", "b", "d"]);
        assert!(loads.wait(card("e", "1")), "known by then, or to be loaded anew");
    }

    #[test]
    fn another_is_asked_where_one_fails_and_those_that_left_are_not() {
        let mut loads = TokenizerLoads::default();
        for id in ["a", "b", "c"] {
            loads.wait(card(id, "1"));
        }
        let everyone = ["a", "b", "c"];
        let asked: Vec<_> = (0..4).filter_map(|_| next(&mut loads, "1", &everyone)).collect();
        assert_eq!(asked, ["b", "c", "a", "b"]);
        assert_eq!(next(&mut loads, "1", &["a"]), Some("a".into()));
        assert_eq!(next(&mut loads, "1", &[]), None);
        assert!(loads.wait(card("d", "1")), "nobody waits, so this one begins");
    }
}
