//! Maps KV blocks to llama.cpp's cells.
//!
//! [`BlockPool`] keeps which blocks are cached. llama.cpp addresses cells by sequence id and position only. A running
//! sequence has a sequence id of its own, which owns the sequence's cells. A block stays cached after its sequence ends
//! because a *lane* also owns its cells. A lane is a sequence id that no running sequence uses. A lane has at most one
//! block at each depth (the index of a block in its sequence), so that (lane, depth) identifies the cells of one block.
//! Blocks of different prompts may share a lane at different depths. The blocks of one prompt are mostly in one lane.
//!
//! ```text
//!            depth 0   1   2   3   4
//! lane 8           A0  A1  A2  C3        sealed blocks, running or idle
//! lane 9           B0      D2
//! sequence 0       A0  A1  A2  C3  ...   a running sequence shares the cells of its prefix and adds its own
//! ```
//!
//! An attacker can construct two prompts with the same hash, because hashes are short. A block is therefore shared only
//! if its tokens and its parent are also the same.

use std::ops::Range;

use signalbox_protocol::{KvEvent, SequenceHash};

use crate::block_pool::{BlockId, BlockPool, BlockTable, OutOfBlocks, SealOutcome};

/// A sequence id of llama.cpp, which owns cells: that of a running sequence, or of a lane.
pub(super) type CellOwner = i32;

/// Sequence ids of one llama.cpp context (its `LLAMA_MAX_SEQ`), for running sequences and lanes together.
pub(super) const CELL_OWNERS: u32 = 256;

/// Most running sequences. The other half of the sequence ids are lanes, so that every depth has a free lane or one
/// whose block can be evicted.
pub(super) const MAX_RUNNING: u32 = CELL_OWNERS / 2;

/// An operation on llama.cpp's cells. Operations are applied in order, before the next tokens are computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CellOp {
    /// Makes `to` an owner of the cells that `from` owns at these positions.
    Share {
        /// The present owner.
        from: CellOwner,
        /// The additional owner.
        to: CellOwner,
        /// The positions, the end exclusive.
        positions: Range<u32>,
    },
    /// Removes `owner` from the cells at these positions. A cell without owners is free.
    Release {
        /// The owner to remove.
        owner: CellOwner,
        /// The positions, the end exclusive.
        positions: Range<u32>,
    },
    /// Removes `owner` from all cells.
    ReleaseAll {
        /// The owner to remove.
        owner: CellOwner,
    },
}

/// The part of the cache that a running sequence holds. Release it with [`CellCache::release`].
#[derive(Debug)]
pub(super) struct SequenceCells {
    owner: CellOwner,
    table: BlockTable,
    computed: u32,
    /// Whether the sequence's blocks are sealed when they are full.
    sealing: bool,
}

impl SequenceCells {
    /// The sequence's id in llama.cpp.
    pub(super) fn owner(&self) -> CellOwner {
        self.owner
    }

    /// Number of leading tokens whose KV is in the cache.
    pub(super) fn computed(&self) -> u32 {
        self.computed
    }

    /// Number of KV blocks, shared ones included.
    pub(super) fn blocks(&self) -> u32 {
        self.table.blocks().len() as u32
    }
}

/// A KV cache in llama.cpp's cells, managed in blocks.
#[derive(Debug)]
pub(super) struct CellCache {
    pool: BlockPool,
    block_size: u32,
    /// Whether blocks stay cached after their sequences.
    reuse: bool,
    /// The location of each sealed block, by [`BlockId`].
    locations: Vec<Option<BlockLocation>>,
    /// The lanes that have a block at each depth.
    occupied: Vec<LaneSet>,
    first_lane: CellOwner,
}

/// The location of a sealed block's cells, and its content, which verifies that a prompt has this block.
#[derive(Debug)]
struct BlockLocation {
    lane: CellOwner,
    depth: u32,
    parent: Option<BlockId>,
    tokens: Box<[u32]>,
}

/// A set of sequence ids.
#[derive(Debug, Clone, Copy, Default)]
struct LaneSet([u64; CELL_OWNERS as usize / 64]);

impl CellCache {
    /// An empty cache of `blocks` blocks for sequences with the owners `0..running`. Without `reuse` no block stays
    /// cached after its sequence: for models whose cells cannot be shared.
    pub(super) fn new(blocks: u32, block_size: u32, running: u32, reuse: bool) -> Self {
        debug_assert!(
            running <= MAX_RUNNING,
            "at least as many lanes as running sequences"
        );
        Self {
            pool: BlockPool::new(blocks),
            block_size,
            reuse,
            locations: (0..blocks).map(|_| None).collect(),
            occupied: vec![LaneSet::default(); blocks as usize],
            first_lane: running as CellOwner,
        }
    }

    /// The cells of a new sequence, which has none yet.
    pub(super) fn new_sequence(&self, owner: CellOwner) -> SequenceCells {
        debug_assert!(owner < self.first_lane, "a running sequence does not use a lane");
        SequenceCells {
            owner,
            table: BlockTable::default(),
            computed: 0,
            sealing: self.reuse,
        }
    }

