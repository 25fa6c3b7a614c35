//! Snapshots, restores, verification and the index, with the program that operators use.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use fencepost::log::v1::Fact;
use fencepost::log::v1::fact::Kind;
use fencepost_client::{Checkpoint, Client, Lsn, Policy, Reason, Resume, RewindTo, Token, Worker};
use fencepost_server::disk::RealDisk;
use fencepost_server::log::{Inspector, verify};
use fencepost_server::ops::{check, snapshot};
use prost::Message as _;
use serde_json::Value;

use crate::support::{Server, fencepost, files, json, offline, output, until};

const PIPELINE: &str = "prod/orders";
const BRANCHES: u64 = 6;
const REFUSED: i32 = 1;
const INTEGRITY: i32 = 65;
const NOT_FOUND: i32 = 66;
const UNAVAILABLE: i32 = 69;

/// Where acknowledged commits are, by branch and sequence.
type Acknowledged = Arc<Mutex<BTreeMap<(String, u64), Lsn>>>;

fn branch_name(branch: u64) -> String {
    format!("shard-{branch}")
}

/// Enough that a few thousand commits fill segments.
fn state(branch: &str, sequence: u64) -> Vec<u8> {
    format!("{branch}:{sequence};").into_bytes().repeat(256)
}

async fn worker(client: &Client, branch: &str) -> Worker {
    client.pipeline(PIPELINE).branch(branch).resume(Resume::new("loader").start_fresh()).await.unwrap()
}

async fn commit(worker: &Worker, branch: &str, acknowledged: &Acknowledged) {
    let sequence = worker.sequence() + 1;
    let checkpoint = Checkpoint::at(sequence.to_string()).state(state(branch, sequence));
    let committed = worker.commit(checkpoint).await.unwrap();
    acknowledged.lock().unwrap().insert((branch.to_owned(), committed.sequence), committed.lsn);
}

/// A load on all branches, until it is told to stop.
struct Load {
    acknowledged: Acknowledged,
    stop: Arc<AtomicBool>,
    /// Give their branches back to the test when they stop.
    workers: tokio::task::JoinSet<(String, Worker)>,
}

impl Load {
    async fn start(client: &Client) -> Load {
        let (acknowledged, stop) = (Acknowledged::default(), Arc::new(AtomicBool::new(false)));
        let mut workers = tokio::task::JoinSet::new();
        for branch in (0..BRANCHES).map(branch_name) {
            let worker = worker(client, &branch).await;
            let (acknowledged, stop) = (Arc::clone(&acknowledged), Arc::clone(&stop));
            workers.spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    commit(&worker, &branch, &acknowledged).await;
                }
                (branch, worker)
            });
        }
        Load { acknowledged, stop, workers }
    }

    async fn commits(&self, more: usize) {
        let goal = self.acknowledged.lock().unwrap().len() + more;
        until("more commits", async || self.acknowledged.lock().unwrap().len() >= goal).await;
    }

    async fn stop(self) -> (BTreeMap<(String, u64), Lsn>, Vec<(String, Worker)>) {
        self.stop.store(true, Ordering::SeqCst);
        let workers = self.workers.join_all().await;
        let acknowledged = self.acknowledged.lock().unwrap().clone();
        (acknowledged, workers)
    }
}

/// The heads as the server tells them.
async fn heads(client: &Client) -> BTreeMap<String, u64> {
    let branches = client.pipeline(PIPELINE).branches().all().await.unwrap();
    branches.into_iter().map(|info| (info.branch, info.head_sequence)).collect()
}

async fn segments(client: &Client) -> u64 {
    client.status().await.unwrap().log.unwrap().segments
}

/// All facts of a log.
fn facts(dir: &Path) -> Vec<(Lsn, Vec<u8>)> {
    #[derive(Default)]
    struct Collector(Vec<(Lsn, Vec<u8>)>);
    impl Inspector for Collector {
        fn fact(&mut self, lsn: Lsn, payload: &[u8]) -> Result<(), String> {
            self.0.push((lsn, payload.to_vec()));
            Ok(())
        }
    }
    let mut collector = Collector::default();
    let report = verify(&RealDisk, &dir.join("log"), &mut collector).unwrap();
    assert_eq!(report.damage, []);
    collector.0
}

