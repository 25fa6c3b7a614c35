//! Files of a newer format: what cannot be done without is refused, what is made from the log is made again, and both formats
//! are named.

use std::path::{Path, PathBuf};

use fencepost::Reason;
use fencepost::log::v1::StateRecord;
use fencepost::log::v1::state_record::Record;
use fencepost_server::clock::Clock;
use fencepost_server::disk::{Disk, RealDisk};
use fencepost_server::log::{Content, LogConfig, SegmentFileReader, SegmentFileWriter};
use fencepost_server::ops::check::{StateFile, check};
use fencepost_server::ops::restore::{Restore, Through, restore};
use fencepost_server::ops::transfer::Export;
use fencepost_server::ops::{BadSnapshot, MANIFEST, Manifest, ManifestFile, snapshot};
use fencepost_server::upkeep::hot_state;
use prost::Message as _;
use tempfile::TempDir;

use crate::drive::Driver;
use crate::support::{SEGMENT_BYTES, compact, copy_store, files_in, open, scratch, status, until};

const ORDERS: &str = "prod/orders";
/// Of segments, which other files are, too.
const FOUND: &str = "has format 3, and this version reads up to format 2";

/// A store with more than one segment and with what is made from it, a snapshot, and an export.
struct Made {
    dir: TempDir,
    driver: Driver,
}

