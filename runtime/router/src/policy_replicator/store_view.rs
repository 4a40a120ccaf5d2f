//! The entries of the policy store as this router received them, and which of them its registry follows.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use signalbox_policy_store::{Revision, StoreEntry};

use super::{
    chosen_policy::ChosenPolicy,
    entries::{ActiveEntry, QuarantineEvent, Subject, UploadEntry},
};

/// Most uploads kept in the store, unless more are in use. Below the 64 versions that a registry holds, built-in ones
/// included, so that every router can hold all of them.
const MAX_UPLOADS: usize = 48;

/// The entries of the store, as this router received them last.
#[derive(Debug, Default)]
pub(super) struct StoreView {
    /// By key.
    pub(super) uploads: EntryTable<UploadEntry>,
    /// By model.
    pub(super) active: EntryTable<ActiveEntry>,
    /// By key. Nothing follows them: a quarantine holds at its own router.
    pub(super) quarantines: EntryTable<QuarantineEvent>,
}

/// The revisions that the registry follows, by key and by model. They are kept apart from the actor and outlast its
/// failure, as the registry does: an entry followed once is not followed again, or an upload would leave its quarantine.
/// Clone = handle.
#[derive(Debug, Clone, Default)]
pub(super) struct FollowedRevisions {
    uploads: Followed,
    active: Followed,
}

type Followed = Arc<Mutex<HashMap<String, Revision>>>;

/// Entries of one kind.
#[derive(Debug)]
pub(super) struct EntryTable<T> {
    known: BTreeMap<String, KnownEntry<T>>,
    followed: Followed,
}

/// The newest known revision of an entry.
#[derive(Debug)]
struct KnownEntry<T> {
    revision: Revision,
    /// `None` when its value is unreadable.
    entry: Option<T>,
}

/// An entry of another router that the registry does not follow yet.
#[derive(Debug)]
pub(super) enum EntryToFollow {
    Upload(UploadEntry),
    Active { model: String, entry: ActiveEntry },
}

/// An upload to be removed from the store.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SurplusUpload {
    pub(super) key: String,
    pub(super) revision: Revision,
    /// The digest of its object, unless another upload has the same object.
    pub(super) object: Option<String>,
}

impl StoreView {
    /// A view without entries, of a registry that follows these revisions.
    pub(super) fn new(followed: &FollowedRevisions) -> Self {
        Self {
            uploads: EntryTable::new(followed.uploads.clone()),
            active: EntryTable::new(followed.active.clone()),
            quarantines: EntryTable::default(),
        }
    }

    /// Records an entry that the store's watch delivered.
    pub(super) fn note(&mut self, subject: &Subject, entry: &StoreEntry) {
        let key = subject.key();
        match subject {
            Subject::Upload { .. } => self.uploads.note(&key, entry.revision, read(&key, entry)),
            Subject::Active { model } => self.active.note(model, entry.revision, read(&key, entry)),
            Subject::Quarantine { .. } => self.quarantines.note(&key, entry.revision, read(&key, entry)),
        }
    }

    /// The entry of this revision, if it is the newest, readable and not followed yet.
    pub(super) fn to_follow(&self, subject: &Subject, revision: Revision) -> Option<EntryToFollow> {
        match subject {
            Subject::Upload { .. } => {
                let upload = self.uploads.to_follow(&subject.key(), revision)?;
                Some(EntryToFollow::Upload(upload.clone()))
            }
            Subject::Active { model } => {
                let entry = self.active.to_follow(model, revision)?.clone();
                let model = model.clone();
                Some(EntryToFollow::Active { model, entry })
            }
            Subject::Quarantine { .. } => None,
        }
    }

    /// Forgets an entry that was removed from the store.
    pub(super) fn forget(&mut self, subject: &Subject) {
        match subject {
            Subject::Upload { .. } => self.uploads.forget(&subject.key()),
            Subject::Active { model } => self.active.forget(model),
            Subject::Quarantine { .. } => self.quarantines.forget(&subject.key()),
        }
    }

    /// The name and digest of every upload in the store.
    pub(super) fn upload_names(&self) -> Vec<(String, String)> {
        let uploads = self.uploads.readable();
        uploads
            .map(|(_, _, upload)| (upload.name.clone(), upload.digest.clone()))
            .collect()
    }

