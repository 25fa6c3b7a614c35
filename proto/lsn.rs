//! Positions in the log.

use std::fmt;
use std::str::FromStr;

/// Number of an entry of the log, from 1. An entry is a batch of facts that became durable together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogIndex(pub u64);

impl LogIndex {
    /// Before the first entry.
    pub const ZERO: LogIndex = LogIndex(0);

    /// The index after this one.
    #[must_use]
    pub fn next(self) -> LogIndex {
        LogIndex(self.0 + 1)
    }
}

impl fmt::Display for LogIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Position of one fact: the log index of its entry and its ordinal in it. Totally ordered, never reused, and unchanged
/// by compaction. Zero is before every fact.
///
/// On the wire it is one integer, `index << 16 | ordinal`; people see `index.ordinal`.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(u64);

impl Lsn {
    /// Before the first fact.
    pub const ZERO: Lsn = Lsn(0);
    /// After every fact.
    pub const MAX: Lsn = Lsn(u64::MAX);

    /// The position of fact `ordinal`, counted from 0, of the entry at `index`. An index has 48 bits: at 20,000
    /// entries a second they last for 400 years.
    pub const fn new(index: LogIndex, ordinal: u16) -> Lsn {
        Lsn(index.0 << 16 | ordinal as u64)
    }

    /// From its form on the wire.
    pub const fn from_u64(value: u64) -> Lsn {
        Lsn(value)
    }

    /// Its form on the wire.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The entry that the fact is in.
    pub const fn index(self) -> LogIndex {
        LogIndex(self.0 >> 16)
    }

    /// The fact's place in its entry, from 0.
    pub const fn ordinal(self) -> u16 {
        (self.0 & 0xffff) as u16
    }

    /// The smallest position after this one. Not every position has a fact.
    #[must_use]
    pub const fn next(self) -> Lsn {
        Lsn(self.0.saturating_add(1))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index(), self.ordinal())
    }
}

/// As people see it, also in the errors of a program that prints them so.
impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Lsn {
    type Err = String;

    /// Reads what `Display` writes (`42.0`), a bare index (`42`, its first fact).
    fn from_str(text: &str) -> Result<Lsn, String> {
        let expected = || format!("'{text}' is no LSN: expected INDEX or INDEX.ORDINAL, such as 42.0");
        let (index, ordinal) = text.split_once('.').unwrap_or((text, "0"));
        let index: u64 = index.parse().map_err(|_| expected())?;
        if index >= 1 << 48 {
            return Err(expected());
        }
        Ok(Lsn::new(LogIndex(index), ordinal.parse().map_err(|_| expected())?))
    }
}
