//! Judging what is asked of barriers.

use bytes::Bytes;
use fencepost::log::v1::{
    AbortedParticipant, BarrierAborted, BarrierArrived, BarrierOpened, BarrierRef, Committed, CommittedBranch,
};
use fencepost::v1::{AbortBarrierRequest, ArriveRequest, OpenBarrierRequest};
use fencepost::{Reason, Token};

use super::{BARRIER_ID_PREFIX, ClosedBarrier, KnownBarrier, OpenBarrier};
use crate::config::limits;
use crate::error::Refusal;
use crate::state::commit::next_number;
use crate::state::staged::pending;
use crate::state::{Pipeline, Staged, State, id_key};

/// How the opening of a barrier is judged, if it is not refused.
#[derive(Clone, Debug, PartialEq)]
pub enum OpenVerdict {
    /// It waits once this fact is durable.
    Open(BarrierOpened),
    /// It waits for the same branches already.
    Repeat,
    /// It was closed before. Whether it was the same one, the fact that closed it says.
    Closed(ClosedBarrier),
}

/// How an arrival is judged, if it is not refused.
#[derive(Clone, Debug, PartialEq)]
pub enum ArriveVerdict {
    /// The branch is there once this fact is durable.
    Arrived(BarrierArrived),
    /// It was the last: all move once this fact is durable.
    Completed(Committed),
    /// It was there already.
    Repeat,
    /// It comes too late, and is refused with this; unless the fact that closed the barrier says that it was there.
    Late(ClosedBarrier, Refusal),
}

/// How giving a barrier up is judged, if it is not refused.
#[derive(Clone, Debug, PartialEq)]
pub enum AbortVerdict {
    /// It waits no more once this fact is durable.
    Abort(BarrierAborted),
    /// It was given up before.
    Repeat(ClosedBarrier),
}

impl State {
    /// Judges a new barrier, its shape already checked: its participants are in the order of their names, each once.
    pub fn evaluate_open_barrier(&self, request: &OpenBarrierRequest, now_ms: u64) -> Result<OpenVerdict, Refusal> {
        self.check_cluster(request.cluster.as_ref())?;
        let OpenBarrierRequest { pipeline: of, name, participants, timeout_ms, actor, reason, .. } = request;
        self.check_ready(of)?;
        let pipeline = self.pipeline(of);
        match pipeline.and_then(|pipeline| pipeline.barrier(name)) {
            Some(KnownBarrier::Closed(closed)) => return Ok(OpenVerdict::Closed(closed)),
            Some(KnownBarrier::Open(open)) => {
                open.check_participants(of, name, participants)?;
                return Ok(OpenVerdict::Repeat);
            }
            None => {}
        }
        if pipeline.is_some_and(|pipeline| pipeline.barriers.open.len() >= limits::BARRIERS_OPEN_MAX) {
            let max = limits::BARRIERS_OPEN_MAX;
            let expected = format!("at most {max} open barriers in '{of}', and it has as many: abort some");
            return Err(Refusal::field(Reason::TooLarge, "name", name, &expected));
        }
        Ok(OpenVerdict::Open(BarrierOpened {
            pipeline: of.clone(),
            name: name.clone(),
            participants: participants.clone(),
            deadline_ms: if *timeout_ms == 0 { 0 } else { now_ms.saturating_add(*timeout_ms) },
            actor: actor.clone(),
            reason: reason.clone(),
        }))
    }

