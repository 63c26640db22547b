//! Who has which sequence, and who gets it next.

use std::time::Duration;

use stallfree_core::{InstanceId, KvLease, KvOffer, SeqId, SeqMap, Time};
use stallfree_engine::{
    HandedOver, InstanceChange, InstanceStatus, Ordering, Report, Role, StepModel, Until,
};

use crate::{Choice, Dispatcher, Member, SeqView};

/// How often a sequence is saved from an instance that was lost; one that kills instances must not kill them all.
const MAX_RESCUES: usize = 2;

/// The deployment's books: a state machine that knows no engine.
#[derive(Debug)]
pub struct Directory {
    members: Vec<Member>,
    seqs: SeqMap<Entry>,
    /// What is kept for others, by the sequence whose KV it is, and where.
    leases: SeqMap<InstanceId>,
    dispatcher: Dispatcher,
}

#[derive(Debug)]
struct Entry {
    /// Nobody while it waits for one.
    instance: Option<usize>,
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
    /// Nowhere yet.
    Wait,
    /// Nowhere: its reader is gone.
    Nowhere,
    /// Nowhere: no instance can run it.
    Lost,
}

impl Directory {
    /// Makes the books of as many instances as there are roles.
    #[must_use]
    pub fn new(roles: &[Role], dispatcher: Dispatcher) -> Self {
        let (seqs, leases) = (SeqMap::default(), SeqMap::default());
        let mut directory = Self { members: Vec::new(), seqs, leases, dispatcher };
        for &role in roles {
            let instance = directory.reserve(role);
            directory.enter(instance);
        }
        directory
    }

    /// Gives another instance its number. It is given nothing until it [enters](Self::enter).
    pub(crate) fn reserve(&mut self, role: Role) -> InstanceId {
        let instance = InstanceId(u32::try_from(self.members.len()).unwrap_or(u32::MAX));
        self.members.push(Member::new(instance, role));
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
        let indices = self.candidates(Role::Prefill, false, None);
        (0..self.members.len()).map(|index| indices.contains(&index)).collect()
    }

    /// Returns how dispatching is set up.
    pub(crate) const fn dispatcher(&self) -> &Dispatcher {
        &self.dispatcher
    }

    /// Returns how long steps take on an instance that prefills.
    pub(crate) fn prefill_steps(&self) -> StepModel {
        let first = self.candidates(Role::Prefill, false, None).into_iter().next();
        first.map_or_else(StepModel::default, |index| self.members[index].report.steps)
    }

    /// Returns how the instances are.
    pub(crate) fn instances(&self) -> Vec<InstanceStatus> {
        let status = |member: &Member| InstanceStatus {
            instance: member.instance,
            role: member.role,
            is_draining: member.is_draining,
            is_lost: member.is_lost,
            num_seqs: member.num_seqs,
            num_prefills: member.prefills.len(),
            num_tokens: member.num_tokens,
            num_kept: self.leases.values().filter(|&&keeper| keeper == member.instance).count(),
        };
        self.members.iter().map(status).collect()
    }

    /// Changes an instance; returns whether it begins to drain.
    pub(crate) fn change(&mut self, instance: InstanceId, change: InstanceChange) -> bool {
        let found = self.members.iter_mut().find(|member| member.instance == instance);
        let Some(member) = found else { return false };
        member.role = change.role.unwrap_or(member.role);
        let drained = member.is_draining;
        member.is_draining = change.draining.unwrap_or(drained);
        member.is_draining && !drained
    }

