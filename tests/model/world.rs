//! Workers that resume, commit, stage, arrive, merge, lose answers, retry, stall and come back as zombies; operators that
//! rewind, fork, fence and discard; a network that delays and repeats; a server that restarts and compacts. All by seed.

use std::collections::BTreeMap;

use fencepost::v1::Takeover;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};

use crate::invariants;
use crate::oracle::{Barrier, Letter, Oracle, Verdict};
use crate::request::{Part, Request, Rows, What};
use crate::store::Store;

const BRANCHES: [&str; 3] = ["ewr", "jfk", "lga"];
/// Where late data, replays and merges go.
const OTHERS: [&str; 2] = ["late", "merged"];
const WORKERS: usize = 5;

/// What a worker believes about a branch.
#[derive(Clone, Debug)]
struct Belief {
    token: u64,
    next: u64,
    staged: Option<String>,
}

/// How often each kind of thing happened, so that a run in which too little happened is no proof.
pub(crate) type Counts = BTreeMap<String, u64>;

pub(crate) struct World {
    rng: StdRng,
    oracle: Oracle,
    store: Store,
    beliefs: BTreeMap<(usize, String), Belief>,
    /// Every request ever made; some were not delivered yet, and any may be delivered again.
    sent: Vec<Request>,
    names: u64,
    pub(crate) counts: Counts,
}

impl World {
    pub(crate) fn new(seed: u64) -> World {
        let mut rng = StdRng::seed_from_u64(seed);
        let reconciles_rows = rng.random_bool(0.5);
        World {
            rng,
            oracle: Oracle { now_ms: 1_000, reconciles_rows, ..Oracle::default() },
            store: Store::new(reconciles_rows),
            beliefs: BTreeMap::new(),
            sent: Vec::new(),
            names: 0,
            counts: Counts::new(),
        }
    }

