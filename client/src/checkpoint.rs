//! Saved progress: what a worker hands in ([`Checkpoint`]) and what it gets back ([`StoredCheckpoint`]).

use std::borrow::Cow;

use bytes::Bytes;
use fencepost::{Lsn, Token, TraceParent, v1};

use crate::dead_letter::{DeadLetter, DeadLetterId};
use crate::error::{Error, Result};
use crate::upcast::{UpcastError, Upcasters};

/// Progress of one branch, ready to be committed. Cloning it does not copy the payload.
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use = "a checkpoint saves nothing until it is committed"]
pub struct Checkpoint {
    message: v1::Checkpoint,
    integrity: v1::Integrity,
    dead_letters: Vec<v1::DeadLetter>,
    replayed: Vec<v1::DeadLetterId>,
}

impl Checkpoint {
    /// Where the next worker starts: an offset, a file position, a key. At most 64 KiB.
    pub fn at(position: impl Into<Bytes>) -> Checkpoint {
        let mut checkpoint = Checkpoint::default();
        checkpoint.message.position = position.into();
        checkpoint
    }

    /// What the next worker needs to go on: aggregates, cursors, a serialised object. At most 4 MiB.
    pub fn state(mut self, state: impl Into<Bytes>) -> Checkpoint {
        self.message.state = state.into();
        self
    }

    /// Version of the encoding of the state, from 1, so that later code can bring it up to its own
    /// ([`StoredCheckpoint::state_as`]).
    pub fn format_version(mut self, version: u32) -> Checkpoint {
        self.message.format_version = version;
        self
    }

    /// What it was made by or from: the fingerprint of the configuration, the code, the incarnation of the source. Given
    /// again at a resume it is compared ([`Resume::scope`](crate::Resume::scope)). At most 16, each name once.
    pub fn scope(mut self, name: impl Into<String>, value: impl Into<String>) -> Checkpoint {
        self.message.scope.push(v1::Fingerprint { name: name.into(), value: value.into() });
        self
    }

    /// The trace that the work was done in.
    pub fn traceparent(mut self, traceparent: TraceParent) -> Checkpoint {
        self.message.traceparent = traceparent.to_string();
        self
    }

    /// Says that this is late data: it came after this barrier of the pipeline was committed.
    pub fn late_for(mut self, barrier: impl Into<String>) -> Checkpoint {
        self.message.late_for = barrier.into();
        self
    }

    /// A record that could not be processed and is skipped by this checkpoint. Kept in the commit, so that it is neither
    /// lost nor there twice. At most 1,000 and 4 MiB in a commit.
    pub fn dead_letter(mut self, letter: DeadLetter) -> Checkpoint {
        self.dead_letters.push(letter.into_message());
        self
    }

    /// Several of them.
    pub fn dead_letters(mut self, letters: impl IntoIterator<Item = DeadLetter>) -> Checkpoint {
        self.dead_letters.extend(letters.into_iter().map(DeadLetter::into_message));
        self
    }

