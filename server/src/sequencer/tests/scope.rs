//! A branch is asked for in a scope, while whoever has it goes on.

use fencepost::v1::{Fingerprint, RewindRequest, Takeover, rewind_request};

use super::*;
use crate::state::{CommitVerdict, Place};

/// Reads after which a caller has been kept from the branch for too long: of the head, and of what is staged.
const READS_MAX: usize = 2;

fn scope(code: &str) -> Vec<Fingerprint> {
    let fingerprint = |code: &str| Fingerprint { name: "code".to_owned(), value: code.to_owned() };
    (!code.is_empty()).then(|| fingerprint(code)).into_iter().collect()
}

/// Who asks for a branch, and has read what it was told to read.
struct Caller {
    resume: Resume,
    readable: Readable,
    reads: usize,
}

impl Caller {
    fn new(takeover: Takeover, code: &str, accepts: bool) -> Caller {
        let mut resume = resume("jfk", "b");
        resume.request.set_takeover(takeover);
        resume.request.scope = scope(code);
        resume.request.accept_scope = if accepts { vec!["code".to_owned()] } else { Vec::new() };
        Caller { resume, readable: Readable::default(), reads: 0 }
    }

    /// Asks once. `code` is what the head says that it is told to read, if it is.
    fn ask(&mut self, deciding: &mut Deciding, code: &str) -> Result<Option<Token>, Refusal> {
        let (reply, mut answer) = oneshot::channel();
        let (resume, readable, deadline) = (self.resume.clone(), self.readable.clone(), deciding.clock.now());
        deciding.core.decide(Work::Resume(Box::new(Waiter { resume, deadline, readable, arrived: None, reply })));
        deciding.settle();
        let (unread, arrived) = match answer.try_recv().unwrap()? {
            Resumed::Granted(granted) => return Ok(Some(granted.token)),
            Resumed::ReadFirst { unread, arrived } => (unread, arrived),
        };
        self.reads += 1;
        self.readable.arrived = Some(arrived);
        match unread {
            Unread::Head(at) => (self.readable.at, self.readable.scope) = (at, scope(code)),
            Unread::Staged(at) => self.readable.staged = at,
        }
        Ok(None)
    }
}

impl Deciding {
    fn commit_of(&mut self, token: Token, sequence: u64, code: &str) -> Lsn {
        let mut commit = commit(&format!("{sequence} of {token}"), "jfk", token, sequence);
        commit.request.branches[0].checkpoint.as_mut().unwrap().scope = scope(code);
        let committed = self.decide(None, |state, now_ms| match state.evaluate_commit(commit, now_ms)? {
            CommitVerdict::Apply(committed) => Ok(Decision { fact: Some(Kind::Committed(committed)), answer: () }),
            CommitVerdict::AlreadyApplied(_) => panic!("no two have the same id"),
        });
        committed.unwrap().seen
    }

    fn rewind(&mut self, expected_head: u64, to: u64, lsn: Lsn) {
        let request = RewindRequest {
            pipeline: PIPELINE.to_owned(),
            branch: "jfk".to_owned(),
            expected_head,
            to: Some(rewind_request::To::Sequence(to)),
            ..RewindRequest::default()
        };
        let place = Place { lsn, committed_at_ms: 1 };
        let rewound = self.decide(None, |state, _| {
            Ok(Decision { fact: Some(Kind::Rewound(state.evaluate_rewind(&request, Some(place))?)), answer: () })
        });
        rewound.unwrap();
    }
}

#[test]
fn force_takes_a_branch_whatever_its_scope_from_a_holder_that_commits_all_the_time() {
    for (held_by, asked_by) in [("v1", "v2"), ("v1", "v1"), ("", "v2"), ("v1", "")] {
        let mut deciding = Deciding::new();
        let holder = granted(&mut deciding.ask_for("jfk", "a", Duration::ZERO)).token;
        let mut caller = Caller::new(Takeover::Force, asked_by, true);
        let mut sequence = 0;
        let token = loop {
            sequence += 1;
            deciding.commit_of(holder, sequence, held_by);
            if let Some(token) = caller.ask(&mut deciding, held_by).unwrap() {
                break token;
            }
            assert!(caller.reads < READS_MAX, "'{asked_by}' reads head after head of '{held_by}'");
        };
        assert!(token > holder);
    }
}

#[test]
fn a_head_that_moved_on_while_the_last_was_read_is_compared_by_what_it_says_itself() {
    let mut deciding = Deciding::new();
    let holder = granted(&mut deciding.ask_for("jfk", "a", Duration::ZERO)).token;
    let mut caller = Caller::new(Takeover::Force, "v1", false);
    deciding.commit_of(holder, 1, "v2");
    assert_eq!(caller.ask(&mut deciding, "v2"), Ok(None));
    // The difference is gone again: nothing has to be accepted, nor read.
    deciding.commit_of(holder, 2, "v1");
    let mut early = Caller { resume: caller.resume.clone(), ..caller };
    early.resume.request.request_id = "early".to_owned();
    let token = early.ask(&mut deciding, "").unwrap().expect("the head is of the same scope");

    // And here another one is there, which neither was read nor is known.
    let mut caller = Caller::new(Takeover::Force, "v2", false);
    assert_eq!(caller.ask(&mut deciding, "v1"), Ok(None));
    deciding.commit_of(token, 3, "v3");
    assert_eq!(caller.ask(&mut deciding, "v3"), Ok(None));
    let refused = caller.ask(&mut deciding, "").unwrap_err();
    assert_eq!((refused.reason, refused.detail("sequence")), (Reason::ScopeMismatch, Some("3")));
    assert!(refused.message.contains("'v3' there"), "{refused}");
}

#[test]
fn a_branch_that_is_held_is_refused_as_held_however_often_its_scope_changes() {
    let mut deciding = Deciding::new();
    let holder = granted(&mut deciding.ask_for("jfk", "a", Duration::ZERO)).token;
    let mut caller = Caller::new(Takeover::Wait, "v1", true);
    for sequence in 1..=READS_MAX as u64 + 1 {
        let code = format!("{sequence} of many");
        deciding.commit_of(holder, sequence, &code);
        match caller.ask(&mut deciding, &code) {
            Ok(granted) => assert_eq!(granted, None),
            Err(refused) => return assert_eq!(refused.reason, Reason::LeaseHeld, "{refused}"),
        }
    }
    panic!("it read {} heads, and its time is over", caller.reads);
}

#[test]
fn of_a_head_that_a_rewind_went_back_to_nothing_is_taken_as_known() {
    let mut deciding = Deciding::new();
    let holder = granted(&mut deciding.ask_for("jfk", "a", Duration::ZERO)).token;
    let first = deciding.commit_of(holder, 1, "v1");
    deciding.commit_of(holder, 2, "");
    let mut caller = Caller::new(Takeover::Force, "v2", false);
    assert_eq!(caller.ask(&mut deciding, ""), Ok(None));
    deciding.rewind(2, 1, first);
    assert_eq!(caller.ask(&mut deciding, "v1"), Ok(None), "the head of before had another scope");
    let refused = caller.ask(&mut deciding, "").unwrap_err();
    assert!(refused.message.contains("'v1' there"), "{refused}");
}