    /// Whether there is room for `tokens` tokens of a new sequence whose blocks begin with `prefix`, and for `others`
    /// more blocks.
    pub(super) fn admits(&self, prefix: &[SequenceHash], tokens: usize, others: u32) -> bool {
        let blocks = (tokens as u32).div_ceil(self.block_size);
        self.pool
            .admits(if self.reuse { prefix } else { &[] }, blocks + others)
    }

    /// Extends `cells` by the cached blocks that follow its own. `tokens` and `hashes` belong to the sequence.
    /// The last token is never shared, because it must be computed for its logits. Returns the number of added tokens.
    pub(super) fn share(
        &mut self,
        cells: &mut SequenceCells,
        tokens: &[u32],
        hashes: &[SequenceHash],
        ops: &mut Vec<CellOp>,
    ) -> u32 {
        let had = cells.table.blocks().len();
        let most = (tokens.len().saturating_sub(1) / self.block_size as usize).min(hashes.len());
        if !cells.sealing || most <= had || cells.table.sealed() < had {
            return 0;
        }
        self.pool.share(&mut cells.table, &hashes[..most]);
        let verified = had
            + (had..cells.table.blocks().len())
                .take_while(|&depth| self.block_matches(&cells.table, depth, tokens))
                .count();
        if verified < cells.table.blocks().len() {
            // A cached block of another prompt has the same hash. This sequence shares no more blocks.
            cells.sealing = false;
            self.pool.release(&mut cells.table);
            self.pool.share(&mut cells.table, &hashes[..verified]);
        }
        for depth in had..verified {
            if let Some(location) = self.location(cells.table.blocks()[depth]) {
                push_share(ops, location.lane, cells.owner, self.positions(depth));
            }
        }
        cells.computed = verified as u32 * self.block_size;
        (verified - had) as u32 * self.block_size
    }

    /// The number of tokens to which `cells` can grow now.
    pub(super) fn reach(&self, cells: &SequenceCells) -> u32 {
        (cells.blocks() + self.pool.available()) * self.block_size
    }

    /// Makes room for the KV of the first `tokens` tokens of `cells`, evicting the least recently used idle blocks.
    ///
    /// # Errors
    /// Too few blocks are free or idle; `cells` is unchanged.
    pub(super) fn grow(
        &mut self,
        cells: &mut SequenceCells,
        tokens: u32,
        ops: &mut Vec<CellOp>,
    ) -> Result<(), OutOfBlocks> {
        let had = cells.blocks();
        let needed = tokens.div_ceil(self.block_size).saturating_sub(had);
        self.pool.grow(&mut cells.table, needed)?;
        for index in had..had + needed {
            self.clear_location(cells.table.blocks()[index as usize], ops);
        }
        Ok(())
    }

    /// Records that the KV of the first `computed` tokens of `cells` is in the cache, and seals the full blocks.
    pub(super) fn computed(
        &mut self,
        cells: &mut SequenceCells,
        computed: u32,
        tokens: &[u32],
        hashes: &[SequenceHash],
        ops: &mut Vec<CellOp>,
    ) {
        cells.computed = computed;
        while cells.sealing && (cells.table.sealed() as u32 + 1) * self.block_size <= computed {
            let depth = cells.table.sealed();
            cells.sealing = depth < hashes.len() && self.seal(cells, depth, tokens, hashes, ops);
        }
    }

    /// Releases all blocks and cells of a sequence. Sealed blocks stay cached.
    pub(super) fn release(&mut self, mut cells: SequenceCells, ops: &mut Vec<CellOp>) {
        self.pool.release(&mut cells.table);
        ops.push(CellOp::ReleaseAll { owner: cells.owner });
    }

    /// Appends the blocks stored and removed since the last call.
    pub(super) fn drain_events(&mut self, events: &mut Vec<KvEvent>) {
        self.pool.drain_events(events);
    }

    /// The blocks of the cache, for their numbers.
    pub(super) fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Seals the full block at `depth`. Returns `false` if the block must stay private to the sequence.
    fn seal(
        &mut self,
        cells: &mut SequenceCells,
        depth: usize,
        tokens: &[u32],
        hashes: &[SequenceHash],
        ops: &mut Vec<CellOp>,
    ) -> bool {
        let prefix = &hashes[..=depth];
        let parent = depth.checked_sub(1).map(|before| cells.table.blocks()[before]);
        let lane = if self.pool.matched(prefix).blocks <= depth {
            self.free_lane(depth, parent, ops)
        } else if self.can_be_shared(prefix, tokens) {
            // The block is a duplicate and needs no lane.
            Some(cells.owner)
        } else {
            None
        };
        let Some(lane) = lane else { return false };
        let positions = self.positions(depth);
        match self.pool.seal(&mut cells.table, hashes[depth]) {
            Some(SealOutcome::Stored) => {
                push_share(ops, cells.owner, lane, positions);
                let start = depth * self.block_size as usize;
                let tokens = tokens[start..start + self.block_size as usize].into();
                self.occupied[depth].insert(lane);
                self.locations[cells.table.blocks()[depth].0 as usize] = Some(BlockLocation {
                    lane,
                    depth: depth as u32,
                    parent,
                    tokens,
                });
                true
            }
            Some(SealOutcome::Duplicate { existing, .. }) => {
                // Two sequences computed the block in the same step. This one frees its cells and shares the other's.
                if let Some(location) = self.location(existing) {
                    let lane = location.lane;
                    ops.push(CellOp::Release {
                        owner: cells.owner,
                        positions: positions.clone(),
                    });
                    push_share(ops, lane, cells.owner, positions);
                }
                true
            }
            None => false,
        }
    }

