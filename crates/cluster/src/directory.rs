//! Who has which sequence, and who gets it next.

use stallfree_core::{InstanceId, KvLease, SeqId, SeqMap};
use stallfree_engine::{HandedOver, Until};

use crate::{Dispatch, Role, SeqView};

/// How often a sequence is saved from an instance that was lost; one that kills instances must not kill them all.
const MAX_RESCUES: usize = 2;

/// An instance, as far as dispatching goes. The counts are of what it was given and has not ended or handed over: no report of
/// its own can be staler.
#[derive(Clone, Debug)]
pub struct Member {
    /// Which one.
    pub instance: InstanceId,
    /// What it is for.
    pub role: Role,
    /// Whether it is lost, or not there yet.
    pub is_lost: bool,
    /// Its sequences.
    pub num_seqs: usize,
    /// The tokens that these had when they came.
    pub num_tokens: usize,
    /// Of these, the tokens that had to be computed.
    pub num_uncomputed: usize,
}

/// The deployment's books: a state machine that knows no engine.
#[derive(Debug)]
pub struct Directory {
    members: Vec<Member>,
    seqs: SeqMap<Entry>,
    /// What is kept for others, by the sequence whose KV it is, and where.
    leases: SeqMap<InstanceId>,
    dispatch: Box<dyn Dispatch>,
}

#[derive(Debug)]
struct Entry {
    instance: usize,
    view: SeqView,
    /// Its reader is gone; whoever has it next is to drop it.
    is_cancelled: bool,
    num_rescues: usize,
}

/// Where a sequence goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// To this instance, to be run so far.
    Instance(InstanceId, Until),
    /// Nowhere: its reader is gone.
    Nowhere,
    /// Nowhere: no instance can run it.
    Lost,
}

impl Directory {
    /// Makes the books of as many instances as there are roles.
    #[must_use]
    pub fn new(roles: &[Role], dispatch: Box<dyn Dispatch>) -> Self {
        let (seqs, leases) = (SeqMap::default(), SeqMap::default());
        let mut directory = Self { members: Vec::new(), seqs, leases, dispatch };
        for &role in roles {
            let instance = directory.reserve(role);
            directory.enter(instance);
        }
        directory
    }

    /// Gives another instance its number. It is given nothing until it [enters](Self::enter).
    pub(crate) fn reserve(&mut self, role: Role) -> InstanceId {
        let instance = InstanceId(u32::try_from(self.members.len()).unwrap_or(u32::MAX));
        self.members.push(Member {
            instance,
            role,
            is_lost: true,
            num_seqs: 0,
            num_tokens: 0,
            num_uncomputed: 0,
        });
        instance
    }

    /// Takes note that an instance is there.
    pub(crate) fn enter(&mut self, instance: InstanceId) {
        if let Some(member) = self.members.get_mut(instance.0 as usize) {
            member.is_lost = false;
        }
    }

    /// Returns, for each instance, whether requests begin there: where they are prefilled, or anywhere if no such instance is left.
    pub(crate) fn begin_requests(&self) -> Vec<bool> {
        let prefills = |member: &Member| !member.is_lost && member.role != Role::Decode;
        let any = self.members.iter().any(prefills);
        self.members
            .iter()
            .map(|member| if any { prefills(member) } else { !member.is_lost })
            .collect()
    }

