//! Records that a pipeline could not process: handed in with the checkpoint that skips them ([`DeadLetter`]), listed
//! ([`Pipeline::dead_letters`]), processed after all ([`Pipeline::replay_dead_letters`]) or given up
//! ([`Pipeline::discard_dead_letters`]).

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use fencepost::log::v1::fact::Kind;
use fencepost::{Lsn, TraceParent, v1};

use crate::checkpoint::Checkpoint;
use crate::commit::Committed;
use crate::error::Result;
use crate::history::recorded;
use crate::listing::Listing;
use crate::once::Once;
use crate::pipeline::{Branch, Pipeline};
use crate::resume::Resume;
use crate::rpc::dead_letters;
use crate::worker::Worker;

/// The branch that dead letters are replayed under, unless another one is named.
const REPLAY_BRANCH: &str = "dead-letters";

/// A record that could not be processed, for [`Checkpoint::dead_letter`].
#[derive(Clone, Debug, PartialEq)]
#[must_use = "a dead letter is kept by the checkpoint that it is given to"]
pub struct DeadLetter {
    message: v1::DeadLetter,
}

impl DeadLetter {
    /// The record as it was, and why it could not be processed, in words: 1 B to 1 KiB.
    pub fn new(payload: impl Into<Bytes>, reason: impl Into<String>) -> DeadLetter {
        let message = v1::DeadLetter { payload: payload.into(), reason: reason.into(), ..Default::default() };
        DeadLetter { message }
    }

    /// Where the record was in the source. At most 1 KiB.
    pub fn position(mut self, position: impl Into<Bytes>) -> DeadLetter {
        self.message.source_position = position.into();
        self
    }

    /// The trace that the record was in.
    pub fn traceparent(mut self, traceparent: TraceParent) -> DeadLetter {
        self.message.traceparent = traceparent.to_string();
        self
    }

    pub(crate) fn into_message(self) -> v1::DeadLetter {
        self.message
    }
}

/// Which dead letter. People see and write `42.0/3`: number 3, counted from 0, of those that came with the fact at LSN `42.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeadLetterId {
    /// The fact that has it.
    pub lsn: Lsn,
    /// Its number among those of that fact, from 0.
    pub number: u32,
}

impl DeadLetterId {
    fn from_message(message: v1::DeadLetterId) -> DeadLetterId {
        DeadLetterId { lsn: Lsn::from_u64(message.lsn), number: message.number }
    }

    pub(crate) fn into_message(self) -> v1::DeadLetterId {
        v1::DeadLetterId { lsn: self.lsn.as_u64(), number: self.number }
    }
}

impl fmt::Display for DeadLetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.into_message().fmt(f)
    }
}

impl FromStr for DeadLetterId {
    type Err = String;

    /// Reads what `Display` writes.
    fn from_str(text: &str) -> Result<DeadLetterId, String> {
        let expected = || format!("'{text}' is no dead letter: expected LSN/NUMBER, such as 42.0/3");
        let (lsn, number) = text.split_once('/').ok_or_else(expected)?;
        Ok(DeadLetterId { lsn: lsn.parse().map_err(|_| expected())?, number: number.parse().map_err(|_| expected())? })
    }
}

/// A dead letter that is open, and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredDeadLetter {
    message: v1::StoredDeadLetter,
    letter: v1::DeadLetter,
}

impl StoredDeadLetter {
    /// Which one.
    pub fn id(&self) -> DeadLetterId {
        DeadLetterId::from_message(self.message.id.unwrap_or_default())
    }

    /// The branch whose checkpoint skipped it.
    pub fn branch(&self) -> &str {
        &self.message.branch
    }

    /// That checkpoint's sequence.
    pub fn sequence(&self) -> u64 {
        self.message.sequence
    }

    /// The server's wall clock then, in milliseconds since 1970.
    pub fn at_ms(&self) -> u64 {
        self.message.at_ms
    }

    /// The record as it was. Empty if it was listed without.
    pub fn payload(&self) -> &Bytes {
        &self.letter.payload
    }