impl Made {
    async fn new() -> Made {
        let dir = scratch();
        let store = open(&dir.path().join("data")).await.unwrap();
        let mut driver = Driver::new(store.channel());
        driver.policy("prod/bulk", 1, 0).await;
        for _ in 0..5 {
            driver.commit(ORDERS, &["eu", "us"], 100).await;
        }
        while status(&store).await.log.is_some_and(|it| it.segments < 2) {
            driver.commit("prod/bulk", &["main"], 600_000).await;
        }
        compact(&store).await.unwrap();
        driver.commit(ORDERS, &["eu"], 100).await;
        let client = store.client();
        let snapshot = dir.path().join("snapshot").to_str().unwrap().to_owned();
        client.create_snapshot(snapshot).await.unwrap().result().await.unwrap();
        let mut export = Vec::new();
        client.export_pipeline(ORDERS, &mut export).await.unwrap();
        std::fs::write(dir.path().join("export"), export).unwrap();
        store.close().await.unwrap();
        Made { dir, driver }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// Says in a segment file's header that it is of format 3, and puts it in the place of what may be linked elsewhere.
fn make_newer(file: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    assert_eq!(bytes[8..12], 2_u32.to_le_bytes());
    bytes[8..12].copy_from_slice(&3_u32.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..508]);
    bytes[508..512].copy_from_slice(&crc.to_le_bytes());
    std::fs::remove_file(file).unwrap();
    std::fs::write(file, bytes).unwrap();
}

#[track_caller]
fn names_both(error: &impl ToString, file: &Path, words: &str) {
    let text = error.to_string();
    assert!(text.contains(words) && text.contains(file.to_str().unwrap()), "{text}");
}

fn is_newer(error: &BadSnapshot) -> bool {
    matches!(error, BadSnapshot::Newer { .. })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_segment_of_a_newer_format_is_refused_and_nothing_is_changed() {
    let made = Made::new().await;
    let segments =
        files_in(&made.path("data/log")).into_iter().filter(|it| it.extension().is_some_and(|it| it == "seg"));
    for segment in segments {
        let copy = scratch();
        let data_dir = copy.path().join("data");
        copy_store(&made.path("data"), &data_dir);
        let file = data_dir.join("log").join(segment.file_name().unwrap());
        make_newer(&file);
        let before: Vec<_> = files_in(&data_dir).iter().map(|it| (it.clone(), std::fs::read(it).unwrap())).collect();
        let words = "has log format 3, and this version reads up to format 2";
        names_both(&open(&data_dir).await.err().unwrap(), &file, words);
        names_both(&check(&RealDisk, &data_dir, &mut |_| ()).unwrap_err(), &file, words);
        let after: Vec<_> = files_in(&data_dir).iter().map(|it| (it.clone(), std::fs::read(it).unwrap())).collect();
        assert!(before == after, "a file was changed");
    }
}

/// Writes a state file again, with a header record that says another format.
fn make_newer_records(file: &Path) {
    let reader = SegmentFileReader::open(&RealDisk, file, Content::HotState, None).unwrap();
    let label = reader.label();
    let entries: Vec<_> = reader.map(Result::unwrap).collect();
    let mut writer = SegmentFileWriter::create(&RealDisk, file, &label).unwrap();
    let mut last = label.first_index;
    for entry in entries {
        let renewed = entry.facts.into_iter().map(|(ordinal, payload)| {
            let mut record = StateRecord::decode(payload).unwrap();
            if let Some(Record::Header(header)) = &mut record.record {
                header.format += 1;
            }
            (ordinal, record.encode_to_vec())
        });
        let renewed: Vec<_> = renewed.collect();
        let facts: Vec<(u16, &[u8])> = renewed.iter().map(|(ordinal, payload)| (*ordinal, &payload[..])).collect();
        writer.push(entry.index, entry.based_on, entry.term, &facts).unwrap();
        last = entry.index;
    }
    writer.finish(last).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_file_of_another_format_is_made_again_and_not_called_damaged() {
    let made = Made::new().await;
    let truth = {
        let store = open(&made.path("data")).await.unwrap();
        until(&store, |it| it.store.as_ref().is_some_and(|it| it.index_state == "READY")).await;
        let truth = made.driver.known.ask(&store.channel()).await;
        store.close().await.unwrap();
        truth
    };
    let file = hot_state::path(&made.path("data"));
    for (is_file_newer, words) in [(true, FOUND), (false, "has format 2, and this version reads format 1")] {
        if is_file_newer {
            make_newer(&file);
        } else {
            make_newer_records(&file);
        }
        let checked = check(&RealDisk, &made.path("data"), &mut |_| ()).unwrap();
        assert!(checked.damage.is_empty(), "{:?}", checked.damage);
        let StateFile::NotCompared(why) = &checked.state_file else { panic!("{:?}", checked.state_file) };
        names_both(why, &file, words);
        let store = open(&made.path("data")).await.unwrap();
        until(&store, |it| {
            it.store.as_ref().is_some_and(|it| it.index_state == "READY" && it.state_lsn > 0 && it.index_lsn > 0)
        })
        .await;
        truth.must_be(&made.driver.known.ask(&store.channel()).await, words);
        store.close().await.unwrap();
        let checked = check(&RealDisk, &made.path("data"), &mut |_| ()).unwrap();
        assert!(matches!(checked.state_file, StateFile::Good(_)), "{:?}", checked.state_file);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_a_newer_format_is_refused() {
    let made = Made::new().await;
    let (dir, to) = (made.path("snapshot"), made.path("restored"));
    let restored = |through: Through| {
        let wanted = Restore {
            snapshot: dir.clone(),
            data_dir: to.clone(),
            through,
            generation: None,
            actor: "ada".to_owned(),
            reason: "a drill".to_owned(),
        };
        let config =
            LogConfig { segment_bytes: SEGMENT_BYTES, entry_bytes_max: SEGMENT_BYTES / 2, ..LogConfig::default() };
        let disk: std::sync::Arc<dyn Disk> = std::sync::Arc::new(RealDisk);
        restore(&disk, &wanted, config, &Clock::real(), &mut |_| std::ops::ControlFlow::Continue(()))
    };
    let manifest = Manifest::read(&RealDisk, &dir).unwrap();
    let text = std::fs::read_to_string(dir.join(MANIFEST)).unwrap();
    let newer = text.replacen("\"format\": 1", "\"format\": 2, \"what is new\": []", 1);
    assert_ne!(newer, text);
    std::fs::write(dir.join(MANIFEST), newer).unwrap();
    let words = "has format 2, and this version reads up to format 1";
    let refused = [snapshot::verify(&RealDisk, &dir, &mut |_| ()).unwrap_err(), restored(Through::End).unwrap_err()];
    for error in refused {
        names_both(&error, &dir.join(MANIFEST), words);
        assert!(is_newer(&error) && !to.exists());
    }

    // A manifest that can be read, of a log that cannot.
    std::fs::remove_file(dir.join(MANIFEST)).unwrap();
    let segment = manifest.files.iter().rfind(|file| file.name.starts_with("log/")).unwrap().name.clone();
    make_newer(&dir.join(&segment));
    let of = |file: &ManifestFile| {
        ManifestFile::of(&RealDisk, &dir, &file.name, &mut |_| std::ops::ControlFlow::Continue(())).unwrap()
    };
    let mut renewed = Manifest { files: manifest.files.iter().map(of).collect(), ..manifest.clone() };
    Manifest::begin(&RealDisk, &dir).unwrap();
    renewed.write(&RealDisk, &dir).unwrap();
    let words = "and this version reads up to format 2";
    let error = snapshot::verify(&RealDisk, &dir, &mut |_| ()).unwrap_err();
    names_both(&error, &dir.join(&segment), words);
    assert!(is_newer(&error));
    for through in [Through::End, Through::Lsn(manifest.lsn()), Through::TimeMs(manifest.created_at_ms)] {
        let error = restored(through).unwrap_err();
        names_both(&error, Path::new(&segment), words);
        assert!(is_newer(&error) && error.to_string().contains("format 3"), "{error}");
        let _ = std::fs::remove_dir_all(&to);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_of_a_newer_format_is_refused() {
    let made = Made::new().await;
    let file = made.path("export");
    make_newer(&file);
    let error = Export::open(&RealDisk, &file).unwrap_err();
    names_both(&error, &file, FOUND);
    assert!(is_newer(&error));
    let store = open(&made.path("data")).await.unwrap();
    let bytes = std::io::Cursor::new(std::fs::read(&file).unwrap());
    let refused = store.client().import_pipeline(bytes).pipeline("prod/copy").send().await.unwrap_err();
    assert_eq!(refused.reason(), Some(Reason::InvalidField));
    assert!(refused.to_string().contains(&format!("the file that was sent {FOUND}")), "{refused}");
    assert_eq!(refused.refusal().unwrap().metadata()["newer_format"], "3", "the command line exits with 78 by this");
    store.close().await.unwrap();
}
