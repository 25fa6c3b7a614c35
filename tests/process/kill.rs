//! kill -9 while upkeep is at work: at random moments, and at chosen ones, which are found by watching the directory.
//!
//! A process that dies leaves to the system what it has written, so this is not about syncs (see `tests/crash/` for those)
//! but about steps: what a pass has begun, the next process must finish, do again, or clear away.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fencepost::Lsn;
use fencepost_server::clock::{Clock, random_id};
use fencepost_server::disk::RealDisk;
use fencepost_server::log::{Log, LogConfig, verify};
use fencepost_server::ops::check;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rustix::process::Signal;

use crate::load::{BULK_BYTES, BUSY, Load, SEGMENT_BYTES};
use crate::support::{Server, files, json, moment, offline, output, until};

/// Of each branch with large states so many checkpoints are kept.
const KEEP: u64 = 2;

/// How many kills: `FENCEPOST_KILL_ROUNDS=1000` tries many more.
fn rounds() -> u64 {
    std::env::var("FENCEPOST_KILL_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20)
}

/// When a server is killed.
#[derive(Clone, Copy, Debug)]
enum When {
    /// After so many large commits, and so many microseconds.
    Random(u64, u64),
    /// As soon as it listens.
    AtOnce,
    /// While a compaction writes.
    Compacting,
    /// When what it wrote has just taken the place of what was there.
    Replaced,
    /// When one of those that it stands for has just been removed.
    Removing,
    /// While the hot state is written.
    Saving,
}

impl When {
    async fn wait(self, load: &Load, data_dir: &Path) {
        let what = format!("{self:?}");
        match self {
            When::Random(commits, micros) => {
                load.more(commits).await;
                tokio::time::sleep(Duration::from_micros(micros)).await;
            }
            When::AtOnce => {}
            When::Compacting => moment(&what, || Found::now(data_dir).compacting),
            When::Replaced => {
                moment(&what, || Found::now(data_dir).compacting);
                moment(&what, || !Found::now(data_dir).compacting);
            }
            When::Removing => {
                let mut before = Vec::new();
                moment(&what, || {
                    let now = files(&data_dir.join("log"));
                    let is_gone = |file: &PathBuf| is_segment(file) && !now.contains(file);
                    let has_gone = before.iter().any(is_gone);
                    before = now;
                    has_gone
                });
            }
            When::Saving => moment(&what, || Found::now(data_dir).saving),
        }
    }
}

/// What work that is under way has in the directory, and leaves there when it is cut short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Found {
    /// A segment is rewritten. The log's next segment, which is made ahead, has a number that none has yet.
    compacting: bool,
    saving: bool,
    other: bool,
}

impl Found {
    fn now(data_dir: &Path) -> Found {
        let is_temporary = |file: &PathBuf| file.extension().is_some_and(|it| it == "tmp" || it == "transfer");
        let temporary = |dir: &Path| {
            let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
            entries.filter(is_temporary).collect::<Vec<PathBuf>>()
        };
        let besides = temporary(data_dir);
        Found {
            compacting: temporary(&data_dir.join("log")).iter().any(|file| file.with_extension("seg").exists()),
            saving: besides.iter().any(|file| file.ends_with("state.tmp")),
            other: besides.iter().any(|file| !file.ends_with("state.tmp")),
        }
    }
}

/// What the kills came upon.
#[derive(Debug, Default)]
struct Tally {
    kills: u64,
    compacting: u64,
    /// Segments that another stands for already were still there.
    replacing: u64,
    saving: u64,
    /// Times that the log had been compacted further than at the kill before.
    compacted: u64,
}

impl Tally {
    /// Looks at what a dead server left, as `fencepost verify` does.
    fn count(&mut self, data_dir: &Path, compacted: &mut Lsn, what: &str) {
        let found = Found::now(data_dir);
        let checked = check::check(&RealDisk, data_dir, &mut |_| ()).unwrap();
        let damage: Vec<String> = checked.damage.iter().map(|it| it.damage.to_string()).collect();
        assert_eq!(damage, Vec::<String>::new(), "{what}");
        self.kills += 1;
        self.compacting += u64::from(found.compacting);
        self.replacing += u64::from(!checked.log.replaced.is_empty());
        self.saving += u64::from(found.saving);
        if found.compacting || !checked.log.replaced.is_empty() {
            clears_away(data_dir, what);
        }
        assert!(checked.judged_at >= *compacted, "{what}: what was compacted up to {compacted} is back");
        self.compacted += u64::from(checked.judged_at > *compacted);
        *compacted = checked.judged_at;
    }
}