    pub(crate) fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..6 => self.pass_time(),
            6..8 => self.restart(),
            8..16 => {
                // From the network once more, or late, or in another order.
                if let Some(old) = self.sent.choose(&mut self.rng).cloned() {
                    self.deliver(&old);
                }
            }
            16..24 => self.resync(),
            _ => {
                let worker = self.rng.random_range(0..WORKERS);
                let Some(request) = self.request(worker) else { return };
                self.sent.push(request.clone());
                if self.rng.random_bool(0.1) {
                    return self.count("delayed");
                }
                let token = self.deliver(&request);
                if self.rng.random_bool(0.15) {
                    return self.count("answer lost");
                }
                self.learn(worker, &request, token);
            }
        }
    }

    fn count(&mut self, what: &str) {
        *self.counts.entry(what.to_owned()).or_default() += 1;
    }

    /// The server judges the request as it must, and what is true afterwards is what it says. Returns the token that was
    /// minted, or 0; nothing if it was refused.
    fn deliver(&mut self, request: &Request) -> Option<u64> {
        let expected = self.oracle.judge(request);
        let (verdict, token) = self.store.send(request, self.oracle.now_ms);
        assert_eq!(verdict, expected, "{request:?} at {:?}", self.oracle.branch(request.branch()));
        if verdict == Verdict::Applied {
            let committed = |oracle: &Oracle| oracle.barriers.values().filter(|it| **it == Barrier::Committed).count();
            let before = committed(&self.oracle);
            self.oracle.apply(request, token);
            if committed(&self.oracle) > before {
                self.count("barrier committed");
            }
        }
        let name = request.name();
        self.count(&match &verdict {
            Verdict::Applied => format!("{name}: applied"),
            Verdict::Already => format!("{name}: already"),
            Verdict::Refused(reason) => format!("{name}: {reason}"),
        });
        invariants::check(&self.oracle, &self.store);
        (!matches!(verdict, Verdict::Refused(_))).then_some(token)
    }

    /// What the answer tells the worker.
    fn learn(&mut self, worker: usize, request: &Request, token: Option<u64>) {
        let Some(token) = token else { return };
        let mut moved = |branch: &str| {
            if let Some(belief) = self.beliefs.get_mut(&(worker, branch.to_owned())) {
                belief.next += 1;
                belief.staged = None;
            }
        };
        match request {
            Request::Resume { branch, .. } => {
                let next = self.oracle.head(branch) + 1;
                let staged = self.oracle.branch(branch).staged.map(|staged| staged.id);
                let token = if token == 0 { self.oracle.branch(branch).token } else { token };
                self.beliefs.insert((worker, branch.clone()), Belief { token, next, staged });
            }
            Request::Commit { parts, .. } => parts.iter().for_each(|part| moved(&part.branch)),
            Request::Merge { part, .. } => moved(&part.branch),
            Request::Stage { part, id } => {
                if let Some(belief) = self.beliefs.get_mut(&(worker, part.branch.clone())) {
                    belief.staged = Some(id.clone());
                }
            }
            Request::Discard { branch, .. } => {
                if let Some(belief) = self.beliefs.get_mut(&(worker, branch.clone())) {
                    belief.staged = None;
                }
            }
            _ => {}
        }
    }

    /// A worker reads its head again.
    fn resync(&mut self) {
        let keys: Vec<(usize, String)> = self.beliefs.keys().cloned().collect();
        let Some(key) = keys.choose(&mut self.rng) else { return };
        let (next, staged) = (self.oracle.head(&key.1) + 1, self.oracle.branch(&key.1).staged);
        if let Some(belief) = self.beliefs.get_mut(key) {
            (belief.next, belief.staged) = (next, staged.map(|staged| staged.id));
        }
    }

    fn pass_time(&mut self) {
        let now_ms = self.oracle.now_ms + self.rng.random_range(1..400);
        let aborted = self.oracle.pass_time(now_ms);
        let mut found = self.store.pass_time(now_ms);
        found.sort();
        assert_eq!(found, aborted, "exactly the barriers whose deadline has passed are aborted");
        for _ in aborted {
            self.count("deadline passed");
        }
        invariants::check(&self.oracle, &self.store);
    }

    fn restart(&mut self) {
        if self.rng.random_bool(0.5) {
            let facts = self.store.log.len();
            let from = self.rng.random_range(0..facts);
            let to = self.rng.random_range(from..facts) + 1;
            self.store.compact(from..to);
            self.count("compacted");
        }
        self.store.restart();
        self.count("restarted");
        invariants::check_all(&self.oracle, &self.store);
    }

    fn name(&mut self, prefix: &str) -> String {
        self.names += 1;
        format!("{prefix}{}", self.names)
    }

    fn any_branch(&mut self) -> String {
        let all: Vec<&str> = BRANCHES.iter().chain(&OTHERS).copied().collect();
        let weights = if self.rng.random_bool(0.8) { &all[..3] } else { &all[3..] };
        (*weights.choose(&mut self.rng).expect("there are branches")).to_owned()
    }

    /// A branch that the worker believes to have; most often it does.
    fn believed(&mut self, worker: usize) -> Option<(String, Belief)> {
        let is_careful = self.rng.random_bool(0.85);
        let is_wanted =
            |branch: &str, belief: &Belief| !is_careful || self.oracle.check_token(branch, belief.token).is_ok();
        let own = self.beliefs.iter().filter(|((of, branch), belief)| *of == worker && is_wanted(branch, belief));
        let own: Vec<(String, Belief)> = own.map(|((_, branch), it)| (branch.clone(), it.clone())).collect();
        own.choose(&mut self.rng).cloned()
    }

    /// What the worker sends next; nothing if it can send nothing of the kind that was drawn.
    #[allow(clippy::too_many_lines)] // One arm for each kind of request.
    fn request(&mut self, worker: usize) -> Option<Request> {
        Some(match self.rng.random_range(0..100) {
            0..10 => {
                let (branch, is_silent) = (self.any_branch(), self.rng.random_bool(0.4));
                let takeover = match self.rng.random_range(0..10) {
                    0 => Takeover::Force,
                    1..4 => Takeover::SameHolder,
                    _ => Takeover::Wait,
                };
                let request_id = self.name("request-");
                Request::Resume { branch, request_id, holder: format!("holder-{}", worker / 2), takeover, is_silent }
            }
            10 => {
                let (branch, belief) = self.believed(worker)?;
                Request::Release { branch, token: belief.token }
            }
            11..37 => {
                let mut parts = vec![self.fresh(worker)?];
                if self.rng.random_bool(0.25) {
                    let other = self.fresh(worker)?;
                    if other.branch != parts[0].branch {
                        parts.push(other);
                    }
                }
                self.replay(&mut parts[0]);
                Request::Commit { id: self.name("commit-"), parts }
            }
            37..52 => Request::Stage { part: self.fresh(worker)?, id: self.name("stage-") },
            52..64 => {
                let mut part = self.fresh(worker)?;
                let staged = self.beliefs.get(&(worker, part.branch.clone()))?.staged.clone()?;
                (part.what, part.letters) = (What::Staged(staged), Vec::new());
                self.replay(&mut part);
                Request::Commit { id: self.name("commit-"), parts: vec![part] }
            }
            64..66 => {
                let (branch, belief) = self.believed(worker)?;
                Request::Discard { branch, token: belief.token, id: belief.staged? }
            }
            66..70 => {
                let mut participants: Vec<String> = BRANCHES.iter().map(|&name| name.to_owned()).collect();
                participants.truncate(self.rng.random_range(1..=3));
                let name = format!("day-{}", self.rng.random_range(0..1 + self.names / 40));
                let timeout_ms = if self.rng.random_bool(0.7) { 0 } else { self.rng.random_range(1..9_000) };
                Request::Open { name, participants, timeout_ms }
            }
            70..89 => {
                let (branch, belief) = self.believed(worker)?;
                let open = |(name, barrier): (&String, &Barrier)| {
                    matches!(barrier, Barrier::Open { .. }).then(|| name.clone())
                };
                let mut names: Vec<String> = self.oracle.barriers.iter().filter_map(open).collect();
                names.shuffle(&mut self.rng);
                names.extend(self.oracle.barriers.keys().last().cloned());
                let barrier = names.into_iter().next()?;
                Request::Arrive { barrier, branch, token: belief.token, id: belief.staged? }
            }
            89 => {
                let names: Vec<String> = self.oracle.barriers.keys().cloned().collect();
                Request::Abort { barrier: names.choose(&mut self.rng)?.clone() }
            }
            90..95 => self.merge(worker)?,
            95 => {
                let letters = self.open_letters();
                Request::DiscardLetters { letters: letters.into_iter().take(2).collect() }
            }
            96 | 97 => {
                let branch = self.any_branch();
                let head = self.oracle.head(&branch);
                let to = self.rng.random_range(0..=head + 1);
                let expected = if self.rng.random_bool(0.9) { head } else { head + 1 };
                Request::Rewind { branch, to, expected }
            }
            98 => {
                let from = self.any_branch();
                let sequence = self.rng.random_range(1..=self.oracle.head(&from).max(1));
                let to = if self.rng.random_bool(0.8) { self.name("fork-") } else { self.any_branch() };
                Request::Fork { from, sequence, to }
            }
            _ if self.rng.random_bool(0.2) => Request::Fence,
            _ => return None,
        })
    }

    /// A checkpoint of the worker's own, on a branch that it believes in.
    fn fresh(&mut self, worker: usize) -> Option<Part> {
        let (branch, belief) = self.believed(worker)?;
        let count = if self.rng.random_bool(0.3) { self.rng.random_range(1..4) } else { 0 };
        let letters: Vec<String> = (0..count).map(|_| self.name("letter-")).collect();
        let (written, filtered) = (self.rng.random_range(0..10), self.rng.random_range(0..3));
        let miscounted = u64::from(self.rng.random_bool(0.05));
        let read = written + filtered + letters.len() as u64 + miscounted;
        let rows = Rows { read, written, filtered };
        let what = What::Fresh(self.name("content-"));
        Some(Part { branch, token: belief.token, sequence: belief.next, what, rows, letters, replayed: Vec::new() })
    }

    fn open_letters(&mut self) -> Vec<String> {
        let is_wanted = self.rng.random_bool(0.9);
        let wanted = |letter: &Letter| matches!(letter, Letter::Open(_)) == is_wanted;
        let mut letters: Vec<String> =
            self.oracle.letters.iter().filter(|(_, letter)| wanted(letter)).map(|(name, _)| name.clone()).collect();
        letters.shuffle(&mut self.rng);
        letters
    }

    fn replay(&mut self, part: &mut Part) {
        if self.rng.random_bool(0.3) {
            let count = self.rng.random_range(1..4);
            part.replayed = self.open_letters().into_iter().take(count).collect();
        }
    }

    fn merge(&mut self, worker: usize) -> Option<Request> {
        // The same inputs again are as likely as new ones.
        let old = self.sent.iter().filter(|request| matches!(request, Request::Merge { .. }));
        let old: Vec<Request> = old.cloned().collect();
        let id = self.name("commit-");
        if self.rng.random_bool(0.4)
            && let Some(Request::Merge { part, inputs, digest, .. }) = old.choose(&mut self.rng).cloned()
        {
            let belief = self.beliefs.get(&(worker, part.branch.clone()))?.clone();
            let part = Part { token: belief.token, sequence: belief.next, ..part };
            let digest = if self.rng.random_bool(0.7) { digest } else { self.name("digest-") };
            return Some(Request::Merge { id, part, inputs, digest });
        }
        let part = Part { letters: Vec::new(), rows: Rows::default(), ..self.fresh(worker)? };
        let mut inputs = Vec::new();
        for branch in BRANCHES {
            let head = self.oracle.head(branch);
            if head > 0 {
                inputs.push((branch.to_owned(), self.rng.random_range(head.saturating_sub(4).max(1)..=head)));
            }
        }
        if inputs.is_empty() {
            return None;
        }
        Some(Request::Merge { id, part, inputs, digest: self.name("digest-") })
    }
}
