//! Committing what checkpoints of several branches were merged into ([`Worker::merge`]), once, whoever merges them again.
//! How records are merged is in [`merge`](crate::merge).

use bytes::Bytes;
use fencepost::{Applied, Lsn, v1};
use std::sync::Arc;

use crate::checkpoint::Checkpoint;
use crate::commit::{Doubt, moved};
use crate::error::{Error, Result};
use crate::rpc::barriers;
use crate::worker::Worker;

/// From what an output was merged, and how.
#[derive(Clone, Debug)]
#[must_use = "hand it to Worker::merge"]
pub struct Merge {
    message: v1::Merge,
}

impl Merge {
    /// By a function of that name and version: change the version when the function gives another output for the same
    /// inputs. 1 to 128 printable ASCII characters without spaces each.
    pub fn by(function: impl Into<String>, version: impl Into<String>) -> Merge {
        let message = v1::Merge { function: function.into(), version: version.into(), ..Default::default() };
        Merge { message }
    }

    /// The checkpoints that were merged, as branch and sequence, in any order. 1 to 128 in all.
    pub fn inputs<B: Into<String>>(mut self, inputs: impl IntoIterator<Item = (B, u64)>) -> Merge {
        let inputs = inputs.into_iter();
        self.message.inputs.extend(inputs.map(|(branch, sequence)| v1::MergeInput {
            branch: branch.into(),
            sequence,
            lsn: 0,
        }));
        self
    }

    /// A digest of the output, such as [`merge::digest`](crate::merge::digest): 1 to 64 bytes. The same inputs must always
    /// give the same one.
    pub fn output_digest(mut self, digest: impl AsRef<[u8]>) -> Merge {
        self.message.output_digest = Bytes::copy_from_slice(digest.as_ref());
        self
    }
}

/// Where a merged output is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// The branch that has it.
    pub branch: String,
    /// Its sequence there.
    pub sequence: u64,
    /// Where its commit is in the log.
    pub lsn: Lsn,
    /// Whether it was there before: these inputs were merged already, by whomever. Only if it is false has this worker's
    /// checkpoint been committed now.
    pub already: bool,
}

impl Worker {
    /// Commits what was merged from committed checkpoints of the pipeline to this worker's branch.
    ///
    /// If the same inputs were merged by the same function before, the answer is where that result is, and this checkpoint is
    /// not committed; the worker then stands where it stood, unless the result is its own branch's head. With another output
    /// digest that is `MERGE_DIVERGED`: the function does not always give the same, and somebody has to look.
    ///
    /// Repeats itself like [`Worker::commit`].
    ///
    /// ```
    /// # use fencepost_client::{Checkpoint, Merge, Result, Worker, merge};
    /// # async fn end_of_day(day: &Worker, ewr: u64, jfk: u64, output: Vec<String>) -> Result<()> {
    /// let merge = Merge::by("latest", "1").inputs([("ewr", ewr), ("jfk", jfk)]).output_digest(merge::digest(&output));
    /// let merged = day.merge(merge, Checkpoint::at("2013-01-05").state(output.join("\n"))).await?;
    /// println!("{}@{}", merged.branch, merged.sequence);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn merge(&self, merge: Merge, checkpoint: Checkpoint) -> Result<Merged> {
        let deadline = self.commit_deadline();
        let content = checkpoint.into_message();
        if !content.dead_letters.is_empty() || !content.replayed.is_empty() {
            let problem = "a merge neither skips nor replays records: give dead letters to a commit".to_owned();
            return Err(Error::Invalid { field: "dead_letters", problem });
        }
        let mut turn = self.turn.lock().await;
        self.begin(&mut turn, deadline).await?;

        let own = moved(self, self.sequence() + 1, content);
        let request = v1::MergeRequest {
            cluster: None,
            pipeline: self.pipeline().to_owned(),
            branch: own.branch.clone(),
            token: own.token,
            sequence: own.sequence,
            commit_id: turn.next_id(self.token()),
            checkpoint: own.checkpoint.clone(),
            merge: Some(merge.message.clone()),
            not_after_ms: 0,
        };
        // How it ended is told as it is of any commit with this id.
        let (pipeline, commit_id) = (request.pipeline.clone(), request.commit_id.clone());
        let as_commit = v1::CommitRequest { cluster: None, pipeline, commit_id, branches: vec![own], not_after_ms: 0 };
        let doubt = Arc::new(Doubt::new(as_commit, Some(merge.message)));
        turn.doubt = Some(doubt.clone());

        let rpc = &self.client.shared.rpc;
        let send = async |channel, request| barriers(channel).merge(request).await;
        let asked = rpc.ask_each(request.clone(), rpc.options.request_timeout, deadline, send).await;
        let sent = asked.sent;
        match self.undoubted(asked) {
            Ok(answer) => {
                if !answer.already {
                    self.lease.renewed(sent);
                }
                let merged = Merged {
                    branch: answer.branch,
                    sequence: answer.sequence,
                    lsn: Lsn::from_u64(answer.lsn),
                    already: answer.already,
                };
                self.take_in_merged(&doubt, &merged).await?;
                // Not before: until then this worker may stand behind what it has merged.
                turn.doubt = None;
                Ok(merged)
            }
            Err(error) if error.applied() == Applied::No => {
                turn.doubt = None;
                self.note_loss(&error);
                Err(error)
            }
            Err(error) => Err(doubt.in_doubt(error)),
        }
    }

    /// Moves the head, if the result is ahead of it in its own branch.
    async fn take_in_merged(&self, doubt: &Doubt, merged: &Merged) -> Result<()> {
        if merged.branch != self.branch() || merged.sequence <= self.sequence() {
            return Ok(());
        }
        if !merged.already {
            self.advance(doubt, merged.lsn);
            return Ok(());
        }
        // An earlier attempt of this worker, or one that has replaced it.
        let head = self.as_branch().checkpoint(merged.sequence).await?;
        if head.token() > self.token() {
            return Ok(());
        }
        self.move_to(Some(head));
        Ok(())
    }
}
