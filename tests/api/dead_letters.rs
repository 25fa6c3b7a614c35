//! Records that a pipeline could not process: stored with the commit that skips them, and handled once.

use fencepost::Reason;
use fencepost::v1::audit_record::Action;
use fencepost::v1::commit_response::Outcome;
use fencepost::v1::{
    BranchCommit, CommitRequest, DeadLetter, DeadLetterId, DiscardDeadLettersRequest, ListAuditRequest,
    ListDeadLettersRequest, ListDeadLettersResponse, Policy, StoredDeadLetter, Takeover,
};
use tonic::Status;

use crate::support::{ORDERS, Store, commit, commit_of, keep, refusal, refused_field, resume, resume_as, rewind};

fn letter(payload: &str) -> DeadLetter {
    DeadLetter {
        payload: payload.as_bytes().to_vec().into(),
        reason: "no arrival delay".to_owned(),
        source_position: format!("line of {} bytes", payload.len()).into_bytes().into(),
        ..DeadLetter::default()
    }
}

/// A commit of one branch with these dead letters.
pub(crate) fn skipping(branch: &str, token: u64, sequence: u64, payloads: &[&str]) -> CommitRequest {
    let mut request = commit(branch, token, sequence);
    request.branches[0].dead_letters = payloads.iter().map(|payload| letter(payload)).collect();
    request
}

/// A commit of one branch that has processed these.
fn replaying(branch: &str, token: u64, sequence: u64, letters: &[DeadLetterId]) -> CommitRequest {
    let mut request = commit(branch, token, sequence);
    request.branches[0].replayed = letters.to_vec();
    request
}

fn open() -> ListDeadLettersRequest {
    ListDeadLettersRequest { pipeline: ORDERS.to_owned(), ..ListDeadLettersRequest::default() }
}

async fn list(store: &Store, request: ListDeadLettersRequest) -> ListDeadLettersResponse {
    store.dead_letters().list_dead_letters(request).await.unwrap().into_inner()
}

/// All that are open, in the order of the list, whatever the size of a page.
async fn all(store: &Store, page_size: u32) -> Vec<StoredDeadLetter> {
    let (mut found, mut page_token) = (Vec::new(), String::new());
    loop {
        let page = list(store, ListDeadLettersRequest { page_size, page_token, ..open() }).await;
        found.extend(page.letters);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            assert_eq!(page.open, found.len() as u64);
            return found;
        }
    }
}

fn payload(stored: &StoredDeadLetter) -> String {
    String::from_utf8(stored.letter.as_ref().unwrap().payload.to_vec()).unwrap()
}

async fn payloads(store: &Store) -> Vec<String> {
    all(store, 0).await.iter().map(payload).collect()
}

async fn ids(store: &Store) -> Vec<DeadLetterId> {
    all(store, 0).await.into_iter().map(|stored| stored.id.unwrap()).collect()
}

fn discard(letters: &[DeadLetterId]) -> DiscardDeadLettersRequest {
    DiscardDeadLettersRequest {
        pipeline: ORDERS.to_owned(),
        letters: letters.to_vec(),
        actor: "ops".to_owned(),
        reason: "test data".to_owned(),
        ..DiscardDeadLettersRequest::default()
    }
}

async fn try_discard(store: &Store, request: DiscardDeadLettersRequest) -> Result<(), Status> {
    store.dead_letters().discard_dead_letters(request).await.map(drop)
}

#[tokio::test]
async fn they_come_with_the_commit_that_skips_them_and_are_listed_oldest_first() {
    let store = Store::open().await;
    let (jfk, lga) = (store.take("jfk").await, store.take("lga").await);
    let first = store.commit(skipping("lga", lga, 1, &["a"])).await.unwrap();
    let mut both = commit_of([("jfk", jfk, 1), ("lga", lga, 2)]);
    both.branches[0].dead_letters = vec![letter("b"), letter("c")];
    both.branches[1].dead_letters = vec![letter("d")];
    let second = store.commit(both).await.unwrap();
    let found = all(&store, 0).await;
    let told: Vec<_> = found
        .iter()
        .map(|it| (it.id.unwrap().lsn, it.id.unwrap().number, it.branch.as_str(), it.sequence, payload(it)))
        .collect();
    assert_eq!(
        told,
        [
            (first.lsn, 0, "lga", 1, "a".to_owned()),
            (second.lsn, 0, "jfk", 1, "b".to_owned()),
            (second.lsn, 1, "jfk", 1, "c".to_owned()),
            (second.lsn, 2, "lga", 2, "d".to_owned()),
        ],
        "numbers go on through the branches of a commit"
    );
    let StoredDeadLetter { pipeline, at_ms, payload_bytes, letter, unreadable, .. } = &found[2];
    assert_eq!((pipeline.as_str(), *payload_bytes, unreadable.as_str()), (ORDERS, 1, ""));
    assert_eq!(letter.as_ref(), Some(&self::letter("c")));
    assert_eq!(*at_ms, store.checkpoint("jfk", 1).await.unwrap().committed_at_ms);
    assert_eq!(store.checkpoint("jfk", 1).await.unwrap().dead_letters, 2);
}

