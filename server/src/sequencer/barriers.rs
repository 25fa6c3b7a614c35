//! What those who wait at barriers are woken for.

use std::collections::BTreeMap;

use fencepost::Lsn;
use fencepost::log::v1::Fact;
use fencepost::log::v1::fact::Kind;

use crate::state::State;

/// When the barriers of each pipeline may have changed last, since the server started. So whoever waits at one need not look
/// at it for those of others.
#[derive(Debug, Default)]
pub struct BarrierChanges(BTreeMap<Box<str>, Lsn>);

impl BarrierChanges {
    /// The last fact that may have changed a barrier of this pipeline; zero if there was none.
    pub fn of(&self, pipeline: &str) -> Lsn {
        self.0.get(pipeline).copied().unwrap_or_default()
    }

    pub(super) fn note(&mut self, pipeline: &str, lsn: Lsn) {
        match self.0.get_mut(pipeline) {
            Some(last) => *last = lsn,
            None => drop(self.0.insert(pipeline.into(), lsn)),
        }
    }
}

/// Whether this fact may change a barrier, or who is to be looked for at one. `state` has not taken it in yet.
pub(super) fn may_change(state: &State, fact: &Fact) -> bool {
    match &fact.kind {
        Some(Kind::Committed(committed)) => committed.barrier.is_some(),
        Some(Kind::BarrierOpened(_) | Kind::BarrierArrived(_) | Kind::BarrierAborted(_)) => true,
        Some(Kind::LeaseGranted(_) | Kind::Rewound(_) | Kind::StagedDiscarded(_) | Kind::GroupFenced(_)) => {
            let pipeline = fact.pipeline().and_then(|name| state.pipeline(name));
            pipeline.is_some_and(|pipeline| pipeline.open_barriers().next().is_some())
        }
        _ => false,
    }
}
