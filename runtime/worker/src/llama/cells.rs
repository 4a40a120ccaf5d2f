//! Which of llama.cpp's cells hold which KV block.
//!
//! [`BlockPool`] says which blocks are cached; llama.cpp knows cells by (sequence id, position) only. A running
//! sequence has a sequence id of its own and holds its cells under it. For a block to outlive its sequence, somebody
//! else must hold its cells: a *lane*, one of the sequence ids that no running sequence uses. A lane holds at most one
//! block at each depth (a block's depth is its place in its sequence), so that (lane, depth) names exactly the cells
//! of one block; blocks of different prompts may share a lane at different depths, and a prompt's blocks mostly follow
//! each other in one lane.
//!
//! ```text
//!            depth 0   1   2   3   4
//! lane 8           A0  A1  A2  C3        sealed blocks, running or idle
//! lane 9           B0      D2
//! sequence 0       A0  A1  A2  C3  ...   a running sequence shares the cells of its prefix and adds its own
//! ```
//!
//! Hashes are short enough for somebody to make two prompts that share one on purpose. A block is therefore shared
//! only where its tokens and the block before it are the same too.

use std::ops::Range;

use signalbox_protocol::{KvEvent, SequenceHash};

use crate::block_pool::{BlockId, BlockPool, BlockTable, OutOfBlocks, Sealed};

/// One of llama.cpp's sequence ids.
pub(super) type CellOwner = i32;

/// Sequence ids that one llama.cpp context has (its `LLAMA_MAX_SEQ`), for running sequences and lanes together.
pub(super) const CELL_OWNERS: u32 = 256;

/// Most sequences that can run at once: the other half of the sequence ids are lanes, so that there is a lane left at
/// every depth whatever the running sequences hold.
pub(super) const MAX_RUNNING: u32 = CELL_OWNERS / 2;

/// What to do to llama.cpp's cells. To be done in order, before the next tokens are computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CellOp {
    /// The cells that `from` has at these positions belong to `to` as well.
    Share {
        /// Who has them.
        from: CellOwner,
        /// Who gets them too.
        to: CellOwner,
        /// First position, and the one after the last.
        positions: Range<u32>,
    },
    /// The cells at these positions do not belong to `owner` any more; a cell that belongs to nobody is free.
    Release {
        /// Who had them.
        owner: CellOwner,
        /// First position, and the one after the last.
        positions: Range<u32>,
    },
    /// No cell belongs to `owner` any more.
    ReleaseAll {
        /// Who had them.
        owner: CellOwner,
    },
}

/// What a running sequence holds of the cache. Give it back with [`CellCache::release`].
#[derive(Debug)]
pub(super) struct Held {
    owner: CellOwner,
    table: BlockTable,
    computed: u32,
    /// Whether its blocks get an identity when they are full.
    sealing: bool,
}

impl Held {
    /// Its sequence id in llama.cpp.
    pub(super) fn owner(&self) -> CellOwner {
        self.owner
    }

    /// Tokens from the first on whose KV is there.
    pub(super) fn computed(&self) -> u32 {
        self.computed
    }

    /// KV blocks it has, shared ones included.
    pub(super) fn blocks(&self) -> u32 {
        self.table.blocks().len() as u32
    }
}

/// A KV cache in llama.cpp's cells, kept by block.
#[derive(Debug)]
pub(super) struct CellCache {
    pool: BlockPool,
    block_size: u32,
    /// Whether blocks outlive their sequences at all.
    reuse: bool,
    /// By [`BlockId`]: where a sealed block lies.
    homes: Vec<Option<Home>>,
    /// By depth: which lanes hold a block there.
    occupied: Vec<LaneSet>,
    first_lane: CellOwner,
}

/// Where a sealed block's cells are, and what proves that it is the block meant.
#[derive(Debug)]
struct Home {
    lane: CellOwner,
    depth: u32,
    parent: Option<BlockId>,
    tokens: Box<[u32]>,
}

/// A set of sequence ids.
#[derive(Debug, Clone, Copy, Default)]
struct LaneSet([u64; CELL_OWNERS as usize / 64]);

