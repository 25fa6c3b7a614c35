//! A store whose directory has every kind of file, and what it answers: now, before its last commit, and after more
//! commits and a compaction.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fencepost::v1::rewind_request::To;
use fencepost_server::config::Config;
use fencepost_server::embedded::Embedded;
use tempfile::TempDir;

use crate::ask::Truth;
use crate::drive::Driver;
use crate::support::{compact, config, copy_store, open_again, scratch, status, until};

const ORDERS: &str = "prod/orders";

/// A store that is closed.
pub(crate) struct Prepared {
    dir: TempDir,
    /// With what can be asked, and the tokens that are current.
    pub(crate) driver: Driver,
    pub(crate) truth: Truth,
    /// Before the last group of the log.
    pub(crate) truth_before: Truth,
    /// After [`Prepared::go_on`].
    pub(crate) truth_after: Truth,
}

/// Settings with which everything that can be found is found at once.
pub(crate) fn thorough(data_dir: &Path) -> Config {
    Config { scrub_bytes_per_second: 1 << 40, ..config(data_dir) }
}

impl Prepared {
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// As it once was: nothing compacted, the newest segment of now not begun or not as far.
    pub(crate) fn older(&self) -> PathBuf {
        self.dir.path().join("older")
    }

    pub(crate) async fn make() -> Prepared {
        let dir = scratch();
        let (data_dir, older) = (dir.path().join("data"), dir.path().join("older"));
        // Compaction does not come to its end.
        let slow = Config { compaction_bytes_per_second: 1, ..config(&data_dir) };
        let store = open_again(slow).await.unwrap();
        let mut driver = Driver::new(store.channel());
        begin(&mut driver).await;
        until_segments(&store, &mut driver, 3).await;
        settled(&store).await;
        store.close().await.unwrap();
        copy_store(&data_dir, &older);

        let store = open_again(config(&data_dir)).await.unwrap();
        driver.reconnect(store.channel());
        compact(&store).await.unwrap();
        // A segment that is full of life.
        driver.policy("prod/live", 100, 0).await;
        while status(&store).await.log.is_some_and(|it| it.segments < 3) {
            driver.commit("prod/live", &["main"], 300_000).await;
            driver.commit(ORDERS, &["eu"], 50).await;
        }
        settled(&store).await;
        for _ in 0..3 {
            driver.commit(ORDERS, &["eu", "us"], 700).await;
        }
        store.close().await.unwrap();
        let newest = newest_segment(&data_dir);
        std::fs::copy(data_dir.join(&newest), older.join(&newest)).unwrap();

        let store = open_again(config(&data_dir)).await.unwrap();
        driver.reconnect(store.channel());
        settled(&store).await;
        driver.commit(ORDERS, &["eu"], 700).await;
        let truth = driver.known.ask(&store.channel()).await;
        store.close().await.unwrap();
        let mut prepared = Prepared { dir, driver, truth_before: truth.clone(), truth_after: truth.clone(), truth };
        // What it answered to the same questions before its last commit.
        let earlier = prepared.copy();
        std::fs::copy(prepared.older().join(&newest), earlier.path().join("data").join(&newest)).unwrap();
        let store = open_again(thorough(&earlier.path().join("data"))).await.unwrap();
        settled(&store).await;
        prepared.truth_before = prepared.driver.known.ask(&store.channel()).await;
        store.close().await.unwrap();
        // And what it answers after that.
        let later = prepared.copy();
        let store = open_again(thorough(&later.path().join("data"))).await.unwrap();
        settled(&store).await;
        prepared.truth.must_be(&prepared.driver.known.ask(&store.channel()).await, "opened again");
        prepared.truth_after = prepared.go_on(&store).await.unwrap();
        let damage = status(&store).await.store.unwrap().damage;
        assert!(damage.is_empty(), "{damage:?}");
        store.close().await.unwrap();
        prepared
    }

    /// A copy to be damaged.
    pub(crate) fn copy(&self) -> TempDir {
        let dir = scratch();
        copy_store(&self.data_dir(), &dir.path().join("data"));
        dir
    }

