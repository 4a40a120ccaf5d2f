//! Which entry of the policy store is followed next, and when an entry that failed is tried again.

use std::{collections::HashMap, time::Duration};

use signalbox_policy_store::Revision;
use tokio::time::Instant;

use super::entries::Subject;

/// Wait before an entry is tried again, doubled after each failure up to the longest.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// The entries that wait to be followed, one revision of each. New entries are due at once, failed ones after a pause
/// that holds up no other entry. An entry that this router is changing itself waits for the end of the change.
#[derive(Debug, Default)]
pub(super) struct FollowQueue {
    waiting: HashMap<Subject, Waiting>,
    /// How many changes of this router are under way to each entry.
    held: HashMap<Subject, usize>,
}

#[derive(Debug)]
struct Waiting {
    revision: Revision,
    due: Instant,
    retry: Duration,
}

/// An entry to follow now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FollowStep {
    pub(super) subject: Subject,
    pub(super) revision: Revision,
    /// Wait before the next attempt, should this one fail.
    retry: Duration,
}

impl FollowStep {
    pub(super) fn is_first_attempt(&self) -> bool {
        self.retry == RETRY
    }
}

impl FollowQueue {
    /// Queues an entry that arrived. It replaces an earlier revision.
    pub(super) fn push(&mut self, subject: Subject, revision: Revision, now: Instant) {
        let waiting = Waiting {
            revision,
            due: now,
            retry: RETRY,
        };
        self.waiting.insert(subject, waiting);
    }

    /// Drops an entry that was removed from the store.
    pub(super) fn remove(&mut self, subject: &Subject) {
        self.waiting.remove(subject);
    }

    /// Holds an entry back until [`FollowQueue::release`] is called as often as this.
    pub(super) fn hold(&mut self, subject: Subject) {
        *self.held.entry(subject).or_default() += 1;
    }

    /// Ends one hold of an entry.
    pub(super) fn release(&mut self, subject: &Subject) {
        if let Some(holds) = self.held.get_mut(subject) {
            *holds -= 1;
            if *holds == 0 {
                self.held.remove(subject);
            }
        }
    }

    fn free(&self) -> impl Iterator<Item = (&Subject, &Waiting)> {
        self.waiting
            .iter()
            .filter(|(subject, _)| !self.held.contains_key(*subject))
    }

    /// Takes the entry that has been due for longest; of several, the one with the lowest revision.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<FollowStep> {
        let due = self.free().filter(|(_, waiting)| waiting.due <= now);
        let (subject, _) = due.min_by_key(|(_, waiting)| (waiting.due, waiting.revision))?;
        let subject = subject.clone();
        let Waiting { revision, retry, .. } = self.waiting.remove(&subject)?;
        Some(FollowStep {
            subject,
            revision,
            retry,
        })
    }

    /// When the next entry is due, those held back aside.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.free().map(|(_, waiting)| waiting.due).min()
    }

    /// Queues an entry that failed, unless another revision of it arrived meanwhile.
    pub(super) fn retry(&mut self, step: FollowStep, now: Instant) {
        self.waiting.entry(step.subject).or_insert_with(|| Waiting {
            revision: step.revision,
            due: now + step.retry,
            retry: (step.retry * 2).min(RETRY_MAX),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn active(model: &str) -> Subject {
        Subject::Active { model: model.into() }
    }

    fn take(queue: &mut FollowQueue, now: Instant) -> Option<(Subject, u64)> {
        let step = queue.take_due(now)?;
        Some((step.subject, step.revision.0))
    }

    #[test]
    fn entries_are_followed_in_the_order_of_their_revisions() {
        let (mut queue, now) = (FollowQueue::default(), Instant::now());
        for (model, revision) in [("a", 3), ("b", 1), ("c", 2)] {
            queue.push(active(model), Revision(revision), now);
        }
        assert_eq!(take(&mut queue, now), Some((active("b"), 1)));
        assert_eq!(take(&mut queue, now), Some((active("c"), 2)));
        assert_eq!(take(&mut queue, now), Some((active("a"), 3)));
        assert_eq!((take(&mut queue, now), queue.next_due()), (None, None));
    }

    #[test]
    fn an_entry_under_change_waits_and_holds_up_no_other() {
        let (mut queue, now) = (FollowQueue::default(), Instant::now());
        queue.hold(active("a"));
        queue.hold(active("a"));
        queue.push(active("a"), Revision(1), now);
        queue.push(active("b"), Revision(2), now);
        assert_eq!(take(&mut queue, now), Some((active("b"), 2)));
        queue.release(&active("a"));
        assert_eq!((take(&mut queue, now), queue.next_due()), (None, None));
        queue.release(&active("a"));
        assert_eq!(take(&mut queue, now), Some((active("a"), 1)));
    }

    #[test]
    fn a_later_revision_replaces_an_earlier_one_and_a_removed_entry_leaves() {
        let (mut queue, now) = (FollowQueue::default(), Instant::now());
        queue.push(active("a"), Revision(1), now);
        queue.push(active("a"), Revision(2), now);
        queue.push(active("b"), Revision(3), now);
        queue.remove(&active("b"));
        assert_eq!(take(&mut queue, now), Some((active("a"), 2)));
        assert_eq!(take(&mut queue, now), None);
    }

    #[test]
    fn a_failed_entry_waits_twice_as_long_each_time_and_holds_up_no_other() {
        let (mut queue, mut now) = (FollowQueue::default(), Instant::now());
        queue.push(active("failing"), Revision(1), now);
        let mut pauses = Vec::new();
        for attempt in 0..11 {
            let step = queue.take_due(now).unwrap();
            assert_eq!(step.is_first_attempt(), attempt == 0);
            queue.retry(step, now);
            queue.push(active("other"), Revision(2 + attempt), now);
            assert_eq!(take(&mut queue, now), Some((active("other"), 2 + attempt)));
            let due = queue.next_due().unwrap();
            pauses.push((due - now).as_millis());
            now = due;
        }
        assert_eq!(
            pauses,
            [
                100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000
            ]
        );
    }

    #[test]
    fn a_failed_entry_gives_way_to_a_later_revision_that_arrived_meanwhile() {
        let (mut queue, now) = (FollowQueue::default(), Instant::now());
        queue.push(active("a"), Revision(1), now);
        let step = queue.take_due(now).unwrap();
        queue.push(active("a"), Revision(2), now);
        queue.retry(step, now);
        assert_eq!(take(&mut queue, now), Some((active("a"), 2)));
        assert_eq!(queue.next_due(), None);
    }

    #[test]
    fn an_entry_that_was_pushed_again_is_a_first_attempt() {
        let (mut queue, now) = (FollowQueue::default(), Instant::now());
        queue.push(active("a"), Revision(1), now);
        let step = queue.take_due(now).unwrap();
        queue.retry(step, now);
        queue.push(active("a"), Revision(2), now);
        assert!(queue.take_due(now).unwrap().is_first_attempt());
    }
}