impl CellCache {
    /// An empty cache of `blocks` blocks for sequences with owners `0..running`. Without `reuse` nothing outlives its
    /// sequence: for models whose cells cannot be shared.
    pub(super) fn new(blocks: u32, block_size: u32, running: u32, reuse: bool) -> Self {
        debug_assert!(
            running <= MAX_RUNNING,
            "at least as many lanes as running sequences"
        );
        Self {
            pool: BlockPool::new(blocks),
            block_size,
            reuse,
            homes: (0..blocks).map(|_| None).collect(),
            occupied: vec![LaneSet::default(); blocks as usize],
            first_lane: running as CellOwner,
        }
    }

    /// A sequence that holds nothing yet.
    pub(super) fn hold(&self, owner: CellOwner) -> Held {
        debug_assert!(owner < self.first_lane, "lanes are not for running sequences");
        Held {
            owner,
            table: BlockTable::default(),
            computed: 0,
            sealing: self.reuse,
        }
    }

    /// Whether there is room for `tokens` tokens of a new sequence whose blocks begin with `prefix`, and for `others`
    /// blocks more.
    pub(super) fn admits(&self, prefix: &[SequenceHash], tokens: usize, others: u32) -> bool {
        let blocks = (tokens as u32).div_ceil(self.block_size);
        self.pool
            .admits(if self.reuse { prefix } else { &[] }, blocks + others)
    }

    /// Gives `held` the blocks that follow what it has and are cached, at most to one token before the end of
    /// `tokens`: the last one must be computed for its logits. `hashes` are those of `tokens`. Returns how many tokens
    /// that were.
    pub(super) fn share(
        &mut self,
        held: &mut Held,
        tokens: &[u32],
        hashes: &[SequenceHash],
        ops: &mut Vec<CellOp>,
    ) -> u32 {
        let had = held.table.blocks().len();
        let most = (tokens.len().saturating_sub(1) / self.block_size as usize).min(hashes.len());
        if !held.sealing || most <= had || held.table.sealed() < had {
            return 0;
        }
        self.pool.share(&mut held.table, &hashes[..most]);
        let proven = had
            + (had..held.table.blocks().len())
                .take_while(|&depth| self.is_the_block(&held.table, depth, tokens))
                .count();
        if proven < held.table.blocks().len() {
            // Another prompt's block under the same hash. From here on this sequence keeps to itself.
            held.sealing = false;
            self.pool.release(&mut held.table);
            self.pool.share(&mut held.table, &hashes[..proven]);
        }
        for depth in had..proven {
            if let Some(home) = self.home(held.table.blocks()[depth]) {
                push_share(ops, home.lane, held.owner, self.positions(depth));
            }
        }
        held.computed = proven as u32 * self.block_size;
        (proven - had) as u32 * self.block_size
    }

    /// How many tokens `held` could grow to now.
    pub(super) fn reach(&self, held: &Held) -> u32 {
        (held.blocks() + self.pool.available()) * self.block_size
    }

    /// Makes room for the KV of the first `tokens` tokens of `held`, evicting what was not used for longest.
    pub(super) fn grow(
        &mut self,
        held: &mut Held,
        tokens: u32,
        ops: &mut Vec<CellOp>,
    ) -> Result<(), OutOfBlocks> {
        let had = held.blocks();
        let wanted = tokens.div_ceil(self.block_size).saturating_sub(had);
        self.pool.grow(&mut held.table, wanted)?;
        for place in had..had + wanted {
            self.vacate(held.table.blocks()[place as usize], ops);
        }
        Ok(())
    }

    /// The KV of the first `computed` tokens of `held` is there now: full blocks get their identity.
    pub(super) fn computed(
        &mut self,
        held: &mut Held,
        computed: u32,
        tokens: &[u32],
        hashes: &[SequenceHash],
        ops: &mut Vec<CellOp>,
    ) {
        held.computed = computed;
        while held.sealing && (held.table.sealed() as u32 + 1) * self.block_size <= computed {
            let depth = held.table.sealed();
            held.sealing = depth < hashes.len() && self.seal(held, depth, tokens, hashes, ops);
        }
    }

    /// Takes back all that `held` has. Its full blocks stay cached.
    pub(super) fn release(&mut self, mut held: Held, ops: &mut Vec<CellOp>) {
        self.pool.release(&mut held.table);
        ops.push(CellOp::ReleaseAll { owner: held.owner });
    }

    /// Appends what was stored and removed since the last call.
    pub(super) fn drain_events(&mut self, events: &mut Vec<KvEvent>) {
        self.pool.drain_events(events);
    }

