//! A pipeline goes from one store to another, by a file.

use std::io::Cursor;
use std::path::Path;
use std::time::Duration;

use fencepost::log::v1::Fact;
use fencepost::v1::maintenance_service_client::MaintenanceServiceClient;
use fencepost::v1::{ExportPipelineRequest, ImportPipelineRequest};
use fencepost::{Lsn, Reason};
use fencepost_client::{Checkpoint, Client, Policy, Resume, RewindTo, StoredCheckpoint};
use fencepost_server::config::Config;
use fencepost_server::disk::RealDisk;
use fencepost_server::embedded::Embedded;
use fencepost_server::log::{Inspector, verify};
use fencepost_server::ops::restore::Through;
use prost::Message as _;

use crate::snapshot::restore_to;
use crate::support::{PIPELINE, commit_all, config, copy_store, leftovers, open, state, until, worker};

async fn exported(client: &Client) -> Vec<u8> {
    let mut file = Vec::new();
    client.export_pipeline(PIPELINE, &mut file).await.unwrap();
    file
}

async fn history(client: &Client, pipeline: &str, branch: &str) -> Vec<(u64, Vec<u8>, String)> {
    let branch = client.pipeline(pipeline).branch(branch);
    let mut found = Vec::new();
    for listed in branch.checkpoints().all().await.unwrap() {
        let whole = branch.checkpoint(listed.sequence()).await.unwrap();
        found.push((whole.sequence(), whole.state().to_vec(), whole.commit_id().to_owned()));
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_taken_in_elsewhere_has_what_was_retained_and_goes_on_from_there() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (open(&dir.path().join("a")).await.unwrap(), open(&dir.path().join("b")).await.unwrap());
    let (from, to) = (source.client(), target.client());
    let orders = from.pipeline(PIPELINE);
    let policy = orders.set_policy(Policy::new().keep_last(5)).actor("ada").reason("small").send().await.unwrap();
    assert_eq!(policy.keep_last, 5);
    commit_all(&from, 3, 8).await;
    orders.create_savepoint("before").branch("shard-0").sequence(4).send().await.unwrap();
    let shard = orders.branch("shard-1");
    shard.rewind_to(RewindTo::Sequence(6)).reason("bad input").send().await.unwrap();
    commit_all(&from, 3, 3).await;
    shard.fork_to("replay").send().await.unwrap();

    let file = exported(&from).await;
    let imported =
        to.import_pipeline(Cursor::new(file.clone())).pipeline("prod/moved").actor("ada").send().await.unwrap();
    assert_eq!((imported.branches, imported.checkpoints, imported.savepoints), (4, 5 + 1 + 5 + 5 + 1, 1));
    for branch in ["shard-0", "shard-1", "shard-2", "replay"] {
        let (here, there) = (history(&from, PIPELINE, branch).await, history(&to, "prod/moved", branch).await);
        assert_eq!(here, there, "{branch}");
        assert!(!here.is_empty());
    }
    assert_eq!(history(&to, "prod/moved", "shard-1").await[0].1, state(1, 9));
    let moved = to.pipeline("prod/moved");
    assert_eq!(moved.policy().await.unwrap().keep_last, 5);
    let savepoints = moved.savepoints().all().await.unwrap();
    assert_eq!((&*savepoints[0].name, &*savepoints[0].branch, savepoints[0].sequence), ("before", "shard-0", 4));

    // A savepoint that came along is as good as one that was made here.
    moved.branch("shard-0").rewind_to(RewindTo::Savepoint("before".into())).reason("try").send().await.unwrap();
    let worker = moved.branch("shard-0").resume(Resume::new("loader")).await.unwrap();
    assert_eq!(worker.head().as_ref().map(StoredCheckpoint::sequence), Some(4));
    assert_eq!(worker.commit(Checkpoint::at("next")).await.unwrap().sequence, 5);

    let again = to.import_pipeline(Cursor::new(file)).pipeline("prod/moved").send().await.unwrap_err();
    assert_eq!(again.reason(), Some(Reason::Exists));
    source.close().await.unwrap();
    target.close().await.unwrap();

    // All of it is in the log: a start from nothing but that has the same.
    std::fs::remove_dir_all(dir.path().join("b/index")).unwrap();
    let target = open(&dir.path().join("b")).await.unwrap();
    assert_eq!(history(&target.client(), "prod/moved", "replay").await.len(), 1);
    assert_eq!(target.client().pipeline("prod/moved").branch("shard-0").head().await.unwrap().sequence(), 5);
    target.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_or_cut_export_is_refused_before_anything_of_it_is_taken_in() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("data")).await.unwrap();
    let client = store.client();
    commit_all(&client, 2, 4).await;
    let file = exported(&client).await;
    let mut tried = 0;
    for at in (0..file.len()).step_by(97) {
        let mut bad = file.clone();
        bad[at] ^= 1 << (at % 8);
        let refused = client.import_pipeline(Cursor::new(bad)).pipeline("prod/copy").send().await;
        let refused = refused.expect_err("a byte was changed");
        // In the field of the format a change may make a higher number, but then its CRC is wrong.
        assert_eq!(refused.reason(), Some(Reason::IntegrityMismatch), "byte {at} of {}: {refused}", file.len());
        tried += 1;
    }
    for length in (0..file.len()).step_by(file.len() / 7) {
        let cut = file[..length].to_vec();
        let refused = client.import_pipeline(Cursor::new(cut)).pipeline("prod/copy").send().await;
        assert_eq!(refused.unwrap_err().reason(), Some(Reason::IntegrityMismatch), "cut after {length} bytes");
        tried += 1;
    }
    assert!(tried > 50);
    let notes = client.import_pipeline(Cursor::new("notes, and no export".repeat(99))).send().await.unwrap_err();
    assert_eq!(notes.reason(), Some(Reason::IntegrityMismatch), "{notes}");
    assert!(notes.to_string().contains("the file that was sent: damaged at offset 0"), "{notes}");
    let names: Vec<String> = client.pipelines("").all().await.unwrap().into_iter().map(|it| it.pipeline).collect();
    assert_eq!(names, [PIPELINE], "nothing was taken in");
    client.import_pipeline(Cursor::new(file)).pipeline("prod/copy").send().await.unwrap();
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_with_a_commit_that_a_store_has_no_room_for_is_refused_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let roomy = Config { request_bytes_max: 8 << 20, segment_bytes: 32 << 20, ..config(&dir.path().join("a")) };
    let (source, target) = (Embedded::open_with(roomy).await.unwrap(), open(&dir.path().join("b")).await.unwrap());
    commit_all(&source.client(), 1, 2).await;
    let worker = worker(&source.client(), 1).await;
    worker.commit(Checkpoint::at("end").state(vec![7; 3 << 20])).await.unwrap();
    let file = exported(&source.client()).await;
    let refused = target.client().import_pipeline(Cursor::new(file)).send().await.unwrap_err();
    assert_eq!(refused.reason(), Some(Reason::TooLarge), "{refused}");
    assert!(refused.to_string().contains("request_bytes_max"), "{refused}");
    assert!(target.client().pipelines("").all().await.unwrap().is_empty(), "nothing was taken in");
    source.close().await.unwrap();
    target.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pieces_of_an_import_have_any_length_and_the_first_may_have_none() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await.unwrap();
    commit_all(&store.client(), 1, 3).await;
    let file = exported(&store.client()).await;
    let piece = |data: &[u8]| ImportPipelineRequest { data: data.to_vec().into(), ..ImportPipelineRequest::default() };
    let first = ImportPipelineRequest { pipeline: "prod/copy".to_owned(), ..ImportPipelineRequest::default() };
    let (head, tail) = file.split_at(700);
    let pieces = tokio_stream::iter([first, piece(&[]), piece(head), piece(&[]), piece(tail)]);
    let imported = MaintenanceServiceClient::new(store.channel()).import_pipeline(pieces).await.unwrap().into_inner();
    assert_eq!((&*imported.pipeline, imported.checkpoints), ("prod/copy", 3));
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_of_what_is_damaged_is_refused_and_says_where() {
    let dir = crate::support::scratch();
    let made = dir.path().join("data");
    let store = open(&made).await.unwrap();
    store.client().pipeline(PIPELINE).set_policy(Policy::new().keep_last(1_000)).send().await.unwrap();
    commit_all(&store.client(), 1, 10).await;
    let bulk = worker(&store.client(), 1).await;
    for state in 0..8 {
        bulk.commit(Checkpoint::at("bulk").state(vec![state; 1 << 20])).await.unwrap();
    }
    // A start reads what the hot state does not cover, and refuses damage there.
    until(&store, |it| it.store.as_ref().is_some_and(|it| it.state_lsn > 0)).await;
    store.close().await.unwrap();
    let (data, name) = (dir.path().join("damaged"), "log/00000000000000000001.seg");
    let good = std::fs::read(made.join(name)).unwrap();
    for at in (512..12_000).step_by(331).chain((12_000..good.len()).step_by(1_500_000)) {
        copy_store(&made, &data);
        std::fs::remove_file(data.join(name)).unwrap();
        let mut bytes = good.clone();
        bytes[at] ^= 4;
        std::fs::write(data.join(name), bytes).unwrap();
        let store = open(&data).await.unwrap();
        let refused = store.client().export_pipeline(PIPELINE, Vec::new()).await.unwrap_err();
        assert_eq!(refused.reason(), Some(Reason::Corrupt), "byte {at}: {refused}");
        let text = refused.to_string();
        assert!(text.contains(name) && text.contains("is damaged at offset"), "byte {at}: {text}");
        store.close().await.unwrap();
        std::fs::remove_dir_all(&data).unwrap();
    }
}

/// Tries until it is no longer refused because of another.
async fn in_turn<T>(mut work: impl AsyncFnMut() -> Result<T, fencepost_client::Error>) -> T {
    let tries = async {
        loop {
            match work().await {
                Err(error) if error.reason() == Some(Reason::RateLimited) => tokio::task::yield_now().await,
                done => return done.unwrap(),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), tries).await.expect("its turn comes")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_one_export_and_one_import_at_a_time_and_the_others_hear_so_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await.unwrap();
    let client = store.client();
    let worker = worker(&client, 0).await;
    // More than connections and channels have room for.
    for state in 0..8 {
        worker.commit(Checkpoint::at("bulk").state(vec![state; 1 << 20])).await.unwrap();
    }
    let request = ExportPipelineRequest { cluster: None, pipeline: PIPELINE.to_owned() };
    let stalled = MaintenanceServiceClient::new(store.channel()).export_pipeline(request).await.unwrap().into_inner();
    let refused = client.export_pipeline(PIPELINE, Vec::new()).await.unwrap_err();
    assert_eq!(refused.reason(), Some(Reason::RateLimited), "{refused}");
    drop(stalled);
    let file = in_turn(async || {
        let mut file = Vec::new();
        client.export_pipeline(PIPELINE, &mut file).await.map(|_| file)
    })
    .await;
    until(&store, |_| leftovers(dir.path()).is_empty()).await;

    let first = ImportPipelineRequest { data: file[..1_000].to_vec().into(), ..ImportPipelineRequest::default() };
    let channel = store.channel();
    let stalled = tokio::spawn(async move {
        let pieces = tokio_stream::StreamExt::chain(tokio_stream::once(first), tokio_stream::pending());
        MaintenanceServiceClient::new(channel).import_pipeline(pieces).await
    });
    until(&store, |_| !leftovers(dir.path()).is_empty()).await;
    let import = || client.import_pipeline(Cursor::new(file.clone())).pipeline("prod/copy").send();
    let refused = import().await.unwrap_err();
    assert_eq!(refused.reason(), Some(Reason::RateLimited), "{refused}");
    stalled.abort();
    in_turn(import).await;
    until(&store, |_| leftovers(dir.path()).is_empty()).await;
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_facts_of_an_import_share_their_writes_and_wait_for_room_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let source = open(&dir.path().join("a")).await.unwrap();
    source.client().pipeline(PIPELINE).set_policy(Policy::new().keep_last(1_000)).send().await.unwrap();
    commit_all(&source.client(), 2, 200).await;
    let bulk = source.client().pipeline(PIPELINE).branch("bulk").resume(Resume::new("w").start_fresh()).await.unwrap();
    for state in 0..6 {
        bulk.commit(Checkpoint::at("bulk").state(vec![state; 1 << 20])).await.unwrap();
    }
    let file = exported(&source.client()).await;
    source.close().await.unwrap();
    // Room for one of the large ones, and not for two.
    let data = dir.path().join("b");
    let small =
        Config { batch_bytes_max: 1 << 20, in_flight_bytes_max: 2 << 20, segment_bytes: 16 << 20, ..config(&data) };
    let target = Embedded::open_with(small).await.unwrap();
    let imported = target.client().import_pipeline(Cursor::new(file)).send().await.unwrap();
    assert_eq!((imported.branches, imported.checkpoints), (3, 406));
    assert_eq!(history(&target.client(), PIPELINE, "shard-1").await.len(), 200);
    target.close().await.unwrap();
    let facts = places(&data, PIPELINE);
    let entries: std::collections::BTreeSet<_> = facts.iter().map(|lsn| lsn.index()).collect();
    assert!(entries.len() * 4 < facts.len(), "{} facts in {} entries", facts.len(), entries.len());
}

/// Where the log has the facts of a pipeline.
struct Places(&'static str, Vec<Lsn>);

impl Inspector for Places {
    fn fact(&mut self, lsn: Lsn, payload: &[u8]) -> Result<(), String> {
        if Fact::decode(payload).unwrap().pipeline() == Some(self.0) {
            self.1.push(lsn);
        }
        Ok(())
    }
}

fn places(data_dir: &Path, pipeline: &'static str) -> Vec<Lsn> {
    let mut places = Places(pipeline, Vec::new());
    verify(&RealDisk, &data_dir.join("log"), &mut places).unwrap();
    places.1
}

/// All that comes along with a pipeline of these branches.
async fn all_of(client: &Client, pipeline: &str, branches: &[&str]) -> impl PartialEq + std::fmt::Debug + use<> {
    let mut histories = Vec::new();
    for branch in branches {
        histories.push(history(client, pipeline, branch).await);
    }
    let savepoints = client.pipeline(pipeline).savepoints().all().await.unwrap();
    let savepoints: Vec<_> = savepoints.into_iter().map(|it| (it.name, it.branch, it.sequence)).collect();
    (histories, savepoints, client.pipeline(pipeline).policy().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_that_was_cut_after_any_fact_is_finished_by_a_second_try() {
    const COPY: &str = "prod/copy";
    let dir = crate::support::scratch();
    let source = open(&dir.path().join("a")).await.unwrap();
    let from = source.client();
    let orders = from.pipeline(PIPELINE);
    orders.set_policy(Policy::new().keep_last(10)).send().await.unwrap();
    commit_all(&from, 1, 12).await;
    // Older than what the policy keeps by the end, and named by a fact after checkpoints that it keeps.
    orders.create_savepoint("old").branch("shard-0").sequence(5).send().await.unwrap();
    commit_all(&from, 2, 2).await;
    orders.create_savepoint("head").branch("shard-0").sequence(14).send().await.unwrap();
    orders.branch("shard-0").fork_to("replay").send().await.unwrap();
    commit_all(&from, 1, 2).await;
    let (file, branches) = (exported(&from).await, ["shard-0", "shard-1", "replay"]);
    let expected = all_of(&from, PIPELINE, &branches).await;
    source.close().await.unwrap();

    let whole = open(&dir.path().join("whole")).await.unwrap();
    let import = async |client: Client| {
        client.import_pipeline(Cursor::new(file.clone())).pipeline(COPY).send().await.unwrap();
    };
    import(whole.client()).await;
    let snapshot = dir.path().join("snapshot");
    whole.client().create_snapshot(snapshot.to_str().unwrap()).await.unwrap().result().await.unwrap();
    whole.close().await.unwrap();
    let places = places(&dir.path().join("whole"), COPY);
    assert_eq!(places.len(), 1 + 1 + 11 + 2 + 1 + 2 + 1, "start, policy, checkpoints, savepoints, end");
    for cut in &places[..places.len() - 1] {
        let data = dir.path().join(format!("cut-{cut}"));
        restore_to(&snapshot, &data, Through::Lsn(*cut)).unwrap();
        let store = open(&data).await.unwrap();
        let client = store.client();
        until(&store, |it| it.store.as_ref().is_some_and(|it| it.index_state == "READY")).await;
        import(client.clone()).await;
        assert!(all_of(&client, COPY, &branches).await == expected, "cut after {cut}");
        for (savepoint, sequence) in [("head", 14), ("old", 5)] {
            let back = client.pipeline(COPY).branch("shard-0").rewind_to(RewindTo::Savepoint(savepoint.into()));
            back.reason("as in the source").send().await.unwrap();
            let head = client.pipeline(COPY).branch("shard-0").head().await.unwrap();
            assert_eq!((head.sequence(), head.state()), (sequence, &state(0, sequence).into()), "cut after {cut}");
        }
        store.close().await.unwrap();
        std::fs::remove_dir_all(&data).unwrap();
    }
}
