//! Other incarnations of workers that are present: those that may not serve yet, and those that no longer serve.
//!
//! A worker's id has one incarnation in service. Discovery may list a later one while the present one still answers. Usually
//! the worker was restarted, and the later one answers within milliseconds. If it does not, its card is wrong: the one that
//! answers stays in service. So the later one is a *contender* until it answers, or until the present one no longer does.
//!
//! An incarnation whose place another one took, at another address, is *displaced*. It ends soon after, as a rule. If it
//! still answers, two workers have one id, which is a mistake of the operator: each displaces the other's key, and routers
//! can use only one of them.
//!
//! [`Rivals`] is pure. `L` is the link to a rival, which ends when the rival is forgotten.

use std::{collections::BTreeMap, sync::Arc};

use signalbox_protocol::{WorkerCard, WorkerEpoch, WorkerId};

/// At most one rival of each present worker.
#[derive(Debug)]
pub(crate) struct Rivals<L> {
    by_id: BTreeMap<WorkerId, Rival<L>>,
}

#[derive(Debug)]
struct Rival<L> {
    card: Arc<WorkerCard>,
    standing: Standing,
    _link: L,
}

/// What is known of a rival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Contender {
        /// Whether it was found not to answer.
        silent: bool,
    },
    Displaced {
        /// Whether it was found to answer.
        answers: bool,
    },
}

/// A worker's id that answers at two addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdConflict {
    /// The id.
    pub id: WorkerId,
    /// The address of the incarnation that gets no requests.
    pub displaced: String,
}

/// What follows when a rival answers.
#[derive(Debug, PartialEq)]
pub(crate) enum Answered {
    /// This contender takes the place of the present incarnation.
    TakesOver(Arc<WorkerCard>),
    /// This displaced incarnation answers beside the present one.
    Conflicts(Arc<WorkerCard>),
}

/// What follows when an address does not answer, or drains.
#[derive(Debug, PartialEq)]
pub(crate) enum Silenced {
    /// This contender does not answer. Returned once for each contender.
    Contender(Arc<WorkerCard>),
    /// This displaced incarnation no longer answers.
    ConflictOver(Arc<WorkerCard>),
}

impl<L> Default for Rivals<L> {
    fn default() -> Self {
        Self {
            by_id: BTreeMap::new(),
        }
    }
}

impl<L> Rivals<L> {
    /// Discovery lists `card` while an earlier incarnation answers. `link` leads to the new one.
    pub(crate) fn contend(&mut self, card: Arc<WorkerCard>, link: L) {
        self.insert(card, Standing::Contender { silent: false }, link);
    }

    /// The incarnation with this card has lost its place to one at another address. `link` leads to it.
    pub(crate) fn displace(&mut self, card: Arc<WorkerCard>, link: L) {
        self.insert(card, Standing::Displaced { answers: false }, link);
    }

    fn insert(&mut self, card: Arc<WorkerCard>, standing: Standing, link: L) {
        let rival = Rival {
            card: card.clone(),
            standing,
            _link: link,
        };
        self.by_id.insert(card.id.clone(), rival);
    }

    /// Forgets the rivals of a worker. Returns its contender.
    pub(crate) fn settle(&mut self, id: &WorkerId) -> Option<Arc<WorkerCard>> {
        let rival = self.by_id.remove(id)?;
        matches!(rival.standing, Standing::Contender { .. }).then_some(rival.card)
    }

    /// Discovery no longer lists this incarnation. Returns whether it was a contender, which is forgotten.
    pub(crate) fn withdraw(&mut self, id: &WorkerId, epoch: WorkerEpoch) -> bool {
        let is_contender = self.by_id.get(id).is_some_and(|rival| {
            rival.card.epoch == epoch && matches!(rival.standing, Standing::Contender { .. })
        });
        if is_contender {
            self.by_id.remove(id);
        }
        is_contender
    }

    /// Whether a later incarnation of this worker waits to take over.
    pub(crate) fn has_contender(&self, id: &WorkerId) -> bool {
        let rival = self.by_id.get(id);
        rival.is_some_and(|rival| matches!(rival.standing, Standing::Contender { .. }))
    }

    /// A worker answers at an address.
    pub(crate) fn answered(&mut self, address: &str, found: &WorkerCard) -> Option<Answered> {
        let rival = self
            .by_id
            .get_mut(&found.id)
            .filter(|rival| rival.card.address == address && rival.card.epoch == found.epoch)?;
        match rival.standing {
            Standing::Contender { .. } => self.settle(&found.id).map(Answered::TakesOver),
            Standing::Displaced { answers: true } => None,
            Standing::Displaced { answers: false } => {
                rival.standing = Standing::Displaced { answers: true };
                Some(Answered::Conflicts(rival.card.clone()))
            }
        }
    }

