//! Newly held blocks, as events for routers.

use signalbox_protocol::{CacheTier, KvEvent, SequenceHash};

/// Collects newly held blocks that follow each other into one event.
pub(super) struct Run {
    tier: CacheTier,
    parent: Option<SequenceHash>,
    blocks: Vec<SequenceHash>,
}

impl Run {
    pub(super) fn new(tier: CacheTier, parent: Option<SequenceHash>) -> Self {
        Self {
            tier,
            parent,
            blocks: Vec::new(),
        }
    }

    /// Adds `block`, which follows `parent`, if it is newly held.
    pub(super) fn step(
        &mut self,
        parent: Option<SequenceHash>,
        block: SequenceHash,
        is_new: bool,
        changes: &mut Vec<KvEvent>,
    ) {
        if !is_new {
            return;
        }
        if self.blocks.last().copied() != parent {
            self.flush(changes);
        }
        if self.blocks.is_empty() {
            self.parent = parent;
        }
        self.blocks.push(block);
    }

    fn flush(&mut self, changes: &mut Vec<KvEvent>) {
        if !self.blocks.is_empty() {
            changes.push(KvEvent::Stored {
                tier: self.tier,
                parent: self.parent,
                blocks: std::mem::take(&mut self.blocks),
            });
        }
    }

    /// Appends what is collected.
    pub(super) fn end(mut self, changes: &mut Vec<KvEvent>) {
        self.flush(changes);
    }
}
