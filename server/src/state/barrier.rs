//! Points at which the branches of a pipeline move together.
//!
//! What has arrived is with the branches ([`Staged`](super::Staged)); a barrier knows only whom it waits for. So there is one
//! place to look at, and an arrival that ended with its worker cannot be counted.

mod judge;

use std::collections::BTreeMap;
use std::ops::Bound;

use fencepost::Lsn;
use fencepost::log::v1::{AbortedParticipant, BarrierAborted, BarrierOpened, BarrierRef};
use fencepost::v1::barrier::State as Told;
use fencepost::v1::{Barrier, Participant};

use super::lease::Standing;
use super::newest::{Newest, Placed};
use super::{Branch, Grant, Pipeline, State, entry};

pub use judge::{AbortVerdict, ArriveVerdict, OpenVerdict, named, other_participants};

/// How many closed barriers a pipeline remembers, so that whoever comes late is told. Fewer in the module's own tests.
const CLOSED_REMEMBERED: usize = if cfg!(test) { 2 } else { 1_000 };

/// How ids of the commits of barriers begin. Nobody else's do.
pub const BARRIER_ID_PREFIX: &str = "barrier:";

/// A barrier that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenBarrier {
    /// The fact that opened it.
    pub opened: Lsn,
    /// When, by the server's wall clock.
    pub opened_at_ms: u64,
    /// When it is given up, by the server's wall clock; 0: never.
    pub deadline_ms: u64,
    /// Whom it waits for, in the order of their names.
    pub participants: Box<[Box<str>]>,
}

impl OpenBarrier {
    /// Whether it waits for this branch.
    pub fn awaits(&self, branch: &str) -> bool {
        self.participants.binary_search_by(|participant| (**participant).cmp(branch)).is_ok()
    }

    /// What is told of it beside its participants. `of` is the name of its pipeline.
    pub fn outline(&self, of: &str, name: &str) -> Barrier {
        Barrier {
            pipeline: of.to_owned(),
            name: name.to_owned(),
            state: Told::Open.into(),
            deadline_ms: self.deadline_ms,
            opened_lsn: self.opened.as_u64(),
            opened_at_ms: self.opened_at_ms,
            ..Barrier::default()
        }
    }

    fn is_overdue(&self, now_ms: u64) -> bool {
        (1..=now_ms).contains(&self.deadline_ms)
    }
}

/// A barrier that does not wait any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClosedBarrier {
    /// The fact that closed it.
    pub lsn: Lsn,
    /// When, by the server's wall clock.
    pub at_ms: u64,
    /// Whether all had arrived; otherwise it was aborted.
    pub is_committed: bool,
}

/// A barrier that is known, waiting or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownBarrier<'a> {
    /// It waits.
    Open(&'a OpenBarrier),
    /// It does not wait any more. The fact that closed it says more.
    Closed(ClosedBarrier),
}

/// The barriers of a pipeline.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Barriers {
    open: BTreeMap<Box<str>, OpenBarrier>,
    pub(super) closed: Newest<Box<str>, ClosedBarrier, CLOSED_REMEMBERED>,
}

impl Placed for ClosedBarrier {
    fn lsn(&self) -> Lsn {
        self.lsn
    }
}

impl Barriers {
    pub(super) fn open(&self, name: &str) -> Option<&OpenBarrier> {
        self.open.get(name)
    }

    pub(super) fn insert_open(&mut self, name: &str, barrier: OpenBarrier) {
        self.open.insert(name.into(), barrier);
    }

    /// Ends the wait, if this very barrier waits.
    fn close(&mut self, barrier: &BarrierRef, closed: ClosedBarrier) -> Option<OpenBarrier> {
        let is_it = self.open.get(&*barrier.name).is_some_and(|open| open.opened.as_u64() == barrier.opened_lsn);
        self.closed.insert(barrier.name.as_str().into(), closed);
        if is_it { self.open.remove(&*barrier.name) } else { None }
    }

    pub(super) fn iter_open(&self) -> impl Iterator<Item = (&str, &OpenBarrier)> {
        self.open.iter().map(|(name, barrier)| (&**name, barrier))
    }
}

impl Pipeline {
    /// Open barriers in the order of their names.
    pub fn open_barriers(&self) -> impl Iterator<Item = (&str, &OpenBarrier)> {
        self.barriers.iter_open()
    }

    /// The same, from the first one after `after`.
    pub fn open_barriers_after(&self, after: &str) -> impl Iterator<Item = (&str, &OpenBarrier)> {
        let rest = self.barriers.open.range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
        rest.map(|(name, barrier)| (&**name, barrier))
    }

    /// Closed barriers that are remembered, newest first.
    pub fn closed_barriers(&self) -> impl Iterator<Item = (&str, &ClosedBarrier)> {
        self.barriers.closed.iter().rev().map(|(name, barrier)| (&**name, barrier))
    }

