//! Saved progress: what a worker hands in ([`Checkpoint`]) and what it gets back ([`StoredCheckpoint`]).

use std::borrow::Cow;

use bytes::Bytes;
use fencepost::{Lsn, Token, v1};

use crate::error::{Error, Result};

/// Progress of one branch, ready to be committed. Cloning it does not copy the payload.
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use = "a checkpoint saves nothing until it is committed"]
pub struct Checkpoint {
    position: Bytes,
    state: Bytes,
    integrity: v1::Integrity,
}

impl Checkpoint {
    /// Where the next worker starts: an offset, a file position, a key. At most 64 KiB.
    pub fn at(position: impl Into<Bytes>) -> Checkpoint {
        Checkpoint { position: position.into(), ..Checkpoint::default() }
    }

    /// What the next worker needs to go on: aggregates, cursors, a serialised object. At most 4 MiB.
    pub fn state(mut self, state: impl Into<Bytes>) -> Checkpoint {
        self.state = state.into();
        self
    }

    /// Rows read since the checkpoint before.
    pub fn rows_in(mut self, rows: u64) -> Checkpoint {
        self.integrity.rows_in = Some(rows);
        self
    }

    /// Rows written since the checkpoint before.
    pub fn rows_out(mut self, rows: u64) -> Checkpoint {
        self.integrity.rows_out = Some(rows);
        self
    }

    /// Rows left out on purpose since the checkpoint before.
    pub fn rows_filtered(mut self, rows: u64) -> Checkpoint {
        self.integrity.rows_filtered = Some(rows);
        self
    }

    /// Rows that could not be processed since the checkpoint before.
    pub fn rows_dead(mut self, rows: u64) -> Checkpoint {
        self.integrity.rows_dead = Some(rows);
        self
    }

    /// A digest of the schema that the rows had. At most 64 bytes.
    pub fn schema(mut self, fingerprint: impl Into<Bytes>) -> Checkpoint {
        self.integrity.schema_fingerprint = fingerprint.into();
        self
    }

    /// As it is sent, with the checksum that protects it from here to the disk and back.
    pub(crate) fn into_message(self) -> v1::Checkpoint {
        let declared = self.integrity != v1::Integrity::default();
        let mut message = v1::Checkpoint {
            position: self.position,
            state: self.state,
            payload_crc32: None,
            integrity: declared.then_some(self.integrity),
            ..v1::Checkpoint::default()
        };
        message.payload_crc32 = Some(message.computed_crc32());
        message
    }
}

/// A checkpoint with its place in history. Cloning it does not copy the payload.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredCheckpoint {
    message: v1::StoredCheckpoint,
    checkpoint: v1::Checkpoint,
}

impl StoredCheckpoint {
    /// The pipeline it belongs to.
    pub fn pipeline(&self) -> &str {
        &self.message.pipeline
    }

    /// The branch it belongs to.
    pub fn branch(&self) -> &str {
        &self.message.branch
    }

    /// Its number in the branch: 1, 2, 3, gapless.
    pub fn sequence(&self) -> u64 {
        self.message.sequence
    }

    /// Where the next worker starts.
    pub fn position(&self) -> &Bytes {
        &self.checkpoint.position
    }

