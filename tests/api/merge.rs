//! Merges: what was made of a set of committed checkpoints, once.

use bytes::Bytes;
use fencepost::Reason;
use fencepost::v1::commit_response::Outcome;
use fencepost::v1::resolve_commit_response::Outcome as Resolved;
use fencepost::v1::{
    Checkpoint, CommitRequest, Integrity, Merge, MergeInput, MergeRequest, MergeResponse, ResolveCommitRequest,
};
use tonic::Status;

use crate::damage::{seal, small};
use crate::limits::{bad_names, bad_pipelines};
use crate::staged::successor;
use crate::support::{
    ORDERS, Store, checkpoint, commit, commit_staged, name, refusal, refused_field, rewind, stage, unique,
};

/// A merge of these checkpoints into the next one of branch `day`.
pub(crate) fn merge(token: u64, sequence: u64, inputs: &[(&str, u64)]) -> MergeRequest {
    let inputs = inputs.iter().map(|(branch, sequence)| MergeInput {
        branch: (*branch).to_owned(),
        sequence: *sequence,
        // The server says where they are.
        lsn: 7,
    });
    MergeRequest {
        pipeline: ORDERS.to_owned(),
        branch: "day".to_owned(),
        token,
        sequence,
        commit_id: format!("merge-{}", unique()),
        checkpoint: Some(checkpoint("merged")),
        merge: Some(Merge {
            inputs: inputs.collect(),
            function: "union".to_owned(),
            version: "1".to_owned(),
            output_digest: Bytes::from_static(&[0xab, 0xcd]),
        }),
        ..MergeRequest::default()
    }
}

/// The same with another output.
pub(crate) fn with_output(digest: &'static [u8], mut request: MergeRequest) -> MergeRequest {
    request.merge.as_mut().unwrap().output_digest = Bytes::from_static(digest);
    request
}

pub(crate) async fn try_merge(store: &Store, request: MergeRequest) -> Result<MergeResponse, Status> {
    Ok(store.barriers().merge(request).await?.into_inner())
}

/// A store whose branches have so many checkpoints, and the token of branch `day`.
async fn store_with(branches: &[(&str, u64)]) -> (Store, u64) {
    let store = Store::open().await;
    for (branch, commits) in branches {
        store.with_history(branch, *commits).await;
    }
    let token = store.take("day").await;
    (store, token)
}

fn with_schema(branch: &str, token: u64, sequence: u64, fingerprint: &'static [u8]) -> CommitRequest {
    let mut request = commit(branch, token, sequence);
    let schema_fingerprint = Bytes::from_static(fingerprint);
    let integrity = Some(Integrity { schema_fingerprint, ..Integrity::default() });
    request.branches[0].checkpoint.as_mut().unwrap().integrity = integrity;
    request
}

#[tokio::test]
async fn what_was_merged_is_committed_with_its_inputs_in_the_order_of_branch_and_sequence() {
    let (store, token) = store_with(&[("jfk", 3), ("ewr", 2)]).await;
    let request = merge(token, 1, &[("jfk", 3), ("ewr", 2), ("jfk", 1)]);
    let merged = try_merge(&store, request.clone()).await.unwrap();
    assert_eq!((merged.branch.as_str(), merged.sequence, merged.already), ("day", 1, false));
    let head = store.stored_head("day").await;
    assert_eq!((head.lsn, head.commit_id, head.token), (merged.lsn, request.commit_id, token));
    assert_eq!(head.checkpoint.unwrap().state, checkpoint("merged").state);
    let told = head.merge.unwrap();
    let mut expected = Vec::new();
    for (branch, sequence) in [("ewr", 2), ("jfk", 1), ("jfk", 3)] {
        let lsn = store.checkpoint(branch, sequence).await.unwrap().lsn;
        expected.push(MergeInput { branch: branch.to_owned(), sequence, lsn });
    }
    assert_eq!(told, Merge { inputs: expected, ..request.merge.unwrap() });
}

#[tokio::test]
async fn the_same_inputs_again_are_answered_with_the_first_result_whoever_asks() {
    let (store, old) = store_with(&[("jfk", 1), ("ewr", 1)]).await;
    let first = try_merge(&store, merge(old, 1, &[("ewr", 1), ("jfk", 1)])).await.unwrap();
    let expected = MergeResponse { already: true, header: None, ..first };
    let again = async |store: &Store, request| {
        let answer = try_merge(store, request).await.unwrap();
        assert_eq!(MergeResponse { header: None, ..answer }, expected);
    };
    again(&store, merge(old, 2, &[("jfk", 1), ("ewr", 1)])).await;
    let new = successor(&store, "day").await.token;
    again(&store, merge(old, 2, &[("jfk", 1), ("ewr", 1)])).await;
    let elsewhere = MergeRequest { branch: "jfk".to_owned(), ..merge(new, 9, &[("jfk", 1), ("ewr", 1)]) };
    again(&store, elsewhere).await;
    let store = store.restarted().await;
    again(&store, merge(new, 2, &[("jfk", 1), ("ewr", 1)])).await;
    assert_eq!(store.head("day").await, 1);
}