    /// The barrier of that name, if it is open or was closed not long ago.
    pub fn barrier(&self, name: &str) -> Option<KnownBarrier<'_>> {
        let closed = || self.barriers.closed.get(name).copied().map(KnownBarrier::Closed);
        self.barriers.open(name).map(KnownBarrier::Open).or_else(closed)
    }

    /// Open barriers that wait for this branch, in the order of their names.
    pub fn barriers_of(&self, branch: &str) -> impl Iterator<Item = (&str, &OpenBarrier)> {
        self.open_barriers().filter(move |(_, barrier)| barrier.awaits(branch))
    }

    /// An open barrier of this pipeline, whose name is `of`, as it is told.
    pub fn told_barrier(&self, of: &str, name: &str, barrier: &OpenBarrier) -> Barrier {
        let told = |(branch, staged): (&str, Option<&super::Staged>)| Participant {
            branch: branch.to_owned(),
            arrived: staged.is_some(),
            holder: self.holder(branch),
            sequence: staged.map_or(0, |staged| staged.sequence),
        };
        Barrier { participants: self.arrivals(name, barrier).map(told).collect(), ..barrier.outline(of, name) }
    }

    /// Participants of an open barrier, each with what it has staged if it has arrived.
    fn arrivals<'a>(
        &'a self,
        name: &'a str,
        barrier: &'a OpenBarrier,
    ) -> impl Iterator<Item = (&'a str, Option<&'a super::Staged>)> {
        barrier.participants.iter().map(move |branch| {
            let staged = self.branches.get(branch).and_then(Branch::staged);
            (&**branch, staged.filter(|staged| staged.barrier() == Some(name)))
        })
    }

    /// Who holds the branch, or did before; empty if nobody is known to have.
    fn holder(&self, branch: &str) -> String {
        // A rewind took the branch from its holder and gave it to nobody.
        let grant = self.branches.get(branch).and_then(Branch::last_grant);
        let grant = grant.filter(|grant| grant.standing != Standing::Rewound);
        grant.map_or_else(String::new, |grant: &Grant| grant.holder.to_string())
    }
}

impl State {
    pub(super) fn apply_barrier_opened(
        &mut self,
        lsn: Lsn,
        at_ms: u64,
        fact: &BarrierOpened,
        is_whole: bool,
    ) -> Result<(), String> {
        let pipeline = entry(&mut self.pipelines, &fact.pipeline);
        if is_whole && pipeline.barriers.open(&fact.name).is_some() {
            return Err(format!("it opens barrier '{}', which is open", fact.name));
        }
        let barrier = OpenBarrier {
            opened: lsn,
            opened_at_ms: at_ms,
            deadline_ms: fact.deadline_ms,
            participants: fact.participants.iter().map(|name| name.as_str().into()).collect(),
        };
        pipeline.barriers.insert_open(&fact.name, barrier);
        if fact.deadline_ms != 0 {
            let (pipeline, name) = (fact.pipeline.as_str().into(), fact.name.as_str().into());
            self.deadlines.insert((fact.deadline_ms, pipeline, name));
        }
        Ok(())
    }

    pub(super) fn apply_barrier_aborted(
        &mut self,
        lsn: Lsn,
        at_ms: u64,
        fact: &BarrierAborted,
        is_whole: bool,
    ) -> Result<(), String> {
        let barrier = fact.barrier.as_ref().ok_or("it names no barrier")?;
        let closed = ClosedBarrier { lsn, at_ms, is_committed: false };
        self.close_barrier(&fact.pipeline, barrier, closed, is_whole)?;
        for AbortedParticipant { branch, staged_lsn, .. } in fact.participants.iter().filter(|it| it.staged_lsn != 0) {
            let Pipeline { branches, dead, .. } = entry(&mut self.pipelines, &fact.pipeline);
            let branch = branches.get_mut(&**branch);
            let is_it = |branch: &&mut Branch| branch.staged().is_some_and(|it| it.lsn.as_u64() == *staged_lsn);
            match branch.filter(is_it) {
                Some(branch) => drop(branch.take_staged(dead)),
                None if is_whole => {
                    return Err(format!("it discards what is at LSN {staged_lsn}, which is not staged"));
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Ends the wait of a barrier.
    pub(super) fn close_barrier(
        &mut self,
        pipeline: &str,
        barrier: &BarrierRef,
        closed: ClosedBarrier,
        is_whole: bool,
    ) -> Result<(), String> {
        match entry(&mut self.pipelines, pipeline).barriers.close(barrier, closed) {
            Some(OpenBarrier { deadline_ms, .. }) => {
                self.deadlines.remove(&(deadline_ms, pipeline.into(), barrier.name.as_str().into()));
                Ok(())
            }
            None if is_whole => Err(format!("it closes barrier '{}', which is not open", barrier.name)),
            None => Ok(()),
        }
    }

    /// The open barrier with the earliest deadline, if it has passed: pipeline and name.
    pub fn overdue_barrier(&self, now_ms: u64) -> Option<(&str, &str)> {
        let (deadline_ms, pipeline, name) = self.deadlines.first()?;
        (*deadline_ms <= now_ms).then_some((pipeline, name))
    }

    /// Whether any open barrier has a deadline.
    pub fn has_deadlines(&self) -> bool {
        !self.deadlines.is_empty()
    }
}