/// Opening the log removes what a compaction left. Tried on a copy that nobody works on: a server that runs may have begun the
/// next compaction, which also removes it.
fn clears_away(data_dir: &Path, what: &str) {
    let dir = data_dir.with_file_name("opened");
    let log_dir = dir.join("log");
    std::fs::create_dir_all(&log_dir).unwrap();
    let found = files(&data_dir.join("log"));
    let newest = found.iter().rfind(|file| is_segment(file));
    for file in &found {
        let to = log_dir.join(file.file_name().unwrap());
        // Nobody writes to the others.
        let shared = is_segment(file) && Some(file) != newest;
        if shared { std::fs::hard_link(file, to).unwrap() } else { std::fs::copy(file, to).map(drop).unwrap() }
    }
    let config = LogConfig { segment_bytes: SEGMENT_BYTES, entry_bytes_max: SEGMENT_BYTES / 2, ..LogConfig::default() };
    let log = Log::open(Arc::new(RealDisk), &log_dir, config, Clock::real(), random_id()).unwrap();
    log.close();
    assert_eq!(Found::now(&dir), Found::default(), "{what}");
    assert_eq!(verify(&RealDisk, &log_dir, &mut ()).unwrap().replaced, Vec::<PathBuf>::new(), "{what}");
    std::fs::remove_dir_all(&dir).unwrap();
}

fn is_segment(file: &Path) -> bool {
    file.extension().is_some_and(|it| it == "seg")
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_by_kill_9_during_compaction() {
    let rounds = rounds();
    let mut random = StdRng::seed_from_u64(1);
    let mut server = Server::start_with(&BUSY).await;
    let data_dir = server.data_dir();
    let client = server.client().await;
    let load = Load::start(&client, KEEP).await;
    let (mut tally, mut compacted) = (Tally::default(), Lsn::ZERO);
    for round in 0..rounds {
        let when = match round % 8 {
            0 | 4 | 7 => When::Random(random.random_range(1..30), random.random_range(0..20_000)),
            1 | 5 => When::Compacting,
            2 => When::Replaced,
            6 => When::Removing,
            _ => When::Saving,
        };
        let what = format!("round {round}, {when:?}");
        when.wait(&load, &data_dir).await;
        server.kill().await;
        tally.count(&data_dir, &mut compacted, &what);
        server.restart().await;
        if round % 4 == 1 {
            When::AtOnce.wait(&load, &data_dir).await;
            server.kill().await;
            tally.count(&data_dir, &mut compacted, &format!("{what}, and at once"));
            server.restart().await;
        }
        let pause = load.pause().await;
        load.check(&client, 16, &what).await;
        until(&format!("{what}: nothing is left over"), async || Found::now(&data_dir) == Found::default()).await;
        drop(pause);
    }

    let written = load.bulk_commits() * BULK_BYTES as u64;
    let pause = load.pause().await;
    let ended = output(&mut server.command(&["compact"])).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(Found::now(&data_dir), Found::default());
    let bytes: u64 = files(&data_dir).iter().filter_map(|file| file.metadata().ok()).map(|it| it.len()).sum();
    server.signal(Signal::TERM);
    assert!(server.ended().await.success());
    let whole = json(&offline(&["-o", "json", "verify"], &[("--data-dir", &data_dir)]).await);
    assert!(whole["state_file"].as_str().unwrap().starts_with("as the log gives it at "), "{whole}");
    assert!(whole["index"].as_str().unwrap().starts_with("as the log says, up to "), "{whole}");
    server.restart().await;
    load.check(&client, 1, "at the end").await;
    println!("{tally:?}; {} MiB of states were written, {} MiB are left", written >> 20, bytes >> 20);

    // Otherwise the moments were chosen badly.
    let under_way = tally.compacting + tally.replacing;
    assert!(under_way >= rounds / 4 && tally.saving > 0 && tally.compacted >= rounds / 4, "{tally:?}");
    // The segment that is written to, the next one, one of what is kept, half of one in reserve, and the index.
    assert!(bytes < 5 * SEGMENT_BYTES && written > 10 * SEGMENT_BYTES, "{bytes} bytes are left of {written}");
    drop(pause);
    load.stop().await;
}
