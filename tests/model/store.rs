//! The state under test: requests of the model as they come in over the wire, judged and taken in by the server's own code.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use fencepost::log::v1::fact::Kind;
use fencepost::log::v1::{ClusterCreated, Fact, PolicySet};
use fencepost::v1::rewind_request::To;
use fencepost::v1::{
    AbortBarrierRequest, ArriveRequest, BranchCommit, Checkpoint, CommitRequest, DeadLetter, DeadLetterId,
    DiscardDeadLettersRequest, DiscardStagedRequest, FenceGroupRequest, ForkRequest, Integrity, LeaseRef, Merge,
    MergeInput, OnMissing, OpenBarrierRequest, Policy, ResumeRequest, RewindRequest, StageRequest,
    fork_request::From as ForkFrom,
};
use fencepost::{Lsn, Payload, Reason};
use fencepost_server::error::Refusal;
use fencepost_server::state::{
    AbortVerdict, ArriveVerdict, Commit, CommitVerdict, Input, Keep, MergeCommit, MergeVerdict, OpenVerdict, Place,
    Resume, ResumeTiming, ResumeVerdict, Stage, StageVerdict, State, StateLoader, id_key,
};

use crate::oracle::{KEEP_LAST, Verdict};
use crate::request::{Part, Request, Rows, What};

pub(crate) const PIPELINE: &str = "prod/flights";
const TTL: Duration = Duration::from_secs(30);

/// What became of a request: nothing new, or facts and the token that they mint.
enum Judged {
    Already,
    Fact(Box<Kind>),
}

pub(crate) struct Store {
    pub(crate) state: State,
    /// What compaction has left of all facts.
    pub(crate) log: Vec<(Lsn, Fact)>,
    /// Up to here compaction was judged.
    judged_at: Lsn,
    /// Of the newest checkpoint of each branch and sequence.
    places: BTreeMap<(String, u64), Place>,
    /// Where each dead letter is, by its name.
    pub(crate) letters: BTreeMap<String, DeadLetterId>,
    /// How many facts have handled each.
    pub(crate) handled: BTreeMap<DeadLetterKey, u64>,
    /// The newest fact, before any compaction.
    pub(crate) newest: Option<Fact>,
}

/// LSN and number.
pub(crate) type DeadLetterKey = (u64, u32);

impl Store {
    pub(crate) fn new(reconcile_rows: bool) -> Store {
        let mut store = Store {
            state: State::default(),
            log: Vec::new(),
            judged_at: Lsn::ZERO,
            places: BTreeMap::new(),
            letters: BTreeMap::new(),
            handled: BTreeMap::new(),
            newest: None,
        };
        store.record(Kind::ClusterCreated(ClusterCreated { cluster_id: "cluster".to_owned(), generation: 1 }), 0);
        // What is old enough goes at once.
        let policy = Policy { keep_last: KEEP_LAST, audit_for_ms: 1, reconcile_rows, ..Policy::default() };
        let set = PolicySet { pipeline: PIPELINE.to_owned(), policy: Some(policy), ..PolicySet::default() };
        store.record(Kind::PolicySet(set), 0);
        store
    }

    /// Judges a request and takes in what follows. With the verdict comes the token that was minted, or 0.
    pub(crate) fn send(&mut self, request: &Request, now_ms: u64) -> (Verdict, u64) {
        match self.judge(request, now_ms) {
            Err(refusal) => (Verdict::Refused(refusal.reason), 0),
            Ok(Judged::Already) => (Verdict::Already, 0),
            Ok(Judged::Fact(kind)) => {
                let token = match &*kind {
                    Kind::LeaseGranted(granted) => granted.token,
                    Kind::Rewound(rewound) => rewound.token,
                    Kind::GroupFenced(fenced) => fenced.token,
                    _ => 0,
                };
                self.record(*kind, now_ms);
                (Verdict::Applied, token)
            }
        }
    }

    /// Aborts the barriers whose deadline has passed. Returns their names.
    pub(crate) fn pass_time(&mut self, now_ms: u64) -> Vec<String> {
        let mut aborted = Vec::new();
        while let Some(fact) = self.state.evaluate_overdue(now_ms) {
            aborted.push(fact.barrier.clone().unwrap_or_default().name);
            self.record(Kind::BarrierAborted(fact), now_ms);
        }
        aborted
    }