async fn snapshot(server: &Server, name: &str) -> PathBuf {
    let dir = server.scratch().join(name);
    let ended = output(server.command(&["-o", "json", "snapshot", "create"]).arg(&dir)).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    dir
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_made_under_load_restores_to_what_was_acknowledged_by_then_and_fences_the_workers_since() {
    let mut server = Server::start().await;
    let client = server.client().await;
    let load = Load::start(&client).await;
    until("two segments are full", async || segments(&client).await > 2).await;
    let dir = snapshot(&server, "snapshot").await;
    load.commits(200).await;
    let (acknowledged, workers) = load.stop().await;

    let verified = json(&offline(&["-o", "json", "snapshot", "verify"], &[("", &dir)]).await);
    let lsn: Lsn = verified["lsn"].as_str().unwrap().parse().unwrap();
    assert_eq!((verified["generation"].as_u64(), verified["damage"].as_array().map(Vec::len)), (Some(1), Some(0)));
    let restored = server.scratch().join("restored");
    let ended = offline(
        &["-o", "json", "restore", "--reason", "a drill", "--segment-bytes", "8388608"],
        &[("", &dir), ("--data-dir", &restored)],
    )
    .await;
    let told = json(&ended);
    assert_eq!((told["kept_lsn"].as_str(), told["generation"].as_u64()), (Some(lsn.to_string().as_str()), Some(2)));
    let checked = json(&offline(&["-o", "json", "verify", "--data-dir"], &[("", &restored)]).await);
    assert_eq!(checked["generation"], 2);

    server.kill().await;
    server.restart_on(&restored).await;
    let client = server.client().await;
    let expected: BTreeMap<String, u64> = (0..BRANCHES)
        .map(branch_name)
        .map(|branch| {
            let of_branch = acknowledged.iter().filter(|((name, _), at)| *name == branch && **at <= lsn);
            let head = of_branch.map(|((_, sequence), _)| *sequence).max().unwrap_or(0);
            (branch, head)
        })
        .collect();
    assert_eq!(heads(&client).await, expected);
    for (branch, old) in workers {
        let refused = old.commit(Checkpoint::at("too late")).await.unwrap_err();
        let reason = refused.reason();
        assert!(
            matches!(reason, Some(Reason::Fenced | Reason::StaleGeneration | Reason::StoreRolledBack)),
            "{branch}: {refused}"
        );
        let new = worker(&client, &branch).await;
        assert!(new.token() > old.token() && new.token() >= Token::new(2, 1).unwrap(), "{}", new.token());
        assert_eq!(new.sequence(), expected[&branch]);
        assert_eq!(*new.head().unwrap().state(), state(&branch, expected[&branch]));
        new.commit(Checkpoint::at("on")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_to_a_fact_or_a_time_keeps_exactly_what_was_there_by_then() {
    let mut server = Server::start().await;
    let client = server.client().await;
    let load = Load::start(&client).await;
    load.commits(60).await;
    load.stop().await;
    let dir = snapshot(&server, "snapshot").await;
    server.kill().await;
    let all = facts(&dir);
    let decoded: Vec<Fact> = all.iter().map(|(_, payload)| Fact::decode(&payload[..]).unwrap()).collect();

    let mut targets: Vec<(String, String, usize)> = Vec::new();
    for at in [0, 1, all.len() / 3, all.len() / 2, all.len() - 1] {
        targets.push(("--to-lsn".into(), all[at].0.to_string(), at + 1));
        let at_ms = decoded[at].at_ms;
        let kept = decoded.iter().position(|fact| fact.at_ms > at_ms).unwrap_or(all.len());
        let time = jiff::Timestamp::from_millisecond(at_ms as i64).unwrap();
        targets.push(("--to-time".into(), time.to_string(), kept));
    }
    // Between two facts, and behind the last one by time.
    let beyond = Lsn::new(all[all.len() / 2].0.index(), u16::MAX);
    targets.push(("--to-lsn".into(), beyond.to_string(), all.iter().filter(|(lsn, _)| *lsn <= beyond).count()));
    targets.push(("--to-time".into(), "2999-01-01T00:00:00+01:00".into(), all.len()));
    for (number, (flag, value, kept)) in targets.iter().enumerate() {
        let to = server.scratch().join(format!("to-{number}"));
        let arguments = ["-o", "json", "restore", "--generation", "7", "--segment-bytes", "8388608", flag, value];
        let told = json(&offline(&arguments, &[("", &dir), ("--data-dir", &to)]).await);
        let mut found = facts(&to);
        let (_, started) = found.pop().unwrap();
        assert_eq!(found, all[..*kept], "{flag} {value}");
        let Some(Kind::GenerationStarted(started)) = Fact::decode(&started[..]).unwrap().kind else { panic!("{told}") };
        let last = all[*kept - 1].0;
        assert_eq!((started.generation, started.kept_lsn), (7, last.as_u64()), "{flag} {value}");
        assert_eq!(told["kept_lsn"], last.to_string());
        json(&offline(&["-o", "json", "verify"], &[("", &to)]).await);
    }

    let refused = |value: &'static str, words: [&'static str; 2]| {
        let (dir, to) = (dir.clone(), server.scratch().join("refused"));
        async move {
            let flag = if value.contains('T') { "--to-time" } else { "--to-lsn" };
            let ended = offline(&["restore", flag, value], &[("", &dir), ("--data-dir", &to)]).await;
            assert_eq!(ended.code, Some(REFUSED), "{ended:?}");
            for word in words {
                assert!(ended.stderr.contains(word), "{ended:?}");
            }
        }
    };
    refused("1999-01-01T00:00:00Z", ["begins after that time", "first fact is of 20"]).await;
    refused("999999.0", ["999999.0", "ends with entry"]).await;
}

#[tokio::test]
async fn a_restore_needs_an_empty_directory_a_sound_snapshot_and_a_new_generation() {
    let mut server = Server::start().await;
    let acknowledged = Acknowledged::default();
    let one = worker(&server.client().await, "main").await;
    commit(&one, "main", &acknowledged).await;
    let dir = snapshot(&server, "snapshot").await;
    server.kill().await;
    let refused = async |data_dir: &Path, more: &[&str], code: i32, words: &[&str]| {
        let mut command = fencepost();
        let ended = output(command.arg("restore").arg(&dir).arg("--data-dir").arg(data_dir).args(more)).await;
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(code), ""), "{ended:?}");
        for word in words {
            assert!(ended.stderr.contains(word), "'{word}': {ended:?}");
        }
    };
    let taken = server.scratch().join("taken");
    for file in ["some-file", "log/00000000000000000001.seg", "index/0000000001/db"] {
        std::fs::create_dir_all(taken.join(file).parent().unwrap()).unwrap();
        std::fs::write(taken.join(file), "x").unwrap();
        let first = file.split('/').next().unwrap();
        refused(&taken, &[], REFUSED, &[taken.to_str().unwrap(), "empty", if first == "log" { ".seg" } else { first }])
            .await;
        std::fs::remove_dir_all(&taken).unwrap();
    }
    // An empty directory will do.
    std::fs::create_dir(&taken).unwrap();
    refused(&taken, &["--generation", "1"], REFUSED, &["generation is 1", "above 1"]).await;
    refused(&taken, &["--generation", "65536"], REFUSED, &["generation is 65536", "below 65536"]).await;
    assert_eq!(files(&taken), Vec::<PathBuf>::new(), "what is refused leaves nothing behind");

    let nowhere = offline(&["restore"], &[("", &dir.join("nowhere")), ("--data-dir", &taken)]).await;
    assert_eq!(nowhere.code, Some(NOT_FOUND), "{nowhere:?}");
    let unfinished = server.scratch().join("unfinished");
    std::fs::create_dir(&unfinished).unwrap();
    for arguments in [&["restore"][..], &["snapshot", "verify"]] {
        let mut command = fencepost();
        command.args(arguments).arg(&unfinished);
        if arguments[0] == "restore" {
            command.arg("--data-dir").arg(&taken);
        }
        let ended = output(&mut command).await;
        assert_eq!(ended.code, Some(INTEGRITY), "{ended:?}");
        assert!(ended.stderr.contains("there is no manifest"), "{ended:?}");
    }
    let log = dir.join("log/00000000000000000001.seg");
    flip(&log, 600);
    refused(&taken, &[], INTEGRITY, &[log.to_str().unwrap(), "digest"]).await;
    assert_eq!(files(&taken), Vec::<PathBuf>::new());
}

fn flip(file: &Path, at: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[at] ^= 0x04;
    // A snapshot's files may be those of the store.
    std::fs::remove_file(file).unwrap();
    std::fs::write(file, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_of_a_snapshot_finds_every_changed_byte_in_every_file() {
    let mut server = Server::start().await;
    let client = server.client().await;
    let load = Load::start(&client).await;
    until("a segment is full", async || segments(&client).await > 2).await;
    load.stop().await;
    // Compacted segments are short.
    let ended = output(&mut server.command(&["compact"])).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let dir = snapshot(&server, "snapshot").await;
    server.kill().await;
    let names: Vec<String> =
        files(&dir).iter().map(|file| file.strip_prefix(&dir).unwrap().to_string_lossy().into_owned()).collect();
    assert!(names.iter().any(|name| name == "state.seg"), "{names:?}");
    assert!(names.iter().filter(|name| name.starts_with("log/")).count() >= 2, "{names:?}");
    let sound = |dir: &Path| match snapshot::verify(&RealDisk, dir, &mut |_| ()) {
        Ok(verified) => verified.checked.damage.iter().map(|it| it.damage.to_string()).collect(),
        Err(error) => vec![error.to_string()],
    };
    assert_eq!(sound(&dir), Vec::<String>::new());
    let mut flips = 0;
    for file in files(&dir) {
        let length = std::fs::metadata(&file).unwrap().len() as usize;
        // The edges, and a sample in between.
        let sample = (0..12).map(|at| at * length / 12 + 7).chain([0, 8, 60, 511, length - 1, length - 64]);
        for at in sample.filter(|at| *at < length) {
            flip(&file, at);
            let found = sound(&dir);
            assert!(found.iter().any(|it| it.contains(file.to_str().unwrap())), "{file:?} byte {at}: {found:?}");
            flip(&file, at);
            flips += 1;
        }
        flip(&file, length / 2);
        let ended = offline(&["snapshot", "verify"], &[("", &dir)]).await;
        assert_eq!(ended.code, Some(INTEGRITY), "{ended:?}");
        assert!(ended.stderr.contains(file.to_str().unwrap()), "{ended:?}");
        flip(&file, length / 2);
    }
    assert_eq!(sound(&dir), Vec::<String>::new(), "everything is as it was");
    println!("{flips} changed bytes found");
    // A file too many, and one too few.
    std::fs::write(dir.join("log/00000000000000000099.seg"), "x").unwrap();
    assert!(sound(&dir).iter().any(|it| it.contains("not in the manifest")));
    std::fs::remove_file(dir.join("log/00000000000000000099.seg")).unwrap();
    std::fs::remove_file(dir.join("state.seg")).unwrap();
    assert!(sound(&dir).iter().any(|it| it.contains("the file is missing")));
}

/// Everything that the index has a part in, as the server tells it.
async fn answers(client: &Client) -> Vec<String> {
    let pipeline = client.pipeline(PIPELINE);
    let mut answers = Vec::new();
    for branch in (0..BRANCHES).map(branch_name) {
        for found in pipeline.branch(&branch).checkpoints().all().await.unwrap() {
            answers.push(format!("{branch}@{} at {} of {}", found.sequence(), found.lsn(), found.commit_id()));
            if found.sequence() % 8 == 0 {
                let known = client.resolve_commit(PIPELINE, found.commit_id(), None).await.unwrap();
                answers.push(format!("{} {known:?}", found.commit_id()));
            }
        }
    }
    answers.extend(pipeline.audit().all().await.unwrap().into_iter().map(|record| format!("{record:?}")));
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_was_made_again_answers_as_the_one_before() {
    let mut server = Server::start().await;
    let client = server.client().await;
    let pipeline = client.pipeline(PIPELINE);
    let _ = pipeline.set_policy(Policy::new().keep_last(40)).send().await.unwrap();
    let load = Load::start(&client).await;
    until("a segment is full", async || segments(&client).await > 1).await;
    load.stop().await;
    pipeline.create_savepoint("kept").branch(branch_name(0)).send().await.unwrap();
    let branch = pipeline.branch(branch_name(1));
    let head = branch.head().await.unwrap().sequence();
    branch.rewind_to(RewindTo::Sequence(head - 5)).reason("a drill").send().await.unwrap();
    let load = Load::start(&client).await;
    // Three kilobytes each: another segment is full.
    load.commits(4_000).await;
    load.stop().await;
    let is_ready = async || {
        let store = client.status().await.unwrap().store.unwrap();
        store.index_state == "READY" && store.state_lsn > 0
    };
    until("the index is ready", is_ready).await;
    let before = answers(&client).await;
    server.kill().await;

    let data_dir = server.data_dir();
    let whole = json(&offline(&["-o", "json", "verify"], &[("--data-dir", &data_dir)]).await);
    assert!(whole["index"].as_str().unwrap().starts_with("as the log says, up to "), "{whole}");
    assert!(whole["state_file"].as_str().unwrap().starts_with("as the log gives it at "), "{whole}");
    let made = json(&offline(&["-o", "json", "index", "rebuild"], &[("--data-dir", &data_dir)]).await);
    assert!(made["entries"].as_u64().unwrap() > 0, "{made}");
    let whole = json(&offline(&["-o", "json", "verify"], &[("--data-dir", &data_dir)]).await);
    assert_eq!(whole["index"], format!("as the log says, up to {}", made["through"].as_str().unwrap()));
    server.restart().await;
    assert_eq!(answers(&server.client().await).await, before);

    let (while_served, rebuilt) = (
        offline(&["-o", "json", "verify"], &[("--data-dir", &data_dir)]).await,
        offline(&["index", "rebuild"], &[("--data-dir", &data_dir)]).await,
    );
    assert_eq!(json(&while_served)["index"], "not checked: a server has it open, or may have");
    assert_eq!(rebuilt.code, Some(UNAVAILABLE), "{rebuilt:?}");
    assert!(rebuilt.stderr.contains("is in use by another process"), "{rebuilt:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_made_small_without_a_server_and_answers_as_before() {
    let mut server = Server::start().await;
    let client = server.client().await;
    // Three quarters of a segment: too much of it is needed for the server to rewrite it by itself.
    let _ = client.pipeline(PIPELINE).set_policy(Policy::new().keep_last(340)).send().await.unwrap();
    let load = Load::start(&client).await;
    until("a segment is full", async || segments(&client).await > 1).await;
    load.stop().await;
    let is_ready = async || client.status().await.unwrap().store.unwrap().index_state == "READY";
    until("the index is ready", is_ready).await;
    let before = answers(&client).await;
    server.kill().await;
    let data_dir = server.data_dir();
    let compacted = json(&offline(&["-o", "json", "compact"], &[("--data-dir", &data_dir)]).await);
    assert!(compacted["freed_bytes"].as_u64().unwrap() > 0, "{compacted}");
    let whole = json(&offline(&["-o", "json", "verify"], &[("--data-dir", &data_dir)]).await);
    assert!(whole["compacted_lsn"].as_str().unwrap() > "0.0", "{whole}");
    assert!(whole["state_file"].as_str().unwrap().starts_with("as the log gives it at "), "{whole}");
    server.restart().await;
    assert_eq!(answers(&server.client().await).await, before);
}

#[tokio::test]
async fn offline_work_on_something_else_than_a_store_makes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for arguments in [&["index", "rebuild"][..], &["compact"], &["verify"]] {
        let ended = offline(arguments, &[("--data-dir", dir.path())]).await;
        assert_eq!(ended.code, Some(NOT_FOUND), "{arguments:?}: {ended:?}");
        assert!(ended.stderr.contains(dir.path().to_str().unwrap()), "{ended:?}");
    }
    assert_eq!(files(dir.path()), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_told_with_the_checkpoints_that_it_takes_away() {
    let mut server = Server::start().await;
    let client = server.client().await;
    let load = Load::start(&client).await;
    load.commits(100).await;
    load.stop().await;
    server.kill().await;
    let data_dir = server.data_dir();
    let segment = data_dir.join("log/00000000000000000001.seg");
    let bytes = std::fs::read(&segment).unwrap();
    let heads: BTreeMap<String, u64> = facts(&data_dir)
        .iter()
        .filter_map(|(_, payload)| Fact::decode(&payload[..]).unwrap().commit().cloned())
        .flat_map(|commit| commit.branches)
        .map(|moved| (moved.branch, moved.sequence))
        .collect();
    let mut named = 0;
    for (branch, head) in heads.iter().take(2) {
        for sequence in head.saturating_sub(12).max(1)..=*head {
            let needle = state(branch, sequence);
            let at = bytes.windows(64).position(|window| *window == needle[..64]).unwrap();
            flip(&segment, at);
            let checked = check::check(&RealDisk, &data_dir, &mut |_| ()).unwrap();
            let [found] = &checked.damage[..] else { panic!("{:?}", checked.damage) };
            let names: Vec<String> = found.checkpoints.iter().map(ToString::to_string).collect();
            let name = format!("{PIPELINE}/{branch}@{sequence}");
            // The ten newest are kept. Others in the same entry are lost with it.
            let is_kept = sequence + 10 > *head;
            assert_eq!(names.contains(&name), is_kept, "{name} of {head}: {names:?}");
            named += u64::from(is_kept);
            flip(&segment, at);
        }
    }
    assert_eq!(named, 10 * 2);
    let branch = branch_name(0);
    let needle = state(&branch, heads[&branch] - 3);
    let at = bytes.windows(64).position(|window| *window == needle[..64]).unwrap();
    flip(&segment, at);
    let ended = offline(&["verify"], &[("--data-dir", &data_dir)]).await;
    assert_eq!(ended.code, Some(INTEGRITY), "{ended:?}");
    let name = format!("{PIPELINE}/{branch}@{}", heads[&branch] - 3);
    for word in [segment.to_str().unwrap(), "at offset", "(entries ", "cannot be read: ", &name] {
        assert!(ended.stderr.contains(word), "'{word}': {ended:?}");
    }
    let ended = offline(&["-o", "json", "verify"], &[("--data-dir", &data_dir)]).await;
    let told: Value = serde_json::from_str(&ended.stdout).unwrap();
    let checkpoints = told["damage"][0]["checkpoints"].as_array().unwrap();
    assert!(checkpoints.iter().any(|it| *it == *name), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_made_from_the_log_is_held_against_it() {
    let mut server = Server::start().await;
    let client = server.client().await;
    let load = Load::start(&client).await;
    until("a segment is full", async || segments(&client).await > 1).await;
    let is_ready = async || {
        let store = client.status().await.unwrap().store.unwrap();
        store.index_state == "READY" && store.state_lsn > 0
    };
    until("the state is in its file", is_ready).await;
    load.stop().await;
    server.kill().await;
    let data_dir = server.data_dir();
    let file = data_dir.join("state.seg");
    let length = std::fs::metadata(&file).unwrap().len() as usize;
    for at in [0, 20, 520, length / 2, length - 10] {
        flip(&file, at);
        let ended = offline(&["-o", "json", "verify"], &[("--data-dir", &data_dir)]).await;
        assert_eq!(ended.code, Some(INTEGRITY), "byte {at}: {ended:?}");
        assert!(ended.stderr.contains(file.to_str().unwrap()), "byte {at}: {ended:?}");
        let told: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!(told["state_file"], "damaged: the next start makes it again from the log");
        flip(&file, at);
    }
    json(&offline(&["-o", "json", "verify"], &[("--data-dir", &data_dir)]).await);
    // It is intact and knows of a segment that is not there any more.
    let newest = files(&data_dir.join("log")).into_iter().rfind(|it| it.extension().is_some_and(|it| it == "seg"));
    std::fs::remove_file(newest.unwrap()).unwrap();
    let ended = offline(&["verify"], &[("--data-dir", &data_dir)]).await;
    assert_eq!(ended.code, Some(INTEGRITY), "{ended:?}");
    assert!(ended.stderr.contains("what follows entry"), "{ended:?}");
}
