//! Judging commits.

use fencepost::log::v1::{Committed, CommittedBranch};
use fencepost::v1::{BranchCommit, ClusterRef, CommitRequest, Merge};
use fencepost::{Lsn, Reason, Token};

use super::declared::Given;
use super::rewind::Rewinds;
use super::staged::check_pending;
use super::{Branch, COUNT_END, Digest, Pipeline, State};
use crate::error::Refusal;

/// A commit, its shape already checked.
#[derive(Clone, Debug)]
pub struct Commit {
    /// As it came, with the payload CRC of every checkpoint filled in.
    pub request: CommitRequest,
    /// Of what is committed. Not of tokens and time limits: they belong to the attempt.
    pub digest: Digest,
    /// What the payload check found, which counts only after the checks that come before it.
    pub payload_fault: Option<Refusal>,
}

/// How a commit is judged, if it is not refused.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant)] // It is moved once, into its fact, and on the way of every commit.
pub enum CommitVerdict {
    /// All branches move once this fact is durable.
    Apply(Committed),
    /// An earlier attempt moved them, here.
    AlreadyApplied(Lsn),
}

/// What is known of a commit whose answer was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// It is in the log.
    Applied(Lsn),
    /// It is in the log, but branches were rewound since: it counts if [`State::is_undone`] does not say otherwise of it.
    Perhaps(Lsn),
    /// It is not.
    NotApplied,
    /// The branch has a commit of that sequence; the history knows whether it was this one.
    AskHistory,
}

impl State {
    /// Judges a commit by the checks of `semantics.md`, in their order. `now_ms` is the server's wall clock, compared
    /// with nothing but the request's own `not_after` and the ages that the pipeline's policy keeps.
    pub fn evaluate_commit(&self, commit: Commit, now_ms: u64) -> Result<CommitVerdict, Refusal> {
        self.check_cluster(commit.request.cluster.as_ref())?;
        self.check_ready(&commit.request.pipeline)?;
        if let Some(lsn) = self.committed_before(&commit)? {
            return Ok(CommitVerdict::AlreadyApplied(lsn));
        }
        self.judge_moves(commit, None, now_ms).map(CommitVerdict::Apply)
    }

    /// Check 2 of `semantics.md`: where the commit is, if an earlier attempt put it there.
    pub(super) fn committed_before(&self, commit: &Commit) -> Result<Option<Lsn>, Refusal> {
        let Commit { request, digest, .. } = commit;
        let pipeline = self.pipeline(&request.pipeline);
        let found = pipeline.and_then(|pipeline| Some((pipeline, pipeline.window.get(&request.commit_id)?)));
        let Some((pipeline, (first, lsn))) = found else { return Ok(None) };
        let is_same = first == *digest;
        match is_same {
            _ if pipeline.was_undone(request, lsn, is_same) => Ok(None),
            true => Ok(Some(lsn)),
            false => Err(reused(&request.commit_id, lsn)),
        }
    }

    /// The checks that follow, over all branches of a commit, each in its turn. `merge` is how its one checkpoint was made,
    /// if it was merged.
    pub(super) fn judge_moves(&self, commit: Commit, merge: Option<Merge>, now_ms: u64) -> Result<Committed, Refusal> {
        let Commit { request, digest, payload_fault } = commit;
        let pipeline = self.pipeline(&request.pipeline);
        for branch in &request.branches {
            self.check_token(&request.pipeline, &branch.branch, Token::from_u64(branch.token))?;
        }
        for branch in &request.branches {
            let known = pipeline.and_then(|known| known.branches.get(&*branch.branch));
            check_pending(known, &request.pipeline, &branch.branch, &branch.staged)?;
        }
        for branch in &request.branches {
            check_sequence(pipeline, &request.pipeline, &branch.branch, branch.sequence)?;
        }
        check_not_after(request.not_after_ms, now_ms)?;
        if let Some(fault) = payload_fault {
            return Err(fault);
        }
        for (i, moved) in request.branches.iter().enumerate() {
            let (of, late) = (&request.pipeline, moved.checkpoint.as_ref());
            match merge {
                Some(_) => self.check_late(of, format_args!("checkpoint"), late)?,
                None => self.check_late(of, format_args!("branches[{i}].checkpoint"), late)?,
            }
        }
        if let Some(pipeline) = pipeline {
            pipeline.check_said(&request)?;
        }
        let number = next_number(pipeline)?;
        Ok(Committed {
            pipeline: request.pipeline,
            commit_id: request.commit_id,
            digest: bytes::Bytes::copy_from_slice(&digest),
            number,
            barrier: None,
            merge,
            branches: request
                .branches
                .into_iter()
                .map(|moved| {
                    let known = pipeline.and_then(|known| Some((known.policy(), known.branches.get(&*moved.branch)?)));
                    let (policy, branch) = known.expect("a branch whose token was just compared exists");
                    CommittedBranch {
                        retained_from: branch.retained_after(policy, moved.sequence, now_ms),
                        staged_lsn: branch.staged().map_or(0, |staged| staged.lsn.as_u64()),
                        branch: moved.branch,
                        sequence: moved.sequence,
                        token: moved.token,
                        checkpoint: moved.checkpoint,
                        dead_letters: moved.dead_letters,
                        replayed: moved.replayed,
                        handled_dead_letters: 0,
                    }
                })
                .collect(),
        })
    }

