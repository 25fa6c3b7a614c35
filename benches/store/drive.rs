//! Callers that commit to random branches over one commit stream, each its next commit once its last one was answered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fencepost::v1::commit_service_client::CommitServiceClient;
use fencepost::v1::{CommitStreamRequest, CommitStreamResponse, SessionCommit, session_result};
use rand::Rng as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::store::Branches;

/// As in the aims.
const CALLERS: usize = 64;

/// What callers saw.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    micros: Vec<u32>,
    elapsed: Duration,
}

impl Seen {
    /// Commits in a second.
    pub(crate) fn rate(&self) -> f64 {
        self.micros.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// Latency that so many of a thousand do not exceed, in microseconds.
    pub(crate) fn permille(&mut self, permille: usize) -> f64 {
        let at = (self.micros.len() * permille / 1000).min(self.micros.len() - 1);
        f64::from(*self.micros.select_nth_unstable(at).1)
    }
}

/// Commits for some time.
pub(crate) async fn commit_at_random(channel: &Channel, branches: &Arc<Branches>, time: Duration) -> Seen {
    let (send, requests) = mpsc::channel(16);
    let mut client = CommitServiceClient::new(channel.clone());
    let answers = client.commit_stream(ReceiverStream::new(requests)).await.expect("a stream").into_inner();
    let (queue, queued) = mpsc::unbounded_channel::<SessionCommit>();
    tokio::spawn(forward(queued, send));
    let (tell, told): (Vec<_>, Vec<_>) = (0..CALLERS).map(|_| mpsc::channel::<()>(1)).unzip();
    tokio::spawn(dispatch(answers, tell));
    let begun = Instant::now();
    let callers: Vec<_> = (0..)
        .zip(told)
        .map(|(session, mut told)| {
            let (queue, branches) = (queue.clone(), Arc::clone(branches));
            tokio::spawn(async move {
                let (mut micros, mut number) = (Vec::new(), 0);
                while begun.elapsed() < time {
                    // Each caller has branches of its own.
                    let branch = rand::rng().random_range(0..branches.len() / CALLERS) * CALLERS + session;
                    let sent = Instant::now();
                    let commit = Some(branches.next(branch));
                    queue.send(SessionCommit { session: session as u64, number, commit }).expect("the stream is there");
                    told.recv().await.expect("an answer");
                    micros.push(sent.elapsed().as_micros() as u32);
                    number += 1;
                }
                micros
            })
        })
        .collect();
    let mut seen = Seen::default();
    for caller in callers {
        seen.micros.extend(caller.await.expect("a caller does not panic"));
    }
    seen.elapsed = begun.elapsed();
    seen
}

/// Whatever is ready goes in one message, as in the client crate.
async fn forward(mut queued: mpsc::UnboundedReceiver<SessionCommit>, send: mpsc::Sender<CommitStreamRequest>) {
    let mut commits = Vec::new();
    while queued.recv_many(&mut commits, 1024).await > 0 {
        let message = CommitStreamRequest { commits: std::mem::take(&mut commits), closed_sessions: vec![] };
        if send.send(message).await.is_err() {
            return;
        }
    }
}

async fn dispatch(mut answers: Streaming<CommitStreamResponse>, callers: Vec<mpsc::Sender<()>>) {
    while let Ok(Some(message)) = answers.message().await {
        for result in message.results {
            assert!(matches!(result.result, Some(session_result::Result::Committed(_))), "refused: {result:?}");
            let _ = callers[result.session as usize].try_send(());
        }
    }
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
