//! Disk use is bounded, and what is retained stays readable.

use fencepost_client::StoredCheckpoint;

use crate::support::{PIPELINE, SEGMENT_BYTES, bytes_in, commit_all, open, state, until};

const BRANCHES: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_steady_commits_the_directory_stays_below_twice_what_is_live_and_four_segments() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let store = open(&data_dir).await.unwrap();
    let client = store.client();
    let mut most = 0;
    for _ in 0..12 {
        commit_all(&client, BRANCHES, 250).await;
        most = most.max(bytes_in(&data_dir));
    }
    let live_bytes = BRANCHES as u64 * 10 * 700 + 10_000 * 200;
    assert!(most < 2 * live_bytes + 4 * SEGMENT_BYTES, "{most} bytes with {live_bytes} live");
    let found = until(&store, |it| it.store.as_ref().is_some_and(|it| it.index_state == "READY")).await;
    assert!(found.store.is_some_and(|it| it.compactions > 0), "nothing was compacted");
    for branch in 0..BRANCHES {
        let branch_name = format!("shard-{branch}");
        let listed = client.pipeline(PIPELINE).branch(&branch_name).checkpoints().all().await.unwrap();
        let sequences: Vec<u64> = listed.iter().map(StoredCheckpoint::sequence).collect();
        assert_eq!(sequences, (2_991..=3_000).rev().collect::<Vec<u64>>());
        let found = client.pipeline(PIPELINE).branch(&branch_name).checkpoint(2_993).await.unwrap();
        assert_eq!(found.state(), &state(branch, 2_993));
    }
    store.close().await.unwrap();
}