#[tokio::test]
async fn a_commit_that_is_refused_leaves_none_behind() {
    let store = Store::open().await;
    let token = store.take("main").await;
    refusal(&store.commit(skipping("main", token, 2, &["a"])).await.unwrap_err(), Reason::HeadMismatch);
    store.commit(commit("main", token, 1)).await.unwrap();
    assert_eq!(all(&store, 0).await, []);
}

#[tokio::test]
async fn a_repeated_commit_stores_none_twice() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let request = skipping("main", token, 1, &["a", "b"]);
    store.commit(request.clone()).await.unwrap();
    assert_eq!(store.commit(request.clone()).await.unwrap().outcome(), Outcome::AlreadyApplied);
    assert_eq!(payloads(&store).await, ["a", "b"]);
    let mut other = request;
    other.branches[0].dead_letters[1] = letter("c");
    refusal(&store.commit(other).await.unwrap_err(), Reason::CommitIdReused);
}

#[tokio::test]
async fn a_letter_is_handled_once_and_a_commit_that_replays_a_handled_one_is_refused_as_a_whole() {
    let store = Store::open().await;
    let token = store.take("main").await;
    store.commit(skipping("main", token, 1, &["a", "b", "c"])).await.unwrap();
    let ids = ids(&store).await;
    store.commit(replaying("main", token, 2, &ids[..2])).await.unwrap();
    assert_eq!(payloads(&store).await, ["c"]);
    let refused = store.commit(replaying("main", token, 3, &ids[1..])).await.unwrap_err();
    let metadata = refusal(&refused, Reason::DeadLetterHandled);
    assert_eq!((&metadata["lsn"], metadata["number"].as_str()), (&ids[1].lsn.to_string(), "1"));
    assert_eq!((store.head("main").await, payloads(&store).await), (2, vec!["c".to_owned()]));
    let never = DeadLetterId { lsn: ids[0].lsn, number: 3 };
    refusal(&store.commit(replaying("main", token, 3, &[never])).await.unwrap_err(), Reason::DeadLetterHandled);
    store.commit(replaying("main", token, 3, &ids[2..])).await.unwrap();
    assert_eq!(all(&store, 0).await, []);
}

#[tokio::test]
async fn a_repeat_of_a_commit_that_replayed_is_answered_with_its_first_result() {
    let store = Store::open().await;
    let token = store.take("main").await;
    store.commit(skipping("main", token, 1, &["a"])).await.unwrap();
    let request = replaying("main", token, 2, &ids(&store).await);
    let first = store.commit(request.clone()).await.unwrap();
    let again = store.commit(request).await.unwrap();
    assert_eq!((again.lsn, again.outcome()), (first.lsn, Outcome::AlreadyApplied));
}

#[tokio::test]
async fn a_replay_may_be_of_another_branch_of_the_pipeline_and_of_no_other_pipeline() {
    let store = Store::open().await;
    let (main, other) = (store.take("main").await, store.take("other").await);
    store.commit(skipping("main", main, 1, &["a"])).await.unwrap();
    let letters = ids(&store).await;
    let elsewhere = "prod/elsewhere".to_owned();
    let request = fencepost::v1::ResumeRequest { pipeline: elsewhere.clone(), ..resume("main") };
    let token = store.resume(request).await.unwrap().token;
    let stolen = CommitRequest { pipeline: elsewhere, ..replaying("main", token, 1, &letters) };
    refusal(&store.commit(stolen).await.unwrap_err(), Reason::DeadLetterHandled);
    store.commit(replaying("other", other, 1, &letters)).await.unwrap();
    assert_eq!(all(&store, 0).await, []);
}