    /// Judges an arrival. `now_ms` is compared with the deadline, because on a full disk the abort may not be in the log yet;
    /// and with the ages that the pipeline's policy keeps, if it was the last one.
    pub fn evaluate_arrive(&self, request: &ArriveRequest, now_ms: u64) -> Result<ArriveVerdict, Refusal> {
        self.check_cluster(request.cluster.as_ref())?;
        let ArriveRequest { pipeline: of, barrier: name, branch: branch_name, token, stage_id, .. } = request;
        self.check_ready(of)?;
        let known = self.known_barrier(of, name);
        let token = self.check_token(of, branch_name, Token::from_u64(*token)).map(|grant| grant.token);
        let (pipeline, open) = match known {
            Err(unknown) => return token.and(Err(unknown)),
            Ok((_, KnownBarrier::Closed(closed))) => {
                let refusal = token.map_or_else(|refusal| refusal, |_| closed.refusal(of, name));
                // What is staged under this id now was not there, whatever was staged under it before.
                let is_new = closed.is_committed && self.staged_as(of, branch_name, stage_id).is_ok();
                return if is_new { Err(refusal) } else { Ok(ArriveVerdict::Late(closed, refusal)) };
            }
            Ok((pipeline, KnownBarrier::Open(open))) => (pipeline, open),
        };
        let token = token?;
        if !open.awaits(branch_name) {
            let expected = format!("one of those that barrier '{name}' of '{of}' waits for: {}", open.named());
            return Err(Refusal::field(Reason::InvalidField, "branch", branch_name, &expected));
        }
        let staged = self.staged_as(of, branch_name, stage_id)?;
        match staged.barrier() {
            Some(at) if at == name => return Ok(ArriveVerdict::Repeat),
            Some(_) => return Err(pending(of, branch_name, staged)),
            None => {}
        }
        if open.is_overdue(now_ms) {
            return Err(open.overdue(of, name));
        }
        let barrier = BarrierRef { name: name.clone(), opened_lsn: open.opened.as_u64() };
        let is_there = |(branch, arrived): (&str, Option<&Staged>)| *branch == **branch_name || arrived.is_some();
        if pipeline.arrivals(name, open).all(is_there) {
            return pipeline.completed(of, open, barrier, now_ms).map(ArriveVerdict::Completed);
        }
        Ok(ArriveVerdict::Arrived(BarrierArrived {
            pipeline: of.clone(),
            barrier: Some(barrier),
            branch: branch_name.clone(),
            token: token.as_u64(),
            staged_lsn: staged.lsn.as_u64(),
        }))
    }

    /// Judges that a barrier is given up.
    pub fn evaluate_abort_barrier(&self, request: &AbortBarrierRequest) -> Result<AbortVerdict, Refusal> {
        self.check_cluster(request.cluster.as_ref())?;
        let AbortBarrierRequest { pipeline: of, name, actor, reason, .. } = request;
        self.check_ready(of)?;
        match self.known_barrier(of, name)? {
            (_, KnownBarrier::Closed(closed)) if closed.is_committed => {
                let message = format!(
                    "barrier '{name}' of '{of}' is complete (LSN {}), and what is committed is not taken back by an abort: \
                     rewind its branches if that is meant",
                    closed.lsn
                );
                Err(closed.told(Refusal::new(Reason::BarrierClosed, message), name))
            }
            (_, KnownBarrier::Closed(closed)) => Ok(AbortVerdict::Repeat(closed)),
            (pipeline, KnownBarrier::Open(open)) => {
                Ok(AbortVerdict::Abort(pipeline.aborted(of, name, open, actor, reason)))
            }
        }
    }

    /// The end of the open barrier with the earliest deadline, if that has passed.
    pub fn evaluate_overdue(&self, now_ms: u64) -> Option<BarrierAborted> {
        let (of, name) = self.overdue_barrier(now_ms)?;
        let pipeline = self.pipeline(of)?;
        let open = pipeline.barriers.open(name)?;
        Some(pipeline.aborted(of, name, open, "", "the deadline passed"))
    }

    /// The barrier of that name, if it is open or was closed not long ago.
    pub fn known_barrier(&self, of: &str, name: &str) -> Result<(&Pipeline, KnownBarrier<'_>), Refusal> {
        let known = self.pipeline(of).and_then(|pipeline| Some((pipeline, pipeline.barrier(name)?)));
        known.ok_or_else(|| unknown(of, name))
    }
}

impl Pipeline {
    /// The commit of all participants, by what they have staged.
    fn completed(&self, of: &str, open: &OpenBarrier, barrier: BarrierRef, now_ms: u64) -> Result<Committed, Refusal> {
        let commit_id = format!("{BARRIER_ID_PREFIX}{}", open.opened);
        let moved = |name: &str| {
            let branch = self.branches.get(name);
            let there = branch.and_then(|branch| Some((branch, branch.staged()?, branch.last_grant()?)));
            let (branch, staged, grant) = there.expect("a branch that has arrived has a worker and something staged");
            CommittedBranch {
                branch: name.to_string(),
                sequence: staged.sequence,
                token: grant.token.as_u64(),
                retained_from: branch.retained_after(self.policy(), staged.sequence, now_ms),
                staged_lsn: staged.lsn.as_u64(),
                ..CommittedBranch::default()
            }
        };
        Ok(Committed {
            pipeline: of.to_owned(),
            digest: Bytes::copy_from_slice(&id_key(&commit_id)),
            commit_id,
            branches: open.participants.iter().map(|name| moved(name)).collect(),
            number: next_number(Some(self))?,
            barrier: Some(barrier),
            merge: None,
        })
    }

