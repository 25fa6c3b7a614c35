//! Fencing tokens.

use std::fmt;
use std::str::FromStr;

/// The right to move a branch, as one integer that only ever grows: `generation << 48 | epoch`. The server mints it at
/// each grant. A sink outside Fencepost stores it beside its data and refuses a lower one in the same atomic write
/// (M. Kleppmann, "How to do distributed locking", 2016).
///
/// People see `g1.e42`. Zero was never granted to anybody.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(u64);

impl Token {
    /// Lower than every token ever granted.
    pub const NONE: Token = Token(0);
    /// Largest epoch of a generation.
    pub const EPOCH_MAX: u64 = (1 << 48) - 1;

    /// The token of the given generation and epoch, or `None` if either has more bits than its place.
    pub const fn new(generation: u64, epoch: u64) -> Option<Token> {
        if generation > 0xffff || epoch > Token::EPOCH_MAX {
            return None;
        }
        Some(Token(generation << 48 | epoch))
    }

    /// From its form on the wire.
    pub const fn from_u64(value: u64) -> Token {
        Token(value)
    }

    /// The integer to store in a sink and to send.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// How many times the history had been restored or forced when the token was granted.
    pub const fn generation(self) -> u64 {
        self.0 >> 48
    }

    /// Number of the grant in its generation.
    pub const fn epoch(self) -> u64 {
        self.0 & Token::EPOCH_MAX
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "g{}.e{}", self.generation(), self.epoch())
    }
}

/// As people see it, also in the errors of a program that prints them so.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Token {
    type Err = String;

    /// Reads both forms: `g1.e42` and the integer.
    fn from_str(text: &str) -> Result<Token, String> {
        let expected = || format!("'{text}' is no fencing token: expected a form such as g1.e42, or its integer");
        if let Ok(value) = text.parse() {
            return Ok(Token(value));
        }
        let (generation, epoch) = text.strip_prefix('g').and_then(|rest| rest.split_once(".e")).ok_or_else(expected)?;
        let generation = generation.parse().map_err(|_| expected())?;
        let epoch = epoch.parse().map_err(|_| expected())?;
        Token::new(generation, epoch).ok_or_else(expected)
    }
}
