//! What a router knows of the policy store, and which of it it follows already.

use std::collections::BTreeMap;

use signalbox_policy_store::Revision;

use super::entries::{ActiveEntry, ChosenPolicy, UploadEntry};

/// Uploads kept in the store, or more where more are in use. Fewer than the 64 versions a registry holds, the built-in
/// ones among them, so that every router can hold them all.
const MAX_UPLOADS: usize = 48;

/// The entries of the store by key, as they were last seen.
#[derive(Debug, Default)]
pub(super) struct StoreView {
    pub(super) uploads: Table<UploadEntry>,
    pub(super) active: Table<ActiveEntry>,
}

/// Entries of one kind.
#[derive(Debug)]
pub(super) struct Table<T>(BTreeMap<String, Known<T>>);

/// An entry as it was last seen.
#[derive(Debug)]
struct Known<T> {
    revision: Revision,
    /// `None` where it cannot be read.
    entry: Option<T>,
    /// Whether the registry does as it says.
    followed: bool,
}

/// An upload the store has no room for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Surplus {
    pub(super) key: String,
    pub(super) revision: Revision,
    /// Its digest, where no other upload has the same.
    pub(super) object: Option<String>,
}

impl StoreView {
    /// Whether the component of this choice is in the store.
    pub(super) fn has_upload(&self, choice: &ChosenPolicy) -> bool {
        let mut uploads = self.uploads.entries();
        uploads.any(|(_, _, upload)| upload.is_of(choice))
    }

    /// The oldest upload when there are more than [`MAX_UPLOADS`], of those no model would miss: that neither decide
    /// nor would be the first to come back.
    pub(super) fn surplus(&self) -> Option<Surplus> {
        if self.uploads.0.len() <= MAX_UPLOADS {
            return None;
        }
        let needed = |upload: &UploadEntry| {
            self.active.entries().any(|(_, _, active)| {
                upload.is_of(&active.choice)
                    || active.before.first().is_some_and(|before| upload.is_of(before))
            })
        };
        let idle = self.uploads.entries().filter(|(_, _, upload)| !needed(upload));
        let (key, revision, oldest) = idle.min_by_key(|(_, revision, _)| *revision)?;
        let same_bytes = self
            .uploads
            .entries()
            .filter(|(_, _, upload)| upload.digest == oldest.digest);
        Some(Surplus {
            key: key.to_owned(),
            revision,
            object: (same_bytes.count() == 1).then(|| oldest.digest.clone()),
        })
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Table<T> {
    /// Takes down what is there now; what is older than what is known is left aside.
    pub(super) fn note(&mut self, key: &str, revision: Revision, entry: Option<T>) {
        if revision > self.revision(key) {
            let known = Known {
                revision,
                entry,
                followed: false,
            };
            self.0.insert(key.to_owned(), known);
        }
    }

    /// The registry does as this revision says.
    pub(super) fn followed(&mut self, key: &str, revision: Revision) {
        if let Some(known) = self.0.get_mut(key).filter(|known| known.revision == revision) {
            known.followed = true;
        }
    }

    /// Nothing is there any more.
    pub(super) fn forget(&mut self, key: &str) {
        self.0.remove(key);
    }

    /// The revision of what is there.
    pub(super) fn revision(&self, key: &str) -> Revision {
        self.0.get(key).map_or(Revision::ABSENT, |known| known.revision)
    }

    /// What is there, where it can be read.
    pub(super) fn entry(&self, key: &str) -> Option<&T> {
        self.0.get(key)?.entry.as_ref()
    }

    /// What is to be followed at this revision: `None` where that was done, or a later one is known.
    pub(super) fn due(&self, key: &str, revision: Revision) -> Option<&T> {
        let known = self.0.get(key)?;
        if known.revision != revision || known.followed {
            return None;
        }
        known.entry.as_ref()
    }

    fn entries(&self) -> impl Iterator<Item = (&str, Revision, &T)> {
        self.0
            .iter()
            .filter_map(|(key, known)| Some((key.as_str(), known.revision, known.entry.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;

    fn upload(name: &str, digest: usize) -> UploadEntry {
        UploadEntry {
            name: name.into(),
            version: "1".into(),
            digest: digest.to_string(),
            settings: Map::new(),
            uploaded_unix_ms: 0,
        }
    }

    fn choice(name: &str, digest: usize) -> ChosenPolicy {
        ChosenPolicy {
            policy: name.into(),
            version: "1".into(),
            digest: digest.to_string(),
            settings: Map::new(),
        }
    }

    #[test]
    fn only_the_newest_revision_is_followed_and_once() {
        let mut table = Table::default();
        table.note("k", Revision(5), Some(upload("a", 1)));
        table.note("k", Revision(4), Some(upload("a", 2)));
        assert_eq!(table.due("k", Revision(4)), None);
        assert_eq!(table.due("k", Revision(5)), Some(&upload("a", 1)));
        table.followed("k", Revision(4));
        assert!(table.due("k", Revision(5)).is_some());
        table.followed("k", Revision(5));
        table.note("k", Revision(5), Some(upload("a", 1)));
        assert_eq!(table.due("k", Revision(5)), None);
        // A store that began anew begins with small revisions again.
        table.forget("k");
        table.note("k", Revision(1), Some(upload("a", 3)));
        assert!(table.due("k", Revision(1)).is_some());
    }

    #[test]
    fn what_cannot_be_read_has_a_revision_all_the_same() {
        let mut table: Table<UploadEntry> = Table::default();
        table.note("k", Revision(5), None);
        assert_eq!((table.entry("k"), table.revision("k")), (None, Revision(5)));
        assert_eq!(table.due("k", Revision(5)), None);
    }

    #[test]
    fn the_oldest_uploads_in_no_use_are_surplus() {
        let mut store_view = StoreView::default();
        // The fourth and the fifth have the same bytes.
        let digest = |number: usize| if number == 4 { 5 } else { number };
        for number in 1..=MAX_UPLOADS + 4 {
            let name = if number == 4 { "other" } else { "mine" };
            let upload = upload(name, digest(number));
            store_view
                .uploads
                .note(&number.to_string(), Revision(number as u64), Some(upload));
        }
        let active = ActiveEntry {
            choice: choice("mine", 1),
            before: vec![choice("mine", 2), choice("mine", 3)],
        };
        store_view.active.note("m", Revision(100), Some(active));
        for (number, object) in [(3, Some("3")), (4, None), (5, Some("5")), (6, Some("6"))] {
            let expected = Surplus {
                key: number.to_string(),
                revision: Revision(number),
                object: object.map(String::from),
            };
            assert_eq!(store_view.surplus(), Some(expected));
            store_view.uploads.forget(&number.to_string());
        }
        assert_eq!(store_view.surplus(), None);
    }
}