    #[allow(clippy::too_many_lines)] // One arm for each kind of request.
    fn judge(&self, request: &Request, now_ms: u64) -> Result<Judged, Refusal> {
        let pipeline = PIPELINE.to_owned();
        Ok(match request {
            Request::Resume { branch, request_id, holder, takeover, is_silent } => {
                let request = ResumeRequest {
                    pipeline,
                    branch: branch.clone(),
                    holder: holder.clone(),
                    request_id: request_id.clone(),
                    ttl_ms: TTL.as_millis() as u64,
                    takeover: (*takeover).into(),
                    reason: "a test".to_owned(),
                    on_missing: OnMissing::StartFresh.into(),
                    ..ResumeRequest::default()
                };
                let silent = if *is_silent { 2 * TTL } else { Duration::ZERO };
                let timing = ResumeTiming { silent, arrived: self.state.applied() };
                let resume = Resume { request };
                match self.state.evaluate_resume(&resume, timing)? {
                    ResumeVerdict::Grant(granted) => fact(Kind::LeaseGranted(*granted)),
                    ResumeVerdict::Repeat(_) => Judged::Already,
                    ResumeVerdict::Held(remaining) => return Err(self.state.lease_held(&resume, remaining)),
                }
            }
            Request::Release { branch, token } => {
                let lease = LeaseRef { pipeline, branch: branch.clone(), token: *token };
                let released = self.state.evaluate_release(None, lease)?;
                released.map_or(Judged::Already, |released| fact(Kind::LeaseReleased(released)))
            }
            Request::Commit { id, parts } => {
                let commit = self.commit(id, parts, &Request::content_of(parts));
                match self.state.evaluate_commit(commit, now_ms)? {
                    CommitVerdict::Apply(committed) => fact(Kind::Committed(committed)),
                    CommitVerdict::AlreadyApplied(_) => Judged::Already,
                }
            }
            Request::Stage { part, id } => {
                let request = StageRequest {
                    pipeline,
                    branch: part.branch.clone(),
                    token: part.token,
                    sequence: part.sequence,
                    stage_id: id.clone(),
                    checkpoint: Some(checkpoint(part)),
                    dead_letters: letters(part),
                    ..StageRequest::default()
                };
                let content = format!("{} {:?}", part.content(), part.letters);
                match self
                    .state
                    .evaluate_stage(Stage { request, digest: digest(&content), payload_fault: None }, now_ms)?
                {
                    StageVerdict::Stage(staged) => fact(Kind::Staged(*staged)),
                    StageVerdict::AlreadyStaged(_) => Judged::Already,
                }
            }
            Request::Discard { branch, token, id } => {
                let request = DiscardStagedRequest {
                    pipeline,
                    branch: branch.clone(),
                    token: *token,
                    stage_id: id.clone(),
                    ..DiscardStagedRequest::default()
                };
                fact(Kind::StagedDiscarded(self.state.evaluate_discard_staged(&request)?))
            }
            Request::Open { name, participants, timeout_ms } => {
                let request = OpenBarrierRequest {
                    pipeline,
                    name: name.clone(),
                    participants: participants.clone(),
                    timeout_ms: *timeout_ms,
                    ..OpenBarrierRequest::default()
                };
                match self.state.evaluate_open_barrier(&request, now_ms)? {
                    OpenVerdict::Open(opened) => fact(Kind::BarrierOpened(opened)),
                    OpenVerdict::Repeat | OpenVerdict::Closed(_) => Judged::Already,
                }
            }
            Request::Arrive { barrier, branch, token, id } => {
                let request = ArriveRequest {
                    pipeline,
                    barrier: barrier.clone(),
                    branch: branch.clone(),
                    token: *token,
                    stage_id: id.clone(),
                    ..ArriveRequest::default()
                };
                match self.state.evaluate_arrive(&request, now_ms)? {
                    ArriveVerdict::Arrived(arrived) => fact(Kind::BarrierArrived(arrived)),
                    ArriveVerdict::Completed(committed) => fact(Kind::Committed(committed)),
                    ArriveVerdict::Repeat => Judged::Already,
                    ArriveVerdict::Late(_, refusal) => return Err(refusal),
                }
            }
            Request::Abort { barrier } => {
                let (name, reason) = (barrier.clone(), "a test".to_owned());
                let request = AbortBarrierRequest { pipeline, name, reason, ..AbortBarrierRequest::default() };
                match self.state.evaluate_abort_barrier(&request)? {
                    AbortVerdict::Abort(aborted) => fact(Kind::BarrierAborted(aborted)),
                    AbortVerdict::Repeat(_) => Judged::Already,
                }
            }
            Request::Merge { id, part, inputs, digest } => {
                let content = format!("{} from {inputs:?} is {digest}", part.content());
                let commit = self.commit(id, std::slice::from_ref(part), &content);
                let merge = Merge {
                    function: "latest".to_owned(),
                    version: "1".to_owned(),
                    output_digest: digest.clone().into_bytes().into(),
                    inputs: Vec::new(),
                };
                let inputs = inputs.iter().map(|(branch, sequence)| self.input(branch, *sequence)).collect();
                match self.state.evaluate_merge(MergeCommit { commit, merge, inputs }, now_ms)? {
                    MergeVerdict::Apply(committed) => fact(Kind::Committed(*committed)),
                    MergeVerdict::Already(..) => Judged::Already,
                }
            }
            Request::DiscardLetters { letters } => {
                let letters = letters.iter().map(|letter| self.letter(letter)).collect();
                let request = DiscardDeadLettersRequest { pipeline, letters, ..DiscardDeadLettersRequest::default() };
                let discarded = self.state.evaluate_discard_dead_letters(&request)?;
                fact(Kind::DeadLettersDiscarded(discarded))
            }
            Request::Rewind { branch, to, expected } => {
                let request = RewindRequest {
                    pipeline,
                    branch: branch.clone(),
                    to: Some(To::Sequence(*to)),
                    expected_head: *expected,
                    reason: "a test".to_owned(),
                    ..RewindRequest::default()
                };
                let found = self.places.get(&(branch.clone(), *to)).copied();
                fact(Kind::Rewound(self.state.evaluate_rewind(&request, found)?))
            }
            Request::Fork { from, sequence, to } => {
                let request = ForkRequest {
                    source_pipeline: pipeline.clone(),
                    source_branch: from.clone(),
                    from: Some(ForkFrom::Sequence(*sequence)),
                    pipeline,
                    branch: to.clone(),
                    ..ForkRequest::default()
                };
                let lsn = self.place(from, *sequence)?;
                let saved = Checkpoint { position: "forked".into(), ..Checkpoint::default() };
                fact(Kind::Forked(self.state.evaluate_fork(&request, *sequence, lsn, saved)?))
            }
            Request::Fence => {
                let request = FenceGroupRequest { pipeline, ..FenceGroupRequest::default() };
                fact(Kind::GroupFenced(self.state.evaluate_fence_group(&request)?))
            }
        })
    }