#[tokio::test]
async fn another_output_of_the_same_inputs_has_diverged() {
    let (store, token) = store_with(&[("jfk", 1), ("ewr", 1)]).await;
    let first = try_merge(&store, merge(token, 1, &[("ewr", 1), ("jfk", 1)])).await.unwrap();
    let other = with_output(&[1, 2], merge(token, 2, &[("ewr", 1), ("jfk", 1)]));
    let details = refusal(&try_merge(&store, other).await.unwrap_err(), Reason::MergeDiverged);
    assert_eq!((&details["lsn"], &*details["branch"], &*details["sequence"]), (&first.lsn.to_string(), "day", "1"));
    assert_eq!((&*details["first_digest"], &*details["digest"]), ("abcd", "0102"));
    // Another function, another version, other inputs: another merge.
    let mut newer = with_output(&[1, 2], merge(token, 2, &[("ewr", 1), ("jfk", 1)]));
    newer.merge.as_mut().unwrap().version = "2".to_owned();
    assert!(!try_merge(&store, newer).await.unwrap().already);
    let fewer = with_output(&[1, 2], merge(token, 3, &[("jfk", 1)]));
    assert!(!try_merge(&store, fewer).await.unwrap().already);
}

#[tokio::test]
async fn another_function_or_version_is_another_merge() {
    let (store, token) = store_with(&[("jfk", 1)]).await;
    let by = |sequence, function: &str, version: &str| {
        let mut request = merge(token, sequence, &[("jfk", 1)]);
        let how = request.merge.as_mut().unwrap();
        (how.function, how.version) = (function.to_owned(), version.to_owned());
        request
    };
    let mut made = Vec::new();
    for (sequence, function, version) in [(1, "union", "1"), (2, "union", "2"), (3, "newest", "1")] {
        let merged = try_merge(&store, by(sequence, function, version)).await.unwrap();
        assert_eq!((merged.sequence, merged.already), (sequence, false), "{function} {version}");
        made.push(merged.lsn);
    }
    for (lsn, (function, version)) in made.into_iter().zip([("union", "1"), ("union", "2"), ("newest", "1")]) {
        let again = try_merge(&store, by(4, function, version)).await.unwrap();
        assert_eq!((again.lsn, again.already), (lsn, true), "{function} {version}");
    }
}

#[tokio::test]
async fn a_repeat_by_commit_id_is_answered_although_the_inputs_are_gone() {
    let (store, token) = store_with(&[("jfk", 1)]).await;
    let request = merge(token, 1, &[("jfk", 1)]);
    let first = try_merge(&store, request.clone()).await.unwrap();
    store.rewind(rewind("jfk", 1, 0)).await.unwrap();
    let again = try_merge(&store, request.clone()).await.unwrap();
    assert_eq!((again.lsn, again.sequence, again.already), (first.lsn, 1, true));
    let other = MergeRequest { commit_id: request.commit_id.clone(), ..merge(token, 1, &[("jfk", 2)]) };
    refusal(&try_merge(&store, other).await.unwrap_err(), Reason::CommitIdReused);
    // A merge is a commit: the same id for one of the same checkpoint without inputs is another content.
    let mut plain = commit("day", token, 1);
    plain.branches[0].checkpoint = Some(checkpoint("merged"));
    plain.commit_id.clone_from(&request.commit_id);
    refusal(&store.commit(plain).await.unwrap_err(), Reason::CommitIdReused);
    let (pipeline, commit_id) = (ORDERS.to_owned(), request.commit_id);
    let request = ResolveCommitRequest { pipeline, commit_id, ..ResolveCommitRequest::default() };
    let resolved = store.commits().resolve_commit(request).await.unwrap().into_inner();
    assert_eq!((resolved.outcome(), resolved.lsn), (Resolved::Applied, first.lsn));
}