    /// Chooses an instance for a sequence, which no instance has at the moment.
    pub(crate) fn place(&mut self, seq: &HandedOver, rescued: bool, now: Time) -> Place {
        let before = self.leave(seq.id, now);
        let next = before.as_ref().and_then(|before| before.next).map(|(index, _)| index);
        if before.as_ref().is_some_and(|before| before.is_cancelled) {
            return Place::Nowhere;
        }
        let num_rescues = before.map_or(0, |before| before.num_rescues) + usize::from(rescued);
        if num_rescues > MAX_RESCUES {
            return Place::Lost;
        }
        let view = SeqView::of(seq);
        let mut entry =
            Entry { instance: None, view, next: None, is_cancelled: false, num_rescues };
        // Perhaps most of its KV is there already.
        let known = next.filter(|&next| seq.kv.is_some() && self.may_go_on(next));
        let chosen = match known {
            Some(next) => Some(Choice::Candidate(next)),
            None => self.choose(&view, seq.kv.as_deref(), now),
        };
        let instance = match chosen {
            None => return Place::Lost,
            Some(Choice::Wait) => {
                self.seqs.insert(seq.id, entry);
                return Place::Wait;
            }
            Some(Choice::Candidate(instance)) => instance,
        };
        let member = &mut self.members[instance];
        member.give(seq.id, &view, self.dispatcher.order, now);
        let (id, prefills) = (member.instance, member.role == Role::Prefill);
        entry.instance = Some(instance);
        self.seqs.insert(seq.id, entry);
        if let Some(kv) = &seq.kv {
            self.leases.insert(seq.id, kv.instance);
        }
        let decodes = |other: &Member| other.is_available() && other.role != Role::Prefill;
        let others = self.members.iter().any(decodes);
        let until = if prefills && others { Until::NextToken } else { Until::End };
        Place::Instance(id, until)
    }

    fn choose(&mut self, view: &SeqView, kv: Option<&KvLease>, now: Time) -> Option<Choice> {
        let wanted = if kv.is_some() { Role::Decode } else { Role::Prefill };
        let indices = self.candidates(wanted, self.dispatcher.policy.multiplexes(), kv);
        let candidates: Vec<&Member> = indices.iter().map(|&index| &self.members[index]).collect();
        if candidates.is_empty() {
            return None;
        }
        match self.dispatcher.policy.pick(view, &candidates, now) {
            Choice::Candidate(picked) => indices.get(picked).copied().map(Choice::Candidate),
            Choice::Wait if kv.is_some() => indices.first().copied().map(Choice::Candidate),
            Choice::Wait => Some(Choice::Wait),
        }
    }

    /// Returns who may have a sequence: instances of the wanted role and mixed ones, of `any` role if that is so; if there are none,
    /// all that there are, and in the end those that drain. What another instance has computed stays there if nobody decodes any
    /// more: instances that fetch from each other could each wait for the room that the other one keeps.
    fn candidates(&self, wanted: Role, any: bool, kv: Option<&KvLease>) -> Vec<usize> {
        let all = || 0..self.members.len();
        let available = |&index: &usize| self.members[index].is_available();
        let fits = |&index: &usize| {
            let role = self.members[index].role;
            role == wanted || role == Role::Mixed || (any && kv.is_none())
        };
        let suitable: Vec<usize> = all().filter(available).filter(fits).collect();
        if !suitable.is_empty() {
            return suitable;
        }
        if let Some(kv) = kv {
            let keeps = |&index: &usize| self.members[index].instance == kv.instance;
            return all().filter(available).filter(keeps).collect();
        }
        let others: Vec<usize> = all().filter(available).collect();
        if !others.is_empty() {
            return others;
        }
        all().filter(|&index| !self.members[index].is_lost).collect()
    }

    /// Chooses where a sequence goes on that is being prefilled, once, and returns it; `None` if it goes nowhere else.
    pub(crate) fn offer(&mut self, offer: &KvOffer, now: Time) -> Option<InstanceId> {
        let id = offer.kv.id.seq;
        let entry = self.seqs.get(&id).filter(|entry| !entry.is_cancelled)?;
        let instance = entry.instance;
        if let Some((next, _)) = entry.next {
            return self.may_go_on(next).then(|| self.members[next].instance);
        }
        let view = SeqView { num_tokens: offer.tokens.len(), num_uncomputed: 0, ..entry.view };
        let Some(Choice::Candidate(next)) = self.choose(&view, Some(&offer.kv), now) else {
            return None;
        };
        if Some(next) == instance || !self.may_go_on(next) {
            return None;
        }
        self.members[next].count(&view);
        self.seqs.get_mut(&id)?.next = Some((next, view));
        Some(self.members[next].instance)
    }