    /// The position as text; bytes that are not UTF-8 are replaced.
    pub fn position_str(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.checkpoint.position)
    }

    /// What the next worker needs to go on. Empty after a soft resume and in listings; see
    /// [`StoredCheckpoint::state_bytes`].
    pub fn state(&self) -> &Bytes {
        &self.checkpoint.state
    }

    /// Size of the state in bytes, also where the state itself was left out.
    pub fn state_bytes(&self) -> u64 {
        self.message.state_bytes
    }

    /// The fencing token that it was committed under.
    pub fn token(&self) -> Token {
        Token::from_u64(self.message.token)
    }

    /// Where the commit is in the log.
    pub fn lsn(&self) -> Lsn {
        Lsn::from_u64(self.message.lsn)
    }

    /// The identity of the commit.
    pub fn commit_id(&self) -> &str {
        &self.message.commit_id
    }

    /// The server's wall clock at the commit, in milliseconds since 1970. `None` for a head that this worker itself
    /// committed: the answer to a commit does not tell the time.
    pub fn committed_at_ms(&self) -> Option<u64> {
        Some(self.message.committed_at_ms).filter(|at_ms| *at_ms != 0)
    }

    /// CRC-32 (IEEE) of position and state.
    pub fn payload_crc32(&self) -> Option<u32> {
        self.checkpoint.payload_crc32
    }

    /// What the worker declared about its data, if it did.
    pub fn integrity(&self) -> Option<&v1::Integrity> {
        self.checkpoint.integrity.as_ref()
    }

    /// In a listing: why it cannot be read. Then only its place is known: branch, sequence and LSN.
    pub fn unreadable(&self) -> Option<&str> {
        Some(&*self.message.unreadable).filter(|why| !why.is_empty())
    }

    /// Fails unless position and state are byte for byte what the worker committed. Needs the state.
    pub fn verify(&self) -> Result<()> {
        let actual = self.checkpoint.computed_crc32();
        let problem = match self.checkpoint.payload_crc32 {
            Some(stored) if stored == actual => return Ok(()),
            Some(stored) => format!("the checksum of what arrived is {actual:08x}, of what was committed {stored:08x}"),
            None => "it has no checksum".to_owned(),
        };
        Err(Error::CorruptAnswer {
            pipeline: self.message.pipeline.clone(),
            branch: self.message.branch.clone(),
            sequence: self.message.sequence,
            problem,
        })
    }

    pub(crate) fn from_message(mut message: v1::StoredCheckpoint) -> StoredCheckpoint {
        let checkpoint = message.checkpoint.take().unwrap_or_default();
        StoredCheckpoint { message, checkpoint }
    }

    /// The head that a commit of this worker made.
    pub(crate) fn from_commit(
        pipeline: &str,
        commit_id: &str,
        lsn: Lsn,
        branch: &v1::BranchCommit,
    ) -> StoredCheckpoint {
        let checkpoint = branch.checkpoint.clone().unwrap_or_default();
        let message = v1::StoredCheckpoint {
            pipeline: pipeline.to_owned(),
            branch: branch.branch.clone(),
            sequence: branch.sequence,
            token: branch.token,
            lsn: lsn.as_u64(),
            commit_id: commit_id.to_owned(),
            state_bytes: checkpoint.state.len() as u64,
            ..v1::StoredCheckpoint::default()
        };
        StoredCheckpoint { message, checkpoint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(checkpoint: v1::Checkpoint) -> StoredCheckpoint {
        StoredCheckpoint::from_message(v1::StoredCheckpoint { checkpoint: Some(checkpoint), ..Default::default() })
    }

    #[test]
    fn the_checksum_is_that_of_position_and_state_in_one() {
        let message = Checkpoint::at("1234").state("56789").into_message();
        assert_eq!(message.payload_crc32, Some(0xcbf4_3926), "the check value of CRC-32/IEEE");
        stored(message).verify().unwrap();
    }

    #[test]
    fn a_flipped_bit_fails_the_check() {
        let mut message = Checkpoint::at("1234").state("56789").into_message();
        message.state = Bytes::from_static(b"56788");
        let error = stored(message).verify().unwrap_err();
        assert_eq!(error.reason(), Some(fencepost::Reason::IntegrityMismatch));
    }

    #[test]
    fn what_is_not_declared_is_not_sent() {
        assert_eq!(Checkpoint::at("1").into_message().integrity, None);
        let declared = Checkpoint::at("1").rows_in(3).rows_out(2).rows_dead(1).into_message().integrity.unwrap();
        assert_eq!((declared.rows_in, declared.rows_filtered), (Some(3), None));
    }
}
