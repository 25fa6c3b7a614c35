//! Random histories of appends, crashes, faults and full disks, against a model that knows only what was acknowledged.

use std::io::ErrorKind;

use fencepost_server::disk::sim::{Lasting, Moment, Operation, SimDisk, Survivors};
use fencepost_server::log::{InlineLog, LogError};
use proptest::prelude::*;

use crate::workload::{CONFIG, append, check, open};

#[derive(Clone, Copy, Debug)]
enum Step {
    Append { entries: u64 },
    Reopen,
    Kill,
    PowerLoss { seed: u64 },
    TornWrite { nth: u64, thousandths: usize },
    Fault { operation: Operation, nth: u64, full: bool, forever: bool },
    Capacity { pages: Option<u64> },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let operation = prop_oneof![
        Just(Operation::Create),
        Just(Operation::Write),
        Just(Operation::Sync),
        Just(Operation::Rename),
        Just(Operation::SyncDir),
    ];
    let step = prop_oneof![
        12 => (1..5_u64).prop_map(|entries| Step::Append { entries }),
        1 => Just(Step::Reopen),
        1 => Just(Step::Kill),
        2 => any::<u64>().prop_map(|seed| Step::PowerLoss { seed }),
        1 => (1..4_u64, 0..=1000_usize).prop_map(|(nth, thousandths)| Step::TornWrite { nth, thousandths }),
        2 => (operation, 1..6_u64, any::<bool>(), any::<bool>())
            .prop_map(|(operation, nth, full, forever)| Step::Fault { operation, nth, full, forever }),
        1 => prop::option::of(2..10_u64).prop_map(|pages| Step::Capacity { pages }),
    ];
    prop::collection::vec(step, 1..60)
}

/// The log, its disk, and what is known about it.
struct Run {
    seed: u64,
    disk: SimDisk,
    log: Option<InlineLog>,
    acknowledged: u64,
    submitted: u64,
}

impl Run {
    fn append(&mut self, entries: u64) {
        let Some(log) = &mut self.log else { return };
        if let Err(error) = log.reserve(CONFIG.entry_bytes_max as usize) {
            assert!(matches!(error, LogError::NoSpace { .. }), "{error}");
            return;
        }
        self.submitted = self.submitted.max(log.last_index().0 + entries);
        let outcome = append(log, self.seed, entries);
        self.acknowledged = log.last_index().0;
        if outcome.is_ok() {
            self.submitted = self.acknowledged;
        }
    }

    /// Goes on with another disk, whole again, and compares.
    fn restart(&mut self, disk: SimDisk) {
        self.log = None;
        disk.heal();
        disk.set_capacity(None);
        let log = open(&disk).unwrap();
        let found = check(&log, self.seed);
        assert!((self.acknowledged..=self.submitted).contains(&found), "{found} found of {self:?}");
        (self.acknowledged, self.submitted) = (found, found);
        (self.disk, self.log) = (disk, Some(log));
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Append { entries } => self.append(entries),
            Step::Reopen => {
                self.log = None;
                self.restart(self.disk.clone());
            }
            Step::Kill => self.restart(self.disk.fork()),
            Step::PowerLoss { seed } => self.restart(self.disk.crash_image(Survivors::Random(seed))),
            Step::TornWrite { nth, thousandths } => {
                self.disk.crash_at(Operation::Write, nth, Moment::After);
                (0..nth).for_each(|_| self.append(1));
                let bytes = self.disk.last_write_bytes().unwrap_or(0) * thousandths / 1000;
                self.restart(self.disk.crash_image(Survivors::TornLastWrite { bytes }));
            }
            Step::Fault { operation, nth, full, forever } => {
                let lasting = if forever { Lasting::Forever } else { Lasting::Once };
                let kind = if full { ErrorKind::StorageFull } else { ErrorKind::Other };
                self.disk.fail(operation, nth, lasting, kind);
            }
            Step::Capacity { pages } => self.disk.set_capacity(pages.map(|pages| pages * 4096)),
        }
    }
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}..={}", self.acknowledged, self.submitted)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_history_ends_with_what_was_acknowledged(seed in any::<u64>(), steps in steps()) {
        let disk = SimDisk::new();
        let log = Some(open(&disk).unwrap());
        let mut run = Run { seed, disk, log, acknowledged: 0, submitted: 0 };
        for step in steps {
            run.step(step);
        }
        let (disk, log) = (run.disk.clone(), run.log.take());
        drop(log);
        run.restart(disk.crash_image(Survivors::Random(seed)));
    }
}
