//! Whether commits get slower as the store has more branches.

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::Settings;
use super::drive::{Seen, commit_at_random, median};
use super::store::{Branches, Store, config};

struct Subject {
    store: Store,
    branches: Arc<Branches>,
    _dir: TempDir,
}

pub(crate) async fn run(settings: &Settings) {
    let sizes: &[usize] = settings.pick(&[640, 2_000], &[1_000, 10_000, 100_000], &[10_000, 100_000, 1_000_000]);
    let (turns, time) =
        settings.pick((1, Duration::from_millis(100)), (7, Duration::from_secs(1)), (9, Duration::from_secs(2)));
    let mut subjects = Vec::new();
    for size in sizes {
        subjects.push(subject(*size).await);
    }
    let mut rows = vec![[const { Vec::new() }; 3]; subjects.len()];
    for _ in 0..turns {
        for (subject, row) in subjects.iter().zip(&mut rows) {
            let mut seen: Seen = commit_at_random(&subject.store.channel, &subject.branches, time).await;
            for (column, value) in row.iter_mut().zip([seen.rate(), seen.permille(500), seen.permille(990)]) {
                column.push(value);
            }
        }
    }
    let rows: Vec<[f64; 3]> = rows.into_iter().map(|row| row.map(median)).collect();
    for (size, [rate, p50, p99]) in sizes.iter().zip(&rows) {
        println!("growth: {size:>8} branches: {rate:>7.0} commits/s, p50 {p50:>6.0} us, p99 {p99:>6.0} us");
    }
    let (small, large) = (rows[0], rows[rows.len() - 1]);
    println!("growth: largest/smallest p50 {:.2}, p99 {:.2} (aim 1.2)", large[1] / small[1], large[2] / small[2]);
    for subject in subjects {
        subject.store.close().await;
    }
}

async fn subject(branches: usize) -> Subject {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut config = config(dir.path(), branches);
    // The same for all, so that they differ in nothing else.
    (config.segment_bytes, config.request_bytes_max) = (64 << 20, 8 << 20);
    let store = Store::open(config).await;
    let held = Branches::take(&store.backend.sequencer, branches).await;
    held.commit(&store.backend.sequencer, 0..branches).await;
    store.upkeep().await;
    Subject { store, branches: Arc::new(held), _dir: dir }
}