    /// The upload of this version, ready to be removed.
    ///
    /// # Errors
    /// A sentence about who uses it.
    pub(super) fn removable(&self, name: &str, digest: &str) -> Result<SurplusUpload, String> {
        let is_it = |choice: &ChosenPolicy| choice.policy == name && choice.digest == digest;
        for (model, _, active) in self.active.readable() {
            if active.choices().any(is_it) {
                return Err(format!(
                    "{name} is in use for {model}; activate another policy first"
                ));
            }
        }
        let of_digest = |upload: &UploadEntry| upload.digest == digest;
        let mut uploads = self.uploads.readable();
        let has_other = uploads.any(|(_, _, upload)| of_digest(upload) && upload.name != name);
        let mut uploads = self.uploads.readable();
        let own = uploads.find(|(_, _, upload)| of_digest(upload) && upload.name == name);
        let (key, revision, _) =
            own.ok_or_else(|| format!("the policy store has no {name} with the digest {digest}"))?;
        Ok(SurplusUpload {
            key: key.to_owned(),
            revision,
            object: (!has_other).then(|| digest.to_owned()),
        })
    }

    /// The uploads beyond [`MAX_UPLOADS`], the oldest first. Excludes uploads in use, or needed for the first rollback
    /// of a model.
    pub(super) fn surplus(&self) -> Vec<SurplusUpload> {
        let count = self.uploads.known.len().saturating_sub(MAX_UPLOADS);
        let in_use = |upload: &UploadEntry| {
            self.active.readable().any(|(_, _, active)| {
                active.choices().any(|choice| upload.is_of(choice))
                    || active.before.first().is_some_and(|before| upload.is_of(before))
            })
        };
        let mut uploads_of_object: HashMap<&str, usize> = HashMap::new();
        for (_, _, upload) in self.uploads.readable() {
            *uploads_of_object.entry(&upload.digest).or_default() += 1;
        }
        let mut unused: Vec<_> = self
            .uploads
            .readable()
            .filter(|(_, _, upload)| !in_use(upload))
            .collect();
        unused.sort_by_key(|(_, revision, _)| *revision);
        let surplus = unused.into_iter().take(count).map(|(key, revision, upload)| {
            let sharing = uploads_of_object.entry(&upload.digest).or_default();
            *sharing -= 1;
            SurplusUpload {
                key: key.to_owned(),
                revision,
                object: (*sharing == 0).then(|| upload.digest.clone()),
            }
        });
        surplus.collect()
    }
}

/// The value of an entry, or `None` when it is unreadable.
fn read<T: DeserializeOwned>(key: &str, entry: &StoreEntry) -> Option<T> {
    serde_json::from_slice(&entry.value)
        .inspect_err(|error| tracing::warn!(key, revision = %entry.revision, %error, "an entry of the policy store is unreadable"))
        .ok()
}

impl<T> Default for EntryTable<T> {
    fn default() -> Self {
        Self::new(Followed::default())
    }
}

impl<T> EntryTable<T> {
    fn new(followed: Followed) -> Self {
        Self {
            known: BTreeMap::new(),
            followed,
        }
    }

    /// Records an entry, unless a later revision of it is known. `None` stands for an unreadable value.
    pub(super) fn note(&mut self, key: &str, revision: Revision, entry: Option<T>) {
        if revision > self.revision(key) {
            self.known.insert(key.to_owned(), KnownEntry { revision, entry });
            // A store that lost its data numbers its revisions from 1 again.
            let mut followed = self.followed.lock();
            if followed.get(key).is_some_and(|followed| *followed > revision) {
                followed.remove(key);
            }
        }
    }

    /// Records that the registry does what this revision asks for.
    pub(super) fn mark_followed(&mut self, key: &str, revision: Revision) {
        if self.revision(key) == revision {
            self.followed.lock().insert(key.to_owned(), revision);
        }
    }

    /// Forgets an entry.
    pub(super) fn forget(&mut self, key: &str) {
        self.known.remove(key);
        self.followed.lock().remove(key);
    }

    /// Forgets an entry, unless a later revision of it is known.
    pub(super) fn forget_revision(&mut self, key: &str, revision: Revision) {
        if self.revision(key) == revision {
            self.forget(key);
        }
    }