#[tokio::test]
async fn a_merge_that_was_rewound_is_forgotten_and_a_new_input_of_the_same_sequence_is_another() {
    let (store, token) = store_with(&[("jfk", 1)]).await;
    try_merge(&store, merge(token, 1, &[("jfk", 1)])).await.unwrap();
    store.rewind(rewind("day", 1, 0)).await.unwrap();
    let token = store.take("day").await;
    let other = with_output(&[9], merge(token, 1, &[("jfk", 1)]));
    assert!(!try_merge(&store, other).await.unwrap().already, "the first result is not of the branch's past any more");
    store.rewind(rewind("jfk", 1, 0)).await.unwrap();
    let jfk = store.take("jfk").await;
    store.commit(commit("jfk", jfk, 1)).await.unwrap();
    let anew = merge(token, 2, &[("jfk", 1)]);
    assert!(!try_merge(&store, anew).await.unwrap().already, "inputs are known by their places in the log");
}

#[tokio::test]
async fn inputs_are_committed_and_kept() {
    let (store, token) = store_with(&[("jfk", 4)]).await;
    let refused = async |inputs: &[(&str, u64)]| try_merge(&store, merge(token, 1, inputs)).await.unwrap_err();
    refusal(&refused(&[("jfk", 1), ("lga", 1)]).await, Reason::StateMissing);
    refusal(&refused(&[("jfk", 5)]).await, Reason::StateMissing);
    refusal(&refused(&[("jfk", 0)]).await, Reason::StateMissing);
    let jfk = successor(&store, "jfk").await.token;
    store.stage(stage("jfk", jfk, 5, "tx")).await.unwrap();
    refusal(&refused(&[("jfk", 5)]).await, Reason::StateMissing);
    store.commit(commit_staged("jfk", jfk, 5, "tx")).await.unwrap();
    store.create_savepoint(name("named", "jfk", 2)).await.unwrap();
    store.keep_last(1).await;
    store.commit(commit("jfk", jfk, 6)).await.unwrap();
    assert_eq!(refusal(&refused(&[("jfk", 3), ("jfk", 6)]).await, Reason::Compacted)["oldest"], "6");
    assert_eq!(store.head("day").await, 0);
    try_merge(&store, merge(token, 1, &[("jfk", 2), ("jfk", 6)])).await.unwrap();
}

#[tokio::test]
async fn an_input_that_was_committed_by_reference_counts_like_any_other() {
    let (store, token) = store_with(&[]).await;
    let jfk = store.take("jfk").await;
    let mut staged = stage("jfk", jfk, 1, "tx");
    staged.checkpoint = with_schema("jfk", jfk, 1, b"v1").branches.remove(0).checkpoint;
    store.stage(staged).await.unwrap();
    store.commit(commit_staged("jfk", jfk, 1, "tx")).await.unwrap();
    let ewr = store.take("ewr").await;
    store.commit(with_schema("ewr", ewr, 1, b"v2")).await.unwrap();
    let status = try_merge(&store, merge(token, 1, &[("ewr", 1), ("jfk", 1)])).await.unwrap_err();
    refusal(&status, Reason::SchemaMismatch);
    try_merge(&store, merge(token, 1, &[("jfk", 1)])).await.unwrap();
}

#[tokio::test]
async fn schema_fingerprints_that_are_there_agree() {
    let (store, token) = store_with(&[("lga", 1)]).await;
    for (branch, schema) in [("ewr", b"v1"), ("jfk", b"v2"), ("sfo", b"v1")] {
        let own = store.take(branch).await;
        store.commit(with_schema(branch, own, 1, schema)).await.unwrap();
    }
    let status = try_merge(&store, merge(token, 1, &[("ewr", 1), ("lga", 1), ("jfk", 1)])).await.unwrap_err();
    let details = refusal(&status, Reason::SchemaMismatch);
    assert_eq!((&*details["first"], &*details["other"]), ("ewr@1", "jfk@1"));
    assert_eq!((&*details["first_schema"], &*details["other_schema"]), ("7631", "7632"));
    try_merge(&store, merge(token, 1, &[("ewr", 1), ("lga", 1), ("sfo", 1)])).await.unwrap();
}

