//! Everything that can happen to a file happens to each kind of file of a store, and the store is never wrong about it: it
//! works with exactly the right answers, makes again what is made from the log, refuses to start and names the file, or
//! refuses the reads that are concerned, naming file and offset, while all else works. It does not panic or hang.
//!
//! `FENCEPOST_STORE_FAULTS` says how many faults are tried; each part with each fault is tried once before any is tried
//! again. `FENCEPOST_STORE_SEED` makes them other ones. The table at the end is shown with `--nocapture`.
//!
//! What no rule can tell (docs/log-format.md) is told here from everything else: the last group, if one of its sectors turned
//! into zeros, and the newest segment, if an older copy of it took its place, may be gone. Then the answers are exactly those
//! of before.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

use fencepost_server::disk::RealDisk;
use fencepost_server::embedded::Embedded;
use fencepost_server::log::{Content, SegmentFileReader};
use fencepost_server::upkeep::hot_state;
use tokio::sync::Semaphore;

use crate::ask::Truth;
use crate::damage::{Done, Fault, Kind, Target, damage, targets};
use crate::drive::Random;
use crate::prepared::{PATIENCE, Prepared, settled, thorough};
use crate::support::{open_again, status};

/// How a store took what happened to it. All of these are right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// All answers are right, and nothing was noticed.
    Works,
    /// All answers are right, and the damage is told by the status.
    Told,
    /// All answers are right, from what was made again.
    MadeAgain,
    /// It does not start, and names the file.
    Refused,
    /// What cannot be read is refused with file and offset; all other answers are right.
    ReadsRefused,
    /// The last group is gone, as no rule can tell.
    LastGroupLost,
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is {text}")))
}

/// What panicked, apart from sled, whose panics are caught.
fn panics() -> &'static Mutex<Vec<String>> {
    static PANICS: OnceLock<Mutex<Vec<String>>> = OnceLock::new();
    PANICS.get_or_init(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if panic.location().is_some_and(|at| at.file().contains("sled")) {
                return;
            }
            let text = panic.to_string();
            panics().lock().unwrap().push(text);
            usual(panic);
        }));
        Mutex::default()
    })
}

/// Whether the file with the hot state can be used as it is now.
fn is_state_usable(data_dir: &Path) -> bool {
    let opened = SegmentFileReader::open(&RealDisk, &hot_state::path(data_dir), Content::HotState, None);
    opened.is_ok_and(|mut reader| reader.all(|entry| entry.is_ok()))
}

struct Case {
    seed: u64,
    target: Target,
    fault: Fault,
}

impl Case {
    fn name(&self) -> String {
        format!("seed {}: {} of {}, {:?}", self.seed, self.target.what, self.target.file.display(), self.fault)
    }

    /// Damages a copy of the store and looks at what it does then. `None`: it would change nothing.
    async fn run(&self, prepared: &Prepared) -> Option<Result<Outcome, String>> {
        let dir = prepared.copy();
        let data_dir = dir.path().join("data");
        let done = damage(&data_dir, &prepared.older(), &self.target, self.fault, &mut Random::new(self.seed))?;
        let is_remade = !is_state_usable(&data_dir);
        let database = databases(&data_dir);
        let store = match open_again(thorough(&data_dir)).await {
            Ok(store) => store,
            Err(error) => {
                // It must not be taken for something else the next time.
                let again = open_again(thorough(&data_dir)).await.map(drop).map_err(|error| error.to_string());
                let is_same = again.as_ref() == Err(&error.to_string());
                return Some(refused(&error.to_string(), &done).and_then(|outcome| {
                    let different = || format!("it said '{error}', and when it was started again {again:?}");
                    if is_same { Ok(outcome) } else { Err(different()) }
                }));
            }
        };
        let held = self.hold(&store, prepared, &done).await;
        let is_remade = is_remade || databases(&data_dir) != database;
        let damage = status(&store).await.store.unwrap_or_default().damage;
        if let Err(error) = store.close().await {
            return Some(Err(format!("it does not close: {error}")));
        }
        let told = damage.iter().map(|it| format!("{} {}", it.file, it.offset)).collect::<Vec<_>>();
        Some(held.and_then(|outcome| match outcome {
            Outcome::Works if !told.is_empty() => Ok(Outcome::Told),
            Outcome::Works if is_remade => Ok(Outcome::MadeAgain),
            Outcome::Works if self.must_be_noticed() => Err("nobody noticed that sealed bytes changed".to_owned()),
            outcome => Ok(outcome),
        }))
    }

    /// Every byte of a sealed segment is read by the scrub or by compaction.
    fn must_be_noticed(&self) -> bool {
        matches!(self.target.kind, Kind::Sealed | Kind::Compacted)
            && matches!(self.fault, Fault::Flip | Fault::ZeroSector)
    }