    /// The newest known revision; [`Revision::ABSENT`] without an entry.
    pub(super) fn revision(&self, key: &str) -> Revision {
        self.known
            .get(key)
            .map_or(Revision::ABSENT, |known| known.revision)
    }

    /// The newest known entry, if it is readable.
    pub(super) fn entry(&self, key: &str) -> Option<&T> {
        self.known.get(key)?.entry.as_ref()
    }

    /// The entry of this revision, if it is the newest, readable and not followed yet.
    pub(super) fn to_follow(&self, key: &str, revision: Revision) -> Option<&T> {
        let known = self.known.get(key)?;
        if known.revision != revision || self.followed(key) == revision {
            return None;
        }
        known.entry.as_ref()
    }

    /// Whether the registry follows a later revision than this one.
    pub(super) fn follows_later_than(&self, key: &str, revision: Revision) -> bool {
        self.followed(key) > revision
    }

    /// The revision that the registry follows; [`Revision::ABSENT`] for none.
    fn followed(&self, key: &str) -> Revision {
        self.followed.lock().get(key).copied().unwrap_or(Revision::ABSENT)
    }

    fn readable(&self) -> impl Iterator<Item = (&str, Revision, &T)> {
        self.known
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
            by: String::new(),
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
    fn only_the_newest_revision_is_followed_and_only_once() {
        let mut table = EntryTable::default();
        table.note("k", Revision(5), Some(upload("a", 1)));
        table.note("k", Revision(4), Some(upload("a", 2)));
        assert_eq!(table.to_follow("k", Revision(4)), None);
        assert_eq!(table.to_follow("k", Revision(5)), Some(&upload("a", 1)));
        table.mark_followed("k", Revision(4));
        assert!(table.to_follow("k", Revision(5)).is_some());
        table.mark_followed("k", Revision(5));
        table.note("k", Revision(5), Some(upload("a", 1)));
        assert_eq!(table.to_follow("k", Revision(5)), None);
        assert!(table.follows_later_than("k", Revision(4)) && !table.follows_later_than("k", Revision(5)));
        // The revisions of a store that lost its data begin at 1 again.
        table.forget("k");
        table.note("k", Revision(1), Some(upload("a", 3)));
        assert!(table.to_follow("k", Revision(1)).is_some());
    }

    #[test]
    fn what_the_registry_follows_outlasts_a_view() {
        let followed = FollowedRevisions::default();
        let view = || {
            let mut view = StoreView::new(&followed);
            view.uploads.note("k", Revision(5), Some(upload("a", 1)));
            view
        };
        view().uploads.mark_followed("k", Revision(5));
        let mut next = view();
        assert_eq!(next.uploads.to_follow("k", Revision(5)), None);
        next.uploads.note("k", Revision(6), Some(upload("a", 1)));
        assert!(next.uploads.to_follow("k", Revision(6)).is_some());
    }

    #[test]
    fn a_removal_spares_a_later_revision() {
        let mut table = EntryTable::default();
        table.note("k", Revision(5), Some(upload("a", 1)));
        table.note("k", Revision(9), Some(upload("a", 1)));
        table.forget_revision("k", Revision(5));
        assert_eq!(table.revision("k"), Revision(9));
        table.forget_revision("k", Revision(9));
        assert_eq!(table.revision("k"), Revision::ABSENT);
    }

    #[test]
    fn an_unreadable_entry_has_a_revision() {
        let mut table: EntryTable<UploadEntry> = EntryTable::default();
        table.note("k", Revision(5), None);
        assert_eq!((table.entry("k"), table.revision("k")), (None, Revision(5)));
        assert_eq!(table.to_follow("k", Revision(5)), None);
    }

    #[test]
    fn the_oldest_unused_uploads_are_surplus() {
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
            ..ActiveEntry::default()
        };
        store_view.active.note("m", Revision(100), Some(active));
        let expected = [(3, Some("3")), (4, None), (5, Some("5")), (6, Some("6"))];
        let expected = expected.map(|(number, object)| SurplusUpload {
            key: number.to_string(),
            revision: Revision(number),
            object: object.map(String::from),
        });
        assert_eq!(store_view.surplus(), expected);
        for upload in expected {
            store_view.uploads.forget(&upload.key);
        }
        assert_eq!(store_view.surplus(), []);
    }
}