#[tokio::test]
async fn a_merge_is_judged_like_a_commit() {
    let (store, old) = store_with(&[("jfk", 1)]).await;
    let token = successor(&store, "day").await.token;
    let refused = async |request: MergeRequest, reason| {
        refusal(&try_merge(&store, request).await.unwrap_err(), reason);
        assert_eq!(store.head("day").await, 0);
    };
    let good = || merge(token, 1, &[("jfk", 1)]);
    // Each of these has all the faults of those below it, too.
    let mut worst = MergeRequest { token: old, sequence: 2, not_after_ms: 1, ..good() };
    worst.checkpoint.as_mut().unwrap().payload_crc32 = Some(7);
    let cluster = Some(fencepost::v1::ClusterRef { cluster_id: "other".to_owned(), generation: 1 });
    refused(MergeRequest { cluster, ..worst.clone() }, Reason::WrongCluster).await;
    refused(worst.clone(), Reason::Fenced).await;
    worst.token = token;
    store.stage(stage("day", token, 1, "tx")).await.unwrap();
    refused(worst.clone(), Reason::StagedPending).await;
    crate::staged::try_discard(&store, crate::staged::discard("day", token, "tx")).await.unwrap();
    refused(worst.clone(), Reason::HeadMismatch).await;
    worst.sequence = 1;
    refused(worst.clone(), Reason::NotAfterPassed).await;
    worst.not_after_ms = 0;
    refused(worst.clone(), Reason::IntegrityMismatch).await;
    try_merge(&store, good()).await.unwrap();
    let next = store.commit(commit("day", token, 2)).await.unwrap();
    assert_eq!(next.outcome(), Outcome::Applied);
}

#[tokio::test]
async fn of_many_who_merge_the_same_one_does() {
    let (store, _) = store_with(&[("jfk", 1), ("ewr", 1)]).await;
    let mut merging = tokio::task::JoinSet::new();
    for worker in 0..16 {
        let branch = format!("day-{worker}");
        let token = store.take(&branch).await;
        let request = MergeRequest { branch, ..merge(token, 1, &[("ewr", 1), ("jfk", 1)]) };
        let mut barriers = store.barriers();
        merging.spawn(async move { barriers.merge(request).await.unwrap().into_inner() });
    }
    let answers = merging.join_all().await;
    assert_eq!(answers.iter().filter(|it| !it.already).count(), 1);
    assert!(answers.iter().all(|it| (it.lsn, &it.branch) == (answers[0].lsn, &answers[0].branch)));
}

#[tokio::test]
async fn an_input_that_cannot_be_read_is_not_merged() {
    let store = small().await;
    store.with_history("jfk", 1).await;
    seal(&store).await;
    store.damage("state at offset 1");
    let token = store.take("day").await;
    refusal(&try_merge(&store, merge(token, 1, &[("jfk", 1)])).await.unwrap_err(), Reason::Corrupt);
    assert_eq!(store.head("day").await, 0);
}

#[tokio::test]
async fn what_is_ill_formed_is_refused_by_its_field() {
    let (store, token) = store_with(&[("jfk", 1)]).await;
    let good = || merge(token, 1, &[("jfk", 1)]);
    let of = |change: fn(&mut Merge)| {
        let mut request = good();
        change(request.merge.as_mut().unwrap());
        request
    };
    let many: Vec<(&str, u64)> = (1..=129).map(|sequence| ("jfk", sequence)).collect();
    let mut bad = vec![
        (merge(token, 1, &[]), Reason::InvalidField, "merge.inputs"),
        (merge(token, 1, &many), Reason::InvalidField, "merge.inputs"),
        (merge(token, 1, &[("jfk", 1), ("ewr", 1), ("jfk", 1)]), Reason::InvalidField, "merge.inputs"),
        (merge(token, 1, &[("jfk", 1), ("-", 1)]), Reason::InvalidName, "merge.inputs[1].branch"),
        (of(|it| it.function = String::new()), Reason::InvalidName, "merge.function"),
        (of(|it| it.version = "a b".to_owned()), Reason::InvalidName, "merge.version"),
        (of(|it| it.output_digest = Bytes::new()), Reason::InvalidField, "merge.output_digest"),
        (of(|it| it.output_digest = vec![1; 65].into()), Reason::TooLarge, "merge.output_digest"),
        (MergeRequest { merge: None, ..good() }, Reason::InvalidField, "merge"),
        (MergeRequest { checkpoint: None, ..good() }, Reason::InvalidField, "checkpoint"),
        (MergeRequest { commit_id: String::new(), ..good() }, Reason::InvalidName, "commit_id"),
    ];
    bad.extend(
        bad_pipelines()
            .into_iter()
            .map(|pipeline| (MergeRequest { pipeline, ..good() }, Reason::InvalidName, "pipeline")),
    );
    bad.extend(
        bad_names().into_iter().map(|branch| (MergeRequest { branch, ..good() }, Reason::InvalidName, "branch")),
    );
    let late = Some(Checkpoint { late_for: "never".to_owned(), ..checkpoint("late") });
    bad.push((MergeRequest { checkpoint: late, ..good() }, Reason::InvalidField, "checkpoint.late_for"));
    for (request, reason, field) in bad {
        refused_field(&try_merge(&store, request).await.unwrap_err(), reason, field);
    }
}
