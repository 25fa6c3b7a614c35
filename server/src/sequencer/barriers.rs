//! What those who wait at barriers are woken for.

use fencepost::log::v1::Fact;
use fencepost::log::v1::fact::Kind;

use crate::state::State;

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
