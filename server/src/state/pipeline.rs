//! Pipelines and branches: what is known of them, and how they are asked.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use fencepost::v1::Fingerprint;
use fencepost::{LogIndex, Lsn, Token};

use super::barrier::Barriers;
use super::dead::DeadLetters;
use super::lease::{Grant, Standing};
use super::merge::Merges;
use super::retention::{PolicyInForce, Times};
use super::rewind::Rewinds;
use super::savepoint::Savepoints;
use super::schema::Schemas;
use super::scope::scope_digest;
use super::staged::Staged;
use super::window::{self, CommitWindow, Digest};

/// How many earlier grants of a branch are remembered by their requests.
pub(super) const GRANTS_REMEMBERED: usize = 4;

/// One pipeline: unit of atomicity.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pipeline {
    pub(super) branches: BTreeMap<Box<str>, Branch>,
    pub(super) window: CommitWindow,
    pub(super) leases: u64,
    pub(super) last_committed_at_ms: u64,
    /// The newest rewind of any branch.
    pub(super) last_rewound: Lsn,
    pub(super) policy: Option<Box<PolicyInForce>>,
    pub(super) savepoints: Savepoints,
    pub(super) origin: Origin,
    /// The newest fact that ended all leases at once.
    pub(super) last_fenced: Lsn,
    pub(super) barriers: Barriers,
    pub(super) merges: Merges,
    pub(super) dead: DeadLetters,
    pub(super) schemas: Schemas,
}

/// Where a pipeline's history comes from.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Origin {
    /// It was made here.
    #[default]
    Here,
    /// A file with this digest is being imported.
    Importing(Bytes),
    /// A file with this digest was imported.
    Imported(Bytes),
}

/// One branch: its head, who may move it, and what is kept of its past.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Branch {
    /// Sequence 0: none.
    pub(super) head: Head,
    /// The oldest sequence that retention keeps. 0, before the first commit, is as good as 1.
    pub(super) retained_from: u64,
    /// The newest grant, also after its end: it is who had the branch before the next one.
    pub(super) grant: Option<Box<Grant>>,
    /// Requests that were granted the branch before, oldest first, so that a late retry of one is not granted it anew.
    pub(super) granted_before: Box<[(Digest, Token)]>,
    /// What only few branches have.
    pub(super) past: Option<Box<Past>>,
}

/// What is known of a branch that was rewound, whose checkpoints are kept by their age, that has something staged, whose
/// head was staged or has a scope, or whose pipeline has declared schemas.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Past {
    pub(super) rewinds: Rewinds,
    pub(super) times: Times,
    pub(super) staged: Option<Box<Staged>>,
    /// The fingerprint of the head's schema, if the pipeline had declared any; empty after a rewind.
    pub(super) schema: Bytes,
    /// The digest of the head's scope. `None`: it has no scope, or a rewind made it the head.
    pub(super) scope: Option<Digest>,
    /// Where the head's checkpoint was staged. Zero: it came with the commit, or a rewind made it the head.
    pub(super) staged_at: Lsn,
}

/// The resume point of a branch. What it says is in the log, at `lsn`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// 1, 2, 3.
    pub sequence: u64,
    /// The fact that made it.
    pub lsn: Lsn,
    /// By the server's wall clock, for people and for retention.
    pub committed_at_ms: u64,
}

impl Pipeline {
    /// Branches in the order of their names, from the first one after `after`.
    pub fn branches_after<'a>(&'a self, after: &str) -> impl Iterator<Item = (&'a str, &'a Branch)> {
        self.branches
            .range::<str, _>((Bound::Excluded(after), Bound::Unbounded))
            .map(|(name, branch)| (&**name, branch))
    }

    /// Number of branches, and of those that somebody holds.
    pub fn counts(&self) -> (u64, u64) {
        (self.branches.len() as u64, self.leases)
    }

    /// How many commits there were, each of one or more branches, and when the newest was.
    pub fn commits(&self) -> (u64, u64) {
        (self.window.newest(), self.last_committed_at_ms)
    }

    /// Whether it is half imported, so that nobody can use it yet.
    pub fn is_importing(&self) -> bool {
        matches!(self.origin, Origin::Importing(_))
    }

    /// The policy, if one was ever set.
    pub fn policy(&self) -> Option<&PolicyInForce> {
        self.policy.as_deref()
    }

    /// Whether a commit id that is not in the window may be one of an older commit.
    pub(super) fn has_forgotten(&self) -> bool {
        // Of an imported pipeline only the commits came along that were retained.
        self.window.has_forgotten() || self.origin != Origin::Here
    }
}

