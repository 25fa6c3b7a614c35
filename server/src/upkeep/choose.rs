//! Which segments are worth compacting.
//!
//! A segment is *wasteful* once two fifths of it are dead: rewriting it then costs at most one and a half bytes for each
//! byte won, and all that is not wasteful is less than 1.7 times what is live, which keeps the directory within its bound.
//! Neighbours are rewritten together, as long as the result is no longer than one segment, so that what is left of many
//! becomes one. Small neighbours that are not wasteful are merged when there are enough of them: commit ids and audit
//! records die without being counted, and are found dead only then.

use std::ops::RangeInclusive;

use fencepost::LogIndex;

/// A segment has room for entries of so many indexes.
const SPAN_MAX: u64 = u32::MAX as u64;

/// So many small neighbours are merged although none is wasteful.
const SMALL_TOGETHER: usize = 4;

/// A sealed segment, and what is known to be alive in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) numbers: RangeInclusive<u64>,
    pub(super) indexes: RangeInclusive<LogIndex>,
    pub(super) file_bytes: u64,
    pub(super) live_bytes: u64,
}

impl Candidate {
    fn is_wasteful(&self, live_permille: u64) -> bool {
        self.live_bytes * 1_000 < self.file_bytes * live_permille
    }
}

/// With less than this alive a segment is wasteful, in the ordinary case and if somebody asked for compaction.
pub(super) const ORDINARY: u64 = 600;
/// See [`ORDINARY`].
pub(super) const THOROUGH: u64 = 950;

/// The runs of neighbours to rewrite, each as one. `candidates` are in order, with a gap in the numbers wherever a segment
/// cannot be touched.
pub(super) fn choose(candidates: &[Candidate], segment_bytes: u64, live_permille: u64) -> Vec<RangeInclusive<u64>> {
    let worth_it = |run: &[&Candidate]| worth_it(run, live_permille);
    let mut runs = Vec::new();
    let mut run: Vec<&Candidate> = Vec::new();
    for candidate in candidates {
        let is_small = candidate.file_bytes < segment_bytes / 2;
        let fits = run.iter().map(|it| it.live_bytes).sum::<u64>() + candidate.live_bytes <= segment_bytes;
        let begins = run.first().unwrap_or(&candidate).indexes.start().0;
        let fits = fits && candidate.indexes.end().0 - begins <= SPAN_MAX;
        let is_next = run.last().is_none_or(|last| last.numbers.end() + 1 == *candidate.numbers.start());
        let is_wanted = is_small || candidate.is_wasteful(live_permille);
        if !(fits && is_next && is_wanted) {
            runs.extend(worth_it(&run));
            run.clear();
        }
        if is_wanted {
            run.push(candidate);
        }
    }
    runs.extend(worth_it(&run));
    runs
}

fn worth_it(run: &[&Candidate], live_permille: u64) -> Option<RangeInclusive<u64>> {
    let is_worth_it = run.iter().any(|it| it.is_wasteful(live_permille)) || run.len() >= SMALL_TOGETHER;
    let (first, last) = (run.first()?, run.last()?);
    is_worth_it.then(|| *first.numbers.start()..=*last.numbers.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(candidates: &[Candidate], segment_bytes: u64) -> Vec<RangeInclusive<u64>> {
        super::choose(candidates, segment_bytes, ORDINARY)
    }

    fn segment(number: u64, file_bytes: u64, live_bytes: u64) -> Candidate {
        let indexes = LogIndex(number * 10)..=LogIndex(number * 10 + 9);
        Candidate { numbers: number..=number, indexes, file_bytes, live_bytes }
    }

    #[test]
    fn a_segment_is_left_alone_until_two_fifths_of_it_are_dead() {
        assert_eq!(choose(&[segment(1, 100, 60)], 100), []);
        assert_eq!(choose(&[segment(1, 100, 59)], 100), [1..=1]);
    }

    #[test]
    fn neighbours_become_one_as_long_as_it_is_no_longer_than_a_segment() {
        let segments: Vec<Candidate> = (1..=7).map(|number| segment(number, 100, 30)).collect();
        assert_eq!(choose(&segments, 100), [1..=3, 4..=6, 7..=7]);
    }

    #[test]
    fn a_small_neighbour_comes_along_and_small_ones_alone_are_merged_when_there_are_enough() {
        assert_eq!(choose(&[segment(1, 10, 10), segment(2, 100, 5)], 100), [1..=2]);
        let mut small: Vec<Candidate> = (1..=3).map(|number| segment(number, 10, 10)).collect();
        assert_eq!(choose(&small, 100), []);
        small.push(segment(4, 10, 10));
        assert_eq!(choose(&small, 100), [1..=4]);
    }

    #[test]
    fn a_run_ends_where_a_segment_is_full_of_life_or_cannot_be_touched() {
        let live = [segment(1, 100, 5), segment(2, 100, 95), segment(3, 100, 5)];
        assert_eq!(choose(&live, 100), [1..=1, 3..=3]);
        assert_eq!(choose(&[segment(1, 100, 5), segment(3, 100, 5)], 100), [1..=1, 3..=3]);
    }

    #[test]
    fn a_run_ends_before_its_indexes_are_more_than_a_segment_can_tell_apart() {
        let far = Candidate { indexes: LogIndex(20)..=LogIndex(10 + SPAN_MAX), ..segment(2, 100, 5) };
        assert_eq!(choose(&[segment(1, 100, 5), far.clone()], 100), [1..=2]);
        let farther = Candidate { indexes: LogIndex(20)..=LogIndex(11 + SPAN_MAX), ..far };
        assert_eq!(choose(&[segment(1, 100, 5), farther], 100), [1..=1, 2..=2]);
    }
}
