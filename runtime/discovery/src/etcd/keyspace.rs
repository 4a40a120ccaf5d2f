//! The keys of cards in etcd. `README.md` beside this crate's manifest documents them.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use signalbox_protocol::{RouterCard, RouterId, WorkerCard, WorkerId, is_name};

/// Most bytes of a card. A real one has about 400 bytes, and with 32 long labels a few thousand.
pub const MAX_CARD_BYTES: usize = 64 * 1024;

/// The percent-encoded characters of a model's name: all but `A-Z a-z 0-9 . _ -`, so that a name is one segment.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'_').remove(b'-');

/// The keys of one namespace.
#[derive(Debug, Clone)]
pub(crate) struct Keyspace {
    /// `/signalbox/{namespace}/`
    prefix: String,
}

/// The value of a key.
#[derive(Debug, PartialEq)]
pub(crate) enum Card {
    Worker(WorkerCard),
    Router(RouterCard),
}

impl Keyspace {
    /// `None` if the namespace does not fit into keys and NATS subjects.
    pub(crate) fn new(namespace: &str) -> Option<Self> {
        is_name(namespace).then(|| Self {
            prefix: format!("/signalbox/{namespace}/"),
        })
    }

    /// The prefix of all keys.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(crate) fn worker(&self, card: &WorkerCard) -> String {
        self.worker_key(&card.model, &card.id)
    }

    pub(crate) fn worker_key(&self, model: &str, id: &WorkerId) -> String {
        let model = utf8_percent_encode(model, ENCODED);
        format!("{}workers/{model}/{id}", self.prefix)
    }

    pub(crate) fn router(&self, id: &RouterId) -> String {
        format!("{}routers/{id}", self.prefix)
    }

    /// Reads the card under a key. `None` for a key of another kind, which a later release may have written; an error
    /// for a value that is not the card of its key.
    pub(crate) fn read(&self, key: &[u8], value: &[u8]) -> Result<Option<Card>, String> {
        let kind = key.strip_prefix(self.prefix.as_bytes()).unwrap_or_default();
        let (card, right_key) = if kind.starts_with(b"workers/") {
            let card: WorkerCard = parse(value)?;
            let right_key = self.worker(&card);
            (Card::Worker(card), right_key)
        } else if kind.starts_with(b"routers/") {
            let card: RouterCard = parse(value)?;
            let right_key = self.router(&card.id);
            (Card::Router(card), right_key)
        } else {
            return Ok(None);
        };
        if right_key.as_bytes() == key {
            Ok(Some(card))
        } else {
            Err(format!("its card belongs under {right_key}"))
        }
    }
}

fn parse<T: serde::de::DeserializeOwned>(value: &[u8]) -> Result<T, String> {
    if value.len() > MAX_CARD_BYTES {
        return Err(format!(
            "it has {} bytes; a card has at most {MAX_CARD_BYTES}",
            value.len()
        ));
    }
    serde_json::from_slice(value).map_err(|error| format!("it is not a card: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{card, router_card};

    fn keys() -> Keyspace {
        Keyspace::new("prod").unwrap()
    }

    #[test]
    fn the_name_of_a_model_is_one_segment() {
        let mut worker = (*card("w-0", 7)).clone();
        worker.model = "Qwen/Qwen3-0.6B:fp8 ü".into();
        let key = keys().worker(&worker);
        assert_eq!(
            key,
            "/signalbox/prod/workers/Qwen%2FQwen3-0.6B%3Afp8%20%C3%BC/w-0"
        );
        let value = serde_json::to_vec(&worker).unwrap();
        assert_eq!(
            keys().read(key.as_bytes(), &value),
            Ok(Some(Card::Worker(worker)))
        );
        let router = router_card("r-1");
        let (key, value) = (keys().router(&router.id), serde_json::to_vec(&router).unwrap());
        assert_eq!(key, "/signalbox/prod/routers/r-1");
        assert_eq!(
            keys().read(key.as_bytes(), &value),
            Ok(Some(Card::Router(router)))
        );
    }

    #[test]
    fn the_documented_card_is_valid() {
        let readme = include_str!("../../README.md");
        let (_, example) = readme.split_once(" /signalbox/default/workers/m/w-0 '").unwrap();
        let (value, _) = example.split_once('\'').unwrap();
        let read = Keyspace::new("default")
            .unwrap()
            .read(b"/signalbox/default/workers/m/w-0", value.as_bytes());
        assert!(matches!(read, Ok(Some(Card::Worker(card))) if card.epoch.0 == 1_766_000_000_000));
    }

    #[test]
    fn invalid_cards_are_errors_and_other_kinds_of_keys_are_ignored() {
        let value = serde_json::to_vec(&*card("a", 1)).unwrap();
        let read = |key: &str, value: &[u8]| keys().read(key.as_bytes(), value);
        assert_eq!(read("/signalbox/prod/plans/a", b"?"), Ok(None));
        let wrong = |key: &str, value: &[u8]| read(key, value).unwrap_err();
        assert!(wrong("/signalbox/prod/workers/m/a", b"{}").contains("not a card"));
        assert!(wrong("/signalbox/prod/routers/a", b"").contains("not a card"));
        assert!(
            wrong("/signalbox/prod/workers/m/a", &vec![b' '; MAX_CARD_BYTES + 1]).contains("65537 bytes")
        );
        for misplaced in [
            "/signalbox/prod/workers/m/b",
            "/signalbox/prod/workers/a",
            "/signalbox/prod/workers/%6D/a",
        ] {
            assert!(wrong(misplaced, &value).contains("belongs under /signalbox/prod/workers/m/a"));
        }
    }

    #[test]
    fn a_namespace_fits_keys_and_subjects() {
        assert_eq!(keys().prefix(), "/signalbox/prod/");
        for bad in ["", "a.b", "a/b", "ü", &"x".repeat(65)] {
            assert!(Keyspace::new(bad).is_none(), "{bad:?}");
        }
    }
}
