//! kill -9 under load, again and again: nothing acknowledged is lost, and nothing is there twice.
//!
//! Workers go on through all the crashes as they would in production: the client reconnects, finds out how attempts ended
//! whose answers were lost, and repeats what was not applied. Each worker counts upwards in its position and goes on only
//! after a success, so the log has to say 1, 2, 3 for every branch, whatever happened.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fencepost_client::{Checkpoint, Client, Commit, FactKind, Lsn, Resume, Tail, Takeover, Token, Transport, Worker};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::support::{Server, until};

const PIPELINE: &str = "prod/orders";
const BRANCHES: u64 = 4;

/// Where acknowledged commits are in the log, by branch and sequence.
type Acknowledged = Arc<Mutex<BTreeMap<(String, u64), Lsn>>>;

#[derive(Clone)]
struct Load {
    client: Client,
    acknowledged: Acknowledged,
    commits: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Load {
    fn acknowledge(&self, branch: &str, sequence: u64, lsn: Lsn) {
        let before = self.acknowledged.lock().unwrap().insert((branch.to_owned(), sequence), lsn);
        assert_eq!(before, None, "{branch} {sequence} was acknowledged before");
        self.commits.fetch_add(1, Ordering::SeqCst);
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    async fn resume(&self, branch: &str) -> Worker {
        let resume = Resume::new(format!("loader-{branch}")).takeover(Takeover::SameHolder).start_fresh();
        self.client.pipeline(PIPELINE).branch(branch).resume(resume).await.unwrap()
    }

    /// One branch: commits, and now and then the worker dies in the middle of a commit and is replaced.
    async fn one_branch(self, branch: String, mut random: StdRng) {
        while !self.is_over() {
            let worker = self.resume(&branch).await;
            let mut at = position(&worker);
            let known =
                self.acknowledged.lock().unwrap().range(..=(branch.clone(), u64::MAX)).next_back().map(last(&branch));
            assert!(at >= known.unwrap_or(0), "{branch} resumed at {at}, and {known:?} was acknowledged");
            for _ in 0..random.random_range(5..60) {
                if self.is_over() {
                    break;
                }
                let commit = worker.commit(checkpoint(at + 1));
                let committed = if random.random_ratio(1, 40) {
                    let patience = Duration::from_micros(random.random_range(0..2_000));
                    match tokio::time::timeout(patience, commit).await {
                        Ok(committed) => committed,
                        // It dies without knowing; its successor finds out from the head.
                        Err(_) => break,
                    }
                } else {
                    commit.await
                };
                let committed = committed.unwrap();
                assert_eq!(committed.sequence, at + 1);
                at = committed.sequence;
                self.acknowledge(&branch, at, committed.lsn);
            }
        }
    }

    /// Two branches that only ever move together.
    async fn two_branches(self) {
        let (one, other) = (self.resume("left").await, self.resume("right").await);
        while !self.is_over() {
            let at = position(&one) + 1;
            let committed = Commit::of([(&one, checkpoint(at)), (&other, checkpoint(at))]).send().await.unwrap();
            self.acknowledge("left", at, committed.lsn);
            self.acknowledge("right", at, committed.lsn);
        }
    }
}

/// The sequence of the last one acknowledged, if it is of this branch.
fn last(branch: &str) -> impl Fn((&(String, u64), &Lsn)) -> u64 {
    move |((of, sequence), _)| if of == branch { *sequence } else { 0 }
}

fn checkpoint(at: u64) -> Checkpoint {
    Checkpoint::at(at.to_string()).state(vec![at as u8; 200])
}

fn position(worker: &Worker) -> u64 {
    worker.head().map_or(0, |head| head.position_str().parse().unwrap())
}

/// Reads the whole log and holds it against every promise.
async fn check_log(client: &Client, acknowledged: &BTreeMap<(String, u64), Lsn>) {
    let mut facts = client.tail(Tail::from(Lsn::ZERO));
    let (mut last_lsn, mut last_token) = (Lsn::ZERO, Token::NONE);
    let (mut current, mut heads) = (BTreeMap::new(), BTreeMap::<String, u64>::new());
    let (mut commit_ids, mut places) = (HashSet::new(), BTreeMap::new());
    while let Some(fact) = facts.next().await {
        let (lsn, fact) = fact.unwrap();
        assert!(lsn > last_lsn);
        last_lsn = lsn;
        match fact.kind.unwrap() {
            FactKind::LeaseGranted(granted) => {
                let token = Token::from_u64(granted.token);
                assert!(token > last_token, "token {token} was granted after {last_token}");
                last_token = token;
                current.insert(granted.branch, granted.token);
            }
            FactKind::Committed(committed) => {
                assert!(commit_ids.insert(committed.commit_id.clone()), "{} was applied twice", committed.commit_id);
                let sequences: HashSet<u64> = committed.branches.iter().map(|moved| moved.sequence).collect();
                assert_eq!(sequences.len(), 1, "branches that only move together are together");
                for moved in committed.branches {
                    let head = heads.entry(moved.branch.clone()).or_default();
                    assert_eq!(moved.sequence, *head + 1, "sequences of {} are gapless", moved.branch);
                    *head = moved.sequence;
                    assert_eq!(current.get(&moved.branch), Some(&moved.token), "only the current worker commits");
                    let position = moved.checkpoint.unwrap().position;
                    assert_eq!(position, moved.sequence.to_string(), "each piece of work is there once");
                    places.insert((moved.branch, moved.sequence), lsn);
                }
            }
            _ => {}
        }
    }
    for (commit, lsn) in acknowledged {
        assert_eq!(places.get(commit), Some(lsn), "{commit:?} was acknowledged and is not in the log");
    }
}

async fn survive(seed: u64, rounds: u64, transport: Transport) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut server = Server::start().await;
    let client = Client::builder().transport(transport).connect(server.endpoint()).await.unwrap();
    let load = Load { client, acknowledged: Arc::default(), commits: Arc::default(), stop: Arc::default() };
    let mut tasks = tokio::task::JoinSet::new();
    for branch in 0..BRANCHES {
        tasks.spawn(load.clone().one_branch(format!("shard-{branch}"), StdRng::seed_from_u64(seed * 100 + branch)));
    }
    tasks.spawn(load.clone().two_branches());
    for round in 0..rounds {
        let goal = load.commits.load(Ordering::SeqCst) + random.random_range(1..150);
        until(&format!("round {round} of seed {seed}: {goal} commits"), async || {
            assert!(tasks.try_join_next().is_none(), "a worker ended before its time");
            load.commits.load(Ordering::SeqCst) >= goal
        })
        .await;
        server.kill().await;
        server.restart().await;
        let acknowledged = load.acknowledged.lock().unwrap().clone();
        check_log(&server.client().await, &acknowledged).await;
    }
    load.stop.store(true, Ordering::SeqCst);
    tasks.join_all().await;
    let acknowledged = load.acknowledged.lock().unwrap().clone();
    check_log(&server.client().await, &acknowledged).await;
    println!("seed {seed}: {rounds} kills, {} commits acknowledged", acknowledged.len());
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_by_kill_9_under_a_stream_of_commits() {
    survive(1, 10, Transport::Stream).await;
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_by_kill_9_under_single_commits() {
    survive(2, 10, Transport::Unary).await;
}

/// Whoever is killed while it starts leaves nothing behind that stops the next.
#[tokio::test]
async fn a_server_killed_again_and_again_as_soon_as_it_listens_comes_up() {
    let mut server = Server::start().await;
    let client = server.client().await;
    let worker = client.pipeline(PIPELINE).branch("main").resume(Resume::new("loader-1").start_fresh()).await.unwrap();
    let lsn = worker.commit(checkpoint(1)).await.unwrap().lsn;
    for _ in 0..5 {
        server.kill().await;
        server.restart().await;
    }
    check_log(&server.client().await, &BTreeMap::from([(("main".to_owned(), 1), lsn)])).await;
    assert_eq!(worker.commit(checkpoint(2)).await.unwrap().sequence, 2, "its lease outlived the server");
}
