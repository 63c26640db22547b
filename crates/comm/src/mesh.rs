//! Ranks that compute on CPUs: every two of them have a link in each direction.

use std::sync::mpsc::{Receiver, Sender, channel};

use crate::{Lost, Part};

/// A rank's links to the others of its communicator.
///
/// A call that several ranks make together (all-reduce, all-gather) is made by all of them, in the same order. A rank that is
/// dropped, as by a panic, is [`Lost`] to the others at their next call: nobody waits for the dead.
#[derive(Debug)]
pub struct Mesh {
    rank: usize,
    /// By rank; none to itself.
    links: Vec<Option<Link>>,
}

/// Messages to another rank, and from it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) to: Sender<Vec<f32>>,
    pub(crate) from: Receiver<Vec<f32>>,
}

impl Link {
    /// Returns a link's two ends.
    pub(crate) fn pair() -> (Self, Self) {
        let ((to, there), (back, from)) = (channel(), channel());
        (Self { to, from }, Self { to: back, from: there })
    }
}

impl Mesh {
    /// Returns a rank that has no others.
    #[must_use]
    pub fn alone() -> Self {
        Self::of(0, 1)
    }

    fn of(rank: usize, world_size: usize) -> Self {
        Self { rank, links: (0..world_size).map(|_| None).collect() }
    }

    /// Joins the threads of a process: returns each rank's end.
    #[must_use]
    pub fn threads(world_size: usize) -> Vec<Self> {
        Self::neighbours(0, world_size, world_size)
    }

    /// Returns the ends of `count` ranks of a process, joined to each other and to nobody else yet.
    pub(crate) fn neighbours(first_rank: usize, count: usize, world_size: usize) -> Vec<Self> {
        let mut ranks: Vec<Self> =
            (first_rank..first_rank + count).map(|rank| Self::of(rank, world_size)).collect();
        for one in 0..count {
            for other in one + 1..count {
                let (link, back) = Link::pair();
                ranks[one].set_link(first_rank + other, link);
                ranks[other].set_link(first_rank + one, back);
            }
        }
        ranks
    }

    /// Joins it to `rank`.
    pub(crate) fn set_link(&mut self, rank: usize, link: Link) {
        if let Some(place) = self.links.get_mut(rank) {
            *place = Some(link);
        }
    }

    /// Takes out the links among some ranks, this one among them, as a communicator of their own: rank i of it is `ranks[i]`. A
    /// link belongs to one communicator only.
    ///
    /// # Panics
    /// This rank is not among them.
    #[must_use]
    fn take_group(&mut self, ranks: impl IntoIterator<Item = usize>) -> Self {
        let ranks: Vec<usize> = ranks.into_iter().collect();
        let rank = ranks.iter().position(|&rank| rank == self.rank);
        assert!(rank.is_some(), "rank {} is not in the group {ranks:?}", self.rank);
        let links = ranks.iter().map(|&other| self.links.get_mut(other)?.take()).collect();
        Self { rank: rank.unwrap_or(0), links }
    }

    /// Returns this rank.
    #[must_use]
    pub const fn rank(&self) -> usize {
        self.rank
    }

    /// Returns how many ranks there are.
    #[must_use]
    pub const fn world_size(&self) -> usize {
        self.links.len()
    }

    /// Sends numbers to another rank; does not wait until they are taken.
    ///
    /// # Errors
    /// The rank is gone.
    pub fn send(&self, to: usize, values: &[f32]) -> Result<(), Lost> {
        let link = self.links.get(to).and_then(Option::as_ref).ok_or(Lost { rank: to })?;
        link.to.send(values.to_vec()).map_err(|_| Lost { rank: to })
    }

    /// Waits for the next numbers from another rank.
    ///
    /// # Errors
    /// The rank is gone, and so is what it has not sent.
    pub fn recv(&self, from: usize) -> Result<Vec<f32>, Lost> {
        let link = self.links.get(from).and_then(Option::as_ref).ok_or(Lost { rank: from })?;
        link.from.recv().map_err(|_| Lost { rank: from })
    }