    /// Nobody answers at an address any more, or the worker there drains. Displaced incarnations there are forgotten.
    pub(crate) fn silenced(&mut self, address: &str) -> Vec<Silenced> {
        let mut silenced = Vec::new();
        self.by_id.retain(|_, rival| {
            if rival.card.address != address {
                return true;
            }
            match rival.standing {
                Standing::Contender { silent: true } => true,
                Standing::Contender { silent: false } => {
                    rival.standing = Standing::Contender { silent: true };
                    silenced.push(Silenced::Contender(rival.card.clone()));
                    true
                }
                Standing::Displaced { answers } => {
                    if answers {
                        silenced.push(Silenced::ConflictOver(rival.card.clone()));
                    }
                    false
                }
            }
        });
        silenced
    }

    /// The ids that answer at two addresses.
    pub(crate) fn conflicts(&self) -> Vec<IdConflict> {
        let answers = Standing::Displaced { answers: true };
        let conflicts = self.by_id.values().filter(|rival| rival.standing == answers);
        conflicts
            .map(|rival| IdConflict {
                id: rival.card.id.clone(),
                displaced: rival.card.address.clone(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::card;

    fn at(epoch: u64, address: &str) -> Arc<WorkerCard> {
        Arc::new(WorkerCard {
            address: address.into(),
            ..(*card("a", epoch)).clone()
        })
    }

    fn id() -> WorkerId {
        at(1, "").id.clone()
    }

    #[test]
    fn a_contender_takes_over_when_it_answers_itself() {
        let mut rivals = Rivals::default();
        rivals.contend(at(2, "new"), ());
        assert_eq!(
            rivals.answered("new", &at(1, "new")),
            None,
            "the earlier one answers there"
        );
        assert_eq!(rivals.answered("old", &at(2, "new")), None);
        assert!(rivals.has_contender(&id()));
        let taking = rivals.answered("new", &at(2, "elsewhere as it sees itself"));
        assert_eq!(taking, Some(Answered::TakesOver(at(2, "new"))));
        assert!(!rivals.has_contender(&id()));
    }

    #[test]
    fn a_contender_that_does_not_answer_stays_one_and_is_reported_once() {
        let mut rivals = Rivals::default();
        rivals.contend(at(2, "dead"), ());
        assert_eq!(rivals.silenced("elsewhere"), []);
        assert_eq!(rivals.silenced("dead"), [Silenced::Contender(at(2, "dead"))]);
        assert_eq!(rivals.silenced("dead"), []);
        // It may still come up, or the present one may end.
        assert!(rivals.has_contender(&id()));
        assert_eq!(rivals.settle(&id()), Some(at(2, "dead")));
        assert_eq!(rivals.settle(&id()), None);
    }

    #[test]
    fn a_contender_that_discovery_no_longer_lists_is_forgotten() {
        let mut rivals = Rivals::default();
        rivals.contend(at(2, "dead"), ());
        assert!(!rivals.withdraw(&id(), WorkerEpoch(1)));
        assert!(rivals.withdraw(&id(), WorkerEpoch(2)));
        assert!(!rivals.has_contender(&id()));
    }

    #[test]
    fn a_displaced_incarnation_conflicts_for_as_long_as_it_answers() {
        let mut rivals = Rivals::default();
        rivals.displace(at(1, "old"), ());
        assert_eq!(rivals.conflicts(), [], "it may have ended");
        assert!(
            !rivals.withdraw(&id(), WorkerEpoch(1)),
            "discovery does not list it anyway"
        );
        let conflicts = rivals.answered("old", &at(1, "old"));
        assert_eq!(conflicts, Some(Answered::Conflicts(at(1, "old"))));
        assert_eq!(rivals.answered("old", &at(1, "old")), None, "reported once");
        let conflict = IdConflict {
            id: id(),
            displaced: "old".into(),
        };
        assert_eq!(rivals.conflicts(), [conflict]);
        assert_eq!(rivals.silenced("old"), [Silenced::ConflictOver(at(1, "old"))]);
        assert_eq!(rivals.conflicts(), []);
        assert_eq!(rivals.settle(&id()), None);
    }

    #[test]
    fn a_displaced_incarnation_that_has_ended_is_forgotten_in_silence() {
        let mut rivals = Rivals::default();
        rivals.displace(at(1, "old"), ());
        assert_eq!(rivals.silenced("old"), []);
        assert_eq!(rivals.answered("old", &at(1, "old")), None);
    }
}
