//! Who has which sequence, and who gets it next.

use stallfree_core::{InstanceId, KvLease, KvOffer, SeqId, SeqMap};
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
    /// Where it goes on, if that is known while it is being prefilled, and how it counts there.
    next: Option<(usize, SeqView)>,
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
        let next = before.as_ref().and_then(|before| before.next).map(|(index, _)| index);
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
        // Perhaps most of its KV is there already.
        let known = next.filter(|&next| seq.kv.is_some() && self.may_go_on(next));
        let Some(instance) = known.or_else(|| self.choose(&view, seq.kv.as_deref())) else {
            return Place::Lost;
        };
        self.count(instance, &view);
        let member = &self.members[instance];
        let (id, prefills) = (member.instance, member.role == Role::Prefill);
        let entry = Entry { instance, view, next: None, is_cancelled: false, num_rescues };
        self.seqs.insert(seq.id, entry);
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

    /// Chooses where a sequence goes on that is being prefilled, once, and returns it; `None` if it goes nowhere else.
    pub(crate) fn offer(&mut self, offer: &KvOffer) -> Option<InstanceId> {
        let id = offer.kv.id.seq;
        let entry = self.seqs.get(&id).filter(|entry| !entry.is_cancelled)?;
        let instance = entry.instance;
        if let Some((next, _)) = entry.next {
            return self.may_go_on(next).then(|| self.members[next].instance);
        }
        let view = SeqView { num_tokens: offer.tokens.len(), num_uncomputed: 0 };
        let next = self.choose(&view, Some(&offer.kv))?;
        if next == instance || !self.may_go_on(next) {
            return None;
        }
        self.count(next, &view);
        self.seqs.get_mut(&id)?.next = Some((next, view));
        Some(self.members[next].instance)
    }

    /// Takes note that a sequence may go on anywhere again; returns where it was to go on.
    pub(crate) fn take_back(&mut self, id: SeqId) -> Option<InstanceId> {
        let (next, view) = self.seqs.get_mut(&id)?.next.take()?;
        self.uncount(next, &view);
        Some(self.members[next].instance)
    }

    /// Returns where a sequence is to go on that is being prefilled.
    pub(crate) fn next(&self, id: SeqId) -> Option<InstanceId> {
        let (next, _) = self.seqs.get(&id)?.next?;
        Some(self.members[next].instance)
    }

    fn may_go_on(&self, index: usize) -> bool {
        !self.members[index].is_lost && self.members[index].role != Role::Prefill
    }

    fn count(&mut self, index: usize, view: &SeqView) {
        let member = &mut self.members[index];
        member.num_seqs += 1;
        member.num_tokens += view.num_tokens;
        member.num_uncomputed += view.num_uncomputed;
    }

    fn uncount(&mut self, index: usize, view: &SeqView) {
        let member = &mut self.members[index];
        member.num_seqs -= 1;
        member.num_tokens -= view.num_tokens;
        member.num_uncomputed -= view.num_uncomputed;
    }

    /// Takes a sequence from its instance's books.
    fn leave(&mut self, id: SeqId) -> Option<Entry> {
        let entry = self.seqs.remove(&id)?;
        self.uncount(entry.instance, &entry.view);
        if let Some((next, view)) = &entry.next {
            self.uncount(*next, view);
        }
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
        self.leases.remove(&lease.id.seq);
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
