//! Reads what nobody reads, slowly, so that damage is found while there still is a copy.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::Settings;
use super::board::Board;
use super::damage::Damages;
use super::pace::{Pace, Stop};
use crate::clock::Clock;
use crate::log::Log;

/// Goes over all sealed segments again and again, until it is told to stop.
pub(super) fn scrub(log: &Arc<Log>, settings: &Settings, clock: &Clock, stop: &Stop, board: &Board, damages: &Damages) {
    if settings.scrub_bytes_per_second == 0 {
        return;
    }
    let mut pace = Pace::new(stop.clone(), clock.clone(), settings.scrub_bytes_per_second);
    while one_pass(log, &mut pace, board, damages).is_continue() {
        board.change(|status| (status.scrub_permille, status.scrubbed_at_ms) = (0, clock.wall_ms()));
        if stop.rest(settings.scrub_every).is_break() {
            return;
        }
    }
}

fn one_pass(log: &Arc<Log>, pace: &mut Pace, board: &Board, damages: &Damages) -> ControlFlow<()> {
    let segments = log.sealed();
    let bytes_total: u64 = segments.iter().map(|segment| segment.file_bytes).sum();
    let mut bytes_done = 0;
    for segment in segments {
        let mut used = |bytes| {
            bytes_done += bytes;
            board.change(|status| status.scrub_permille = (bytes_done * 1_000 / bytes_total.max(1)).min(1_000));
            pace.used(bytes)
        };
        // A segment that compaction replaced meanwhile was checked by that.
        let checked = log.check_segment(*segment.numbers.start(), &mut used);
        for damage in checked.err().into_iter().flatten() {
            damages.add(damage);
        }
        pace.used(0)?;
    }
    ControlFlow::Continue(())
}