    /// Length of the record, also where it was left out.
    pub fn payload_bytes(&self) -> u64 {
        self.message.payload_bytes
    }

    /// Why it could not be processed.
    pub fn reason(&self) -> &str {
        &self.letter.reason
    }

    /// Where the record was in the source; empty if that was not said.
    pub fn position(&self) -> &Bytes {
        &self.letter.source_position
    }

    /// The trace that the record was in, if that was said.
    pub fn traceparent(&self) -> Option<TraceParent> {
        self.letter.traceparent.parse().ok()
    }

    /// Why it cannot be read. Then only its place is known.
    pub fn unreadable(&self) -> Option<&str> {
        Some(&*self.message.unreadable).filter(|why| !why.is_empty())
    }

    fn from_message(mut message: v1::StoredDeadLetter) -> StoredDeadLetter {
        let letter = message.letter.take().unwrap_or_default();
        StoredDeadLetter { message, letter }
    }
}

/// Which open dead letters to list. Begin with [`Pipeline::dead_letters`].
#[derive(Clone, Debug)]
#[must_use = "nothing is read before `list`"]
pub struct DeadLetters {
    pipeline: Pipeline,
    request: v1::ListDeadLettersRequest,
}

impl DeadLetters {
    /// Only those of one branch.
    pub fn branch(mut self, branch: impl Into<String>) -> DeadLetters {
        self.request.branch = branch.into();
        self
    }

    /// Leaves the records themselves out.
    pub fn without_payload(mut self) -> DeadLetters {
        self.request.without_payload = true;
        self
    }

    /// How many are open, in the pipeline as a whole.
    pub async fn count(&self) -> Result<u64> {
        let request = v1::ListDeadLettersRequest { without_payload: true, page_size: 1, ..self.request.clone() };
        Ok(page(&self.pipeline, request).await?.open)
    }

    /// They, oldest first.
    pub fn list(self) -> Listing<StoredDeadLetter> {
        let DeadLetters { pipeline, request } = self;
        Listing::new(move |page_token: String| {
            let (pipeline, request) = (pipeline.clone(), v1::ListDeadLettersRequest { page_token, ..request.clone() });
            async move {
                let answer = page(&pipeline, request).await?;
                let next = Some(answer.next_page_token).filter(|token| !token.is_empty());
                Ok((answer.letters.into_iter().map(StoredDeadLetter::from_message).collect(), next))
            }
        })
    }
}

async fn page(pipeline: &Pipeline, request: v1::ListDeadLettersRequest) -> Result<v1::ListDeadLettersResponse> {
    let rpc = &pipeline.client().shared.rpc;
    rpc.ask(request, rpc.deadline(), |channel, request| async move {
        dead_letters(channel).list_dead_letters(request).await
    })
    .await
}

/// Dead letters that are about to be given up. Begin with [`Pipeline::discard_dead_letters`].
#[derive(Clone, Debug)]
#[must_use = "nothing is sent before `send`"]
pub struct DiscardDeadLetters {
    pipeline: Pipeline,
    request: v1::DiscardDeadLettersRequest,
}

recorded!(DiscardDeadLetters);

impl DiscardDeadLetters {
    /// Sends it until it is answered. Needs a [`DiscardDeadLetters::reason`]. If one of them is not open none is given up:
    /// `DEAD_LETTER_HANDLED`. After an attempt that was not answered the log tells whether it was this request that handled
    /// them; only then that is success.
    pub async fn send(self) -> Result<()> {
        let DiscardDeadLetters { pipeline, request } = self;
        let call = Once::begin(pipeline.client(), pipeline.name(), "").await?;
        let asked = request.clone();
        let send = async |channel, request| dead_letters(channel).discard_dead_letters(request).await;
        call.send(request, send, |kind| did_discard(kind, &asked)).await.map(drop)
    }
}

/// What the server would have answered, if the fact is what the request asked for.
fn did_discard(kind: Kind, asked: &v1::DiscardDeadLettersRequest) -> Option<v1::DiscardDeadLettersResponse> {
    let Kind::DeadLettersDiscarded(fact) = kind else { return None };
    let is_it = fact.letters == asked.letters && fact.actor == asked.actor && fact.reason == asked.reason;
    is_it.then(v1::DiscardDeadLettersResponse::default)
}

