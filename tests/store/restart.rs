//! A restart changes no answer: whatever there was before, however the process ended, and whichever of the files that are
//! made from the log are there, missing, or of an older moment.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fencepost::LogIndex;
use fencepost_server::clock::Clock;
use fencepost_server::disk::{Disk, RealDisk};
use fencepost_server::index::{ColdIndex, Status};
use fencepost_server::log::{Log, LogConfig};
use fencepost_server::server::Server;
use fencepost_server::state::State;
use fencepost_server::upkeep::hot_state::Unusable;
use fencepost_server::upkeep::{hot_state, replay};

use crate::ask::Truth;
use crate::drive::{Driver, Random};
use crate::support::{SEGMENT_BYTES, compact, config, copy_store, leftovers, open_again, scratch, status, until};

/// What is done to the files between two runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Between {
    Nothing,
    NoState,
    NoIndex,
    NeitherOfThem,
    OlderState,
    OlderIndex,
    BothOlder,
}

const ALL: [Between; 7] = [
    Between::Nothing,
    Between::NoState,
    Between::NoIndex,
    Between::NeitherOfThem,
    Between::OlderState,
    Between::OlderIndex,
    Between::BothOlder,
];

impl Between {
    fn is_older_state(self) -> bool {
        matches!(self, Between::OlderState | Between::BothOlder)
    }

    fn apply(self, data_dir: &Path, older: &Path) {
        let (state, index) = (hot_state::path(data_dir), data_dir.join("index"));
        if matches!(self, Between::NoState | Between::NeitherOfThem | Between::OlderState | Between::BothOlder) {
            let _ = std::fs::remove_file(&state);
        }
        if matches!(self, Between::NoIndex | Between::NeitherOfThem | Between::OlderIndex | Between::BothOlder) {
            let _ = std::fs::remove_dir_all(&index);
        }
        if self.is_older_state() {
            let _ = std::fs::copy(hot_state::path(older), &state);
        }
        if matches!(self, Between::OlderIndex | Between::BothOlder) && older.join("index").exists() {
            copy_store(&older.join("index"), &index);
        }
    }
}

/// Opens a copy of a store after something was done to it, and compares all answers, twice: also after a compaction.
async fn same_answers(data_dir: &Path, older: &Path, between: Between, driver: &Driver, truth: &Truth, what: &str) {
    let dir = scratch();
    let copy = dir.path().join("data");
    copy_store(data_dir, &copy);
    between.apply(&copy, older);
    same_state(&copy, between, what);
    let store = open_again(config(&copy)).await.unwrap();
    until(&store, |it| it.store.as_ref().is_some_and(|it| it.index_state == "READY")).await;
    truth.must_be(&driver.known.ask(&store.channel()).await, what);
    compact(&store).await.unwrap();
    truth.must_be(&driver.known.ask(&store.channel()).await, &format!("{what}, compacted"));
    store.close().await.unwrap();
    assert_eq!(leftovers(&copy), Vec::<PathBuf>::new(), "{what}");
    same_state(&copy, Between::Nothing, &format!("{what}, compacted"));
}

/// The state from the file and what comes after it is that from the whole log.
fn same_state(data_dir: &Path, between: Between, what: &str) {
    let dir = scratch();
    let copy = dir.path().join("data");
    copy_store(data_dir, &copy);
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let sizes = LogConfig { segment_bytes: SEGMENT_BYTES, ..LogConfig::default() };
    let sizes = LogConfig { entry_bytes_max: SEGMENT_BYTES / 2, ..sizes };
    let log = Log::open(Arc::clone(&disk), &copy.join("log"), sizes, Clock::real(), uuid::Uuid::nil()).unwrap();
    let through = |mut state: State, last: LogIndex| {
        replay(&log, &mut state, last, |_, _| ControlFlow::Continue(())).unwrap();
        state
    };
    let whole = through(State::default(), log.last_index());
    match hot_state::load(&disk, &copy, &log) {
        Ok(shortcut) => {
            assert!(through(shortcut, log.last_index()) == whole, "{what}: the state from the file is another one");
        }
        Err(Unusable::Absent) => assert!(log.sealed().is_empty() || between != Between::Nothing, "{what}"),
        // The log was compacted since.
        Err(unusable) => assert!(between.is_older_state(), "{what}: {unusable}"),
    }
}