    /// Returns every rank's `mine`, by rank. They may differ in length.
    ///
    /// # Errors
    /// A rank is gone.
    pub fn all_gather(&self, mine: &[f32]) -> Result<Vec<Vec<f32>>, Lost> {
        let others = || (0..self.world_size()).filter(|&rank| rank != self.rank);
        others().try_for_each(|rank| self.send(rank, mine))?;
        let of = |rank| if rank == self.rank { Ok(mine.to_vec()) } else { self.recv(rank) };
        (0..self.world_size()).map(of).collect()
    }

    /// Sums `values`, of one length on all ranks, over the ranks. All add in the order of ranks, so that they hold the same bits.
    ///
    /// # Errors
    /// A rank is gone.
    pub fn all_reduce(&self, values: &mut [f32]) -> Result<(), Lost> {
        if self.world_size() == 1 {
            return Ok(());
        }
        for (rank, part) in self.all_gather(values)?.into_iter().enumerate() {
            for (sum, value) in values.iter_mut().zip(part) {
                *sum = if rank == 0 { value } else { *sum + value };
            }
        }
        Ok(())
    }
}

/// A rank's communicators.
#[derive(Debug)]
pub struct Peers {
    /// Those that hold the other shares of its layers.
    pub tensor: Mesh,
    /// Those that hold the same share of the other stages; rank i is stage i.
    pub stages: Mesh,
}

impl Peers {
    /// Returns the communicators of a rank that has no others.
    #[must_use]
    pub fn none() -> Self {
        Self { tensor: Mesh::alone(), stages: Mesh::alone() }
    }

    /// Takes a rank's links to the world apart.
    ///
    /// # Panics
    /// `part` is another rank's.
    #[must_use]
    pub fn new(mut world: Mesh, part: Part) -> Self {
        let tensor = world.take_group(part.tensor_ranks());
        Self { tensor, stages: world.take_group(part.stage_ranks()) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Mesh, Peers};
    use crate::{Lost, Part};

    /// Runs `work` on a thread for each rank and returns what it returns, by rank.
    fn on_all<T: Send>(ranks: Vec<Mesh>, work: impl Fn(Mesh) -> T + Sync) -> Vec<T> {
        let work = &work;
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                ranks.into_iter().map(|mesh| scope.spawn(move || work(mesh))).collect();
            threads.into_iter().map(|thread| thread.join().expect("a rank panicked")).collect()
        })
    }

    #[test]
    fn sums_are_those_of_all_ranks_in_the_order_of_ranks() {
        for world_size in 1..5 {
            let values = |rank: usize| [0.1 + rank as f32, 1e8 * (rank as f32 - 1.0), 3.0];
            let expected = (1..world_size).fold(values(0), |sum, rank| {
                let value = values(rank);
                [sum[0] + value[0], sum[1] + value[1], sum[2] + value[2]]
            });
            let sums = on_all(Mesh::threads(world_size), |mesh| {
                let mut sum = values(mesh.rank());
                mesh.all_reduce(&mut sum).map(|()| sum)
            });
            assert_eq!(sums, vec![Ok(expected); world_size]);
        }
    }

    #[test]
    fn stages_and_shares_have_their_own_links() {
        let parts = Part::all(2, 2);
        let gathered = on_all(Mesh::threads(4), |world| {
            let part = parts[world.rank()];
            let mine = [part.rank() as f32];
            let peers = Peers::new(world, part);
            let shares = peers.tensor.all_gather(&mine).map(|all| all.concat());
            let stages = peers.stages.all_gather(&mine).map(|all| all.concat());
            (shares, stages)
        });
        let expected = |shares: [f32; 2], stages: [f32; 2]| (Ok(shares.into()), Ok(stages.into()));
        let of_each = [
            expected([0.0, 1.0], [0.0, 2.0]),
            expected([0.0, 1.0], [1.0, 3.0]),
            expected([2.0, 3.0], [0.0, 2.0]),
            expected([2.0, 3.0], [1.0, 3.0]),
        ];
        assert_eq!(gathered, of_each);
    }

    #[test]
    fn nobody_waits_for_the_dead() {
        let outcomes = on_all(Mesh::threads(3), |mesh| {
            if mesh.rank() == 1 {
                return Ok(());
            }
            mesh.all_reduce(&mut [1.0]).and_then(|()| mesh.all_reduce(&mut [1.0]))
        });
        assert_eq!(outcomes[1], Ok(()));
        for rank in [0, 2] {
            assert!(matches!(outcomes[rank], Err(Lost { .. })), "{outcomes:?}");
        }
    }
}