#[tokio::test]
async fn a_replaced_worker_replays_nothing() {
    let store = Store::open().await;
    let old = store.take("main").await;
    store.commit(skipping("main", old, 1, &["a"])).await.unwrap();
    let mut force = resume_as("loader-2", "main");
    (force.takeover, force.reason) = (Takeover::Force.into(), "stuck".to_owned());
    let new = store.resume(force).await.unwrap().token;
    let letters = ids(&store).await;
    refusal(&store.commit(replaying("main", old, 2, &letters)).await.unwrap_err(), Reason::Fenced);
    assert_eq!(payloads(&store).await, ["a"]);
    store.commit(replaying("main", new, 2, &letters)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_workers_that_replay_the_same_letters_at_once_one_does() {
    const WORKERS: usize = 8;
    let store = Store::open().await;
    let main = store.take("main").await;
    for round in 1..=5 {
        store.commit(skipping("main", main, round, &["a", "b"])).await.unwrap();
        let letters = ids(&store).await;
        let mut tasks = tokio::task::JoinSet::new();
        for worker in 0..WORKERS {
            let branch = format!("round-{round}-{worker}");
            let token = store.take(&branch).await;
            let mut commits = store.commits();
            let request = replaying(&branch, token, 1, &letters[worker % 2..]);
            tasks.spawn(async move { commits.commit(request).await.map(drop) });
        }
        let mut done = 0;
        while let Some(outcome) = tasks.join_next().await {
            match outcome.unwrap() {
                Ok(()) => done += 1,
                Err(status) => drop(refusal(&status, Reason::DeadLetterHandled)),
            }
        }
        assert_eq!(done, 1, "every request has letter b");
        let rest = ids(&store).await;
        if !rest.is_empty() {
            try_discard(&store, discard(&rest)).await.unwrap();
        }
    }
}

#[tokio::test]
async fn all_are_discarded_or_none() {
    let store = Store::open().await;
    let token = store.take("main").await;
    store.commit(skipping("main", token, 1, &["a", "b", "c"])).await.unwrap();
    let ids = ids(&store).await;
    try_discard(&store, discard(&ids[..1])).await.unwrap();
    refusal(&try_discard(&store, discard(&[ids[1], ids[0]])).await.unwrap_err(), Reason::DeadLetterHandled);
    assert_eq!(payloads(&store).await, ["b", "c"]);
    try_discard(&store, discard(&ids[1..])).await.unwrap();
    assert_eq!(all(&store, 0).await, []);
    refusal(&store.commit(replaying("main", token, 2, &ids[..1])).await.unwrap_err(), Reason::DeadLetterHandled);
}

#[tokio::test]
async fn a_discard_says_who_and_why_and_is_listed_in_the_audit() {
    let store = Store::open().await;
    let token = store.take("main").await;
    store.commit(skipping("main", token, 1, &["a", "b"])).await.unwrap();
    let ids = ids(&store).await;
    let refused = async |request| try_discard(&store, request).await.unwrap_err();
    let why = DiscardDeadLettersRequest { reason: " ".to_owned(), ..discard(&ids) };
    refused_field(&refused(why).await, Reason::InvalidField, "reason");
    refused_field(&refused(discard(&[])).await, Reason::InvalidField, "letters");
    refused_field(&refused(discard(&[ids[0], ids[1], ids[0]])).await, Reason::InvalidField, "letters[2]");
    let many = vec![DeadLetterId::default(); 1_001];
    refused_field(&refused(discard(&many)).await, Reason::InvalidField, "letters");
    let unknown = DiscardDeadLettersRequest { pipeline: "prod/unknown".to_owned(), ..discard(&ids) };
    refusal(&refused(unknown).await, Reason::StateMissing);
    try_discard(&store, discard(&ids)).await.unwrap();
    let audit = ListAuditRequest { pipeline: ORDERS.to_owned(), ..ListAuditRequest::default() };
    let newest = store.pipelines().list_audit(audit).await.unwrap().into_inner().records.remove(0);
    assert_eq!(newest.action(), Action::DeadLettersDiscarded);
    assert_eq!((newest.actor.as_str(), newest.reason.as_str()), ("ops", "test data"));
    assert_eq!(newest.detail, format!("2 dead letters: {}, {}", ids[0], ids[1]));
}

#[tokio::test]
async fn a_rewind_closes_the_letters_of_the_checkpoints_that_it_abandons() {
    let store = Store::open().await;
    let (main, other) = (store.take("main").await, store.take("other").await);
    store.commit(skipping("main", main, 1, &["a"])).await.unwrap();
    store.commit(skipping("main", main, 2, &["b"])).await.unwrap();
    let mut both = commit_of([("main", main, 3), ("other", other, 1)]);
    both.branches[0].dead_letters = vec![letter("c")];
    both.branches[1].dead_letters = vec![letter("d")];
    store.commit(both).await.unwrap();
    let before = ids(&store).await;
    store.rewind(rewind("main", 3, 1)).await.unwrap();
    assert_eq!(payloads(&store).await, ["a", "d"], "of another branch they stay, in the same commit too");
    refusal(&try_discard(&store, discard(&before[1..2])).await.unwrap_err(), Reason::DeadLetterHandled);
    // Whoever works through it again skips them again.
    let main = store.take("main").await;
    store.commit(skipping("main", main, 2, &["b"])).await.unwrap();
    assert_eq!(payloads(&store).await, ["a", "d", "b"]);
}

#[tokio::test]
async fn what_a_commit_has_replayed_stays_handled_when_a_rewind_abandons_that_commit() {
    let store = Store::open().await;
    let token = store.take("main").await;
    store.commit(skipping("main", token, 1, &["a", "b"])).await.unwrap();
    let ids = ids(&store).await;
    store.commit(replaying("main", token, 2, &ids[..1])).await.unwrap();
    store.rewind(rewind("main", 2, 1)).await.unwrap();
    assert_eq!(payloads(&store).await, ["b"]);
    let token = store.take("main").await;
    let again = store.commit(replaying("main", token, 2, &ids)).await.unwrap_err();
    assert_eq!(refusal(&again, Reason::DeadLetterHandled)["number"], "0");
    store.commit(replaying("main", token, 2, &ids[1..])).await.unwrap();
}

#[tokio::test]
async fn open_letters_and_handled_ones_are_the_same_after_a_restart() {
    let store = Store::open().await;
    let token = store.take("main").await;
    store.commit(skipping("main", token, 1, &["a", "b", "c", "d"])).await.unwrap();
    let ids = ids(&store).await;
    store.commit(replaying("main", token, 2, &ids[1..2])).await.unwrap();
    try_discard(&store, discard(&ids[3..])).await.unwrap();
    let before = all(&store, 0).await;
    let store = store.restarted().await;
    assert_eq!(all(&store, 0).await, before);
    assert_eq!(payloads(&store).await, ["a", "c"]);
    refusal(&store.commit(replaying("main", token, 3, &ids[..2])).await.unwrap_err(), Reason::DeadLetterHandled);
    store.commit(replaying("main", token, 3, &[ids[0], ids[2]])).await.unwrap();
    assert_eq!(all(&store.restarted().await, 0).await, []);
}

#[tokio::test]
async fn retention_does_not_remove_what_is_open() {
    let store = Store::open().await;
    store.pipelines().set_policy(keep(Policy { keep_last: 1, ..Policy::default() })).await.unwrap();
    let token = store.take("main").await;
    store.commit(skipping("main", token, 1, &["a"])).await.unwrap();
    for sequence in 2..5 {
        store.commit(commit("main", token, sequence)).await.unwrap();
    }
    refusal(&store.checkpoint("main", 1).await.unwrap_err(), Reason::Compacted);
    let found = all(&store, 0).await;
    assert_eq!((payload(&found[0]), found[0].sequence), ("a".to_owned(), 1));
}

#[tokio::test]
async fn a_list_can_be_of_one_branch_page_by_page_and_without_payloads() {
    let store = Store::open().await;
    let (jfk, lga) = (store.take("jfk").await, store.take("lga").await);
    for sequence in 1..=3 {
        store.commit(skipping("jfk", jfk, sequence, &["one", "two"])).await.unwrap();
        store.commit(skipping("lga", lga, sequence, &["three"])).await.unwrap();
    }
    let whole = all(&store, 0).await;
    assert_eq!(whole.len(), 9);
    for page_size in 1..=10 {
        assert_eq!(all(&store, page_size).await, whole, "pages of {page_size}");
    }
    let of_lga = list(&store, ListDeadLettersRequest { branch: "lga".to_owned(), page_size: 2, ..open() }).await;
    assert!(of_lga.letters.iter().all(|it| it.branch == "lga") && of_lga.letters.len() == 2 && of_lga.open == 9);
    let page_token = of_lga.next_page_token;
    let rest = list(&store, ListDeadLettersRequest { branch: "lga".to_owned(), page_token, ..open() }).await;
    assert_eq!((rest.letters.len(), rest.next_page_token.as_str()), (1, ""));
    let lean = list(&store, ListDeadLettersRequest { without_payload: true, ..open() }).await;
    for (lean, whole) in lean.letters.iter().zip(&whole) {
        assert_eq!(lean.payload_bytes, payload(whole).len() as u64);
        assert!(lean.letter.as_ref().unwrap().payload.is_empty());
        assert_eq!(lean.letter.as_ref().unwrap().reason, whole.letter.as_ref().unwrap().reason);
    }
}

#[tokio::test]
async fn a_page_has_no_more_than_four_mebibytes_of_payloads() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let long = "x".repeat(3 << 19);
    for sequence in 1..=3 {
        store.commit(skipping("main", token, sequence, &[&long, "short"])).await.unwrap();
    }
    let first = list(&store, open()).await;
    let bytes: u64 = first.letters.iter().map(|it| it.payload_bytes).sum();
    assert!(bytes <= 4 << 20, "{bytes}");
    assert_eq!((first.letters.len(), first.open), (4, 6));
    assert_eq!(all(&store, 0).await.len(), 6);
    let lean = list(&store, ListDeadLettersRequest { without_payload: true, ..open() }).await;
    assert_eq!((lean.letters.len(), lean.next_page_token.as_str()), (6, ""));
}

#[tokio::test]
async fn a_commit_has_at_most_a_thousand_and_four_mebibytes() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let refused = async |request| store.commit(request).await.unwrap_err();
    let many = vec!["x"; 1_001];
    refused_field(&refused(skipping("main", token, 1, &many)).await, Reason::TooLarge, "dead_letters");
    let long = "x".repeat((4 << 20) - 1);
    refused_field(&refused(skipping("main", token, 1, &[&long, "xx"])).await, Reason::TooLarge, "dead_letters");
    store.commit(skipping("main", token, 1, &[&long, "x"])).await.unwrap();
    store.commit(skipping("main", token, 2, &many[..1_000])).await.unwrap();
    assert_eq!(all(&store, 1_000).await.len(), 1_002);
}

