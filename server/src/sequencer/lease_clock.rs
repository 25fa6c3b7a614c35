//! For how long each holder has been silent.
//!
//! Lease time is not the machine's time: it stands still while the server could not have heard anybody, because its
//! disk hung or its thread was not scheduled. So a stall delays successors and never takes a lease from a holder whose
//! keepalives were waiting in a queue. After a restart every lease counts from its full TTL again.

use std::collections::HashMap;
use std::time::Duration;

use fencepost::Token;

use crate::clock::Monotonic;

/// The sequencer looks at the clock at least this often while anybody holds a lease.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// A longer gap between two looks is a stall.
const STALL: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct LeaseClock {
    /// When the clock was looked at last, in the machine's time.
    looked: Monotonic,
    /// Lease time.
    now: Duration,
    /// In lease time, by the token of a lease in force.
    heard: HashMap<Token, Duration>,
}

impl LeaseClock {
    /// Every lease was heard from just now. There are `count` of them.
    pub(super) fn new(now: Monotonic, leases: impl Iterator<Item = Token>, count: u64) -> LeaseClock {
        let mut heard = HashMap::with_capacity(count as usize);
        heard.extend(leases.map(|token| (token, Duration::ZERO)));
        LeaseClock { looked: now, now: Duration::ZERO, heard }
    }

    /// Moves lease time on to `now`, but for stalls. `disk_stalled` says that the disk has kept a write waiting.
    pub(super) fn look(&mut self, now: Monotonic, disk_stalled: bool) {
        let step = now.since(self.looked);
        self.looked = now;
        if self.heard.is_empty() {
            return;
        }
        if step > STALL {
            tracing::warn!(stalled_ms = step.as_millis() as u64, "the server stood still; leases are extended by that");
        }
        self.now += match (disk_stalled, step > STALL) {
            (true, _) => Duration::ZERO,
            (false, true) => TICK,
            (false, false) => step,
        };
    }

    /// The holder is there.
    pub(super) fn hear(&mut self, token: Token) {
        self.heard.insert(token, self.now);
    }

    /// The holder is there, if this lease is in force.
    pub(super) fn hear_present(&mut self, token: Token) {
        if let Some(heard) = self.heard.get_mut(&token) {
            *heard = self.now;
        }
    }

    /// The lease is over.
    pub(super) fn forget(&mut self, token: Token) {
        self.heard.remove(&token);
    }

    /// How long nothing was heard from the holder; nothing at all is known of a token that is not in force.
    pub(super) fn silent(&self, token: Token) -> Duration {
        self.heard.get(&token).map_or(Duration::ZERO, |heard| self.now.saturating_sub(*heard))
    }

    /// Whether anybody holds a lease.
    pub(super) fn is_idle(&self) -> bool {
        self.heard.is_empty()
    }
}