    fn commit(&self, id: &str, parts: &[Part], content: &str) -> Commit {
        let moved = parts.iter().map(|part| BranchCommit {
            branch: part.branch.clone(),
            token: part.token,
            sequence: part.sequence,
            checkpoint: matches!(part.what, What::Fresh(_)).then(|| checkpoint(part)),
            staged: if let What::Staged(id) = &part.what { id.clone() } else { String::new() },
            dead_letters: letters(part),
            replayed: part.replayed.iter().map(|letter| self.letter(letter)).collect(),
        });
        let request = CommitRequest {
            pipeline: PIPELINE.to_owned(),
            commit_id: id.to_owned(),
            branches: moved.collect(),
            ..CommitRequest::default()
        };
        Commit { request, digest: digest(content), payload_fault: None }
    }

    /// Where history has the checkpoint, if it is kept.
    fn place(&self, branch: &str, sequence: u64) -> Result<Lsn, Refusal> {
        let found = self.places.get(&(branch.to_owned(), sequence));
        self.state.check_place(PIPELINE, branch, sequence, found.map(|place| place.lsn))
    }

    fn input(&self, branch: &str, sequence: u64) -> Result<Input, Refusal> {
        let lsn = self.place(branch, sequence)?.as_u64();
        let input = MergeInput { branch: branch.to_owned(), sequence, lsn };
        Ok(Input { input, schema: Box::default() })
    }

    /// A letter that was never taken in is nowhere.
    fn letter(&self, name: &str) -> DeadLetterId {
        self.letters.get(name).copied().unwrap_or(DeadLetterId { lsn: 1, number: 0 })
    }

    fn record(&mut self, kind: Kind, now_ms: u64) {
        let lsn = Lsn::new(self.state.applied().index().next(), 0);
        let fact = Fact { at_ms: now_ms, kind: Some(kind) };
        self.state.apply(lsn, &fact).expect("a fact that was judged on this state fits it");
        for made in fact.checkpoints() {
            let place = Place { lsn, committed_at_ms: now_ms };
            self.places.insert((made.branch.to_owned(), made.sequence), place);
        }
        for (number, letter) in (0..).zip(fact.dead_letters()) {
            let name = String::from_utf8_lossy(&letter.payload).into_owned();
            self.letters.insert(name, DeadLetterId { lsn: lsn.as_u64(), number });
        }
        let replayed = fact.commit().into_iter().flat_map(|it| &it.branches).flat_map(|moved| &moved.replayed);
        let discarded = match &fact.kind {
            Some(Kind::DeadLettersDiscarded(discarded)) => &discarded.letters[..],
            _ => &[],
        };
        for id in replayed.chain(discarded) {
            *self.handled.entry((id.lsn, id.number)).or_default() += 1;
        }
        self.newest = Some(fact.clone());
        self.log.push((lsn, fact));
    }

