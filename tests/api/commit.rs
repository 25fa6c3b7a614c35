//! Commits: the order of their checks, all or none, and retries.

use fencepost::log::v1::fact::Kind;
use fencepost::v1::commit_response::Outcome;
use fencepost::v1::{Integrity, TailRequest, Takeover};
use fencepost::{Lsn, Reason, Token};
use fencepost_server::clock::Clock;

use crate::support::{Store, commit, commit_of, refusal, resume, resume_as};

#[tokio::test]
async fn a_commit_moves_the_head_and_says_where_it_is() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let mut request = commit("main", token, 1);
    request.branches[0].checkpoint.as_mut().unwrap().integrity = Some(Integrity {
        rows_in: Some(10),
        rows_out: Some(9),
        schema_fingerprint: vec![7; 64].into(),
        ..Integrity::default()
    });
    let done = store.commit(request.clone()).await.unwrap();
    assert_eq!(done.outcome(), Outcome::Applied);
    assert_eq!(done.header.unwrap().lsn, done.lsn);

    let head = store.stored_head("main").await;
    assert_eq!((head.sequence, head.token, head.lsn), (1, token, done.lsn));
    assert_eq!(head.commit_id, request.commit_id);
    let (sent, stored) = (request.branches[0].checkpoint.clone().unwrap(), head.checkpoint.unwrap());
    assert_eq!((stored.position, stored.state, stored.integrity), (sent.position, sent.state, sent.integrity));
}

#[tokio::test]
async fn a_payload_without_a_crc_is_given_one() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let mut request = commit("main", token, 1);
    let checkpoint = request.branches[0].checkpoint.as_mut().unwrap();
    (checkpoint.position, checkpoint.state) = (b"1234".to_vec().into(), b"56789".to_vec().into());
    store.commit(request).await.unwrap();
    let head = store.stored_head("main").await.checkpoint.unwrap();
    assert_eq!(head.payload_crc32, Some(0xcbf4_3926), "the check value of CRC-32/IEEE");
}

#[tokio::test]
async fn an_empty_checkpoint_is_a_checkpoint() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let mut request = commit("main", token, 1);
    request.branches[0].checkpoint = Some(fencepost::v1::Checkpoint::default());
    store.commit(request).await.unwrap();
    assert_eq!(store.stored_head("main").await.state_bytes, 0);
}

#[tokio::test]
async fn a_retried_commit_is_answered_as_the_first_was() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let request = commit("main", token, 1);
    let first = store.commit(request.clone()).await.unwrap();
    store.commit(commit("main", token, 2)).await.unwrap();
    let again = store.commit(request).await.unwrap();
    assert_eq!((again.outcome(), again.lsn), (Outcome::AlreadyApplied, first.lsn));
    assert_eq!(store.head("main").await, 2);
}

#[tokio::test]
async fn a_retry_is_told_the_truth_even_after_its_worker_was_replaced() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let mut request = commit("main", token, 1);
    let first = store.commit(request.clone()).await.unwrap();
    let force = Takeover::Force.into();
    let successor = store.resume(fencepost::v1::ResumeRequest {
        takeover: force,
        reason: "test".to_owned(),
        ..resume_as("loader-2", "main")
    });
    let successor = successor.await.unwrap().token;
    let again = store.commit(request.clone()).await.unwrap();
    assert_eq!((again.outcome(), again.lsn), (Outcome::AlreadyApplied, first.lsn));
    // The token belongs to the attempt, not to what is committed.
    request.branches[0].token = successor;
    assert_eq!(store.commit(request).await.unwrap().outcome(), Outcome::AlreadyApplied);
}

#[tokio::test]
async fn a_commit_id_with_other_content_is_refused() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let request = commit("main", token, 1);
    let first = store.commit(request.clone()).await.unwrap();
    let changes: [fn(&mut fencepost::v1::CommitRequest); 4] = [
        |request| request.branches[0].sequence = 2,
        |request| request.branches[0].checkpoint.as_mut().unwrap().position = b"elsewhere".to_vec().into(),
        |request| request.branches[0].checkpoint.as_mut().unwrap().state = b"other".to_vec().into(),
        |request| {
            let integrity = Integrity { rows_in: Some(1), ..Integrity::default() };
            request.branches[0].checkpoint.as_mut().unwrap().integrity = Some(integrity);
        },
    ];
    for change in changes {
        let mut other = request.clone();
        change(&mut other);
        let details = refusal(&store.commit(other).await.unwrap_err(), Reason::CommitIdReused);
        assert_eq!(details["lsn"], first.lsn.to_string());
        assert_eq!(details["commit_id"], request.commit_id);
    }
    assert_eq!(store.head("main").await, 1);
}

