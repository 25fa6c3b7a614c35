//! A snapshot taken while commits come in is a store of its own, as it was at one moment.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use fencepost::v1::audit_record::Action;
use fencepost::{Lsn, Reason, Token};
use fencepost_client::{Checkpoint, Resume};
use fencepost_server::clock::Clock;
use fencepost_server::disk::{Disk, RealDisk};
use fencepost_server::log::LogConfig;
use fencepost_server::ops::restore::{Restore, Restored, Through, restore};
use fencepost_server::ops::{BadSnapshot, Manifest};

use crate::support::{PIPELINE, SEGMENT_BYTES, commit_all, files_in, open, state};

pub(crate) fn restore_to(snapshot: &Path, data_dir: &Path, through: Through) -> Result<Restored, BadSnapshot> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let wanted = Restore {
        snapshot: snapshot.to_owned(),
        data_dir: data_dir.to_owned(),
        through,
        generation: None,
        actor: "ada".to_owned(),
        reason: "drill".to_owned(),
    };
    let config = LogConfig { segment_bytes: SEGMENT_BYTES, entry_bytes_max: 3 << 20, ..LogConfig::default() };
    restore(&disk, &wanted, config, &Clock::real(), &mut |_| ControlFlow::Continue(()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_under_load_restores_to_a_new_generation_that_fences_the_old() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("data")).await.unwrap();
    let client = store.client();
    commit_all(&client, 8, 2_000).await;
    let held = client.pipeline(PIPELINE).branch("held").resume(Resume::new("zombie").start_fresh()).await.unwrap();
    held.commit(Checkpoint::at("1")).await.unwrap();
    let before = client.pipeline(PIPELINE).branch("shard-3").head().await.unwrap();
    let load = tokio::spawn({
        let client = client.clone();
        async move { commit_all(&client, 8, 600).await }
    });
    let snapshot = dir.path().join("snapshot");
    let made = client.create_snapshot(snapshot.to_str().unwrap()).await.unwrap().result().await.unwrap();
    load.await.unwrap();
    assert!(made.done && made.files >= 2 && made.bytes > 0, "{made:?}");
    assert!(made.lsn >= before.lsn().as_u64());
    assert!(made.bytes_copied < 8 << 20, "sealed segments are linked: {made:?}");

    let data = dir.path().join("restored");
    let restored = restore_to(&snapshot, &data, Through::End).unwrap();
    assert_eq!((restored.kept.as_u64(), restored.generation), (made.lsn, 2));
    let again = open(&data).await.unwrap();
    let there = again.client();
    let head = there.pipeline(PIPELINE).branch("shard-3").head().await.unwrap();
    assert!(head.sequence() >= before.sequence());
    assert_eq!(head.state(), &state(3, head.sequence()));
    let retained = there.pipeline(PIPELINE).branch("shard-3").checkpoints().all().await.unwrap();
    assert_eq!(retained.len(), 10);
    let audit = there.pipeline(PIPELINE).branch("held").audit().all().await.unwrap();
    assert_eq!((audit[0].action(), &*audit[0].actor), (Action::GenerationStarted, "ada"));
    assert_eq!(audit.len(), 2, "and the grant: {audit:?}");
    // Nobody has to wait for the holder that the old store had, and it cannot come back.
    let late = there.pipeline(PIPELINE).branch("held").release(held.token()).await.unwrap_err();
    assert!(matches!(late.reason(), Some(Reason::Fenced | Reason::StaleGeneration)), "{late}");
    let next = there.pipeline(PIPELINE).branch("held").resume(Resume::new("other").no_wait()).await.unwrap();
    assert_eq!((next.token(), next.sequence()), (Token::new(2, 1).unwrap(), 1));
    again.close().await.unwrap();
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_stops_at_any_fact_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("data")).await.unwrap();
    let client = store.client();
    let worker = client.pipeline(PIPELINE).branch("main").resume(Resume::new("w").start_fresh()).await.unwrap();
    let mut lsns = Vec::new();
    for sequence in 1..=6_u64 {
        lsns.push(worker.commit(Checkpoint::at(sequence.to_string())).await.unwrap().lsn);
    }
    let snapshot = dir.path().join("snapshot");
    client.create_snapshot(snapshot.to_str().unwrap()).await.unwrap().result().await.unwrap();
    store.close().await.unwrap();
    for (sequence, lsn) in (1..).zip(&lsns) {
        let data = dir.path().join(format!("at-{sequence}"));
        let restored = restore_to(&snapshot, &data, Through::Lsn(*lsn)).unwrap();
        assert_eq!(restored.kept, *lsn);
        let store = open(&data).await.unwrap();
        let head = store.client().pipeline(PIPELINE).branch("main").head().await.unwrap();
        assert_eq!((head.sequence(), head.position_str().into_owned()), (sequence, sequence.to_string()));
        store.close().await.unwrap();
    }
    let refused = restore_to(&snapshot, &dir.path().join("late"), Through::Lsn(Lsn::from_u64(u64::MAX >> 1)));
    assert!(refused.is_err());
    let refused = restore_to(&snapshot, &dir.path().join("early"), Through::TimeMs(1)).unwrap_err();
    assert!(refused.to_string().contains("the snapshot begins after that time"), "{refused}");
    let refused = restore_to(&snapshot, &dir.path().join("at-1"), Through::End).unwrap_err();
    assert!(matches!(refused, BadSnapshot::NotEmpty { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_changed_byte_of_a_snapshot_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("data")).await.unwrap();
    commit_all(&store.client(), 2, 20).await;
    let snapshot = dir.path().join("snapshot");
    let made = store.client().create_snapshot(snapshot.to_str().unwrap()).await.unwrap();
    made.result().await.unwrap();
    store.close().await.unwrap();
    let check = || {
        let manifest = Manifest::read(&RealDisk, &snapshot)?;
        manifest.check(&RealDisk, &snapshot, &mut |_| ControlFlow::Continue(()))
    };
    check().unwrap();
    let mut tried = 0;
    for file in files_in(&snapshot) {
        let good = std::fs::read(&file).unwrap();
        for at in (0..good.len()).step_by((good.len() / 60).max(1)) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            std::fs::remove_file(&file).unwrap();
            std::fs::write(&file, &bad).unwrap();
            assert!(check().is_err(), "byte {at} of {}", file.display());
            tried += 1;
        }
        std::fs::remove_file(&file).unwrap();
        assert!(check().is_err(), "without {}", file.display());
        std::fs::write(&file, &good).unwrap();
    }
    check().unwrap();
    std::fs::write(snapshot.join("log/00000000000000000099.seg"), "stray").unwrap();
    assert!(check().is_err(), "a file that does not belong there");
    assert!(tried > 100, "{tried}");
}