    /// Compacts a part of the log, as the state sees it now.
    pub(crate) fn compact(&mut self, part: Range<usize>) {
        let there: BTreeSet<Lsn> = self.log.iter().map(|(lsn, _)| *lsn).collect();
        let is_gone = |lsn: Lsn| !there.contains(&lsn);
        let now_ms = self.log.last().map_or(0, |(_, fact)| fact.at_ms) + 1;
        let kept = self.log[part.clone()].iter().filter_map(|(lsn, fact)| {
            match self.state.keep(*lsn, fact, now_ms, &is_gone) {
                Keep::Whole => Some((*lsn, fact.clone())),
                Keep::Reduced(fact) => Some((*lsn, *fact)),
                Keep::Nothing => None,
            }
        });
        let kept: Vec<(Lsn, Fact)> = kept.collect();
        self.log.splice(part, kept);
        self.judged_at = self.state.applied();
    }

    /// The state as a start makes it from what is left of the log.
    pub(crate) fn replayed(&self) -> State {
        let mut state = State::default();
        for (lsn, fact) in &self.log {
            let taken =
                if *lsn <= self.judged_at { state.apply_compacted(*lsn, fact) } else { state.apply(*lsn, fact) };
            taken.unwrap_or_else(|error| panic!("what is left of facts that fitted still fits: {error}"));
        }
        state.reached(self.judged_at);
        state
    }

    /// The state as a start makes it from the file of the hot state.
    pub(crate) fn reloaded(&self) -> State {
        let mut loader = StateLoader::default();
        self.state.records().for_each(|record| loader.push(record).expect("a record that was just written is read"));
        loader.finish().expect("all records were written")
    }

    /// Goes on with the state that a start makes.
    pub(crate) fn restart(&mut self) {
        self.state = self.replayed();
    }

    /// What a kept checkpoint says, where a reader finds it: in its fact, or in the one that staged it.
    pub(crate) fn read(&self, branch: &str, sequence: u64) -> Option<String> {
        let place = self.places.get(&(branch.to_owned(), sequence))?;
        let find = |lsn: Lsn| self.log.iter().find(|(at, _)| *at == lsn).map(|(_, fact)| fact);
        let made = find(place.lsn)?.checkpoints().find(|made| made.branch == branch)?;
        let checkpoint = match made.payload {
            Payload::Here(checkpoint) => checkpoint,
            Payload::Staged(lsn) => find(lsn)?.payloads().next()?,
            Payload::Gone => return None,
        };
        Some(String::from_utf8_lossy(&checkpoint.position).into_owned())
    }

    /// What an open dead letter says, where a reader finds it.
    pub(crate) fn read_letter(&self, id: DeadLetterId) -> Option<String> {
        let (_, fact) = self.log.iter().find(|(at, _)| at.as_u64() == id.lsn)?;
        let letter = fact.dead_letters().nth(id.number as usize)?;
        Some(String::from_utf8_lossy(&letter.payload).into_owned())
    }

    /// Whether the reason is one that a caller is told of a commit that is known.
    pub(crate) fn resolves(&self, commit_id: &str) -> Result<bool, Reason> {
        use fencepost_server::state::Resolution;
        match self.state.resolve_commit(None, PIPELINE, commit_id, None) {
            Ok(Resolution::Applied(_) | Resolution::Perhaps(_)) => Ok(true),
            Ok(Resolution::NotApplied | Resolution::AskHistory) => Ok(false),
            Err(refusal) => Err(refusal.reason),
        }
    }
}

fn fact(kind: Kind) -> Judged {
    Judged::Fact(Box::new(kind))
}

fn checkpoint(part: &Part) -> Checkpoint {
    let Rows { read, written, filtered } = part.rows;
    let integrity = Integrity {
        rows_in: Some(read),
        rows_out: Some(written),
        rows_filtered: Some(filtered),
        rows_dead: Some(part.letters.len() as u64),
        ..Integrity::default()
    };
    Checkpoint { position: part.content().into(), integrity: Some(integrity), ..Checkpoint::default() }
}

fn letters(part: &Part) -> Vec<DeadLetter> {
    let letter = |name: &String| DeadLetter {
        payload: name.clone().into_bytes().into(),
        reason: "a test".to_owned(),
        ..DeadLetter::default()
    };
    part.letters.iter().map(letter).collect()
}

fn digest(content: &str) -> [u8; 16] {
    id_key(content)
}
