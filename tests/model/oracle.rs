//! The plainest description of what a pipeline may do, as `docs/semantics.md` has it: no LSNs to follow, no facts, nothing
//! compacted. It says of every request how it must be judged, and what is true afterwards.

use std::collections::{BTreeMap, BTreeSet};

use fencepost::Reason;
use fencepost::v1::Takeover;

use crate::request::{Part, Request, Rows, What};

/// How many of its newest checkpoints a branch keeps in the model.
pub(crate) const KEEP_LAST: u64 = 3;

/// How a request must be judged.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Verdict {
    /// It happens now.
    Applied,
    /// It has happened before.
    Already,
    /// It does not happen.
    Refused(Reason),
}

/// A checkpoint of a branch, in the order of its history.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Saved {
    pub(crate) content: String,
    /// Which of all commits made it.
    pub(crate) commit: u64,
    /// The records that it skipped, by name.
    pub(crate) letters: Vec<String>,
    pub(crate) rows: Rows,
    pub(crate) barrier: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Staged {
    pub(crate) id: String,
    pub(crate) content: String,
    pub(crate) letters: Vec<String>,
    pub(crate) rows: Rows,
    pub(crate) arrived: Option<String>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Branch {
    pub(crate) history: Vec<Saved>,
    /// The oldest sequence that is kept.
    pub(crate) kept_from: u64,
    /// The newest token, and whether it is in force.
    pub(crate) token: u64,
    pub(crate) is_held: bool,
    /// Whether its holder gave it back.
    pub(crate) is_released: bool,
    /// A rewind of it, or a fence, is no holder to come after.
    pub(crate) holder: String,
    /// The request that the newest token was granted to, and the four before.
    pub(crate) granted: Option<(String, u64)>,
    pub(crate) granted_before: Vec<(String, u64)>,
    pub(crate) staged: Option<Staged>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Barrier {
    Open { participants: Vec<String>, deadline_ms: u64 },
    Committed,
    Aborted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Letter {
    /// Came with this commit.
    Open(u64),
    Handled,
    /// The checkpoint that it came with was abandoned.
    Void,
}

#[derive(Clone, Debug)]
pub(crate) struct Merged {
    pub(crate) digest: String,
    pub(crate) commit: u64,
    pub(crate) branch: String,
}

/// All that is true of one pipeline.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    pub(crate) now_ms: u64,
    pub(crate) branches: BTreeMap<String, Branch>,
    pub(crate) barriers: BTreeMap<String, Barrier>,
    /// Commit ids: content, and which commit it was.
    pub(crate) ids: BTreeMap<String, (String, u64)>,
    /// How many commits were made.
    pub(crate) commits: u64,
    pub(crate) letters: BTreeMap<String, Letter>,
    /// By the commits that made the inputs, and the branches.
    pub(crate) merges: BTreeMap<Vec<(String, u64)>, Merged>,
    pub(crate) tokens: BTreeSet<u64>,
    pub(crate) reconciles_rows: bool,
}

impl Oracle {
    pub(crate) fn branch(&self, name: &str) -> Branch {
        self.branches.get(name).cloned().unwrap_or_default()
    }

    fn branch_mut(&mut self, name: &str) -> &mut Branch {
        self.branches.entry(name.to_owned()).or_default()
    }

    pub(crate) fn head(&self, name: &str) -> u64 {
        self.branches.get(name).map_or(0, |branch| branch.history.len() as u64)
    }

    /// Says how the request must be judged.
    pub(crate) fn judge(&self, request: &Request) -> Verdict {
        let outcome = match request {
            Request::Resume { branch, request_id, holder, takeover, is_silent } => {
                return self.judge_resume(branch, request_id, holder, *takeover, *is_silent);
            }
            Request::Release { branch, token } => {
                let known = self.branch(branch);
                if known.is_released && known.token == *token {
                    return Verdict::Already;
                }
                self.check_token(branch, *token)
            }
            Request::Commit { id, parts } => {
                if let Some(known) = self.known_commit(id, &Request::content_of(parts), parts) {
                    return known;
                }
                self.judge_parts(parts)
            }
            Request::Stage { part, id } => {
                let staged = self.branch(&part.branch).staged;
                if let Some(staged) = staged.filter(|staged| staged.id == *id) {
                    let is_same = staged.content == part.content() && staged.letters == part.letters;
                    return if is_same { Verdict::Already } else { Verdict::Refused(Reason::CommitIdReused) };
                }
                self.judge_parts(std::slice::from_ref(part))
            }
            Request::Discard { branch, token, id } => {
                self.check_token(branch, *token).and_then(|()| self.staged_as(branch, id).map(drop))
            }
            Request::Open { name, participants, .. } => match self.barriers.get(name) {
                Some(Barrier::Open { participants: known, .. }) if known != participants => Err(Reason::Exists),
                Some(_) => return Verdict::Already,
                None => Ok(()),
            },
            Request::Arrive { barrier, branch, token, id } => return self.judge_arrive(barrier, branch, *token, id),
            Request::Abort { barrier } => match self.barriers.get(barrier) {
                None => Err(Reason::StateMissing),
                Some(Barrier::Committed) => Err(Reason::BarrierClosed),
                Some(Barrier::Aborted) => return Verdict::Already,
                Some(Barrier::Open { .. }) => Ok(()),
            },
            Request::Merge { id, part, inputs, digest } => return self.judge_merge(id, part, inputs, digest),
            Request::DiscardLetters { letters } => self.check_letters(letters),
            Request::Rewind { branch, to, expected } => self.judge_rewind(branch, *to, *expected),
            Request::Fork { from, sequence, to } => self.judge_fork(from, *sequence, to),
            Request::Fence => Ok(()),
        };
        outcome.map_or_else(Verdict::Refused, |()| Verdict::Applied)
    }

    fn judge_resume(&self, name: &str, id: &str, holder: &str, takeover: Takeover, is_silent: bool) -> Verdict {
        let branch = self.branch(name);
        let mut granted = branch.granted.iter().chain(&branch.granted_before);
        if let Some((_, token)) = granted.find(|(request, _)| request == id) {
            let is_current = branch.is_held && branch.token == *token;
            return if is_current { Verdict::Already } else { Verdict::Refused(Reason::Fenced) };
        }
        let is_own_ghost = takeover == Takeover::SameHolder && branch.holder == holder;
        let may_take = !branch.is_held || is_silent || is_own_ghost || takeover == Takeover::Force;
        if may_take { Verdict::Applied } else { Verdict::Refused(Reason::LeaseHeld) }
    }

    fn judge_arrive(&self, barrier: &str, branch: &str, token: u64, id: &str) -> Verdict {
        let refused = |reason| Verdict::Refused(reason);
        match self.barriers.get(barrier) {
            Some(Barrier::Committed) => {
                // It is the arrival itself once more if it made the head that the barrier gave the branch.
                return match self.check_token(branch, token) {
                    Err(reason) => refused(reason),
                    Ok(()) => refused(Reason::BarrierClosed),
                };
            }
            Some(Barrier::Aborted) => {
                return refused(self.check_token(branch, token).err().unwrap_or(Reason::BarrierAborted));
            }
            None => return refused(self.check_token(branch, token).err().unwrap_or(Reason::StateMissing)),
            Some(Barrier::Open { participants, .. }) => {
                if let Err(reason) = self.check_token(branch, token) {
                    return refused(reason);
                }
                if !participants.iter().any(|it| it == branch) {
                    return refused(Reason::InvalidField);
                }
            }
        }
        match self.staged_as(branch, id) {
            Err(reason) => refused(reason),
            Ok(staged) => match &staged.arrived {
                None => Verdict::Applied,
                Some(at) if at == barrier => Verdict::Already,
                Some(_) => refused(Reason::StagedPending),
            },
        }
    }

    fn judge_merge(&self, id: &str, part: &Part, inputs: &[(String, u64)], digest: &str) -> Verdict {
        let content = format!("{} from {inputs:?} is {digest}", part.content());
        if let Some(known) = self.known_commit(id, &content, std::slice::from_ref(part)) {
            return known;
        }
        for (name, sequence) in inputs {
            if let Err(reason) = self.check_kept(name, *sequence) {
                return Verdict::Refused(reason);
            }
        }
        if let Some(merged) = self.merges.get(&self.identity(inputs)).filter(|merged| self.is_standing(merged)) {
            return if merged.digest == digest { Verdict::Already } else { Verdict::Refused(Reason::MergeDiverged) };
        }
        self.judge_parts(std::slice::from_ref(part)).map_or_else(Verdict::Refused, |()| Verdict::Applied)
    }

    /// Whether what was merged has not been abandoned by a rewind.
    fn is_standing(&self, merged: &Merged) -> bool {
        self.branch(&merged.branch).history.iter().any(|saved| saved.commit == merged.commit)
    }

    fn identity(&self, inputs: &[(String, u64)]) -> Vec<(String, u64)> {
        let of =
            |(name, sequence): &(String, u64)| (name.clone(), self.branch(name).history[*sequence as usize - 1].commit);
        inputs.iter().map(of).collect()
    }

    fn judge_rewind(&self, name: &str, to: u64, expected: u64) -> Result<(), Reason> {
        let branch = self.branches.get(name).ok_or(Reason::StateMissing)?;
        let head = branch.history.len() as u64;
        if head != expected {
            return Err(Reason::HeadMismatch);
        }
        if to == 0 || to == head { Ok(()) } else { self.check_kept(name, to) }
    }

    fn judge_fork(&self, from: &str, sequence: u64, to: &str) -> Result<(), Reason> {
        self.check_kept(from, sequence)?;
        if self.branches.contains_key(to) { Err(Reason::Exists) } else { Ok(()) }
    }

    fn check_kept(&self, name: &str, sequence: u64) -> Result<(), Reason> {
        let branch = self.branches.get(name).ok_or(Reason::StateMissing)?;
        match sequence {
            0 => Err(Reason::StateMissing),
            _ if sequence > branch.history.len() as u64 => Err(Reason::StateMissing),
            _ if sequence < branch.kept_from => Err(Reason::Compacted),
            _ => Ok(()),
        }
    }

    /// How a commit with a known id is judged; nothing if its id is free.
    fn known_commit(&self, id: &str, content: &str, parts: &[Part]) -> Option<Verdict> {
        let (known, commit) = self.ids.get(id)?;
        // A commit is undone if any of its checkpoints was abandoned. In the model an id is never used for other content.
        assert_eq!(known, content, "the model uses an id for one content");
        let is_undone = parts.iter().any(|part| {
            let history = self.branch(&part.branch).history;
            !history.iter().any(|saved| saved.commit == *commit)
        });
        (!is_undone).then_some(Verdict::Already)
    }

    /// The checks of a commit after that by its id, in their order.
    fn judge_parts(&self, parts: &[Part]) -> Result<(), Reason> {
        for part in parts {
            self.check_token(&part.branch, part.token)?;
        }
        for part in parts {
            let staged = self.branch(&part.branch).staged;
            match (&part.what, staged) {
                (What::Fresh(_), None) => {}
                (What::Fresh(_), Some(_)) => return Err(Reason::StagedPending),
                (What::Staged(_), None) => return Err(Reason::StateMissing),
                (What::Staged(id), Some(staged)) if staged.id != *id || staged.arrived.is_some() => {
                    return Err(Reason::StagedPending);
                }
                (What::Staged(_), Some(_)) => {}
            }
        }
        for part in parts {
            if part.sequence != self.head(&part.branch) + 1 {
                return Err(Reason::HeadMismatch);
            }
        }
        for part in parts.iter().filter(|part| matches!(part.what, What::Fresh(_))) {
            let Rows { read, written, filtered } = part.rows;
            if self.reconciles_rows && read != written + filtered + part.letters.len() as u64 {
                return Err(Reason::IntegrityMismatch);
            }
        }
        let replayed: Vec<String> = parts.iter().flat_map(|part| part.replayed.clone()).collect();
        self.check_letters(&replayed)
    }

    fn check_letters(&self, letters: &[String]) -> Result<(), Reason> {
        let is_open = |letter: &String| matches!(self.letters.get(letter), Some(Letter::Open(_)));
        if letters.iter().all(is_open) { Ok(()) } else { Err(Reason::DeadLetterHandled) }
    }

    pub(crate) fn check_token(&self, name: &str, token: u64) -> Result<(), Reason> {
        let is_current = self.branches.get(name).is_some_and(|branch| branch.is_held && branch.token == token);
        if is_current { Ok(()) } else { Err(Reason::Fenced) }
    }

    fn staged_as(&self, name: &str, id: &str) -> Result<Staged, Reason> {
        match self.branch(name).staged {
            Some(staged) if staged.id == id => Ok(staged),
            Some(_) => Err(Reason::StagedPending),
            None => Err(Reason::StateMissing),
        }
    }

    /// Makes true what the request does. `token` is what was minted, if anything.
    pub(crate) fn apply(&mut self, request: &Request, token: u64) {
        if token != 0 {
            assert!(self.tokens.last().is_none_or(|last| *last < token), "tokens only grow");
            self.tokens.insert(token);
        }
        match request {
            Request::Resume { branch, request_id, holder, .. } => {
                let branch = self.branch_mut(branch);
                branch.lose_arrival();
                (branch.token, branch.is_held, branch.holder) = (token, true, holder.clone());
                branch.is_released = false;
                branch.remember_grant();
                branch.granted = Some((request_id.clone(), token));
            }
            Request::Release { branch, .. } => {
                let branch = self.branch_mut(branch);
                (branch.is_held, branch.is_released) = (false, true);
            }
            Request::Commit { id, parts } => {
                self.commit(parts);
                self.ids.insert(id.clone(), (Request::content_of(parts), self.commits));
            }
            Request::Stage { part, id } => {
                let staged = Staged {
                    id: id.clone(),
                    content: part.content(),
                    letters: part.letters.clone(),
                    rows: part.rows,
                    arrived: None,
                };
                self.branch_mut(&part.branch).staged = Some(staged);
            }
            Request::Discard { branch, .. } => self.branch_mut(branch).staged = None,
            Request::Open { name, participants, timeout_ms } => {
                let deadline_ms = if *timeout_ms == 0 { 0 } else { self.now_ms + timeout_ms };
                let barrier = Barrier::Open { participants: participants.clone(), deadline_ms };
                self.barriers.insert(name.clone(), barrier);
            }
            Request::Arrive { barrier, branch, .. } => self.arrive(barrier, branch),
            Request::Abort { barrier } => self.abort(barrier),
            Request::Merge { id, part, inputs, digest } => {
                let identity = self.identity(inputs);
                self.commit(std::slice::from_ref(part));
                let (commit, branch) = (self.commits, part.branch.clone());
                self.merges.insert(identity, Merged { digest: digest.clone(), commit, branch });
                let content = format!("{} from {inputs:?} is {digest}", part.content());
                self.ids.insert(id.clone(), (content, commit));
            }
            Request::DiscardLetters { letters } => self.handle(letters),
            Request::Rewind { branch, to, .. } => self.rewind(branch, *to, token),
            Request::Fork { to, .. } => {
                self.commits += 1;
                let saved = Saved { content: "forked".to_owned(), commit: self.commits, ..Saved::default() };
                let branch = self.branch_mut(to);
                branch.history.push(saved);
                branch.kept_from = 1;
            }
            Request::Fence => {
                for branch in self.branches.values_mut() {
                    branch.lose_arrival();
                    branch.is_held = false;
                }
            }
        }
    }

    fn arrive(&mut self, name: &str, branch: &str) {
        if let Some(staged) = &mut self.branch_mut(branch).staged {
            staged.arrived = Some(name.to_owned());
        }
        let Some(Barrier::Open { participants, .. }) = self.barriers.get(name).cloned() else { return };
        let is_there =
            |branch: &String| self.branch(branch).staged.is_some_and(|staged| staged.arrived.as_deref() == Some(name));
        if !participants.iter().all(is_there) {
            return;
        }
        self.commits += 1;
        for branch in &participants {
            let staged = self.branch_mut(branch).staged.take().expect("it was there");
            let Staged { content, letters, rows, .. } = staged;
            self.save(branch, Saved { content, commit: self.commits, letters, rows, barrier: Some(name.to_owned()) });
        }
        self.barriers.insert(name.to_owned(), Barrier::Committed);
    }

    fn abort(&mut self, name: &str) {
        for branch in self.branches.values_mut() {
            if branch.staged.as_ref().is_some_and(|staged| staged.arrived.as_deref() == Some(name)) {
                branch.staged = None;
            }
        }
        self.barriers.insert(name.to_owned(), Barrier::Aborted);
    }

    /// Lets time pass. Returns the barriers whose deadline passed.
    pub(crate) fn pass_time(&mut self, now_ms: u64) -> Vec<String> {
        self.now_ms = now_ms;
        let is_over = |barrier: &Barrier| matches!(barrier, Barrier::Open { deadline_ms, .. } if (1..=now_ms).contains(deadline_ms));
        let over = self.barriers.iter().filter(|(_, barrier)| is_over(barrier));
        let over: Vec<String> = over.map(|(name, _)| name.clone()).collect();
        for name in &over {
            self.abort(name);
        }
        over
    }

    fn commit(&mut self, parts: &[Part]) {
        self.commits += 1;
        for part in parts {
            self.handle(&part.replayed);
            let commit = self.commits;
            let saved = match &part.what {
                What::Fresh(_) => {
                    let (letters, rows) = (part.letters.clone(), part.rows);
                    Saved { content: part.content(), commit, letters, rows, barrier: None }
                }
                What::Staged(_) => {
                    let staged = self.branch_mut(&part.branch).staged.take().expect("the verdict says it is there");
                    let Staged { content, letters, rows, .. } = staged;
                    Saved { content, commit, letters, rows, barrier: None }
                }
            };
            self.save(&part.branch, saved);
        }
    }

    fn save(&mut self, name: &str, saved: Saved) {
        for letter in &saved.letters {
            self.letters.insert(letter.clone(), Letter::Open(saved.commit));
        }
        let branch = self.branch_mut(name);
        branch.history.push(saved);
        let sequence = branch.history.len() as u64;
        branch.kept_from = branch.kept_from.max((sequence + 1).saturating_sub(KEEP_LAST)).max(1);
    }

    fn handle(&mut self, letters: &[String]) {
        for letter in letters {
            self.letters.insert(letter.clone(), Letter::Handled);
        }
    }

    fn rewind(&mut self, name: &str, to: u64, token: u64) {
        let branch = self.branch_mut(name);
        let abandoned = branch.history.split_off(to as usize);
        (branch.token, branch.is_held, branch.holder) = (token, false, String::new());
        branch.is_released = false;
        branch.remember_grant();
        branch.staged = None;
        branch.kept_from = branch.kept_from.min(to.max(1));
        for letter in abandoned.into_iter().flat_map(|saved| saved.letters) {
            if matches!(self.letters.get(&letter), Some(Letter::Open(_))) {
                self.letters.insert(letter, Letter::Void);
            }
        }
    }
}

impl Branch {
    fn remember_grant(&mut self) {
        self.granted_before.extend(self.granted.take());
        let forgotten = self.granted_before.len().saturating_sub(4);
        self.granted_before.drain(..forgotten);
    }

    fn lose_arrival(&mut self) {
        if let Some(staged) = &mut self.staged {
            staged.arrived = None;
        }
    }
}
