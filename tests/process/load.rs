//! A load that fills segments quickly and goes on through crashes, and what it must find again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use fencepost_client::{Checkpoint, Client, Lsn, Policy, Resume, Takeover};
use tokio::sync::{OwnedRwLockWriteGuard, RwLock};
use tokio::task::JoinSet;

use crate::support::until;

/// As short as may be.
pub(crate) const SEGMENT_BYTES: u64 = 6_299_648;

/// Settings with which there is always something to compact, and nothing slows that down.
pub(crate) const BUSY: [&str; 8] = [
    "--segment-bytes",
    "6299648",
    "--batch-bytes-max",
    "4096",
    "--request-bytes-max",
    "2097152",
    "--compaction-bytes-per-second",
    "0",
];

/// Large states, of which the policy keeps few.
pub(crate) const BULK: &str = "prod/bulk";
/// Small states, of which many are kept.
pub(crate) const LEDGER: &str = "prod/ledger";
const LEDGER_KEEP: u64 = 1_000;
const PIPELINES: [&str; 2] = [BULK, LEDGER];
const BRANCHES: [&str; 3] = ["east", "north", "west"];

/// Length of a state of [`BULK`].
pub(crate) const BULK_BYTES: usize = 200_000;

/// Where acknowledged commits are in the log, by sequence, of each pipeline and branch.
pub(crate) type Acknowledged = BTreeMap<(String, String), BTreeMap<u64, Lsn>>;

/// Nobody commits as long as this is there.
pub(crate) type Pause = OwnedRwLockWriteGuard<()>;

pub(crate) fn state(pipeline: &str, branch: &str, sequence: u64) -> Vec<u8> {
    let bytes = if pipeline == BULK { BULK_BYTES } else { 300 };
    format!("{pipeline}/{branch}@{sequence};").into_bytes().into_iter().cycle().take(bytes).collect()
}

/// Workers that count upwards, each on a branch of its own.
pub(crate) struct Load {
    acknowledged: Arc<Mutex<Acknowledged>>,
    gate: Arc<RwLock<()>>,
    stop: Arc<AtomicBool>,
    workers: JoinSet<()>,
    keep: u64,
}

impl Load {
    /// Of each branch of [`BULK`] the newest `keep` checkpoints are kept.
    pub(crate) async fn start(client: &Client, keep: u64) -> Load {
        let (acknowledged, gate, stop) = (Arc::default(), Arc::default(), Arc::default());
        let mut load = Load { acknowledged, gate, stop, workers: JoinSet::new(), keep };
        for (pipeline, keep) in [(BULK, keep), (LEDGER, LEDGER_KEEP)] {
            let _ = client.pipeline(pipeline).set_policy(Policy::new().keep_last(keep)).send().await.unwrap();
        }
        for (pipeline, branch) in PIPELINES.iter().flat_map(|pipeline| BRANCHES.map(|branch| (*pipeline, branch))) {
            let (acknowledged, gate, stop) =
                (Arc::clone(&load.acknowledged), Arc::clone(&load.gate), Arc::clone(&load.stop));
            let client = client.clone();
            load.workers.spawn(async move {
                let resume = Resume::new("loader").takeover(Takeover::SameHolder).start_fresh();
                let worker = client.pipeline(pipeline).branch(branch).resume(resume).await.unwrap();
                loop {
                    let _open = gate.read().await;
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let sequence = worker.sequence() + 1;
                    let checkpoint = Checkpoint::at(sequence.to_string()).state(state(pipeline, branch, sequence));
                    let committed = worker.commit(checkpoint).await.unwrap();
                    assert_eq!(committed.sequence, sequence, "{pipeline}/{branch}");
                    let of = (pipeline.to_owned(), branch.to_owned());
                    let before = acknowledged.lock().unwrap().entry(of).or_default().insert(sequence, committed.lsn);
                    assert_eq!(before, None, "{pipeline}/{branch}@{sequence} was acknowledged before");
                }
            });
        }
        load
    }

    /// Lets nobody commit. What was begun is acknowledged then, which takes a server that runs.
    pub(crate) async fn pause(&self) -> Pause {
        Arc::clone(&self.gate).write_owned().await
    }

    pub(crate) fn acknowledged(&self) -> Acknowledged {
        self.acknowledged.lock().unwrap().clone()
    }

    /// How many states of so many bytes were acknowledged.
    pub(crate) fn bulk_commits(&self) -> u64 {
        let acknowledged = self.acknowledged.lock().unwrap();
        acknowledged.iter().filter(|((pipeline, _), _)| pipeline == BULK).map(|(_, of)| of.len() as u64).sum()
    }

    /// Waits for so many more large states.
    pub(crate) async fn more(&self, commits: u64) {
        let goal = self.bulk_commits() + commits;
        until("more commits", async || self.bulk_commits() >= goal).await;
    }

    pub(crate) async fn stop(self) -> Acknowledged {
        self.stop.store(true, Ordering::SeqCst);
        self.workers.join_all().await;
        let acknowledged = self.acknowledged.lock().unwrap();
        acknowledged.clone()
    }

    /// Holds a server that nobody commits to against what was acknowledged: the heads, where every kept checkpoint is, and
    /// its state; of the small ones, which are many, one state in `one_in`.
    pub(crate) async fn check(&self, client: &Client, one_in: u64, what: &str) {
        check(client, &self.acknowledged(), self.keep, one_in, what).await;
    }
}

/// As [`Load::check`].
pub(crate) async fn check(client: &Client, acknowledged: &Acknowledged, keep: u64, one_in: u64, what: &str) {
    let is_ready = async || client.status().await.unwrap().store.unwrap().index_state == "READY";
    until(&format!("{what}: the index is ready"), is_ready).await;
    for ((pipeline, branch), acknowledged) in acknowledged {
        let what = format!("{what}: {pipeline}/{branch}");
        let (head, head_lsn) = acknowledged.last_key_value().unwrap();
        assert_eq!(acknowledged.len() as u64, *head, "{what}: sequences are gapless");
        let of = client.pipeline(pipeline).branch(branch);
        let found = of.head().await.unwrap();
        assert_eq!((found.sequence(), found.lsn()), (*head, *head_lsn), "{what}: the head");
        let listed: BTreeMap<u64, Lsn> =
            of.checkpoints().all().await.unwrap().iter().map(|it| (it.sequence(), it.lsn())).collect();
        let kept = if pipeline == BULK { keep } else { LEDGER_KEEP };
        for (sequence, lsn) in acknowledged.iter().rev().take(usize::try_from(kept).unwrap()) {
            assert_eq!(listed.get(sequence), Some(lsn), "{what}@{sequence} in the history");
            if pipeline == BULK || sequence.is_multiple_of(one_in) {
                let found = of.checkpoint(*sequence).await.unwrap();
                assert!(*found.state() == state(pipeline, branch, *sequence), "{what}@{sequence}: its state");
                assert_eq!((found.lsn(), found.position_str().into_owned()), (*lsn, sequence.to_string()), "{what}");
            }
        }
    }
}