    /// The blocks' bookkeeping, for counting.
    pub(super) fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Names the full block at `depth`. `false` where it must stay the sequence's own.
    fn seal(
        &mut self,
        held: &mut Held,
        depth: usize,
        tokens: &[u32],
        hashes: &[SequenceHash],
        ops: &mut Vec<CellOp>,
    ) -> bool {
        let prefix = &hashes[..=depth];
        let parent = depth.checked_sub(1).map(|before| held.table.blocks()[before]);
        let lane = if self.pool.matched(prefix).blocks <= depth {
            self.free_lane(depth, parent, ops)
        } else if self.can_be_shared(prefix, tokens) {
            // It will be a duplicate and needs no lane.
            Some(held.owner)
        } else {
            None
        };
        let Some(lane) = lane else { return false };
        let positions = self.positions(depth);
        match self.pool.seal(&mut held.table, hashes[depth]) {
            Some(Sealed::Stored) => {
                push_share(ops, held.owner, lane, positions);
                let start = depth * self.block_size as usize;
                let tokens = tokens[start..start + self.block_size as usize].into();
                self.occupied[depth].insert(lane);
                self.homes[held.table.blocks()[depth].0 as usize] = Some(Home {
                    lane,
                    depth: depth as u32,
                    parent,
                    tokens,
                });
                true
            }
            Some(Sealed::Duplicate { existing, .. }) => {
                // Computed twice at the same time: go on with the cells that others use, and free the own ones.
                if let Some(home) = self.home(existing) {
                    let lane = home.lane;
                    ops.push(CellOp::Release {
                        owner: held.owner,
                        positions: positions.clone(),
                    });
                    push_share(ops, lane, held.owner, positions);
                }
                true
            }
            None => false,
        }
    }

    /// Whether the cached blocks of `prefix` are those of `tokens`, and not others under the same hashes.
    fn can_be_shared(&mut self, prefix: &[SequenceHash], tokens: &[u32]) -> bool {
        let mut table = BlockTable::default();
        let found = self.pool.share(&mut table, prefix);
        let proven = (0..found).all(|depth| self.is_the_block(&table, depth, tokens));
        self.pool.release(&mut table);
        proven
    }

    fn is_the_block(&self, table: &BlockTable, depth: usize, tokens: &[u32]) -> bool {
        let size = self.block_size as usize;
        let parent = depth.checked_sub(1).map(|before| table.blocks()[before]);
        self.home(table.blocks()[depth]).is_some_and(|home| {
            home.depth as usize == depth
                && home.parent == parent
                && tokens.get(depth * size..(depth + 1) * size) == Some(&*home.tokens)
        })
    }

    /// A lane without a block at `depth`: the parent's if it is one. Where every lane has one, the least recently used
    /// blocks of the cache are evicted until one has not.
    fn free_lane(
        &mut self,
        depth: usize,
        parent: Option<BlockId>,
        ops: &mut Vec<CellOp>,
    ) -> Option<CellOwner> {
        loop {
            let taken = self.occupied[depth];
            let of_parent = parent.and_then(|id| self.home(id)).map(|home| home.lane);
            let lanes = of_parent
                .into_iter()
                .chain(self.first_lane..CELL_OWNERS as CellOwner);
            if let Some(lane) = lanes.into_iter().find(|&lane| !taken.contains(lane)) {
                return Some(lane);
            }
            // The pool evicts only to give: take all that is free and one more, and give it back.
            let mut table = BlockTable::default();
            let free = self.pool.capacity() - self.pool.used();
            self.pool.grow(&mut table, free + 1).ok()?;
            for &id in table.blocks() {
                self.vacate(id, ops);
            }
            self.pool.release(&mut table);
        }
    }

    /// The pool gave this block to somebody new: what lay in it is not cached any more.
    fn vacate(&mut self, id: BlockId, ops: &mut Vec<CellOp>) {
        if let Some(home) = self.homes[id.0 as usize].take() {
            self.occupied[home.depth as usize].remove(home.lane);
            push_release(ops, home.lane, self.positions(home.depth as usize));
        }
    }

    fn home(&self, id: BlockId) -> Option<&Home> {
        self.homes[id.0 as usize].as_ref()
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

/// llama.cpp walks all its cells for each operation, so neighbours become one.
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

/// As [`push_share`]; blocks are evicted last block first.
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
