//! How a dead letter is named: `42.0/3` is number 3, counted from 0, of those that came with the fact at LSN `42.0`.

use std::fmt;

use crate::Lsn;
use crate::v1::DeadLetterId;

impl fmt::Display for DeadLetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Lsn::from_u64(self.lsn), self.number)
    }
}