    /// Dead letters of the pipeline that were processed after all. If one of them is not open any more the commit is refused
    /// with `DEAD_LETTER_HANDLED`. At most 1,000 in a commit. Not for what is staged.
    pub fn replayed(mut self, letters: impl IntoIterator<Item = DeadLetterId>) -> Checkpoint {
        self.replayed.extend(letters.into_iter().map(DeadLetterId::into_message));
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

    /// Rows that could not be processed since the checkpoint before. Default: as many as dead letters come with it.
    pub fn rows_dead(mut self, rows: u64) -> Checkpoint {
        self.integrity.rows_dead = Some(rows);
        self
    }

    /// A digest of the schema that the rows had. At most 64 bytes.
    pub fn schema(mut self, fingerprint: impl Into<Bytes>) -> Checkpoint {
        self.integrity.schema_fingerprint = fingerprint.into();
        self
    }

    /// As it is sent, with the checksum that protects it from here to the disk and back. Whose it is, is not in it yet.
    pub(crate) fn into_message(self) -> v1::BranchCommit {
        let Checkpoint { mut message, mut integrity, dead_letters, replayed } = self;
        if !dead_letters.is_empty() {
            integrity.rows_dead.get_or_insert(dead_letters.len() as u64);
        }
        message.integrity = (integrity != v1::Integrity::default()).then_some(integrity);
        message.payload_crc32 = Some(message.computed_crc32());
        v1::BranchCommit { checkpoint: Some(message), dead_letters, replayed, ..v1::BranchCommit::default() }
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

    /// Version of the encoding of the state; 0: not said.
    pub fn format_version(&self) -> u32 {
        self.checkpoint.format_version
    }

    /// The state, brought up to the format version that this code reads. The state must be there: see
    /// [`StoredCheckpoint::state`].
    pub fn state_as(&self, upcasters: &Upcasters) -> Result<Bytes, UpcastError> {
        upcasters.upcast(self.format_version(), self.state().clone())
    }

    /// What it was made by and from, as `(name, value)`.
    pub fn scope(&self) -> impl Iterator<Item = (&str, &str)> {
        self.checkpoint.scope.iter().map(|fingerprint| (&*fingerprint.name, &*fingerprint.value))
    }

    /// The trace that the work was done in, if that was said.
    pub fn traceparent(&self) -> Option<TraceParent> {
        self.checkpoint.traceparent.parse().ok()
    }

    /// The barrier that it came too late for, if it is late data.
    pub fn late_for(&self) -> Option<&str> {
        Some(&*self.checkpoint.late_for).filter(|barrier| !barrier.is_empty())
    }

    /// From what it was merged, if it was. The places of the inputs are not known (0) for a head that this worker itself
    /// committed.
    pub fn merge(&self) -> Option<&v1::Merge> {
        self.message.merge.as_ref()
    }

    /// The barrier that committed it, if one did.
    pub fn barrier(&self) -> Option<&str> {
        Some(&*self.message.barrier).filter(|barrier| !barrier.is_empty())
    }

    /// How many dead letters came with it.
    pub fn dead_letters(&self) -> u32 {
        self.message.dead_letters
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
    pub(crate) fn from_commit(pipeline: &str, branch: &v1::BranchCommit) -> StoredCheckpoint {
        let checkpoint = branch.checkpoint.clone().unwrap_or_default();
        let message = v1::StoredCheckpoint {
            pipeline: pipeline.to_owned(),
            branch: branch.branch.clone(),
            sequence: branch.sequence,
            token: branch.token,
            state_bytes: checkpoint.state.len() as u64,
            dead_letters: branch.dead_letters.len() as u32,
            ..v1::StoredCheckpoint::default()
        };
        StoredCheckpoint { message, checkpoint }
    }

    /// The same in its place: what was staged, or asked for, has been committed there.
    pub(crate) fn committed(mut self, commit_id: &str, lsn: Lsn, token: Token) -> StoredCheckpoint {
        commit_id.clone_into(&mut self.message.commit_id);
        self.message.lsn = lsn.as_u64();
        self.message.token = token.as_u64();
        self
    }

    /// Whether this is what it says.
    pub(crate) fn has(&self, checkpoint: &v1::Checkpoint) -> bool {
        self.checkpoint == *checkpoint
    }

    /// Whether this is that work, as far as can be told without the state: the checksum stands for it.
    pub(crate) fn is_of(&self, checkpoint: &v1::Checkpoint) -> bool {
        let of = |it: &v1::Checkpoint| (it.payload_crc32, it.position.clone(), it.integrity.clone());
        of(&self.checkpoint) == of(checkpoint)
    }

    /// The same with what the server says about it.
    pub(crate) fn described(self, by: v1::StoredCheckpoint) -> StoredCheckpoint {
        StoredCheckpoint { message: v1::StoredCheckpoint { checkpoint: None, ..by }, checkpoint: self.checkpoint }
    }

    pub(crate) fn merged_from(mut self, merge: Option<v1::Merge>) -> StoredCheckpoint {
        self.message.merge = merge;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(checkpoint: v1::Checkpoint) -> StoredCheckpoint {
        StoredCheckpoint::from_message(v1::StoredCheckpoint { checkpoint: Some(checkpoint), ..Default::default() })
    }

    fn sent(checkpoint: Checkpoint) -> v1::Checkpoint {
        checkpoint.into_message().checkpoint.unwrap()
    }

    #[test]
    fn the_checksum_is_that_of_position_and_state_in_one() {
        let message = sent(Checkpoint::at("1234").state("56789"));
        assert_eq!(message.payload_crc32, Some(0xcbf4_3926), "the check value of CRC-32/IEEE");
        stored(message).verify().unwrap();
    }

    #[test]
    fn a_flipped_bit_fails_the_check() {
        let mut message = sent(Checkpoint::at("1234").state("56789"));
        message.state = Bytes::from_static(b"56788");
        let error = stored(message).verify().unwrap_err();
        assert_eq!(error.reason(), Some(fencepost::Reason::IntegrityMismatch));
    }

    #[test]
    fn what_is_not_declared_is_not_sent() {
        assert_eq!(sent(Checkpoint::at("1")).integrity, None);
        let declared = sent(Checkpoint::at("1").rows_in(3).rows_out(2).rows_dead(1)).integrity.unwrap();
        assert_eq!((declared.rows_in, declared.rows_filtered), (Some(3), None));
    }

    #[test]
    fn as_many_rows_are_dead_as_dead_letters_unless_it_is_said() {
        let rows_dead = |checkpoint| sent(checkpoint).integrity.and_then(|integrity| integrity.rows_dead);
        let letters = || [DeadLetter::new("a", "no date"), DeadLetter::new("b", "no date")];
        assert_eq!(rows_dead(Checkpoint::at("1").rows_in(3)), None);
        assert_eq!(rows_dead(Checkpoint::at("1").dead_letters(letters())), Some(2));
        assert_eq!(rows_dead(Checkpoint::at("1").rows_dead(5).dead_letters(letters())), Some(5));
    }

    #[test]
    fn a_state_is_brought_up_to_the_version_of_the_code() {
        let upcasters = Upcasters::new(2).register(1, 2, |state| Ok::<_, String>([&state[..], b"!"].concat().into()));
        let upcasters = upcasters.unwrap();
        let state_as =
            |version| stored(sent(Checkpoint::at("1").state("old").format_version(version))).state_as(&upcasters);
        assert_eq!(state_as(1).unwrap(), "old!");
        assert_eq!(state_as(2).unwrap(), "old");
        assert!(matches!(state_as(3), Err(UpcastError::Newer { .. })));
    }

    #[test]
    fn what_a_checkpoint_says_of_itself_can_be_read_back() {
        let trace: TraceParent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap();
        let made = Checkpoint::at("1").scope("code", "v2").scope("config", "c7").traceparent(trace).late_for("friday");
        let stored = stored(sent(made));
        assert_eq!(stored.scope().collect::<Vec<_>>(), [("code", "v2"), ("config", "c7")]);
        assert_eq!((stored.traceparent(), stored.late_for()), (Some(trace), Some("friday")));
        let plain = StoredCheckpoint::from_message(v1::StoredCheckpoint::default());
        assert_eq!((plain.traceparent(), plain.late_for(), plain.barrier()), (None, None, None));
    }
}
