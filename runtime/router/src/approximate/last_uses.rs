//! KV blocks in the order of their last use: a hash map whose entries form a doubly linked list.
//!
//! Every operation takes constant time, and the memory is that of the most blocks ever held at once.

use hashbrown::HashMap;
use signalbox_protocol::SequenceHash;
use tokio::time::Instant;

/// The end of the list, in both directions.
const NONE: u32 = u32::MAX;

/// What is kept for a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Use {
    pub(super) block: SequenceHash,
    pub(super) last_used: Instant,
    /// Whether the index does not credit the worker with the block although the router has learned it.
    pub(super) withheld: bool,
}

#[derive(Debug)]
struct Node {
    held: Use,
    older: u32,
    newer: u32,
}

/// Blocks with their last use.
#[derive(Debug)]
pub(super) struct LastUses {
    places: HashMap<SequenceHash, u32>,
    nodes: Vec<Node>,
    /// Places in `nodes` without a block.
    vacant: Vec<u32>,
    oldest: u32,
    newest: u32,
}

impl LastUses {
    pub(super) fn new() -> Self {
        Self {
            places: HashMap::new(),
            nodes: Vec::new(),
            vacant: Vec::new(),
            oldest: NONE,
            newest: NONE,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// The block, to be changed in place.
    pub(super) fn get_mut(&mut self, block: SequenceHash) -> Option<&mut Use> {
        let place = *self.places.get(&block)?;
        Some(&mut self.nodes.get_mut(place as usize)?.held)
    }

    /// The block that was used longest ago.
    pub(super) fn oldest(&self) -> Option<Use> {
        self.nodes.get(self.oldest as usize).map(|node| node.held)
    }

    /// Makes the block the one used last. Returns whether it is new. A withheld block stays where it is.
    pub(super) fn touch(&mut self, block: SequenceHash, now: Instant) -> bool {
        if let Some(&place) = self.places.get(&block) {
            if self.nodes[place as usize].held.withheld {
                return false;
            }
            self.nodes[place as usize].held.last_used = now;
            if place != self.newest {
                self.unlink(place);
                self.link_newest(place);
            }
            return false;
        }
        let node = Node {
            held: Use {
                block,
                last_used: now,
                withheld: false,
            },
            older: NONE,
            newer: NONE,
        };
        let place = match self.vacant.pop() {
            Some(place) => {
                self.nodes[place as usize] = node;
                place
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
        };
        self.places.insert(block, place);
        self.link_newest(place);
        true
    }

    /// Removes the block that was used longest ago.
    pub(super) fn remove_oldest(&mut self) -> Option<Use> {
        let held = self.oldest()?;
        let place = self.oldest;
        self.unlink(place);
        self.places.remove(&held.block);
        self.vacant.push(place);
        Some(held)
    }

    fn unlink(&mut self, place: u32) {
        let Node { older, newer, .. } = self.nodes[place as usize];
        match self.nodes.get_mut(older as usize) {
            Some(node) => node.newer = newer,
            None => self.oldest = newer,
        }
        match self.nodes.get_mut(newer as usize) {
            Some(node) => node.older = older,
            None => self.newest = older,
        }
    }

    fn link_newest(&mut self, place: u32) {
        let older = self.newest;
        self.nodes[place as usize].older = older;
        self.nodes[place as usize].newer = NONE;
        match self.nodes.get_mut(older as usize) {
            Some(node) => node.newer = place,
            None => self.oldest = place,
        }
        self.newest = place;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Beside a vector in the order of use.
        #[test]
        fn the_order_is_that_of_the_last_uses(
            operations in proptest::collection::vec(prop_oneof![4 => (0_u64..12).prop_map(Some), 1 => Just(None)], 0..200),
        ) {
            let began = Instant::now();
            let (mut uses, mut model) = (LastUses::new(), Vec::<Use>::new());
            for (step, operation) in operations.into_iter().enumerate() {
                let now = began + Duration::from_secs(step as u64);
                match operation {
                    Some(block) => {
                        let block = SequenceHash(block);
                        let known = model.iter().position(|held| held.block == block);
                        if let Some(known) = known {
                            model.remove(known);
                        }
                        model.push(Use { block, last_used: now, withheld: false });
                        prop_assert_eq!(uses.touch(block, now), known.is_none());
                    }
                    None => {
                        let oldest = (!model.is_empty()).then(|| model.remove(0));
                        prop_assert_eq!(uses.remove_oldest(), oldest);
                    }
                }
                prop_assert_eq!(uses.len(), model.len());
                prop_assert_eq!(uses.oldest(), model.first().copied());
                prop_assert!(uses.nodes.len() <= 12, "the nodes of removed blocks are used again");
            }
            while let Some(oldest) = uses.remove_oldest() {
                prop_assert_eq!(oldest, model.remove(0));
            }
            prop_assert!(model.is_empty());
        }
    }
}