    /// Holds an open store against the truth.
    async fn hold(&self, store: &Embedded, prepared: &Prepared, done: &Done) -> Result<Outcome, String> {
        settled(store).await;
        let found = prepared.driver.known.ask(&store.channel()).await;
        if self.may_lose_the_last_group() && found == prepared.truth_before {
            return Ok(Outcome::LastGroupLost);
        }
        let first = compare(&prepared.truth, &found, done)?;
        let second = compare(&prepared.truth_after, &prepared.go_on(store).await?, done)?;
        Ok(if first + second == 0 { Outcome::Works } else { Outcome::ReadsRefused })
    }

    fn may_lose_the_last_group(&self) -> bool {
        self.target.kind == Kind::Active && matches!(self.fault, Fault::ZeroSector | Fault::Older)
    }
}

/// The databases of the index. One that is made again has a new name.
fn databases(data_dir: &Path) -> Vec<std::ffi::OsString> {
    let entries = std::fs::read_dir(data_dir.join("index")).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
    names.sort();
    names
}

fn names_a_file(text: &str, done: &Done) -> bool {
    done.files.iter().any(|file| text.contains(file.to_str().unwrap()))
}

fn refused(error: &str, done: &Done) -> Result<Outcome, String> {
    if names_a_file(error, done) {
        return Ok(Outcome::Refused);
    }
    Err(format!("it does not start, and names none of {:?}: {error}", done.files))
}

/// Counts the reads that are refused as they must be. Every other difference is wrong.
fn compare(truth: &Truth, found: &Truth, done: &Done) -> Result<usize, String> {
    let is_told = |text: &str| text.contains("at offset") && names_a_file(text, done);
    truth.beside_damage(found, &is_told)
}

type Table = BTreeMap<(Kind, &'static str, Fault), BTreeMap<Outcome, usize>>;

fn show(table: &Table) {
    println!("{:<18} {:<12} {:<11} outcomes", "file", "part", "fault");
    for ((kind, what, fault), outcomes) in table {
        let outcomes: Vec<String> = outcomes.iter().map(|(outcome, times)| format!("{outcome:?} {times}")).collect();
        println!("{:<18} {what:<12} {:<11} {}", kind.to_string(), format!("{fault:?}"), outcomes.join(", "));
    }
    let mut totals = BTreeMap::new();
    table.values().flatten().for_each(|(outcome, times)| *totals.entry(*outcome).or_insert(0) += times);
    println!("all: {totals:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_damage_to_a_file_makes_an_answer_wrong() {
    panics();
    let prepared = Arc::new(Prepared::make().await);
    let (files, parts) = targets(&prepared.data_dir());
    let placed = parts.iter().flat_map(|part| Fault::PLACED.map(|fault| (part, fault)));
    let whole = files.iter().flat_map(|file| Fault::WHOLE.map(|fault| (file, fault)));
    let kinds: Vec<(&Target, Fault)> = placed.chain(whole).collect();
    let (wanted, first_seed) = (number("FENCEPOST_STORE_FAULTS", 200), number("FENCEPOST_STORE_SEED", 1) * 1_000_000);
    let at_once = Arc::new(Semaphore::new(4));
    let mut running = tokio::task::JoinSet::new();
    for (seed, (target, fault)) in (first_seed..first_seed + wanted).zip(kinds.into_iter().cycle()) {
        let (case, prepared) = (Case { seed, target: target.clone(), fault }, Arc::clone(&prepared));
        let turn = Arc::clone(&at_once).acquire_owned().await.unwrap();
        running.spawn(async move {
            let outcome = tokio::time::timeout(PATIENCE, case.run(&prepared)).await;
            drop(turn);
            (case, outcome)
        });
    }
    let (mut table, mut wrong) = (Table::new(), Vec::new());
    while let Some(ended) = running.join_next().await {
        match ended {
            Ok((_, Ok(None))) => {}
            Ok((case, Ok(Some(Ok(outcome))))) => {
                let row = table.entry((case.target.kind, case.target.what, case.fault)).or_default();
                *row.entry(outcome).or_insert(0) += 1;
            }
            Ok((case, Ok(Some(Err(problem))))) => wrong.push(format!("{}: {problem}", case.name())),
            Ok((case, Err(_))) => wrong.push(format!("{}: it hangs", case.name())),
            Err(panicked) => wrong.push(format!("a case panicked: {panicked}")),
        }
    }
    show(&table);
    let panics = std::mem::take(&mut *panics().lock().unwrap());
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n\n"));
    assert!(panics.is_empty(), "{panics:?}");
}