    /// Whether the cached blocks of `prefix` have the content of `tokens`, and not another one with the same hashes.
    fn can_be_shared(&mut self, prefix: &[SequenceHash], tokens: &[u32]) -> bool {
        let mut table = BlockTable::default();
        let found = self.pool.share(&mut table, prefix);
        let verified = (0..found).all(|depth| self.block_matches(&table, depth, tokens));
        self.pool.release(&mut table);
        verified
    }

    /// Whether the block of `table` at `depth` has the content of `tokens` and the expected parent.
    fn block_matches(&self, table: &BlockTable, depth: usize, tokens: &[u32]) -> bool {
        let size = self.block_size as usize;
        let parent = depth.checked_sub(1).map(|before| table.blocks()[before]);
        self.location(table.blocks()[depth]).is_some_and(|location| {
            location.depth as usize == depth
                && location.parent == parent
                && tokens.get(depth * size..(depth + 1) * size) == Some(&*location.tokens)
        })
    }

    /// A lane without a block at `depth`, preferably the parent's lane. If every lane has one, evicts the least
    /// recently used blocks of the cache until a lane is free. `None` if no block can be evicted.
    fn free_lane(
        &mut self,
        depth: usize,
        parent: Option<BlockId>,
        ops: &mut Vec<CellOp>,
    ) -> Option<CellOwner> {
        loop {
            let taken = self.occupied[depth];
            let of_parent = parent
                .and_then(|id| self.location(id))
                .map(|location| location.lane);
            let lanes = of_parent
                .into_iter()
                .chain(self.first_lane..CELL_OWNERS as CellOwner);
            if let Some(lane) = lanes.into_iter().find(|&lane| !taken.contains(lane)) {
                return Some(lane);
            }
            // The pool evicts a block only when a table grows. A temporary table takes all free blocks and one more.
            let mut table = BlockTable::default();
            let free = self.pool.capacity() - self.pool.used();
            self.pool.grow(&mut table, free + 1).ok()?;
            for &id in table.blocks() {
                self.clear_location(id, ops);
            }
            self.pool.release(&mut table);
        }
    }

    /// Releases the lane's cells of a block that the pool has evicted and given to another table.
    fn clear_location(&mut self, id: BlockId, ops: &mut Vec<CellOp>) {
        if let Some(location) = self.locations[id.0 as usize].take() {
            self.occupied[location.depth as usize].remove(location.lane);
            push_release(ops, location.lane, self.positions(location.depth as usize));
        }
    }

    fn location(&self, id: BlockId) -> Option<&BlockLocation> {
        self.locations[id.0 as usize].as_ref()
    }

    fn positions(&self, depth: usize) -> Range<u32> {
        let start = depth as u32 * self.block_size;
        start..start + self.block_size
    }
}

impl LaneSet {
    fn contains(&self, lane: CellOwner) -> bool {
        self.0[lane as usize / 64] >> (lane % 64) & 1 == 1
    }

    fn insert(&mut self, lane: CellOwner) {
        self.0[lane as usize / 64] |= 1 << (lane % 64);
    }

    fn remove(&mut self, lane: CellOwner) {
        self.0[lane as usize / 64] &= !(1 << (lane % 64));
    }
}

/// Adds a [`CellOp::Share`]. Adjacent ranges become one operation, because llama.cpp scans all its cells for each.
fn push_share(ops: &mut Vec<CellOp>, source: CellOwner, target: CellOwner, added: Range<u32>) {
    if let Some(CellOp::Share { from, to, positions }) = ops.last_mut()
        && (*from, *to, positions.end) == (source, target, added.start)
    {
        positions.end = added.end;
        return;
    }
    ops.push(CellOp::Share {
        from: source,
        to: target,
        positions: added,
    });
}

/// Adds a [`CellOp::Release`] in the same way. The last block of a sequence is evicted first.
fn push_release(ops: &mut Vec<CellOp>, lane: CellOwner, removed: Range<u32>) {
    if let Some(CellOp::Release { owner, positions }) = ops.last_mut()
        && (*owner, positions.start) == (lane, removed.end)
    {
        positions.start = removed.start;
        return;
    }
    ops.push(CellOp::Release {
        owner: lane,
        positions: removed,
    });
}
