//! Checkpoints that are durable and no resume point yet: phase one of a two-phase commit.
//!
//! A branch has at most one. While it is there the branch takes no other commit, so whoever comes after a crash cannot go
//! on without having asked the sink. It ends with the commit that refers to it, with a discard, or with a rewind. Neither
//! time nor a change of worker removes it.

use bytes::Bytes;
use fencepost::log::v1::{BarrierArrived, Staged as StagedFact, StagedDiscarded};
use fencepost::{Lsn, Token};

use super::{Branch, Digest, State};

/// What a branch has staged. The checkpoint itself is in the log, at `lsn`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Staged {
    /// The caller's identity for it.
    pub stage_id: Box<str>,
    /// The fact that staged it.
    pub lsn: Lsn,
    /// The sequence that it will have.
    pub sequence: u64,
    /// The token that it was staged under.
    pub token: Token,
    /// When, by the server's wall clock.
    pub staged_at_ms: u64,
    /// Length of the checkpoint's state.
    pub state_bytes: u64,
    /// Of what was staged.
    pub(super) digest: Digest,
    /// How many dead letters will be open with the commit.
    pub(super) dead_letters: u32,
    /// The fingerprint of the checkpoint's schema.
    pub(super) schema: Bytes,
    /// The open barrier that it has arrived at.
    pub(super) arrival: Option<Arrival>,
}

/// That a branch is at a barrier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Arrival {
    pub(super) barrier: Box<str>,
    /// The fact that says so.
    pub(super) lsn: Lsn,
}

impl Staged {
    /// The open barrier that it has arrived at.
    pub fn barrier(&self) -> Option<&str> {
        self.arrival.as_ref().map(|arrival| &*arrival.barrier)
    }

    /// Whether the fact at `lsn` is its arrival.
    pub(super) fn arrived_at(&self, lsn: Lsn) -> bool {
        self.arrival.as_ref().is_some_and(|arrival| arrival.lsn == lsn)
    }

    pub(super) fn from_fact(lsn: Lsn, at_ms: u64, fact: &StagedFact) -> Result<Staged, String> {
        let checkpoint = fact.checkpoint.as_ref();
        let integrity = checkpoint.and_then(|checkpoint| checkpoint.integrity.as_ref());
        Ok(Staged {
            stage_id: fact.stage_id.as_str().into(),
            lsn,
            sequence: fact.sequence,
            token: Token::from_u64(fact.token),
            staged_at_ms: at_ms,
            state_bytes: checkpoint.map_or(0, |checkpoint| checkpoint.state.len() as u64),
            digest: Digest::try_from(&fact.digest[..]).map_err(|_| "its digest is not 16 bytes")?,
            dead_letters: fact.dead_letters.len() as u32,
            schema: integrity.map(|it| Bytes::copy_from_slice(&it.schema_fingerprint)).unwrap_or_default(),
            arrival: None,
        })
    }
}

impl Branch {
    /// What is staged.
    pub fn staged(&self) -> Option<&Staged> {
        self.past.as_deref()?.staged.as_deref()
    }

    pub(super) fn take_staged(&mut self) -> Option<Staged> {
        self.staged()?;
        let mut taken = None;
        self.change_past(|past| taken = past.staged.take());
        taken.map(|staged| *staged)
    }

    /// It has another worker, or none, so it has arrived nowhere.
    pub(super) fn leave_barrier(&mut self) {
        if self.staged().is_some_and(|staged| staged.arrival.is_some()) {
            self.change_past(|past| past.staged.iter_mut().for_each(|staged| staged.arrival = None));
        }
    }
}

impl State {
    pub(super) fn apply_staged(
        &mut self,
        lsn: Lsn,
        at_ms: u64,
        fact: &StagedFact,
        is_whole: bool,
    ) -> Result<(), String> {
        let staged = Staged::from_fact(lsn, at_ms, fact)?;
        let branch = self.branch_mut(&fact.pipeline, &fact.branch);
        if is_whole {
            if branch.lease().is_none_or(|grant| grant.token != staged.token) {
                return Err(format!("it stages under token {}, which is not current", staged.token));
            }
            let head = branch.head.sequence;
            if staged.sequence != head + 1 {
                return Err(format!("it stages sequence {} on {head}", staged.sequence));
            }
            if branch.staged().is_some() {
                return Err(format!("it stages on branch '{}', which has something staged", fact.branch));
            }
        }
        branch.change_past(|past| past.staged = Some(Box::new(staged)));
        Ok(())
    }

    pub(super) fn apply_staged_discarded(&mut self, fact: &StagedDiscarded, is_whole: bool) -> Result<(), String> {
        let branch = self.branch_mut(&fact.pipeline, &fact.branch);
        if branch.staged().is_some_and(|staged| staged.lsn.as_u64() == fact.staged_lsn) {
            branch.take_staged();
            return Ok(());
        }
        if is_whole { Err(format!("it discards '{}', which is not staged", fact.stage_id)) } else { Ok(()) }
    }

    pub(super) fn apply_barrier_arrived(
        &mut self,
        lsn: Lsn,
        fact: &BarrierArrived,
        is_whole: bool,
    ) -> Result<(), String> {
        let barrier = fact.barrier.as_ref().ok_or("it names no barrier")?;
        let known = self.pipeline(&fact.pipeline).and_then(|pipeline| pipeline.barriers.open(&barrier.name));
        let is_awaited = known.is_some_and(|known| {
            known.opened.as_u64() == barrier.opened_lsn && known.participants.contains(&fact.branch.as_str().into())
        });
        let branch = self.branch_mut(&fact.pipeline, &fact.branch);
        let is_staged = branch.staged().is_some_and(|staged| staged.lsn.as_u64() == fact.staged_lsn);
        if is_awaited && is_staged {
            let arrival = Arrival { barrier: barrier.name.as_str().into(), lsn };
            branch.change_past(|past| past.staged.iter_mut().for_each(|it| it.arrival = Some(arrival.clone())));
            return Ok(());
        }
        if is_whole {
            return Err(format!("branch '{}' arrives at '{}', which does not await it", fact.branch, barrier.name));
        }
        Ok(())
    }
}