    /// Chooses an instance for a sequence, which no instance has at the moment.
    pub(crate) fn place(&mut self, seq: &HandedOver, rescued: bool) -> Place {
        let before = self.leave(seq.id);
        if before.as_ref().is_some_and(|before| before.is_cancelled) {
            return Place::Nowhere;
        }
        let num_rescues = before.map_or(0, |before| before.num_rescues) + usize::from(rescued);
        if num_rescues > MAX_RESCUES {
            return Place::Lost;
        }
        let num_tokens = seq.request.prompt.len() + seq.output_tokens.len();
        let num_computed = seq.kv.as_ref().map_or(0, |kv| kv.num_tokens);
        let view = SeqView { num_tokens, num_uncomputed: num_tokens - num_computed };
        let Some(instance) = self.choose(&view, seq.kv.as_deref()) else { return Place::Lost };
        let member = &mut self.members[instance];
        member.num_seqs += 1;
        member.num_tokens += view.num_tokens;
        member.num_uncomputed += view.num_uncomputed;
        let (id, prefills) = (member.instance, member.role == Role::Prefill);
        self.seqs.insert(seq.id, Entry { instance, view, is_cancelled: false, num_rescues });
        if let Some(kv) = &seq.kv {
            self.leases.insert(seq.id, kv.instance);
        }
        let others = self.members.iter().any(|other| !other.is_lost && other.role != Role::Prefill);
        let until = if prefills && others { Until::NextToken } else { Until::End };
        Place::Instance(id, until)
    }

    /// Prefers an instance of the right role or a mixed one, but takes any. What another prefill instance has computed stays there
    /// if nobody decodes any more: instances that fetch from each other could each wait for the room that the other one keeps.
    fn choose(&mut self, view: &SeqView, kv: Option<&KvLease>) -> Option<usize> {
        let wanted = if kv.is_some() { Role::Decode } else { Role::Prefill };
        let fits = |member: &Member| member.role == wanted || member.role == Role::Mixed;
        let alive = || (0..self.members.len()).filter(|&index| !self.members[index].is_lost);
        let mut indices: Vec<usize> = alive().filter(|&index| fits(&self.members[index])).collect();
        if indices.is_empty() {
            let keeper = kv.map(|kv| kv.instance.0 as usize);
            indices =
                alive().filter(|&index| keeper.is_none_or(|keeper| keeper == index)).collect();
        }
        let candidates: Vec<&Member> = indices.iter().map(|&index| &self.members[index]).collect();
        if candidates.is_empty() {
            return None;
        }
        let picked = self.dispatch.pick(view, &candidates);
        indices.get(picked).copied()
    }

    /// Takes a sequence from its instance's books.
    fn leave(&mut self, id: SeqId) -> Option<Entry> {
        let entry = self.seqs.remove(&id)?;
        let member = &mut self.members[entry.instance];
        member.num_seqs -= 1;
        member.num_tokens -= entry.view.num_tokens;
        member.num_uncomputed -= entry.view.num_uncomputed;
        Some(entry)
    }

    /// Takes note that a sequence has ended.
    pub(crate) fn ended(&mut self, id: SeqId) {
        self.leave(id);
    }

    /// Takes note that a reader is gone; returns who has its sequence.
    pub(crate) fn cancel(&mut self, id: SeqId) -> Option<InstanceId> {
        let entry = self.seqs.get_mut(&id)?;
        entry.is_cancelled = true;
        Some(self.members[entry.instance].instance)
    }

    /// Takes note that what is kept for a sequence is of no more use.
    pub(crate) fn release(&mut self, lease: &KvLease) {
        self.leases.remove(&lease.seq);
    }

    /// Returns the sequences for which each instance is to go on keeping KV.
    pub(crate) fn leases(&self) -> Vec<(InstanceId, Vec<SeqId>)> {
        let mut by_instance: Vec<(InstanceId, Vec<SeqId>)> =
            self.members.iter().map(|member| (member.instance, Vec::new())).collect();
        for (&seq, instance) in &self.leases {
            by_instance[instance.0 as usize].1.push(seq);
        }
        by_instance.retain(|(_, seqs)| !seqs.is_empty());
        by_instance
    }

    /// Takes note that an instance is lost. Its sequences come back one by one.
    pub(crate) fn lose(&mut self, instance: InstanceId) {
        if let Some(member) = self.members.get_mut(instance.0 as usize) {
            member.is_lost = true;
        }
    }
}
