//! The blocks, who uses them, and in which order unused ones are taken.

use stallfree_core::BlockId;

/// Ends the list of unused blocks.
const NONE: u32 = u32::MAX;

/// Counts each block's users and queues the blocks that have none.
///
/// The queue is a doubly linked list threaded through the blocks, so that a block in its middle leaves it in constant time
/// when the prefix index finds it. Its front is taken first.
#[derive(Debug)]
pub(crate) struct BlockPool {
    blocks: Vec<Block>,
    front: u32,
    back: u32,
    num_free: usize,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    num_users: u32,
    prev: u32,
    next: u32,
}

impl BlockPool {
    /// Makes a pool in which every block is unused; block 0 is taken first.
    pub(crate) fn new(num_blocks: usize) -> Self {
        let unlinked = Block { num_users: 0, prev: NONE, next: NONE };
        let mut pool =
            Self { blocks: vec![unlinked; num_blocks], front: NONE, back: NONE, num_free: 0 };
        for index in (0..num_blocks).rev() {
            pool.link_front(index as u32);
        }
        pool
    }

    pub(crate) const fn num_free(&self) -> usize {
        self.num_free
    }

    pub(crate) fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    pub(crate) fn num_users(&self, block: BlockId) -> u32 {
        self.blocks[block.0 as usize].num_users
    }

    /// Takes the unused block at the front of the queue for a first user.
    pub(crate) fn take(&mut self) -> Option<BlockId> {
        if self.front == NONE {
            return None;
        }
        let block = self.front;
        self.unlink(block);
        self.blocks[block as usize].num_users = 1;
        Some(BlockId(block))
    }

    /// Adds a user to a block.
    pub(crate) fn share(&mut self, block: BlockId) {
        if self.num_users(block) == 0 {
            self.unlink(block.0);
        }
        self.blocks[block.0 as usize].num_users += 1;
    }

    /// Takes a user from a block. A block without users goes to the back of the queue if its content is worth keeping, else to
    /// the front.
    pub(crate) fn release(&mut self, block: BlockId, keep: bool) {
        let users = &mut self.blocks[block.0 as usize].num_users;
        *users -= 1;
        if *users > 0 {
            return;
        }
        if keep {
            self.link_back(block.0);
        } else {
            self.link_front(block.0);
        }
    }

    fn link_front(&mut self, block: u32) {
        let old = std::mem::replace(&mut self.front, block);
        self.blocks[block as usize].prev = NONE;
        self.blocks[block as usize].next = old;
        match old {
            NONE => self.back = block,
            old => self.blocks[old as usize].prev = block,
        }
        self.num_free += 1;
    }

    fn link_back(&mut self, block: u32) {
        let old = std::mem::replace(&mut self.back, block);
        self.blocks[block as usize].prev = old;
        self.blocks[block as usize].next = NONE;
        match old {
            NONE => self.front = block,
            old => self.blocks[old as usize].next = block,
        }
        self.num_free += 1;
    }

    fn unlink(&mut self, block: u32) {
        let Block { prev, next, .. } = self.blocks[block as usize];
        match prev {
            NONE => self.front = next,
            prev => self.blocks[prev as usize].next = next,
        }
        match next {
            NONE => self.back = prev,
            next => self.blocks[next as usize].prev = prev,
        }
        self.num_free -= 1;
    }

    /// Checks that the queue holds exactly the blocks without users, and that `num_users` of each block is as given.
    pub(crate) fn check_integrity(&self, num_users: &[u32]) -> Result<(), String> {
        let mut queued = vec![false; self.blocks.len()];
        let (mut prev, mut block, mut length) = (NONE, self.front, 0);
        while block != NONE {
            let Some(seen) = queued.get_mut(block as usize) else {
                return Err(format!("the free queue leads to block {block}, which does not exist"));
            };
            if std::mem::replace(seen, true) {
                return Err(format!("the free queue comes by block {block} twice"));
            }
            if self.blocks[block as usize].prev != prev {
                return Err(format!("block {block} does not link back to its predecessor"));
            }
            (prev, block, length) = (block, self.blocks[block as usize].next, length + 1);
        }
        if prev != self.back || length != self.num_free {
            return Err(format!("the free queue has {length} blocks, not {}", self.num_free));
        }
        for (index, block) in self.blocks.iter().enumerate() {
            let (counted, held) = (block.num_users, num_users[index]);
            if counted != held {
                return Err(format!(
                    "block {index} counts {counted} users, but {held} tables hold it"
                ));
            }
            if queued[index] != (counted == 0) {
                return Err(format!(
                    "block {index} has {counted} users, queued: {}",
                    queued[index]
                ));
            }
        }
        Ok(())
    }
}
