//! The commit ids that a pipeline remembers, so that a late retry gets a friendly answer.
//!
//! Exactly-once does not rest on it: the sequence is compared on every commit, for ever. Ids are kept as 16 bytes of
//! their BLAKE3 hash, which bounds the memory whatever callers choose as ids. Which ids are remembered follows from the
//! numbers of the commits alone, so that it is the same after commits in between were compacted away.

use std::collections::VecDeque;
use std::fmt;

use fencepost::Lsn;
use fencepost::log::v1::Committed;
use hashbrown::HashTable;

/// How many of its newest commits a pipeline remembers. Fewer in the module's own tests, which have to go beyond it often.
pub const WINDOW_COMMITS: u64 = if cfg!(test) { 128 } else { 10_000 };

/// What was committed, in 16 bytes of BLAKE3.
pub type Digest = [u8; 16];

/// One remembered commit. 44 bytes and about 8 in the table, because a pipeline has thousands.
struct Remembered {
    key: Digest,
    digest: Digest,
    /// Zero once a later commit took the id.
    lsn: [u32; 2],
    /// The lower half of the commit's number: the upper one follows from the newest.
    number: u32,
}

/// One remembered commit, as it is written down and read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WindowEntry {
    pub(super) key: Digest,
    pub(super) digest: Digest,
    pub(super) lsn: Lsn,
    pub(super) number: u64,
}

#[derive(Default)]
pub(super) struct CommitWindow {
    /// In the order of their numbers.
    order: VecDeque<Remembered>,
    /// How many were in `order` before its first, modulo 2^32.
    gone: u32,
    /// For each id its place in `order`, counted from the first that ever was there.
    places: HashTable<u32>,
    /// Number of the newest commit.
    newest: u64,
}

impl CommitWindow {
    /// Number of the newest commit: how many there were.
    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    /// What was committed under this id and where, if the window still knows.
    pub(super) fn get(&self, commit_id: &str) -> Option<(Digest, Lsn)> {
        let found = self.find(&key(commit_id))?;
        Some((found.digest, found.lsn()))
    }

    /// Whether it still knows this commit, in the log at `lsn`, by its id.
    pub(super) fn holds(&self, commit: &Committed, lsn: Lsn) -> bool {
        self.get(&commit.commit_id).is_some_and(|(_, first)| first == lsn)
    }

    /// Whether there were more commits than are remembered; until then an unknown id was never committed.
    pub(super) fn has_forgotten(&self) -> bool {
        self.newest > WINDOW_COMMITS
    }

    /// Takes in the next commit. Its number is greater than all before.
    pub(super) fn remember(&mut self, commit_id: &str, digest: Digest, lsn: Lsn, number: u64) {
        self.advance(number);
        self.restore(WindowEntry { key: key(commit_id), digest, lsn, number });
    }

    /// Takes in one that was remembered, in the order of [`CommitWindow::entries`], after [`CommitWindow::advance`].
    pub(super) fn restore(&mut self, entry: WindowEntry) {
        let CommitWindow { order, gone, places, .. } = self;
        let at = |place: &u32| place.wrapping_sub(*gone) as usize;
        if let Ok(before) = places.find_entry(hash(&entry.key), |place| order[at(place)].key == entry.key) {
            let (before, _) = before.remove();
            order[at(&before)].lsn = [0, 0];
        }
        if order.len() == order.capacity() {
            // Doubling would leave a third of the room of a full window unused.
            let room = order.len().max(4).min((WINDOW_COMMITS as usize).saturating_sub(order.len()).max(1));
            order.reserve_exact(room);
        }
        let place = gone.wrapping_add(order.len() as u32);
        let lsn = entry.lsn.as_u64();
        order.push_back(Remembered {
            key: entry.key,
            digest: entry.digest,
            lsn: [(lsn >> 32) as u32, lsn as u32],
            number: entry.number as u32,
        });
        places.insert_unique(hash(&entry.key), place, |place| hash(&order[at(place)].key));
    }

    /// The ids that are remembered, oldest first.
    pub(super) fn entries(&self) -> impl Iterator<Item = WindowEntry> {
        let live = self.order.iter().filter(|remembered| remembered.lsn != [0, 0]);
        live.map(|remembered| WindowEntry {
            key: remembered.key,
            digest: remembered.digest,
            lsn: remembered.lsn(),
            number: self.number(remembered),
        })
    }

    /// Moves on to commit `newest` and forgets what is too far behind it.
    pub(super) fn advance(&mut self, newest: u64) {
        if newest.saturating_sub(self.newest) >= WINDOW_COMMITS {
            self.order.clear();
            self.places.clear();
        }
        while let Some(oldest) = self.order.front() {
            if newest - self.number(oldest) < WINDOW_COMMITS {
                break;
            }
            let (hash, gone) = (hash(&oldest.key), self.gone);
            // Of an id that a later commit took, the place is another.
            if let Ok(place) = self.places.find_entry(hash, |place| *place == gone) {
                place.remove();
            }
            self.order.pop_front();
            self.gone = self.gone.wrapping_add(1);
        }
        self.newest = newest;
    }

    fn number(&self, remembered: &Remembered) -> u64 {
        self.newest - u64::from((self.newest as u32).wrapping_sub(remembered.number))
    }

    fn find(&self, key: &Digest) -> Option<&Remembered> {
        let place = self.places.find(hash(key), |place| self.at(*place).key == *key)?;
        Some(self.at(*place))
    }

    fn at(&self, place: u32) -> &Remembered {
        &self.order[place.wrapping_sub(self.gone) as usize]
    }
}

impl Remembered {
    fn lsn(&self) -> Lsn {
        Lsn::from_u64(u64::from(self.lsn[0]) << 32 | u64::from(self.lsn[1]))
    }
}

/// Two windows are equal if they remember the same.
impl PartialEq for CommitWindow {
    fn eq(&self, other: &CommitWindow) -> bool {
        self.newest == other.newest && self.entries().eq(other.entries())
    }
}

impl Eq for CommitWindow {}

impl fmt::Debug for CommitWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommitWindow")
            .field("newest", &self.newest)
            .field("ids", &self.places.len())
            .finish_non_exhaustive()
    }
}

/// A caller's id as it is remembered, here and in the index.
pub fn key(id: &str) -> Digest {
    let hash = blake3::hash(id.as_bytes());
    let (head, _) = hash.as_bytes().split_first_chunk().expect("a BLAKE3 hash has 32 bytes");
    *head
}

/// The key is a hash already.
fn hash(key: &Digest) -> u64 {
    let (head, _) = key.split_first_chunk().expect("16 bytes begin with 8");
    u64::from_le_bytes(*head)
}