async fn random_history(seed: u64, rounds: u64, steps: u64) {
    let dir = scratch();
    let (data_dir, older) = (dir.path().join("data"), dir.path().join("older"));
    let mut random = Random::new(seed);
    let mut store = open_again(config(&data_dir)).await.unwrap();
    let mut driver = Driver::new(store.channel());
    for round in 0..rounds {
        for _ in 0..steps {
            random.step(&mut driver).await;
        }
        until(&store, |it| it.store.as_ref().is_some_and(|it| it.index_state == "READY")).await;
        let truth = driver.known.ask(&store.channel()).await;
        // As a crash would, as far as a process can do that to itself.
        if random.below(2) == 0 {
            drop(store);
        } else {
            store.close().await.unwrap();
        }
        store = open_again(config(&data_dir)).await.unwrap();
        driver.reconnect(store.channel());
        driver.check_heads().await;
        until(&store, |it| it.store.as_ref().is_some_and(|it| it.index_state == "READY")).await;
        truth.must_be(&driver.known.ask(&store.channel()).await, &format!("seed {seed}, round {round}"));
        store.close().await.unwrap();
        let tried = if round + 1 == rounds { &ALL[..] } else { &ALL[random.below(7) as usize..][..1] };
        for between in tried {
            let what = format!("seed {seed}, round {round}, {between:?}");
            same_answers(&data_dir, &older, *between, &driver, &truth, &what).await;
        }
        if random.below(2) == 0 || !older.exists() {
            let _ = std::fs::remove_dir_all(&older);
            copy_store(&data_dir, &older);
        }
        store = open_again(config(&data_dir)).await.unwrap();
        driver.reconnect(store.channel());
    }
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_nobody_can_connect_to_any_more_stops_in_peace() {
    let dir = scratch();
    let server = Server::open(config(&dir.path().join("data")), Clock::real()).unwrap();
    let nobody = tokio_stream::empty::<std::io::Result<tokio::io::DuplexStream>>();
    server.serve(nobody, std::future::pending()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_leaves_who_made_a_savepoint_that_was_deleted() {
    let dir = scratch();
    let store = open_again(config(&dir.path().join("data"))).await.unwrap();
    let mut driver = Driver::new(store.channel());
    driver.commit("prod/orders", &["main"], 10).await;
    let savepoint = driver.savepoint("prod/orders", "main", 1).await.unwrap();
    driver.delete_savepoint("prod/orders", &savepoint).await;
    while status(&store).await.log.is_some_and(|it| it.segments < 2) {
        driver.commit("prod/bulk", &["main"], 600_000).await;
    }
    let truth = driver.known.ask(&store.channel()).await;
    let done = compact(&store).await.unwrap();
    assert!(done.log_bytes_after < done.log_bytes_before);
    truth.must_be(&driver.known.ask(&store.channel()).await, "compacted");
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_is_given_up_while_nothing_else_happens_is_made_again() {
    let dir = scratch();
    let server = Server::open(config(&dir.path().join("data")), Clock::real()).unwrap();
    let cold = server.backend().cold.clone();
    let ready = async |cold: &ColdIndex| {
        while !matches!(cold.status(), Status::Ready { .. }) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let patience = Duration::from_secs(60);
    tokio::time::timeout(patience, ready(&cold)).await.expect("it is made");
    tokio::task::spawn_blocking({
        let cold = cold.clone();
        move || cold.reset("somebody asked, and it did not know")
    })
    .await
    .unwrap();
    tokio::time::timeout(patience, ready(&cold)).await.expect("it is made again");
    server.close().await;
}

/// Which histories: `FENCEPOST_STORE_SEEDS=200` tries many more, from `FENCEPOST_STORE_SEED` on.
fn seeds() -> std::ops::Range<u64> {
    let number = |name, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let first = number("FENCEPOST_STORE_SEED", 0);
    first..first + number("FENCEPOST_STORE_SEEDS", 3)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_restart_changes_an_answer() {
    for seed in seeds() {
        random_history(seed, 4, 40).await;
    }
}
