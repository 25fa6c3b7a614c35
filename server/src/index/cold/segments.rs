//! What the index knows of the log's segments: what is alive in them, and what of them could not be read.

use std::ops::RangeInclusive;

use fencepost::{LogIndex, Lsn};

use super::SegmentUse;
use super::layout::{self, Unread, Use};
use super::store::{Problem, Store};

impl Store {
    /// Changes the bytes of the segment that has the LSN.
    pub(super) fn charge(&mut self, lsn: Lsn, change: impl FnOnce(u64) -> u64) -> Result<(), Problem> {
        let segment = self.segments.range(..=lsn.index().0).next_back();
        let (first_index, mut used) = segment.map_or((0, Use::default()), |(first_index, used)| (*first_index, *used));
        used.checkpoint_bytes = change(used.checkpoint_bytes);
        self.set_use(first_index, Some(used))
    }

    pub(super) fn merge_segment(&mut self, first_index: u64) -> Result<(), Problem> {
        let Some(gone) = self.segments.get(&first_index).copied() else { return Ok(()) };
        self.set_use(first_index, None)?;
        let before = self.segments.range(..first_index).next_back();
        let (into, mut used) = before.map_or((0, Use::default()), |(first_index, used)| (*first_index, *used));
        if gone.checkpoint_bytes > 0 {
            used.checkpoint_bytes = used.checkpoint_bytes.saturating_add(gone.checkpoint_bytes);
            self.set_use(into, Some(used))?;
        }
        Ok(())
    }

    pub(super) fn set_use(&mut self, first_index: u64, used: Option<Use>) -> Result<(), Problem> {
        let key = layout::use_key(first_index);
        if let Some(used) = used {
            self.segments.insert(first_index, used);
            self.put(key, &used)
        } else {
            self.segments.remove(&first_index);
            self.remove(key)
        }
    }

    pub(super) fn segments(&self) -> Vec<SegmentUse> {
        let segments = self.segments.iter();
        let used = segments.map(|(first_index, used)| SegmentUse {
            first_index: LogIndex(*first_index),
            checkpoint_bytes: used.checkpoint_bytes,
            other_bytes: used.other_bytes,
        });
        used.collect()
    }

    /// The oldest entries of the log that are not in it because they could not be read.
    pub(super) fn unread(&self) -> Option<RangeInclusive<LogIndex>> {
        self.unread.first_key_value().map(|(first, unread)| LogIndex(*first)..=LogIndex(unread.last))
    }

    /// Remembers that these entries of the log are not in it.
    pub(super) fn leave_out(&mut self, indexes: &RangeInclusive<LogIndex>) -> Result<(), Problem> {
        let (first, unread) = (indexes.start().0, Unread { last: indexes.end().0 });
        self.unread.insert(first, unread);
        self.put(layout::unread_key(first), &unread)
    }
}