    /// Says how a commit ended. `branch` and `sequence` are one branch of it and the sequence it asked for, if the
    /// caller still knows.
    pub fn resolve_commit(
        &self,
        cluster: Option<&ClusterRef>,
        pipeline: &str,
        commit_id: &str,
        branch: Option<(&str, u64)>,
    ) -> Result<Resolution, Refusal> {
        self.check_cluster(cluster)?;
        let Some(known) = self.pipeline(pipeline) else { return Ok(Resolution::NotApplied) };
        if let Some((_, lsn)) = known.window.get(commit_id) {
            return Ok(if known.last_rewound > lsn { Resolution::Perhaps(lsn) } else { Resolution::Applied(lsn) });
        }
        if !known.has_forgotten() {
            return Ok(Resolution::NotApplied);
        }
        let Some((branch, sequence)) = branch else {
            let message = format!(
                "commit '{commit_id}' is not among the newest {} of '{pipeline}', and older ones are told by branch \
                 and sequence: give those of one branch of the commit",
                super::WINDOW_COMMITS
            );
            return Err(Refusal::new(Reason::DedupeWindowExceeded, message).with("commit_id", commit_id));
        };
        let head = self.branch(pipeline, branch).and_then(Branch::head).map_or(0, |head| head.sequence);
        Ok(if sequence > head { Resolution::NotApplied } else { Resolution::AskHistory })
    }

    /// Whether a rewind left any of the checkpoints behind that this commit, in the log at `lsn`, made.
    pub fn is_undone(&self, lsn: Lsn, commit: &Committed) -> bool {
        let moved = commit.branches.iter().map(|moved| (moved.branch.as_str(), moved.sequence));
        self.pipeline(&commit.pipeline).is_some_and(|pipeline| pipeline.abandoned_any(moved, lsn))
    }
}

impl Pipeline {
    /// Row counts, schemas and dead letters. Of what was staged they were checked then, but for those that it replays.
    fn check_said(&self, request: &CommitRequest) -> Result<(), Refusal> {
        fn given(moved: &BranchCommit) -> Option<Given<'_>> {
            Some((&moved.branch, moved.checkpoint.as_ref()?, moved.dead_letters.len()))
        }
        let CommitRequest { pipeline: name, branches, .. } = request;
        self.check_declared(name, branches.iter().filter_map(given))?;
        let added = branches.iter().map(|moved| moved.dead_letters.len()).sum();
        self.check_dead_letters(name, added, branches.iter().flat_map(|moved| &moved.replayed))
    }

    /// Whether the commit at `lsn`, whose id the request has, was undone by a rewind, so that its id is free again. If it
    /// is not known to be the same commit, a rewind of any branch of the request frees the id.
    fn was_undone(&self, request: &CommitRequest, lsn: Lsn, is_same: bool) -> bool {
        if self.last_rewound <= lsn {
            return false;
        }
        if is_same {
            return self
                .abandoned_any(request.branches.iter().map(|moved| (moved.branch.as_str(), moved.sequence)), lsn);
        }
        let mut branches = request.branches.iter().filter_map(|moved| self.branches.get(&*moved.branch));
        branches.any(|branch| branch.rewinds().and_then(Rewinds::last) > Some(lsn))
    }

    fn abandoned_any<'a>(&self, mut moved: impl Iterator<Item = (&'a str, u64)>, lsn: Lsn) -> bool {
        let is_abandoned = |branch: &str, sequence| Some(self.branches.get(branch)?.is_abandoned(sequence, lsn));
        moved.any(|(branch, sequence)| is_abandoned(branch, sequence).unwrap_or(false))
    }
}

/// Checks that the request's own time limit has not passed. 0: it has none.
pub(super) fn check_not_after(not_after_ms: u64, now_ms: u64) -> Result<(), Refusal> {
    if not_after_ms == 0 || now_ms <= not_after_ms {
        return Ok(());
    }
    let message = format!("not_after_ms is {not_after_ms}, and the server's clock is at {now_ms}");
    Err(Refusal::new(Reason::NotAfterPassed, message).with("server_time_ms", now_ms))
}

/// Which commit of the pipeline the next one is.
pub(super) fn next_number(pipeline: Option<&Pipeline>) -> Result<u64, Refusal> {
    let number = pipeline.map_or(0, |pipeline| pipeline.window.newest()) + 1;
    if number < COUNT_END {
        return Ok(number);
    }
    Err(Refusal::new(Reason::Corrupt, "this pipeline has made 2^48 commits: there is no further number"))
}

/// Check 4: the sequence is the head's plus one.
pub(super) fn check_sequence(
    pipeline: Option<&Pipeline>,
    name: &str,
    branch: &str,
    sequence: u64,
) -> Result<(), Refusal> {
    let head = pipeline.and_then(|pipeline| pipeline.branches.get(branch)).and_then(Branch::head);
    let actual = head.map_or(0, |head| head.sequence);
    if sequence == actual + 1 && sequence >= COUNT_END {
        let message = format!("branch '{branch}' of '{name}' has made 2^48 checkpoints: there is no further sequence");
        return Err(Refusal::new(Reason::Corrupt, message).with("branch", branch));
    }
    if sequence == actual + 1 {
        return Ok(());
    }
    let message = format!(
        "branch '{branch}' of '{name}' is at sequence {actual}, so the next commit is {}, not {sequence}: read the \
         head again and build the commit from it",
        actual + 1
    );
    Err(Refusal::new(Reason::HeadMismatch, message)
        .with("branch", branch)
        .with("actual_head", actual)
        .with("actual_head_lsn", head.map_or(0, |head| head.lsn.as_u64())))
}

fn reused(commit_id: &str, lsn: Lsn) -> Refusal {
    let message = format!(
        "commit id '{commit_id}' is taken: the commit at LSN {lsn} used it with other content; use a new id for new \
         content"
    );
    Refusal::new(Reason::CommitIdReused, message).with("commit_id", commit_id).with("lsn", lsn.as_u64())
}