    /// One more commit for each branch that somebody holds; then everything is compacted and checked, and asked again.
    pub(crate) async fn go_on(&self, store: &Embedded) -> Result<Truth, String> {
        let mut driver = self.driver.clone();
        driver.reconnect(store.channel());
        for (pipeline, branch) in driver.held() {
            let committed = driver.try_commit(&pipeline, &[&branch], 100).await;
            committed.map_err(|status| format!("a commit to {pipeline}/{branch}: {status}"))?;
        }
        if let Err(failed) = compact(store).await {
            let damage = status(store).await.store.unwrap_or_default().damage;
            if damage.is_empty() {
                return Err(format!("compaction failed without damage: {failed}"));
            }
        }
        until(store, |it| it.store.as_ref().is_some_and(|it| it.scrubbed_at_ms > 0)).await;
        settled(store).await;
        Ok(without_new_times(driver.known.ask(&store.channel()).await, &self.truth))
    }
}

/// Waits until background work has done what it can.
pub(crate) async fn settled(store: &Embedded) {
    until(store, |it| {
        let Some(store) = &it.store else { return false };
        let is_fed = store.index_state == "READY" && store.index_lsn >= store.state_lsn;
        is_fed || store.index_state == "FAILED" || !store.trouble.is_empty()
    })
    .await;
}

fn newest_segment(data_dir: &Path) -> PathBuf {
    let files = crate::support::files_in(&data_dir.join("log"));
    let newest = files.into_iter().rfind(|file| file.extension().is_some_and(|it| it == "seg")).unwrap();
    newest.strip_prefix(data_dir).unwrap().to_owned()
}

async fn begin(driver: &mut Driver) {
    driver.policy(ORDERS, 3, 0).await;
    driver.policy("prod/bulk", 1, 0).await;
    for sequence in 1..=6 {
        driver.commit(ORDERS, &["eu"], 100).await;
        driver.commit(ORDERS, &["eu", "us", "asia"], 600).await;
        if sequence == 2 {
            driver.savepoint(ORDERS, "us", 2).await.unwrap();
            driver.savepoint(ORDERS, "eu", 3).await.unwrap();
        }
    }
    driver.declare(ORDERS, "v1", "").await;
    driver.declare(ORDERS, "v2", "v1").await;
    driver.skip(ORDERS, "asia", 3, 0).await;
    driver.skip(ORDERS, "asia", 2, 1).await;
    driver.skip(ORDERS, "us", 1, 0).await;
    driver.discard(ORDERS, 2).await;
    driver.rewind(ORDERS, "us", To::Sequence(5)).await.unwrap();
    driver.commit(ORDERS, &["us"], 600).await;
    driver.fork((ORDERS, "us"), 5, (ORDERS, "us-again")).await.unwrap();
    driver.commit(ORDERS, &["us-again"], 600).await;
    driver.take(ORDERS, "eu").await;
    driver.release(ORDERS, "asia").await;
    let savepoint = driver.savepoint(ORDERS, "eu", 12).await.unwrap();
    driver.delete_savepoint(ORDERS, &savepoint).await;
}

async fn until_segments(store: &Embedded, driver: &mut Driver, segments: u64) {
    while status(store).await.log.is_some_and(|it| it.segments < segments) {
        driver.commit("prod/bulk", &["main"], 600_000).await;
        driver.commit(ORDERS, &["eu"], 50).await;
    }
}

/// Times of commits that were made after the truth was recorded differ from run to run.
fn without_new_times(found: Truth, recorded: &Truth) -> Truth {
    let newest = recorded.0.values().flatten().flat_map(|text| times(text)).max().unwrap_or(0);
    let strip = |text: String| {
        let new: Vec<u64> = times(&text).filter(|time| *time > newest).collect();
        new.iter().fold(text.clone(), |text, time| text.replace(&time.to_string(), "later"))
    };
    Truth(found.0.into_iter().map(|(question, answer)| (question, answer.map(strip))).collect())
}

fn times(text: &str) -> impl Iterator<Item = u64> {
    let digits = |rest: &str| rest.chars().take_while(char::is_ascii_digit).collect::<String>();
    text.split("at_ms: ").skip(1).filter_map(move |rest| digits(rest).parse().ok())
}

/// Nothing here takes this long unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(100);
