//! Requests that must not be done twice.
//!
//! Repeating does not make them harmless by itself: between a lost answer and its repetition a worker may have resumed, and
//! a second rewind, or a second fence, would take its work away; and that dead letters are handled does not say by whom. So
//! after an attempt that was not answered the log is asked first whether it has the fact, and only if not, the request is
//! sent again.

use fencepost::log::v1::fact::Kind;
use fencepost::{Applied, Lsn};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::client::Client;
use crate::error::{Error, Result};
use crate::retry::{Backoff, repeatable};
use crate::rpc::{Answer, Question};
use crate::tail::Tail;

/// A request that must not be done twice.
pub(crate) struct Once<'a> {
    client: &'a Client,
    /// Shows the facts that the one of the request would be among.
    tail: Tail,
    /// What the request does comes after this in the log.
    since: Lsn,
}

/// How it was found out that the request was done.
pub(crate) enum Done<A> {
    Answered(A),
    /// The answer was lost, the fact was there.
    Found(Lsn, A),
}

impl<'a> Once<'a> {
    /// For a request that makes a fact about this branch, or, without a name, about the pipeline as a whole.
    pub(crate) async fn begin(client: &'a Client, pipeline: &str, branch: &str) -> Result<Once<'a>> {
        let since = Lsn::from_u64(client.status().await?.durable_lsn);
        Ok(Once { client, tail: Tail::from(since).pipeline(pipeline).branch(branch).without_state(), since })
    }

    pub(crate) async fn send<Q, A, F>(
        &self,
        question: Q,
        send: impl Fn(Channel, Request<Q>) -> F,
        read: impl Fn(Kind) -> Option<A>,
    ) -> Result<Done<A>>
    where
        Q: Question + Clone,
        A: Answer,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let rpc = &self.client.shared.rpc;
        let (deadline, mut backoff) = (rpc.deadline(), Backoff::ordinary());
        let mut one_was_lost = false;
        loop {
            let error = match rpc.once(question.clone(), deadline, &send).await {
                Ok(answer) => return Ok(Done::Answered(answer)),
                Err(error) => error,
            };
            one_was_lost |= error.applied() == Applied::Unknown;
            if one_was_lost && let Some((lsn, answer)) = self.look(&read, &error).await? {
                return Ok(Done::Found(lsn, answer));
            }
            if !repeatable(&error) || !backoff.wait(error.retry_after(), deadline).await {
                return Err(error);
            }
            tracing::debug!(%error, "asking again");
        }
    }

    /// Looks for the fact. If that cannot be done either, the outcome stays unknown.
    async fn look<A>(&self, read: impl Fn(Kind) -> Option<A>, error: &Error) -> Result<Option<(Lsn, A)>> {
        let client = self.client;
        let mut facts = client.tail(self.tail.clone());
        let search = async {
            while let Some(fact) = facts.next().await {
                let (lsn, fact) = fact?;
                if lsn > self.since
                    && let Some(answer) = fact.kind.and_then(&read)
                {
                    return Ok(Some((lsn, answer)));
                }
            }
            Ok::<_, Error>(None)
        };
        let unknown = |cause: String| Error::Unanswered { endpoint: client.endpoint().to_owned(), cause };
        match tokio::time::timeout_at(client.shared.rpc.deadline(), search).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(failed)) => Err(unknown(format!("{error}; looking for it in the log failed: {failed}"))),
            Err(_) => Err(unknown(format!("{error}; looking for it in the log took too long"))),
        }
    }
}
