//! What an export has of each fact of its pipeline.

use bytes::Bytes;
use fencepost::log::v1::fact::Kind;
use fencepost::log::v1::{Committed, CommittedBranch, Fact, Imported};
use fencepost::v1::{DeadLetter, DeadLetterId};
use fencepost::{Lsn, Made, Payload};
use prost::Message as _;

use super::manifest::BadSnapshot;
use super::transfer::Contents;
use crate::log::Log;
use crate::state::{Pipeline, State};

/// Turns facts of a pipeline into those of an export.
pub(super) struct Exporter<'a> {
    state: &'a State,
    pipeline: &'a Pipeline,
    log: &'a Log,
    /// So many came before.
    commits: u64,
    /// What it was so far.
    pub(super) contents: Contents,
}

impl<'a> Exporter<'a> {
    pub(super) fn new(state: &'a State, name: &str, pipeline: &'a Pipeline, log: &'a Log) -> Exporter<'a> {
        let contents = Contents { pipeline: name.to_owned(), ..Contents::default() };
        Exporter { state, pipeline, log, commits: 0, contents }
    }

    /// What an export has of a fact of the pipeline.
    pub(super) fn take(&mut self, lsn: Lsn, fact: &Fact) -> Result<Vec<Kind>, BadSnapshot> {
        let is_wanted = match &fact.kind {
            Some(Kind::PolicySet(_)) => self.pipeline.policy().is_some_and(|policy| policy.lsn == lsn),
            Some(Kind::SavepointCreated(created)) => {
                let at = Lsn::from_u64(created.checkpoint_lsn);
                let branch = self.state.branch(&created.pipeline, &created.branch);
                let is_abandoned = branch.is_none_or(|branch| branch.is_abandoned(created.sequence, at));
                let is_there = self.pipeline.savepoint(&created.name).is_some_and(|known| known.created == lsn);
                self.contents.savepoints += u64::from(is_there && !is_abandoned);
                is_there && !is_abandoned
            }
            Some(Kind::SchemaDeclared(_)) => true,
            _ => return self.commits(lsn, fact),
        };
        Ok(fact.kind.iter().filter(|_| is_wanted).cloned().collect())
    }

    /// The checkpoints in it that are retained, and the dead letters that are open. What was staged comes each in a commit of
    /// its own: together it may be more than an entry has room for.
    fn commits(&mut self, lsn: Lsn, fact: &Fact) -> Result<Vec<Kind>, BadSnapshot> {
        let commit = fact.commit();
        let (mut here, mut staged, mut number) = (Vec::new(), Vec::new(), 0);
        for (place, Made { branch, sequence, payload }) in fact.checkpoints().enumerate() {
            let Some(known) = self.state.branch(&self.contents.pipeline, branch) else { continue };
            let is_kept = !known.is_abandoned(sequence, lsn)
                && self.state.is_retained(&self.contents.pipeline, branch, sequence, lsn);
            let moved = commit.and_then(|commit| commit.branches.get(place));
            let own = moved.map_or(&[][..], |moved| &moved.dead_letters);
            let made = CommittedBranch {
                branch: branch.to_owned(),
                sequence,
                token: moved.map_or(0, |moved| moved.token),
                retained_from: known.retained_from(),
                ..CommittedBranch::default()
            };
            if let Payload::Staged(at) = payload {
                if is_kept || self.is_open(DeadLetterId { lsn: at.as_u64(), number: 0 }, u32::MAX) {
                    staged.push(vec![self.staged(at, is_kept, made)?]);
                }
                continue;
            }
            let checkpoint = if let Payload::Here(checkpoint) = payload { Some(checkpoint.clone()) } else { None };
            let dead_letters = self.open(lsn, number, own);
            number += own.len() as u32;
            if is_kept || !dead_letters.is_empty() {
                let handled =
                    moved.map_or(0, |moved| moved.handled_dead_letters) + (own.len() - dead_letters.len()) as u32;
                let (checkpoint, handled_dead_letters) = (checkpoint.filter(|_| is_kept), handled);
                here.push(CommittedBranch { checkpoint, dead_letters, handled_dead_letters, ..made });
            }
        }
        let (commit_id, digest) = commit.map_or_else(
            || (String::new(), Bytes::from_static(&[0; 16])),
            |commit| (commit.commit_id.clone(), commit.digest.clone()),
        );
        let committed_at_ms = fact.committed_at_ms();
        let parts = [here].into_iter().chain(staged).filter(|branches| !branches.is_empty());
        let kinds = parts.map(|branches| {
            self.commits += 1;
            self.contents.checkpoints += branches.iter().filter(|moved| moved.checkpoint.is_some()).count() as u64;
            let (pipeline, number) = (self.contents.pipeline.clone(), self.commits);
            let (commit_id, digest) = (commit_id.clone(), digest.clone());
            let commit = Committed { pipeline, commit_id, digest, branches, number, ..Committed::default() };
            Kind::Imported(Imported { commit: Some(commit), committed_at_ms })
        });
        Ok(kinds.collect())
    }

    /// With what was staged at `at`: an export has no staged checkpoints.
    fn staged(&self, at: Lsn, is_kept: bool, made: CommittedBranch) -> Result<CommittedBranch, BadSnapshot> {
        let unreadable = |what: String| {
            BadSnapshot::Log(format!("the fact at LSN {at}, which staged what a commit refers to: {what}"))
        };
        let payload = self.log.read(at).map_err(|error| unreadable(error.to_string()))?;
        let fact = Fact::decode(payload).map_err(|error| unreadable(error.to_string()))?;
        let Some(Kind::Staged(staged)) = fact.kind else { return Err(unreadable("it stages nothing".to_owned())) };
        let dead_letters = self.open(at, 0, &staged.dead_letters);
        let handled = staged.handled_dead_letters + (staged.dead_letters.len() - dead_letters.len()) as u32;
        let (checkpoint, handled_dead_letters) = (staged.checkpoint.filter(|_| is_kept), handled);
        Ok(CommittedBranch { checkpoint, dead_letters, handled_dead_letters, ..made })
    }

    /// Those of these letters, numbered from `first` on, that are open. They get new numbers where they go.
    fn open(&self, lsn: Lsn, first: u32, letters: &[DeadLetter]) -> Vec<DeadLetter> {
        let numbered = (first..).zip(letters);
        let is_open = |number| self.is_open(DeadLetterId { lsn: lsn.as_u64(), number }, number);
        numbered.filter(|(number, _)| is_open(*number)).map(|(_, letter)| letter.clone()).collect()
    }

    /// Whether any letter from this one on, up to a number, is open.
    fn is_open(&self, first: DeadLetterId, last: u32) -> bool {
        let next = self.pipeline.dead_letters_from(first).next();
        next.is_some_and(|(id, ..)| id.lsn == first.lsn && id.number <= last)
    }
}