    /// Takes note that a sequence may go on anywhere again; returns where it was to go on.
    pub(crate) fn take_back(&mut self, id: SeqId) -> Option<InstanceId> {
        let (next, view) = self.seqs.get_mut(&id)?.next.take()?;
        self.members[next].uncount(&view);
        Some(self.members[next].instance)
    }

    /// Returns where a sequence is to go on that is being prefilled.
    pub(crate) fn next(&self, id: SeqId) -> Option<InstanceId> {
        let (next, _) = self.seqs.get(&id)?.next?;
        Some(self.members[next].instance)
    }

    fn may_go_on(&self, index: usize) -> bool {
        self.members[index].is_available() && self.members[index].role != Role::Prefill
    }

    /// Takes a sequence from its instance's books.
    fn leave(&mut self, id: SeqId, now: Time) -> Option<Entry> {
        let entry = self.seqs.remove(&id)?;
        if let Some(instance) = entry.instance {
            self.members[instance].take_back(id, &entry.view, self.dispatcher.order, now);
        }
        if let Some((next, view)) = &entry.next {
            self.members[*next].uncount(view);
        }
        Some(entry)
    }

    /// Takes note of what an instance tells after a step.
    pub(crate) fn hear(&mut self, instance: InstanceId, report: Report) {
        let Some(index) = self.members.iter().position(|member| member.instance == instance) else {
            return;
        };
        let member = &mut self.members[index];
        for &id in &report.first_tokens {
            if let Some(entry) =
                self.seqs.get_mut(&id).filter(|entry| entry.instance == Some(index))
            {
                member.num_uncomputed -= entry.view.num_uncomputed;
                entry.view.num_uncomputed = 0;
            }
        }
        member.hear(report, self.dispatcher.order);
    }

    /// Predicts how long the first token of a request takes that comes now, if it were given to whoever is first done with it.
    /// `before` says what waits for an instance already.
    pub(crate) fn predict_ttft(&self, view: &SeqView, before: &[SeqView], now: Time) -> Duration {
        let indices = self.candidates(Role::Prefill, false, None);
        let order: Ordering = self.dispatcher.order;
        let ends = indices.iter().filter_map(|&index| {
            let member = &self.members[index];
            let own = |end: &&crate::member::End| end.seq.is_none();
            let at = member.ends(order, Some(view), now).iter().find(own)?.at;
            let rank = |view: &SeqView| {
                (order.rank(&view.standing(member.prefill_time(view))), view.arrived)
            };
            let earlier = before.iter().filter(|other| rank(other) <= rank(view));
            let waiting: Duration = earlier.map(|other| member.prefill_time(other)).sum();
            Some(at + waiting / u32::try_from(indices.len()).unwrap_or(1).max(1))
        });
        ends.min().map_or(Duration::ZERO, |at| at - view.arrived)
    }

    /// Takes note that a sequence has ended; returns whether that was a prompt's, so that others are computed sooner.
    pub(crate) fn ended(&mut self, id: SeqId, now: Time) -> bool {
        self.leave(id, now).is_some_and(|entry| entry.view.is_prompt())
    }

    /// Returns whether it is known.
    pub(crate) fn has(&self, id: SeqId) -> bool {
        self.seqs.contains_key(&id)
    }

    /// Returns whether nobody would be given a sequence without KV that nobody has.
    pub(crate) fn waits(&mut self, view: &SeqView, now: Time) -> bool {
        self.choose(view, None, now) == Some(Choice::Wait)
    }

    /// Returns whether an instance may have more room now than when it was asked for that by `least`, or anything that takes more.
    pub(crate) fn may_take(&self, instance: InstanceId, least: &SeqView, now: Time) -> bool {
        let mut members = self.members.iter();
        members.any(|member| {
            member.instance == instance && self.dispatcher.policy.may_take(member, least, now)
        })
    }

    /// Takes note that a reader is gone; returns who has its sequence.
    pub(crate) fn cancel(&mut self, id: SeqId) -> Option<InstanceId> {
        let entry = self.seqs.get_mut(&id)?;
        entry.is_cancelled = true;
        Some(self.members[entry.instance?].instance)
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
            // Another process may have named any.
            if let Some((_, seqs)) = by_instance.get_mut(instance.0 as usize) {
                seqs.push(seq);
            }
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