#[tokio::test]
async fn a_commit_id_belongs_to_its_pipeline() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let request = commit("main", token, 1);
    store.commit(request.clone()).await.unwrap();
    let mut elsewhere = resume("main");
    elsewhere.pipeline = "prod/other".to_owned();
    let token = store.resume(elsewhere).await.unwrap().token;
    let mut other = commit("main", token, 1);
    (other.commit_id, other.pipeline) = (request.commit_id, "prod/other".to_owned());
    assert_eq!(store.commit(other).await.unwrap().outcome(), Outcome::Applied);
}

#[tokio::test]
async fn a_replaced_worker_is_fenced_and_told_by_whom() {
    let store = Store::open().await;
    let old = store.take("main").await;
    let mut force = resume_as("loader-2", "main");
    (force.takeover, force.reason) = (Takeover::Force.into(), "stuck".to_owned());
    let grant = store.resume(force).await.unwrap();
    let details = refusal(&store.commit(commit("main", old, 1)).await.unwrap_err(), Reason::Fenced);
    assert_eq!(details["current_token"], grant.token.to_string());
    assert_eq!(details["holder"], "loader-2");
    assert_eq!(details["lsn"], grant.header.unwrap().lsn.to_string());
    assert_eq!(store.head("main").await, 0);
    store.commit(commit("main", grant.token, 1)).await.unwrap();
}

#[tokio::test]
async fn a_token_works_for_its_own_branch_only() {
    let store = Store::open().await;
    let (one, other) = (store.take("one").await, store.take("other").await);
    for (branch, token) in [("one", other), ("other", one), ("nobodys", one), ("one", 0)] {
        refusal(&store.commit(commit(branch, token, 1)).await.unwrap_err(), Reason::Fenced);
    }
}

#[tokio::test]
async fn a_released_token_moves_nothing() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let release = fencepost::v1::ReleaseRequest { lease: Some(crate::support::lease("main", token)), cluster: None };
    store.leases().release(release).await.unwrap();
    let status = store.commit(commit("main", token, 1)).await.unwrap_err();
    refusal(&status, Reason::Fenced);
    assert!(status.message().contains("resume to get a new one"), "{status}");
}

#[tokio::test]
async fn a_token_from_the_future_says_that_the_store_is_an_older_copy() {
    let store = Store::open().await;
    let token = store.take("main").await;
    for ahead in [token + 1, Token::new(2, 1).unwrap().as_u64(), u64::MAX] {
        let details = refusal(&store.commit(commit("main", ahead, 1)).await.unwrap_err(), Reason::StoreRolledBack);
        assert_eq!(details["last_token"], token.to_string());
    }
}

#[tokio::test]
async fn a_sequence_other_than_the_next_is_refused_with_the_actual_head() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let first = store.commit(commit("main", token, 1)).await.unwrap();
    for wrong in [0, 1, 3, u64::MAX] {
        let details = refusal(&store.commit(commit("main", token, wrong)).await.unwrap_err(), Reason::HeadMismatch);
        assert_eq!(details["actual_head"], "1");
        assert_eq!(details["branch"], "main");
        assert_eq!(details["actual_head_lsn"], first.lsn.to_string());
    }
}

#[tokio::test]
async fn a_payload_that_is_not_what_its_crc_says_is_refused() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let mut request = commit("main", token, 1);
    request.branches[0].checkpoint.as_mut().unwrap().payload_crc32 = Some(1);
    let details = refusal(&store.commit(request).await.unwrap_err(), Reason::IntegrityMismatch);
    assert_eq!((details["branch"].as_str(), details["declared"].as_str()), ("main", "00000001"));
    assert_eq!(details["actual"].len(), 8);
}

type BranchFault = fn(&mut fencepost::v1::BranchCommit);

/// The order is part of the promise: who is told HEAD_MISMATCH may rely on its token having been current.
#[tokio::test]
async fn the_checks_are_made_in_their_order() {
    let store = Store::open().await;
    let old = store.take("main").await;
    let mut force = resume_as("loader-2", "main");
    (force.takeover, force.reason) = (Takeover::Force.into(), "test".to_owned());
    let token = store.resume(force).await.unwrap().token;
    let known = commit("main", token, 1);
    store.commit(known.clone()).await.unwrap();

    // One fault more with every step, each of an earlier check than the one before.
    let mut request = commit("main", token, 2);
    request.branches[0].checkpoint.as_mut().unwrap().payload_crc32 = Some(1);
    refusal(&store.commit(request.clone()).await.unwrap_err(), Reason::IntegrityMismatch);
    request.not_after_ms = 1;
    refusal(&store.commit(request.clone()).await.unwrap_err(), Reason::NotAfterPassed);
    request.branches[0].sequence = 9;
    refusal(&store.commit(request.clone()).await.unwrap_err(), Reason::HeadMismatch);
    request.branches[0].token = old;
    refusal(&store.commit(request.clone()).await.unwrap_err(), Reason::Fenced);
    request.commit_id = known.commit_id;
    refusal(&store.commit(request.clone()).await.unwrap_err(), Reason::CommitIdReused);
    request.cluster = Some(fencepost::v1::ClusterRef { cluster_id: "another".to_owned(), generation: 1 });
    refusal(&store.commit(request.clone()).await.unwrap_err(), Reason::WrongCluster);
    request.branches.clear();
    refusal(&store.commit(request).await.unwrap_err(), Reason::InvalidField);
    assert_eq!(store.head("main").await, 1);
}

