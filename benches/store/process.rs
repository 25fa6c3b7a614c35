//! What is measured in a process of its own: a start with a fresh heap, and memory.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use fencepost::v1::GetHeadRequest;
use fencepost::v1::checkpoint_service_client::CheckpointServiceClient;
use fencepost_server::clock::{Clock, random_id};
use fencepost_server::disk::{Disk, RealDisk};
use fencepost_server::log::{Log, LogConfig};
use fencepost_server::upkeep::hot_state;

use super::store::{self, Store, names};

/// Opens the store until it has answered a read. Seconds.
pub(crate) const START: &str = "child-start";
/// Loads the hot state alone. Branches, and bytes that it takes.
pub(crate) const STATE: &str = "child-state";
/// Opens the store and has upkeep make a whole pass. Bytes once it was open, and the most that there were.
pub(crate) const PASS: &str = "child-pass";

/// Runs this program again, and returns the numbers that it prints.
pub(crate) fn run(child: &str, dir: &Path) -> Vec<f64> {
    let program = std::env::current_exe().expect("this program has a path");
    let output = Command::new(program).arg(child).arg(dir).output().expect("this program runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{child}: {text} {}", String::from_utf8_lossy(&output.stderr));
    text.split_whitespace().filter_map(|number| number.parse().ok()).collect()
}

/// What the child does.
pub(crate) async fn child(what: &str, dir: &Path) {
    let begun = Instant::now();
    match what {
        START => {
            let store = Store::open(config(dir)).await;
            get_head(&store).await;
            println!("{}", begun.elapsed().as_secs_f64());
        }
        STATE => {
            let disk: Arc<dyn Disk> = Arc::new(RealDisk);
            let config = config(dir);
            let (segment_bytes, entry_bytes_max) = (config.segment_bytes, config.entry_bytes_max() as u64);
            let log = LogConfig { segment_bytes, entry_bytes_max, ..LogConfig::default() };
            let log = Log::open(Arc::clone(&disk), &dir.join("log"), log, Clock::real(), random_id()).expect("a log");
            let before = memory("VmRSS:");
            let state = hot_state::load(&disk, dir, &log).expect("a state");
            println!("{} {}", state.counts().1, memory("VmRSS:") - before);
        }
        PASS => {
            let store = Store::open(config(dir)).await;
            get_head(&store).await;
            println!("{}", memory("VmRSS:"));
            store.upkeep().await;
            println!("{}", memory("VmHWM:"));
        }
        other => panic!("{other} is unknown"),
    }
}

async fn get_head(store: &Store) {
    let (pipeline, branch) = names(1);
    let request = GetHeadRequest { pipeline, branch, ..GetHeadRequest::default() };
    let head = CheckpointServiceClient::new(store.channel.clone()).get_head(request).await.expect("a head");
    assert!(head.into_inner().head.is_some());
}

/// The same segments as when it was made.
fn config(dir: &Path) -> fencepost_server::config::Config {
    let first = dir.join("log").join("00000000000000000001.seg");
    let is_small = first.metadata().is_ok_and(|found| found.len() < 10 << 20);
    store::config(dir, if is_small { 0 } else { usize::MAX })
}

/// A line of this process's status, in bytes.
fn memory(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let found = status.lines().find_map(|found| found.strip_prefix(line)).expect("the line is there");
    found.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") << 10
}