impl Branch {
    /// The resume point; `None` before the first commit.
    pub fn head(&self) -> Option<Head> {
        (self.head.sequence > 0).then_some(self.head)
    }

    /// The grant that is in force: nobody ended it, and nobody was granted the branch since.
    pub fn lease(&self) -> Option<&Grant> {
        self.last_grant().filter(|grant| grant.standing == Standing::InForce)
    }

    /// The newest grant, whether in force or over.
    pub fn last_grant(&self) -> Option<&Grant> {
        self.grant.as_deref()
    }

    /// The oldest sequence that retention keeps. Savepoints may keep older ones.
    pub fn retained_from(&self) -> u64 {
        self.retained_from.max(1)
    }

    /// The token that a request was granted, if that is remembered: the newest few requests are.
    pub(super) fn granted_to_request(&self, request_id: &str) -> Option<Token> {
        let request = window::key(request_id);
        if let Some(grant) = self.last_grant()
            && grant.request == request
        {
            return Some(grant.token);
        }
        self.granted_before.iter().find(|(granted, _)| *granted == request).map(|(_, token)| *token)
    }

    pub(super) fn take_grant(&mut self, grant: Grant) {
        // A replaced worker has arrived nowhere.
        self.leave_barrier();
        let before = self.grant.replace(Box::new(grant));
        // A rewind granted the branch to nobody's request.
        let Some(before) = before.filter(|before| before.standing != Standing::Rewound) else { return };
        let skipped = (self.granted_before.len() + 1).saturating_sub(GRANTS_REMEMBERED);
        let remembered = self.granted_before.iter().skip(skipped).copied();
        self.granted_before = remembered.chain([(before.request, before.token)]).collect();
    }

    pub(super) fn rewinds(&self) -> Option<&Rewinds> {
        self.past.as_deref().map(|past| &past.rewinds)
    }

    /// Whether a rewind left the checkpoint behind that this fact gave the branch.
    pub fn is_abandoned(&self, sequence: u64, lsn: Lsn) -> bool {
        self.rewinds().is_some_and(|rewinds| rewinds.abandon(sequence, lsn))
    }

    /// Whether every byte of the head's checkpoint was written after this entry of the log. Of one that a rewind made the
    /// head that is not known.
    pub fn is_head_after(&self, index: LogIndex) -> bool {
        let staged_at = self.past.as_deref().map(|past| past.staged_at).filter(|lsn| *lsn != Lsn::ZERO);
        !self.is_set_back() && staged_at.unwrap_or(self.head.lsn).index() > index
    }

    /// Whether the head is known to have this scope. It is not known of one that a rewind made the head.
    pub fn is_head_of_scope(&self, scope: &[Fingerprint]) -> bool {
        let own = self.past.as_deref().and_then(|past| past.scope);
        !self.is_set_back() && own == scope_digest(scope)
    }

    /// Whether the head is one that a rewind went back to.
    fn is_set_back(&self) -> bool {
        self.rewinds().and_then(Rewinds::last).is_some_and(|rewound| self.head.lsn < rewound)
    }

    /// Takes in what is known of a new head without reading it.
    pub(super) fn describe_head(&mut self, scope: Option<Digest>, staged_at: Lsn) {
        if self.past.is_some() || scope.is_some() || staged_at != Lsn::ZERO {
            self.change_past(|past| (past.scope, past.staged_at) = (scope, staged_at));
        }
    }

    /// Changes what only few branches have, and gives its memory back if nothing is left of it.
    pub(super) fn change_past(&mut self, change: impl FnOnce(&mut Past)) {
        let mut past = self.past.take().unwrap_or_default();
        change(&mut past);
        self.past = (*past != Past::default()).then_some(past);
    }
}

/// The value of `name`, made if need be. Looks up before it makes, so that a known name is never copied.
pub(crate) fn entry<'a, V: Default>(map: &'a mut BTreeMap<Box<str>, V>, name: &str) -> &'a mut V {
    if !map.contains_key(name) {
        map.insert(name.into(), V::default());
    }
    map.get_mut(name).expect("the name was there or was just inserted")
}