#[tokio::test]
async fn a_commit_is_void_once_its_own_time_has_passed() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let now_ms = Clock::real().wall_ms();
    let mut request = commit("main", token, 1);
    request.not_after_ms = now_ms - 1_000;
    let details = refusal(&store.commit(request.clone()).await.unwrap_err(), Reason::NotAfterPassed);
    assert!(details["server_time_ms"].parse::<u64>().unwrap() >= now_ms);
    request.not_after_ms = now_ms + 60_000;
    store.commit(request).await.unwrap();
}

#[tokio::test]
async fn a_commit_of_many_branches_moves_all_or_none() {
    let store = Store::open().await;
    let names: Vec<String> = (0..128).map(|i| format!("shard-{i:03}")).collect();
    let mut tokens = Vec::new();
    for name in &names {
        tokens.push(store.take(name).await);
    }
    let all = |sequence: u64| {
        commit_of(names.iter().zip(&tokens).map(move |(name, token)| (name.as_str(), *token, sequence)))
    };
    let done = store.commit(all(1)).await.unwrap();
    for name in &names {
        let head = store.stored_head(name).await;
        assert_eq!((head.sequence, head.lsn), (1, done.lsn), "all are moved by one fact");
    }

    let faults: [(BranchFault, Reason); 3] = [
        (|branch| branch.token = 1, Reason::Fenced),
        (|branch| branch.sequence = 1, Reason::HeadMismatch),
        (|branch| branch.checkpoint.as_mut().unwrap().payload_crc32 = Some(1), Reason::IntegrityMismatch),
    ];
    for (fault, reason) in faults {
        for place in [0, 64, 127] {
            let mut request = all(2);
            fault(&mut request.branches[place]);
            refusal(&store.commit(request).await.unwrap_err(), reason);
        }
    }
    for name in &names {
        assert_eq!(store.head(name).await, 1, "nothing of a refused commit was applied");
    }
    store.commit(all(2)).await.unwrap();
}

#[tokio::test]
async fn a_refused_commit_leaves_no_fact() {
    let store = Store::open().await;
    let token = store.take("main").await;
    store.commit(commit("main", token, 1)).await.unwrap();
    let before = store.facts(TailRequest::default()).await.unwrap();
    for wrong in [commit("main", token, 1), commit("main", 1, 2), commit("main", token + 1, 2), commit("../", token, 2)]
    {
        store.commit(wrong).await.unwrap_err();
    }
    assert_eq!(store.facts(TailRequest::default()).await.unwrap(), before);
}

#[tokio::test]
async fn racing_commits_for_one_sequence_have_one_winner() {
    let store = Store::open().await;
    let token = store.take("main").await;
    for sequence in 1..=20 {
        let rivals = (0..8).map(|_| {
            let mut commits = store.commits();
            tokio::spawn(async move { commits.commit(commit("main", token, sequence)).await })
        });
        let mut winners = 0;
        for rival in rivals.collect::<Vec<_>>() {
            match rival.await.unwrap() {
                Ok(_) => winners += 1,
                Err(status) => drop(refusal(&status, Reason::HeadMismatch)),
            }
        }
        assert_eq!(winners, 1);
    }
    assert_eq!(store.head("main").await, 20);
}

#[tokio::test]
async fn the_log_says_what_was_committed_by_whom() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let request = commit("main", token, 1);
    let done = store.commit(request.clone()).await.unwrap();
    let facts = store.facts(TailRequest { from_lsn: done.lsn, ..TailRequest::default() }).await.unwrap();
    let Some(Kind::Committed(committed)) = facts[0].fact.clone().unwrap().kind else { panic!("{facts:?}") };
    assert_eq!(Lsn::from_u64(facts[0].lsn), Lsn::from_u64(done.lsn));
    assert_eq!((committed.pipeline, committed.commit_id), (request.pipeline, request.commit_id));
    assert_eq!((committed.branches[0].sequence, committed.branches[0].token), (1, token));
}
