//! A whole data directory as the first version of the program left it when it was killed: it opens with the same answers, and
//! is used like any other from then on.
//!
//! `tests/fixtures/data-v1/` was written once, by a program that knew format 1, and is never written again. A new format
//! gets a directory of its own; `FENCEPOST_OLD_BINARY=/path/of/fencepost cargo test --test store -- --ignored write_the_old`
//! makes it. Segments are mostly zeros, so of each file there are its length and what is not zero.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use bytes::{Buf as _, BufMut as _, Bytes};
use fencepost::log::v1::Fact;
use fencepost::log::v1::fact::Kind;
use fencepost::v1::lease_service_client::LeaseServiceClient;
use fencepost::v1::pipeline_service_client::PipelineServiceClient;
use fencepost::v1::{
    BranchCommit, Checkpoint, Integrity, LeaseRef, OnMissing, Policy, ReleaseRequest, ResumeRequest, SetPolicyRequest,
    Takeover,
};
use fencepost_server::disk::RealDisk;
use fencepost_server::ops::check::check;
use tonic::transport::{Channel, Endpoint};

use crate::old_ask::{ask, commit, facts};
use crate::support::{compact, files_in, open, scratch, status, until};

const ORDERS: &str = "prod/orders";
const OTHER: &str = "test/other_pipeline.v2";
/// Zeros, so that the segments of the fixture are zeros.
const BULK_BYTES: usize = 1_500_000;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data-v1")
}

/// Reads the files of the fixture into a directory.
fn unpack(to: &Path) {
    for file in files_in(&fixture()).iter().filter(|file| file.extension().is_some_and(|it| it == "sparse")) {
        let target = to.join(file.strip_prefix(fixture()).unwrap()).with_extension("");
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        let mut packed = Bytes::from(std::fs::read(file).unwrap());
        let mut bytes = vec![0; packed.get_u64_le() as usize];
        while packed.has_remaining() {
            let (offset, length) = (packed.get_u64_le() as usize, packed.get_u32_le() as usize);
            packed.copy_to_slice(&mut bytes[offset..offset + length]);
        }
        std::fs::write(target, bytes).unwrap();
    }
}