    fn aborted(&self, of: &str, name: &str, open: &OpenBarrier, actor: &str, reason: &str) -> BarrierAborted {
        let participants = self.arrivals(name, open).map(|(branch, staged)| AbortedParticipant {
            branch: branch.to_owned(),
            holder: self.holder(branch),
            staged_lsn: staged.map_or(0, |staged| staged.lsn.as_u64()),
            sequence: staged.map_or(0, |staged| staged.sequence),
        });
        BarrierAborted {
            pipeline: of.to_owned(),
            barrier: Some(BarrierRef { name: name.to_owned(), opened_lsn: open.opened.as_u64() }),
            actor: actor.to_owned(),
            reason: reason.to_owned(),
            participants: participants.collect(),
        }
    }
}

impl OpenBarrier {
    /// Checks that it waits for these branches and no others.
    fn check_participants(&self, of: &str, name: &str, participants: &[String]) -> Result<(), Refusal> {
        if self.participants.iter().map(|it| &**it).eq(participants.iter().map(String::as_str)) {
            return Ok(());
        }
        Err(other_participants(of, name, &self.named()))
    }

    /// What is told who comes after the deadline, but before the abort.
    fn overdue(&self, of: &str, name: &str) -> Refusal {
        let message = format!(
            "the deadline of barrier '{name}' of '{of}' has passed, and it is given up as soon as the log has room to say so: \
             open another one under a new name, and arrive there"
        );
        Refusal::new(Reason::BarrierAborted, message).with("barrier", name).with("deadline_ms", self.deadline_ms)
    }

    fn named(&self) -> String {
        named(self.participants.iter().map(|it| &**it))
    }
}

impl ClosedBarrier {
    /// What is told who comes too late.
    fn refusal(&self, of: &str, name: &str) -> Refusal {
        let lsn = self.lsn;
        let (reason, message) = if self.is_committed {
            let message = format!(
                "barrier '{name}' of '{of}' is complete (LSN {lsn}), so this is late data: discard what is staged, and \
                 commit it to a branch of its own with late_for = '{name}'"
            );
            (Reason::BarrierClosed, message)
        } else {
            let message = format!(
                "barrier '{name}' of '{of}' was given up (LSN {lsn}), and what had arrived was discarded: open another one \
                 under a new name, and arrive there"
            );
            (Reason::BarrierAborted, message)
        };
        self.told(Refusal::new(reason, message), name)
    }

    fn told(&self, refusal: Refusal, name: &str) -> Refusal {
        refusal.with("barrier", name).with("closed_lsn", self.lsn.as_u64())
    }
}

/// What is told who opens a barrier that waits, or waited, for others.
pub fn other_participants(of: &str, name: &str, participants: &str) -> Refusal {
    let message = format!(
        "barrier '{name}' of '{of}' exists, and its participants are {participants}: give the same ones, or choose another \
         name"
    );
    Refusal::new(Reason::Exists, message).with("field", "name").with("value", name)
}

/// Branches in words, as many as fit into a message.
pub fn named<'a>(branches: impl ExactSizeIterator<Item = &'a str>) -> String {
    const BYTES_MAX: usize = 600;
    let (mut said, mut rest) = (String::new(), branches.len());
    for branch in branches {
        if said.len() + branch.len() > BYTES_MAX {
            return format!("{said} and {rest} more");
        }
        rest -= 1;
        said += if said.is_empty() { "" } else { ", " };
        said += branch;
    }
    said
}

fn unknown(of: &str, name: &str) -> Refusal {
    let message = format!(
        "pipeline '{of}' has no barrier '{name}', or closed it so long ago that it is forgotten: 'fencepost barriers' lists \
         those that it has"
    );
    Refusal::new(Reason::StateMissing, message).with("pipeline", of).with("barrier", name)
}
