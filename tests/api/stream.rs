//! The commit stream: order and poisoning within a session, and what one session or stream means for the others.

use fencepost::Reason;
use fencepost::v1::{
    CommitRequest, CommitResponse, CommitStreamRequest, CommitStreamResponse, Refusal, SessionCommit, SessionResult,
    session_result,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::support::{PATIENCE, Store, checkpoint, commit, inner_refusal, refusal, refused_field};

/// One open stream of commits.
pub(crate) struct CommitStream {
    requests: mpsc::Sender<CommitStreamRequest>,
    answers: Streaming<CommitStreamResponse>,
}

impl CommitStream {
    pub(crate) async fn open(store: &Store) -> CommitStream {
        let (requests, messages) = mpsc::channel(64);
        let answers = store.commits().commit_stream(ReceiverStream::new(messages)).await.unwrap().into_inner();
        CommitStream { requests, answers }
    }

    /// Sends commits of one session, numbered from `first`, in one message.
    pub(crate) async fn send(&self, session: u64, first: u64, commits: Vec<CommitRequest>) {
        let commits =
            (first..).zip(commits).map(|(number, commit)| SessionCommit { session, number, commit: Some(commit) });
        self.send_message(CommitStreamRequest { commits: commits.collect(), closed_sessions: vec![] }).await;
    }

    async fn send_message(&self, message: CommitStreamRequest) {
        self.requests.send(message).await.expect("the server reads what is sent");
    }

    async fn close_session(&self, session: u64) {
        self.send_message(CommitStreamRequest { commits: vec![], closed_sessions: vec![session] }).await;
    }

    async fn message(&mut self) -> Result<Option<CommitStreamResponse>, Status> {
        tokio::time::timeout(PATIENCE, self.answers.message()).await.expect("an answer comes in time")
    }

    /// The next results, in the order of their arrival.
    async fn results(&mut self, count: usize) -> Vec<SessionResult> {
        let mut results = Vec::new();
        while results.len() < count {
            let message = self.message().await.unwrap().expect("the stream goes on");
            assert!(message.header.is_some());
            results.extend(message.results);
        }
        assert_eq!(results.len(), count);
        results
    }
}

#[track_caller]
fn committed(result: &SessionResult) -> &CommitResponse {
    match &result.result {
        Some(session_result::Result::Committed(done)) => done,
        other => panic!("expected a commit, got {other:?}"),
    }
}

#[track_caller]
fn refused(result: &SessionResult) -> &Refusal {
    match &result.result {
        Some(session_result::Result::Refusal(refusal)) => refusal,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[tokio::test]
async fn commits_of_a_session_apply_in_their_order() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let mut stream = CommitStream::open(&store).await;
    for first in (1..=1_000).step_by(100) {
        let commits = (first..first + 100).map(|sequence| commit("main", token, sequence));
        stream.send(7, first, commits.collect()).await;
    }
    let results = stream.results(1_000).await;
    let mut lsn = 0;
    for (expected, result) in (1..).zip(&results) {
        assert_eq!((result.session, result.number), (7, expected));
        assert!(committed(result).lsn > lsn, "the log has them in the same order");
        lsn = committed(result).lsn;
    }
    assert_eq!(store.head("main").await, 1_000);
}

#[tokio::test]
async fn a_stream_that_is_closed_by_its_caller_answers_everything_first() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let mut stream = CommitStream::open(&store).await;
    stream.send(1, 1, (1..=50).map(|sequence| commit("main", token, sequence)).collect()).await;
    let (closed, _) = mpsc::channel(1);
    drop(std::mem::replace(&mut stream.requests, closed));
    assert_eq!(stream.results(50).await.len(), 50);
    assert!(stream.message().await.unwrap().is_none());
}

type Fault = fn(&mut CommitRequest);

#[tokio::test]
async fn after_its_first_refusal_nothing_of_a_session_is_applied() {
    let faults: [(Fault, Reason); 6] = [
        (|request| request.branches[0].sequence = 9, Reason::HeadMismatch),
        (|request| request.branches[0].token = 1, Reason::Fenced),
        (|request| request.branches[0].checkpoint.as_mut().unwrap().payload_crc32 = Some(1), Reason::IntegrityMismatch),
        (|request| request.not_after_ms = 1, Reason::NotAfterPassed),
        // What is malformed is refused before it is judged, and still in its turn.
        (|request| request.pipeline = "nonsense".to_owned(), Reason::InvalidName),
        (|request| request.branches.clear(), Reason::InvalidField),
    ];
    for (fault, reason) in faults {
        let store = Store::open().await;
        store.take("other").await;
        let token = store.take("main").await;
        let mut stream = CommitStream::open(&store).await;
        let mut commits: Vec<CommitRequest> = (1..=6).map(|sequence| commit("main", token, sequence)).collect();
        fault(&mut commits[2]);
        // Not even what would fit after a refusal is applied.
        commits[3] = commit("main", token, 3);
        stream.send(1, 10, commits).await;
        let results = stream.results(6).await;
        committed(&results[0]);
        committed(&results[1]);
        inner_refusal(Some(refused(&results[2])), reason);
        for result in &results[3..] {
            let details = inner_refusal(Some(refused(result)), Reason::SessionPoisoned);
            assert_eq!(details["first_failing"], "12", "it names the first commit that was refused");
        }
        assert_eq!(store.head("main").await, 2);

        // A later message of the session, and a new session that goes on where it stopped.
        stream.send(1, 16, vec![commit("main", token, 3)]).await;
        inner_refusal(Some(refused(&stream.results(1).await[0])), Reason::SessionPoisoned);
        stream.send(2, 1, vec![commit("main", token, 3)]).await;
        committed(&stream.results(1).await[0]);
        // A number that was given back is a new session.
        stream.close_session(1).await;
        stream.send(1, 1, vec![commit("main", token, 4)]).await;
        committed(&stream.results(1).await[0]);
    }
}

#[tokio::test]
async fn a_session_commit_without_a_commit_poisons_its_session() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let mut stream = CommitStream::open(&store).await;
    let nothing = SessionCommit { session: 1, number: 1, commit: None };
    let good = SessionCommit { session: 1, number: 2, commit: Some(commit("main", token, 1)) };
    stream.send_message(CommitStreamRequest { commits: vec![nothing, good], closed_sessions: vec![] }).await;
    let results = stream.results(2).await;
    assert_eq!(inner_refusal(Some(refused(&results[0])), Reason::InvalidField)["field"], "commit");
    inner_refusal(Some(refused(&results[1])), Reason::SessionPoisoned);
}