/// A worker that processes dead letters after all: the oldest first, each commit with those that it did.
///
/// It is a worker like any other, of a branch of its own, so that one which was replaced replays nothing: its commit is
/// refused. What it had sent to a sink by then it sent twice, unless that sink compares tokens.
#[derive(Debug)]
pub struct Replay {
    worker: Worker,
    letters: Listing<StoredDeadLetter>,
}

impl Replay {
    /// The next open dead letter; `None` after the last one. What is committed as done meanwhile does not come again.
    pub async fn next(&mut self) -> Result<Option<StoredDeadLetter>> {
        self.letters.next().await
    }

    /// Says that these were processed: they are not open from then on. At most 1,000 at a time. The checkpoint's position
    /// is the last one of them.
    pub async fn done(&self, letters: impl IntoIterator<Item = DeadLetterId>) -> Result<Committed> {
        let letters: Vec<DeadLetterId> = letters.into_iter().collect();
        let last = letters.last().map(DeadLetterId::to_string).unwrap_or_default();
        self.worker.commit(Checkpoint::at(last).replayed(letters)).await
    }

    /// The worker, for commits that say more: with [`Checkpoint::replayed`].
    pub fn worker(&self) -> &Worker {
        &self.worker
    }

    /// The worker alone.
    pub fn into_worker(self) -> Worker {
        self.worker
    }
}

impl Pipeline {
    /// Its open dead letters.
    pub fn dead_letters(&self) -> DeadLetters {
        let request = v1::ListDeadLettersRequest { pipeline: self.name().to_owned(), ..Default::default() };
        DeadLetters { pipeline: self.clone(), request }
    }

    /// Gives dead letters up: nobody is going to process them. At most 1,000.
    pub fn discard_dead_letters(&self, letters: impl IntoIterator<Item = DeadLetterId>) -> DiscardDeadLetters {
        let letters = letters.into_iter().map(DeadLetterId::into_message).collect();
        let request = v1::DiscardDeadLettersRequest { pipeline: self.name().to_owned(), letters, ..Default::default() };
        DiscardDeadLetters { pipeline: self.clone(), request }
    }

    /// Takes branch `dead-letters`, which need not exist, to process the pipeline's open dead letters.
    ///
    /// ```
    /// # use fencepost_client::{Client, Result};
    /// # async fn mend(client: Client) -> Result<()> {
    /// let mut replay = client.pipeline("prod/orders").replay_dead_letters("mender").await?;
    /// while let Some(letter) = replay.next().await? {
    ///     // Process letter.payload() as code that knows better now does; then say that it is done.
    ///     replay.done([letter.id()]).await?;
    /// }
    /// replay.into_worker().release().await
    /// # }
    /// ```
    pub async fn replay_dead_letters(&self, resume: impl Into<Resume>) -> Result<Replay> {
        self.branch(REPLAY_BRANCH).replay_dead_letters(resume).await
    }
}

impl Branch {
    /// Takes this branch, which need not exist, to process the open dead letters of its whole pipeline.
    pub async fn replay_dead_letters(&self, resume: impl Into<Resume>) -> Result<Replay> {
        let worker = self.resume(resume.into().start_fresh()).await?;
        let letters = self.client().pipeline(self.pipeline()).dead_letters().list();
        Ok(Replay { worker, letters })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_dead_letter_reads_back_as_it_was_written() {
        let id: DeadLetterId = "42.7/3".parse().unwrap();
        assert_eq!((id.lsn.to_string().as_str(), id.number, id.to_string().as_str()), ("42.7", 3, "42.7/3"));
        for wrong in ["", "42.7", "42.7/", "/3", "42.7/x", "42.7/3/4", "42.7/-1"] {
            let error = wrong.parse::<DeadLetterId>().unwrap_err();
            assert!(error.contains("expected LSN/NUMBER, such as 42.0/3"), "{error}");
        }
    }
}
