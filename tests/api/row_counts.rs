//! Row counts that add up, where a policy asks for it.

use fencepost::Reason;
use fencepost::v1::{CommitRequest, Integrity, Policy};

use crate::dead_letters::skipping;
use crate::support::{Store, commit, keep, refusal};

fn counted(mut request: CommitRequest, rows: [Option<u64>; 4]) -> CommitRequest {
    let [rows_in, rows_out, rows_filtered, rows_dead] = rows;
    for moved in &mut request.branches {
        let integrity = Integrity { rows_in, rows_out, rows_filtered, rows_dead, ..Integrity::default() };
        moved.checkpoint.as_mut().unwrap().integrity = Some(integrity);
    }
    request
}

async fn reconciled() -> (Store, u64) {
    let store = Store::open().await;
    let token = store.take("main").await;
    store.pipelines().set_policy(keep(Policy { reconcile_rows: true, ..Policy::default() })).await.unwrap();
    (store, token)
}

#[tokio::test]
async fn rows_that_came_in_went_out_or_were_filtered_or_are_dead() {
    let (store, token) = reconciled().await;
    let at = |sequence, letters: &[&str]| skipping("main", token, sequence, letters);
    store.commit(counted(at(1, &["a", "b"]), [Some(10), Some(7), Some(1), Some(2)])).await.unwrap();
    store.commit(counted(at(2, &[]), [Some(0), Some(0), None, None])).await.unwrap();
    store.commit(counted(at(3, &[]), [Some(u64::MAX), Some(u64::MAX - 1), Some(1), Some(0)])).await.unwrap();
}

#[tokio::test]
async fn counts_that_do_not_add_up_are_refused_with_all_of_them() {
    let (store, token) = reconciled().await;
    let bad = [
        ([Some(10), Some(7), Some(1), Some(1)], &["a"][..]),
        ([Some(10), Some(9), None, None], &["a"]),
        ([Some(10), Some(8), None, Some(2)], &["a"]),
        ([Some(10), Some(10), None, None], &["a"]),
        ([None, Some(10), None, None], &[]),
        ([Some(10), None, None, None], &[]),
        ([None; 4], &[]),
        // A sum that does not fit is none.
        ([Some(9), Some(u64::MAX), Some(10), None], &[]),
    ];
    for (rows, letters) in bad {
        let refused = store.commit(counted(skipping("main", token, 1, letters), rows)).await.unwrap_err();
        let metadata = refusal(&refused, Reason::IntegrityMismatch);
        assert_eq!(metadata["branch"], "main");
        assert_eq!(metadata["dead_letters"], letters.len().to_string());
        for (name, value) in ["rows_in", "rows_out"].into_iter().zip(rows) {
            let shown = value.map_or_else(|| "absent".to_owned(), |value| value.to_string());
            assert_eq!(metadata[name], shown);
            assert!(
                refused.message().contains(&format!("{name} ")) && refused.message().contains(&shown),
                "{refused:?}"
            );
        }
    }
    refusal(&store.commit(commit("main", token, 1)).await.unwrap_err(), Reason::IntegrityMismatch);
    assert_eq!(store.head("main").await, 0);
}

#[tokio::test]
async fn each_branch_of_a_commit_is_counted_for_itself() {
    let (store, main) = reconciled().await;
    let other = store.take("other").await;
    let mut request = skipping("main", main, 1, &["a"]);
    request.branches.extend(skipping("other", other, 1, &[]).branches);
    let mut request = counted(request, [Some(3), Some(2), None, Some(1)]);
    let metadata = refusal(&store.commit(request.clone()).await.unwrap_err(), Reason::IntegrityMismatch);
    assert_eq!(metadata["branch"], "other");
    request.branches[1].checkpoint.as_mut().unwrap().integrity.as_mut().unwrap().rows_dead = None;
    request.branches[1].checkpoint.as_mut().unwrap().integrity.as_mut().unwrap().rows_in = Some(2);
    store.commit(request).await.unwrap();
}

#[tokio::test]
async fn they_are_judged_after_fences_sequences_and_payloads_and_not_without_a_policy() {
    let (store, token) = reconciled().await;
    refusal(&store.commit(commit("main", token, 2)).await.unwrap_err(), Reason::HeadMismatch);
    let mut changed = commit("main", token, 1);
    changed.branches[0].checkpoint.as_mut().unwrap().payload_crc32 = Some(1);
    let metadata = refusal(&store.commit(changed).await.unwrap_err(), Reason::IntegrityMismatch);
    assert!(metadata.contains_key("declared"), "the payload comes first");
    let long = CommitRequest { not_after_ms: 1, ..commit("main", token, 1) };
    refusal(&store.commit(long).await.unwrap_err(), Reason::NotAfterPassed);
    let good = counted(commit("main", token, 1), [Some(1), Some(1), None, None]);
    store.commit(good.clone()).await.unwrap();
    store.pipelines().set_policy(keep(Policy::default())).await.unwrap();
    store.commit(commit("main", token, 2)).await.unwrap();
    store.pipelines().set_policy(keep(Policy { reconcile_rows: true, ..Policy::default() })).await.unwrap();
    store.commit(good).await.unwrap();
}