#[tokio::test]
async fn other_sessions_and_streams_do_not_notice_a_poisoned_one() {
    let store = Store::open().await;
    let (one, other, third) = (store.take("one").await, store.take("other").await, store.take("third").await);
    let (mut stream, mut elsewhere) = (CommitStream::open(&store).await, CommitStream::open(&store).await);
    // In one message, so that the good follow the bad at once.
    let part = |session, number, commit| SessionCommit { session, number, commit: Some(commit) };
    let commits = vec![
        part(1, 1, commit("one", one, 5)),
        part(2, 1, commit("other", other, 1)),
        part(1, 2, commit("one", one, 1)),
        part(2, 2, commit("other", other, 2)),
    ];
    stream.send_message(CommitStreamRequest { commits, closed_sessions: vec![] }).await;
    elsewhere.send(1, 1, vec![commit("third", third, 1)]).await;
    let results = stream.results(4).await;
    inner_refusal(Some(refused(&results[0])), Reason::HeadMismatch);
    committed(&results[1]);
    inner_refusal(Some(refused(&results[2])), Reason::SessionPoisoned);
    committed(&results[3]);
    committed(&elsewhere.results(1).await[0]);
}

#[tokio::test]
async fn an_empty_message_has_no_effect() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let mut stream = CommitStream::open(&store).await;
    stream.send_message(CommitStreamRequest::default()).await;
    stream.close_session(99).await;
    stream.send(1, 1, vec![commit("main", token, 1)]).await;
    committed(&stream.results(1).await[0]);
}

#[tokio::test]
async fn an_oversized_message_ends_its_own_stream_and_says_why() {
    let store = Store::open().await;
    let (token, other) = (store.take("main").await, store.take("other").await);
    let (mut stream, mut elsewhere) = (CommitStream::open(&store).await, CommitStream::open(&store).await);
    stream.send(1, 1, vec![commit("main", token, 1)]).await;
    committed(&stream.results(1).await[0]);
    let large = (2..=4).map(|sequence| {
        let mut request = commit("main", token, sequence);
        let state = vec![0; 3 << 20].into();
        request.branches[0].checkpoint = Some(fencepost::v1::Checkpoint { state, ..checkpoint("large") });
        request
    });
    stream.send(1, 2, large.collect()).await;
    refused_field(&stream.message().await.unwrap_err(), Reason::TooLarge, "request");
    assert_eq!(store.head("main").await, 1, "nothing of the message was applied");
    elsewhere.send(1, 1, vec![commit("other", other, 1)]).await;
    committed(&elsewhere.results(1).await[0]);
}

#[tokio::test]
async fn a_session_too_many_ends_the_stream() {
    const SESSIONS_MAX: u64 = fencepost_server::config::limits::SESSIONS_MAX as u64;
    let store = Store::open().await;
    let messages = (0..=SESSIONS_MAX).step_by(10_000).map(|first| {
        let sessions = first..(first + 10_000).min(SESSIONS_MAX + 1);
        let commits = sessions.map(|session| SessionCommit { session, number: 1, commit: None });
        CommitStreamRequest { commits: commits.collect(), closed_sessions: vec![] }
    });
    let mut answers = store.commits().commit_stream(tokio_stream::iter(messages)).await.unwrap().into_inner();
    let mut answered = 0;
    let status = loop {
        match tokio::time::timeout(PATIENCE, answers.message()).await.unwrap() {
            Ok(Some(message)) => answered += message.results.len() as u64,
            Ok(None) => panic!("the stream ended without a word after {answered} answers"),
            Err(status) => break status,
        }
    };
    refused_field(&status, Reason::InvalidField, "session");
    assert!(answered <= SESSIONS_MAX);
}

#[tokio::test]
async fn a_commit_id_is_remembered_across_roads() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let request = commit("main", token, 1);
    let first = store.commit(request.clone()).await.unwrap();
    let mut stream = CommitStream::open(&store).await;
    stream.send(1, 1, vec![request, commit("main", token, 2)]).await;
    let results = stream.results(2).await;
    let again = committed(&results[0]);
    assert_eq!(again.lsn, first.lsn);
    assert_eq!(again.outcome(), fencepost::v1::commit_response::Outcome::AlreadyApplied);
    committed(&results[1]);
    refusal(&store.commit(commit("main", token, 2)).await.unwrap_err(), Reason::HeadMismatch);
}