/// Version of each segment's header.
fn versions(data_dir: &Path) -> Vec<u32> {
    let segments =
        files_in(&data_dir.join("log")).into_iter().filter(|it| it.extension().is_some_and(|it| it == "seg"));
    segments.map(|file| (&std::fs::read(file).unwrap()[8..12]).get_u32_le()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_of_version_1_opens_with_the_same_answers_and_goes_on() {
    let dir = scratch();
    let data_dir = dir.path().join("data");
    unpack(&data_dir);
    assert_eq!(versions(&data_dir), [1, 1, 1]);
    let is_sound = || {
        let checked = check(&RealDisk, &data_dir, &mut |_| ()).unwrap();
        let damage: Vec<String> = checked.damage.iter().map(|it| it.damage.to_string()).collect();
        assert_eq!(damage, Vec::<String>::new());
    };
    is_sound();
    let text = std::fs::read_to_string(fixture().join("answers.txt")).unwrap();
    let recorded: Vec<&str> = text.lines().collect();

    let store = open(&data_dir).await.unwrap();
    until(&store, |it| it.store.as_ref().is_some_and(|it| it.index_state == "READY")).await;
    let before = facts(&store.channel()).await;
    let lines = |answers: &BTreeMap<String, String>| -> Vec<String> {
        answers.iter().map(|(question, answer)| format!("{question} => {answer}")).collect()
    };
    let truth = ask(&store.channel(), &before).await;
    for (found, expected) in lines(&truth).iter().zip(&recorded) {
        assert_eq!(found, expected);
    }
    assert_eq!(truth.len(), recorded.len());

    // The token of then is still good, the next one is greater than all of them.
    let granted = before.iter().filter_map(|(_, fact)| match &fact.kind {
        Some(Kind::LeaseGranted(granted)) => Some(granted),
        _ => None,
    });
    let mut tokens: Vec<u64> = granted.map(|granted| granted.token).collect();
    let mut driver = Old::new(store.channel());
    driver.take_up(&before);
    driver.commit(ORDERS, &["shard-1"], &[7; 100]).await;
    let token = driver.resume(ORDERS, "shard-2", "somebody", Takeover::Force, 0).await;
    tokens.sort_unstable();
    assert!(Some(&token) > tokens.last());
    driver.commit(ORDERS, &["shard-2", "shard-1"], &[8; 100]).await;

    // Everything large goes, and what is kept answers as before, also from the file of the state.
    let policy = SetPolicyRequest {
        pipeline: ORDERS.to_owned(),
        policy: Some(Policy { keep_last: 2, ..Policy::default() }),
        actor: "ada".to_owned(),
        reason: "it is much".to_owned(),
        ..SetPolicyRequest::default()
    };
    PipelineServiceClient::new(store.channel()).set_policy(policy).await.unwrap();
    for _ in 0..8 {
        driver.commit(ORDERS, &["bulk"], &vec![0; BULK_BYTES]).await;
    }
    let kept: BTreeMap<&String, &String> = truth.iter().filter(|(question, _)| question.contains(OTHER)).collect();
    let of_other: Vec<(u64, Fact)> =
        before.iter().filter(|(_, fact)| fact.pipeline() == Some(OTHER)).cloned().collect();
    assert!(kept.len() > 20 && of_other.len() > 5, "{} {}", kept.len(), of_other.len());
    let (mut channel, mut store) = (store.channel(), Some(store));
    for reopened in [false, true] {
        if reopened {
            store.take().unwrap().close().await.unwrap();
            is_sound();
            store = Some(open(&data_dir).await.unwrap());
            channel = store.as_ref().unwrap().channel();
            driver.channel = channel.clone();
        }
        let open = store.as_ref().unwrap();
        compact(open).await.unwrap();
        let found = until(open, |it| it.store.as_ref().is_some_and(|it| it.index_state == "READY")).await;
        assert!(reopened || found.store.unwrap().compactions > 0);
        let found = ask(&channel, &of_other).await;
        for (question, answer) in kept.iter().filter(|(question, _)| !question.starts_with("branch")) {
            assert_eq!(found.get(*question), Some(*answer), "{question}, reopened: {reopened}");
        }
        // All facts of then that are left are as they were.
        let left = facts(&channel).await;
        let was: BTreeMap<u64, &Fact> = before.iter().map(|(lsn, fact)| (*lsn, fact)).collect();
        let same = left.iter().filter(|(lsn, fact)| was.get(lsn) == Some(&fact)).count();
        assert!(same >= of_other.len() && same < before.len(), "{same} of {}", before.len());
        driver.commit(ORDERS, &["shard-1"], &[9; 100]).await;
    }
    assert!(versions(&data_dir).contains(&2));
    let damage = status(store.as_ref().unwrap()).await.store.unwrap().damage;
    assert!(damage.is_empty(), "{damage:?}");
    store.unwrap().close().await.unwrap();
    is_sound();
}

/// One who uses what version 1 has.
struct Old {
    channel: Channel,
    tokens: BTreeMap<(String, String), u64>,
    heads: BTreeMap<(String, String), u64>,
    count: u64,
}

impl Old {
    fn new(channel: Channel) -> Old {
        Old { channel, tokens: BTreeMap::new(), heads: BTreeMap::new(), count: 0 }
    }

    /// Knows what the log says.
    fn take_up(&mut self, facts: &[(u64, Fact)]) {
        for (_, fact) in facts {
            match fact.kind.clone() {
                Some(Kind::LeaseGranted(granted)) => {
                    self.tokens.insert((granted.pipeline, granted.branch), granted.token);
                }
                Some(Kind::Committed(committed)) => {
                    self.count += 1;
                    for moved in committed.branches {
                        self.heads.insert((committed.pipeline.clone(), moved.branch), moved.sequence);
                    }
                }
                _ => {}
            }
        }
        self.count += 1_000;
    }

    async fn resume(&mut self, pipeline: &str, branch: &str, holder: &str, how: Takeover, wait_ms: u64) -> u64 {
        self.count += 1;
        let mut request = ResumeRequest {
            pipeline: pipeline.to_owned(),
            branch: branch.to_owned(),
            holder: holder.to_owned(),
            request_id: format!("request-{}", self.count),
            ttl_ms: if holder == "short" { 1_000 } else { 3_600_000 },
            lock_delay_ms: if holder == "short" { 200 } else { 0 },
            wait_ms,
            reason: if how == Takeover::Force { "the disk of the old one is gone".to_owned() } else { String::new() },
            ..ResumeRequest::default()
        };
        request.set_takeover(how);
        request.set_on_missing(OnMissing::StartFresh);
        let answer = LeaseServiceClient::new(self.channel.clone()).max_decoding_message_size(64 << 20);
        let token = { answer }.resume(request).await.unwrap().into_inner().token;
        self.tokens.insert((pipeline.to_owned(), branch.to_owned()), token);
        token
    }

    async fn release(&self, pipeline: &str, branch: &str) {
        let token = self.tokens[&(pipeline.to_owned(), branch.to_owned())];
        let lease = Some(LeaseRef { pipeline: pipeline.to_owned(), branch: branch.to_owned(), token });
        LeaseServiceClient::new(self.channel.clone()).release(ReleaseRequest { cluster: None, lease }).await.unwrap();
    }

    /// With every field that a checkpoint has; now and then with few.
    async fn commit(&mut self, pipeline: &str, branches: &[&str], state: &[u8]) {
        self.count += 1;
        let count = self.count;
        let moved = branches.iter().map(|branch| {
            let of = (pipeline.to_owned(), (*branch).to_owned());
            let head = self.heads.entry(of.clone()).or_default();
            *head += 1;
            let integrity = Integrity {
                rows_in: Some(count * 1_000),
                rows_out: Some(count * 990),
                rows_filtered: Some(0),
                rows_dead: count.is_multiple_of(2).then_some(10 * count),
                schema_fingerprint: Bytes::from_static(b"\x00\xff\x10schema"),
            };
            let mut checkpoint = Checkpoint {
                position: Bytes::from(format!("{branch}\0{count}\u{00e4}")),
                state: Bytes::copy_from_slice(state),
                payload_crc32: None,
                integrity: (!count.is_multiple_of(3)).then_some(integrity),
                ..Checkpoint::default()
            };
            checkpoint.payload_crc32 = (!count.is_multiple_of(5)).then(|| checkpoint.computed_crc32());
            BranchCommit {
                branch: of.1.clone(),
                token: self.tokens[&of],
                sequence: *head,
                checkpoint: Some(checkpoint),
                ..BranchCommit::default()
            }
        });
        let moved = moved.collect();
        commit(&self.channel, pipeline, &format!("commit-{count}"), moved, 0).await.unwrap();
    }
}

/// What the fixture's program was asked to do.
async fn live(driver: &mut Old) {
    for branch in ["shard-1", "shard-2", "bulk"] {
        driver.resume(ORDERS, branch, "loader", Takeover::Wait, 0).await;
    }
    driver.resume(OTHER, "main", "short", Takeover::Wait, 0).await;
    driver.resume(OTHER, "side", "loader", Takeover::Wait, 0).await;
    for round in 0..4 {
        driver.commit(ORDERS, &["shard-1"], b"a state").await;
        driver.commit(ORDERS, &["shard-1", "shard-2"], &[0xa5; 40]).await;
        driver.commit(ORDERS, &["bulk"], &vec![0; BULK_BYTES]).await;
        driver.commit(OTHER, &["side"], &[round; 77]).await;
        driver.commit(ORDERS, &["bulk"], &vec![0; BULK_BYTES]).await;
    }
    driver.commit(OTHER, &["main"], b"").await;
    // Its TTL runs out.
    driver.resume(OTHER, "main", "successor", Takeover::Wait, 30_000).await;
    driver.commit(OTHER, &["main", "side"], b"both").await;
    driver.resume(ORDERS, "shard-1", "loader", Takeover::SameHolder, 0).await;
    driver.resume(ORDERS, "shard-2", "another", Takeover::Force, 0).await;
    driver.commit(ORDERS, &["shard-2"], b"under a new token").await;
    driver.release(OTHER, "side").await;
    driver.resume(OTHER, "side", "late", Takeover::Wait, 0).await;
    driver.release(OTHER, "side").await;
    driver.commit(ORDERS, &["bulk"], &vec![0; BULK_BYTES]).await;
    // As many as a policy keeps that does not say, and more.
    for state in 0..12 {
        driver.commit(OTHER, &["main"], &[state; 5]).await;
    }
}

/// The length of a file, and what is not zero in it.
fn pack(bytes: &[u8]) -> Vec<u8> {
    const APART: usize = 32;
    let mut packed = Vec::new();
    packed.put_u64_le(bytes.len() as u64);
    let mut at = 0;
    while let Some(begin) = bytes[at..].iter().position(|byte| *byte != 0).map(|found| at + found) {
        let mut end = begin + 1;
        while let Some(next) = bytes[end..].iter().take(APART).position(|byte| *byte != 0) {
            end += next + 1;
        }
        packed.put_u64_le(begin as u64);
        packed.put_u32_le((end - begin) as u32);
        packed.put_slice(&bytes[begin..end]);
        at = end;
    }
    packed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "writes the fixture, which exists"]
async fn write_the_old_directory() {
    let binary = std::env::var_os("FENCEPOST_OLD_BINARY").expect("FENCEPOST_OLD_BINARY names a program");
    let dir = scratch();
    let (data_dir, listen) = (dir.path().join("data"), "127.0.0.1:27411");
    let mut command = tokio::process::Command::new(binary);
    command.args([
        "serve",
        "--segment-bytes",
        "6299648",
        "--batch-bytes-max",
        "4096",
        "--request-bytes-max",
        "2097152",
    ]);
    command.args(["--listen", listen, "--data-dir"]).arg(&data_dir).stdout(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let channel = loop {
        match Endpoint::from_shared(format!("http://{listen}")).unwrap().connect().await {
            Ok(channel) => break channel,
            Err(_) => assert!(child.try_wait().unwrap().is_none(), "it has ended"),
        }
    };
    live(&mut Old::new(channel.clone())).await;
    let facts = facts(&channel).await;
    let kinds: BTreeSet<String> = facts.iter().map(|(_, it)| format!("{:?}", it.kind)[..18].to_owned()).collect();
    let answers = ask(&channel, &facts).await;
    child.kill().await.unwrap();
    let lines: String = answers.iter().map(|(question, answer)| format!("{question} => {answer}\n")).collect();
    std::fs::create_dir_all(fixture().join("log")).unwrap();
    std::fs::write(fixture().join("answers.txt"), lines).unwrap();
    for file in files_in(&data_dir) {
        let name = format!("{}.sparse", file.strip_prefix(&data_dir).unwrap().display());
        std::fs::write(fixture().join(name), pack(&std::fs::read(file).unwrap())).unwrap();
    }
    println!("{} facts of {kinds:?}, {} answers", facts.len(), answers.len());
}