#[tokio::test]
async fn a_letter_that_is_ill_formed_is_refused_by_its_field() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let refused = async |change: fn(&mut BranchCommit), reason, field: &str| {
        let mut request = skipping("main", token, 1, &["a", "b"]);
        change(&mut request.branches[0]);
        refused_field(&store.commit(request).await.unwrap_err(), reason, field);
    };
    let no_reason = |moved: &mut BranchCommit| moved.dead_letters[1].reason.clear();
    refused(no_reason, Reason::InvalidField, "branches[0].dead_letters[1].reason").await;
    let long_reason = |moved: &mut BranchCommit| moved.dead_letters[0].reason = "x".repeat(1_025);
    refused(long_reason, Reason::TooLarge, "branches[0].dead_letters[0].reason").await;
    let long_position = |moved: &mut BranchCommit| moved.dead_letters[0].source_position = vec![0; 1_025].into();
    refused(long_position, Reason::TooLarge, "branches[0].dead_letters[0].source_position").await;
    let twice = |moved: &mut BranchCommit| moved.replayed = vec![DeadLetterId { lsn: 1, number: 2 }; 2];
    refused(twice, Reason::InvalidField, "branches[0].replayed[1]").await;
    // Counted before they are compared.
    let many = |moved: &mut BranchCommit| moved.replayed = vec![DeadLetterId { lsn: 1, number: 2 }; 1_001];
    refused(many, Reason::TooLarge, "replayed").await;
    let bad_page = ListDeadLettersRequest { page_token: "next".to_owned(), ..open() };
    refused_field(
        &store.dead_letters().list_dead_letters(bad_page).await.unwrap_err(),
        Reason::InvalidField,
        "page_token",
    );
    let unknown = ListDeadLettersRequest { pipeline: "prod/unknown".to_owned(), ..open() };
    refusal(&store.dead_letters().list_dead_letters(unknown).await.unwrap_err(), Reason::StateMissing);
}

#[tokio::test]
async fn a_letter_that_cannot_be_read_says_so_in_its_row() {
    let store = Store::open().await;
    let token = store.take("main").await;
    store.commit(skipping("main", token, 1, &["payload that a bad disk changes"])).await.unwrap();
    store.commit(skipping("main", token, 2, &["good"])).await.unwrap();
    store.damage("payload that a bad disk changes");
    let found = all(&store, 0).await;
    assert_eq!(found.len(), 2);
    assert!(found[0].unreadable.contains("damaged"), "{}", found[0].unreadable);
    assert_eq!((found[0].letter.as_ref(), found[0].branch.as_str(), found[0].sequence), (None, "main", 1));
    assert_eq!(payload(&found[1]), "good");
}
