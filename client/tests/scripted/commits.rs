//! Commits: retried under one id, settled when their answer is lost, never guessed.

use std::sync::Arc;
use std::time::Duration;

use fencepost_client::{Action, Applied, Checkpoint, Client, Commit, Error, Loss, Outcome, Reason, Transport};
use tokio::sync::Semaphore;

use crate::fake::{CallFate, Fake, Fate, PIPELINE, fresh};

fn commit_ids(fake: &Fake) -> Vec<String> {
    fake.see(|state| state.commits.iter().map(|item| item.commit.clone().unwrap().commit_id).collect())
}

fn position(fake: &Fake) -> Vec<String> {
    let stored = fake.see(|state| state.branches["main"].1.clone());
    stored.iter().map(|one| String::from_utf8_lossy(&one.checkpoint.clone().unwrap().position).into_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_commit_moves_the_head() {
    let fake = Fake::start();
    let worker = fake.worker().await;
    assert_eq!((worker.sequence(), worker.head()), (0, None));

    let first = worker.commit(Checkpoint::at("10").state("s").rows_in(10)).await.unwrap();
    let second = worker.commit(Checkpoint::at("20")).await.unwrap();
    assert_eq!((first.sequence, second.sequence), (1, 2));
    assert_eq!(first.outcome, Outcome::Applied);
    assert!(first.lsn < second.lsn);

    let head = worker.head().unwrap();
    assert_eq!((head.sequence(), &*head.position_str(), head.lsn()), (2, "20", second.lsn));
    assert_eq!(head.token(), worker.token());
    assert_eq!(position(&fake), ["10", "20"]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_to_an_applied_commit_ends_in_success_without_a_second_attempt() {
    for transport in [Transport::Stream, Transport::Unary] {
        let fake = Fake::start();
        let client = fake.client_with(Client::builder().transport(transport));
        let worker = client.pipeline(PIPELINE).branch("main").resume(fresh()).await.unwrap();
        fake.fate(Fate::LoseAnswer);
        let committed = worker.commit(Checkpoint::at("10")).await.unwrap();
        assert_eq!((committed.sequence, committed.outcome), (1, Outcome::AlreadyApplied));
        assert_eq!((commit_ids(&fake).len(), fake.see(|state| state.resolves.len())), (1, 1));
        assert_eq!(worker.commit(Checkpoint::at("20")).await.unwrap().sequence, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_request_is_sent_again_under_the_same_id() {
    for transport in [Transport::Stream, Transport::Unary] {
        let fake = Fake::start();
        let client = fake.client_with(Client::builder().transport(transport));
        let worker = client.pipeline(PIPELINE).branch("main").resume(fresh()).await.unwrap();
        for _ in 0..3 {
            fake.fate(Fate::LoseRequest);
        }
        worker.commit(Checkpoint::at("10")).await.unwrap();
        let ids = commit_ids(&fake);
        assert_eq!(ids.len(), 4);
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        assert_eq!(position(&fake), ["10"]);
        let asked = fake.see(|state| state.resolves[0].clone());
        assert_eq!((asked.branch.as_str(), asked.sequence), ("main", 1), "the sequence settles it for ever");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_does_not_speak_for_an_earlier_attempt_that_was_lost() {
    let fake = Fake::start();
    let worker = fake.worker().await;
    fake.fate(Fate::LoseRequest);
    fake.fate(Fate::RefuseAfterLateArrival("HEAD_MISMATCH"));
    let committed = worker.commit(Checkpoint::at("10")).await.unwrap();
    assert_eq!((committed.sequence, committed.outcome), (1, Outcome::AlreadyApplied));
    assert_eq!(worker.head().unwrap().position_str(), "10");
}

#[tokio::test(start_paused = true)]
async fn a_lost_attempt_leaves_a_doubt_that_later_refusals_do_not_clear() {
    let fake = Fake::start();
    let worker = fake.worker().await;
    fake.fate(Fate::LoseRequest);
    for _ in 0..10 {
        fake.fate(Fate::Refuse("NO_SPACE", vec![("applied", "no".into()), ("retry_after_ms", "10000".into())]));
    }
    let error = worker.commit(Checkpoint::at("10")).await.unwrap_err();
    assert!(matches!(error, Error::InDoubt { .. }), "{error}");
    assert_eq!((error.applied(), error.reason()), (Applied::Unknown, Some(Reason::NoSpace)));
}

#[tokio::test(start_paused = true)]
async fn commits_of_one_worker_go_one_after_the_other() {
    let fake = Fake::start();
    let worker = fake.worker().await;
    let (one, other) = tokio::join!(worker.commit(Checkpoint::at("10")), worker.commit(Checkpoint::at("20")));
    assert_eq!((one.unwrap().sequence, other.unwrap().sequence), (1, 2));
    assert_eq!(position(&fake), ["10", "20"]);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_passes_is_retried_not_before_the_server_asked() {
    let fake = Fake::start();
    let worker = fake.worker().await;
    fake.fate(Fate::Refuse("NO_SPACE", vec![("applied", "no".into()), ("retry_after_ms", "1500".into())]));
    let begun = tokio::time::Instant::now();
    worker.commit(Checkpoint::at("10")).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(1_500));
    let ids = commit_ids(&fake);
    assert_eq!(ids[0], ids[1]);
    let sessions = fake.see(|state| [state.commits[0].session, state.commits[1].session]);
    assert_ne!(sessions[0], sessions[1], "a session is poisoned by its first refusal");
    assert_eq!(fake.see(|state| state.resolves.len()), 0, "a refusal is no doubt");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_comes_back_in_time_is_waited_for() {
    let fake = Fake::start();
    let worker = fake.worker().await;
    fake.script(|state| state.down = true);
    fake.fate(Fate::HangUp);
    let commit = worker.commit(Checkpoint::at("10"));
    let restart = async {
        tokio::time::sleep(Duration::from_secs(8)).await;
        fake.script(|state| state.down = false);
    };
    let (committed, ()) = tokio::join!(commit, restart);
    assert_eq!(committed.unwrap().sequence, 1);
    let ids = commit_ids(&fake);
    assert_eq!((ids.len(), &ids[0]), (2, &ids[1]));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_cannot_be_reached_is_an_error_without_effect() {
    let fake = Fake::start();
    fake.script(|state| state.down = true);
    let begun = tokio::time::Instant::now();
    let error = fake.branch("main").resume(fresh().no_wait()).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert_eq!((error.applied(), error.action()), (Applied::No, Action::Retry));
    assert!(begun.elapsed() > Duration::from_secs(7), "tried for as long as a request may take");
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_commit_is_settled_after_the_request_timeout() {
    let fake = Fake::start();
    let worker = fake.worker().await;
    fake.fate(Fate::Swallow);
    let begun = tokio::time::Instant::now();
    let committed = worker.commit(Checkpoint::at("10")).await.unwrap();
    assert_eq!(committed.outcome, Outcome::AlreadyApplied);
    assert!(begun.elapsed() >= Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn a_question_without_an_answer_is_asked_again() {
    let fake = Fake::start();
    let worker = fake.worker().await;
    fake.fate(Fate::LoseAnswer);
    fake.script(|state| state.resolve_fates.push_back(CallFate::Swallow));
    let begun = tokio::time::Instant::now();
    assert_eq!(worker.commit(Checkpoint::at("10")).await.unwrap().sequence, 1);
    assert!((10..20).contains(&begun.elapsed().as_secs()), "after one request timeout");
}

#[tokio::test(start_paused = true)]
async fn at_the_deadline_a_commit_is_in_doubt_and_says_how_to_settle_it() {
    let fake = Fake::start();
    let worker = fake.worker().await;
    fake.fate(Fate::LoseAnswer);
    fake.script(|state| state.resolve_fates.extend(vec![CallFate::Swallow; 10]));
    let begun = tokio::time::Instant::now();
    let error = worker.commit(Checkpoint::at("10")).await.unwrap_err();
    assert_eq!(begun.elapsed().as_secs(), 30);
    assert_eq!((error.applied(), error.action()), (Applied::Unknown, Action::ResolveThenRetry));
    let Error::InDoubt { commit_id, branch, sequence: 1, .. } = &error else { panic!("{error}") };
    assert_eq!((commit_id, branch.as_str()), (&commit_ids(&fake)[0], "main"));
    assert!(error.to_string().contains("resolve_commit"), "{error}");
    assert_eq!(worker.sequence(), 0, "the head is no guess");

    fake.script(|state| state.resolve_fates.clear());
    assert_eq!(worker.commit(Checkpoint::at("20")).await.unwrap().sequence, 2);
    assert_eq!(position(&fake), ["10", "20"]);
}

#[tokio::test(start_paused = true)]
async fn a_fenced_commit_stops_the_worker_for_good() {
    let fake = Fake::start();
    let worker = fake.worker().await;
    let lost = worker.lost();
    let successor = fake.replace_worker("main");
    let error = worker.commit(Checkpoint::at("10")).await.unwrap_err();
    assert_eq!((error.reason(), error.action()), (Some(Reason::Fenced), Action::Reacquire));
    assert_eq!((error.holder(), error.current_token().unwrap().as_u64()), (Some("loader-2"), successor));

    let Loss::Fenced { by: Some(by), holder: Some(holder) } = lost.await else { panic!("fenced") };
    assert_eq!((by.as_u64(), holder.as_str()), (successor, "loader-2"));
    assert_eq!(worker.validity(), Duration::ZERO);

    let error = worker.commit(Checkpoint::at("20")).await.unwrap_err();
    assert!(matches!(error, Error::Lost(Loss::Fenced { .. })));
    assert_eq!(commit_ids(&fake).len(), 1, "nothing is sent under a dead token");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_commit_is_settled_before_the_next() {
    let fake = Fake::start();
    let worker = fake.worker().await;
    let gate = Arc::new(Semaphore::new(0));
    fake.fate(Fate::Hold(gate.clone()));
    tokio::select! {
        _ = worker.commit(Checkpoint::at("10")) => panic!("the server holds it back"),
        () = fake.until(|state| state.commits.len() == 1) => {}
    }
    assert_eq!(worker.sequence(), 0);

    let later = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        gate.add_permits(1);
    };
    let (committed, ()) = tokio::join!(worker.commit(Checkpoint::at("20")), later);
    assert_eq!(committed.unwrap().sequence, 2);
    assert_eq!(position(&fake), ["10", "20"]);
    let ids = commit_ids(&fake);
    assert_ne!(ids[0], ids[1]);
    assert_eq!(fake.see(|state| state.resolves.len()), 0, "the answer itself was still to come");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_commit_that_never_arrived_leaves_its_sequence_to_the_next() {
    let fake = Fake::start();
    let worker = fake.worker().await;
    fake.fate(Fate::LoseRequest);
    fake.script(|state| state.resolve_fates.push_back(CallFate::Swallow));
    tokio::select! {
        _ = worker.commit(Checkpoint::at("10")) => panic!("the server never says how it ended"),
        () = fake.until(|state| state.resolves.len() == 1) => {}
    }
    assert_eq!(worker.commit(Checkpoint::at("20")).await.unwrap().sequence, 1);
    assert_eq!(position(&fake), ["20"]);
    let ids = commit_ids(&fake);
    assert_ne!(ids[0], ids[1], "other content, other id");
}

#[tokio::test(start_paused = true)]
async fn a_commit_in_doubt_made_again_under_its_own_id_is_made_once() {
    let fake = Fake::start();
    let worker = fake.worker().await;
    fake.fate(Fate::LoseAnswer);
    fake.script(|state| state.resolve_fates.push_back(CallFate::Swallow));
    let again = || Commit::of([(&worker, Checkpoint::at("10"))]).id("batch-7").send();
    tokio::select! {
        _ = again() => panic!("the server never says how it ended"),
        () = fake.until(|state| state.resolves.len() == 1) => {}
    }
    let committed = again().await.unwrap();
    assert_eq!((committed.sequence, committed.outcome), (1, Outcome::AlreadyApplied));
    assert_eq!(position(&fake), ["10"]);
}

#[tokio::test(start_paused = true)]
async fn a_commit_of_several_workers_moves_all_heads_or_none() {
    let fake = Fake::start();
    let pipeline = fake.client().pipeline(PIPELINE);
    let [a, b] = ["a", "b"].map(|branch| pipeline.branch(branch));
    let (a, b) = (a.resume(fresh()).await.unwrap(), b.resume(fresh()).await.unwrap());
    b.commit(Checkpoint::at("b1")).await.unwrap();

    let both = || Commit::of([(&b, Checkpoint::at("b2")), (&a, Checkpoint::at("a1"))]);
    let committed = both().id("both").send().await.unwrap();
    assert_eq!(committed.sequence, 2, "of the first worker");
    assert_eq!((a.sequence(), b.sequence()), (1, 2));
    assert_eq!(a.head().unwrap().commit_id(), "both");

    fake.replace_worker("a");
    let error = both().send().await.unwrap_err();
    assert_eq!((error.reason(), error.applied()), (Some(Reason::Fenced), Applied::No));
    assert_eq!((a.sequence(), b.sequence()), (1, 2));
    assert!(matches!(a.lost().await, Loss::Fenced { .. }), "asked at once which of them it is");
    assert!(b.validity() > Duration::ZERO);
    b.commit(Checkpoint::at("b3")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_one_commit_is_refused_unsent() {
    let fake = Fake::start();
    let (one, other) = (fake.client(), fake.client());
    let a = one.pipeline(PIPELINE).branch("a").resume(fresh()).await.unwrap();
    let b = other.pipeline(PIPELINE).branch("b").resume(fresh()).await.unwrap();
    let elsewhere = one.pipeline("test/other").branch("c").resume(fresh()).await.unwrap();
    let at = || Checkpoint::at("1");
    for (parts, expected) in [
        (vec![], "1 to 128"),
        (vec![(&a, at()), (&a, at())], "twice"),
        (vec![(&a, at()), (&b, at())], "two clients"),
        (vec![(&a, at()), (&elsewhere, at())], "two pipelines"),
    ] {
        let error = Commit::of(parts).send().await.unwrap_err();
        assert_eq!((error.applied(), error.action()), (Applied::No, Action::Stop));
        assert!(error.to_string().contains(expected), "{error}");
    }
    assert!(commit_ids(&fake).is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_unknown_reason_says_what_its_details_say() {
    let fake = Fake::start();
    let worker = fake.worker().await;
    fake.fate(Fate::Refuse("MOON_PHASE", vec![("applied", "no".into())]));
    let error = worker.commit(Checkpoint::at("10")).await.unwrap_err();
    assert_eq!((error.reason(), error.applied(), error.action()), (None, Applied::No, Action::Stop));
    assert_eq!(error.refusal().unwrap().name(), "MOON_PHASE");
    worker.commit(Checkpoint::at("20")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn after_a_head_mismatch_a_resync_puts_the_worker_right() {
    let fake = Fake::start();
    let worker = fake.worker().await;
    worker.commit(Checkpoint::at("10")).await.unwrap();
    fake.script(|state| state.branches.get_mut("main").unwrap().1.clear());
    let error = worker.commit(Checkpoint::at("20")).await.unwrap_err();
    assert_eq!((error.reason(), error.action()), (Some(Reason::HeadMismatch), Action::Resync));
    assert_eq!(error.actual_head(), Some(0));
    assert_eq!(worker.resync().await.unwrap(), None);
    assert_eq!(worker.commit(Checkpoint::at("20")).await.unwrap().sequence, 1);
}

#[tokio::test(start_paused = true)]
async fn a_large_commit_goes_beside_the_stream() {
    let fake = Fake::start();
    let worker = fake.worker().await;
    worker.commit(Checkpoint::at("1").state(vec![7; 3 << 19])).await.unwrap();
    assert_eq!(fake.see(|state| (state.commits.len(), state.messages.len())), (1, 0));
    worker.commit(Checkpoint::at("2")).await.unwrap();
    assert_eq!(fake.see(|state| (state.commits.len(), state.messages.len())), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn commits_that_queue_up_travel_together() {
    const WORKERS: usize = 200;
    let fake = Fake::start();
    let pipeline = fake.client().pipeline(PIPELINE);
    let mut tasks = tokio::task::JoinSet::new();
    let ready = Arc::new(tokio::sync::Barrier::new(WORKERS));
    for number in 0..WORKERS {
        let (branch, ready) = (pipeline.branch(format!("b{number}")), ready.clone());
        tasks.spawn(async move {
            let worker = branch.resume(fresh()).await.unwrap();
            ready.wait().await;
            worker.commit(Checkpoint::at("1")).await.unwrap();
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let messages = fake.see(|state| state.messages.iter().filter(|commits| **commits > 0).count());
    assert!(messages < WORKERS / 10, "{WORKERS} commits in {messages} messages");
}

/// The server of these tests takes messages of 2 MiB, the least that a real one can be set to.
#[tokio::test(start_paused = true)]
async fn what_travels_together_is_never_more_than_any_server_takes() {
    const BRANCHES: usize = 128;
    let fake = Fake::start();
    let gate = Arc::new(Semaphore::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    let client = fake.client();
    let first = client.pipeline(PIPELINE).branch("first").resume(fresh()).await.unwrap();
    fake.fate(Fate::Hold(gate.clone()));
    tasks.spawn(async move { first.commit(Checkpoint::at("1")).await });
    // Hardly any payload: what takes the room is all the rest.
    for number in 0..80 {
        let pipeline = client.pipeline(format!("{:n>128}/{number:p>128}", ""));
        tasks.spawn(async move {
            let mut workers = Vec::new();
            for branch in 0..BRANCHES {
                workers.push(pipeline.branch(format!("{number}-{branch:b>120}")).resume(fresh()).await.unwrap());
            }
            let checkpoint = || Checkpoint::at("1").rows_in(u64::MAX).rows_out(u64::MAX).schema(vec![7; 64]);
            Commit::of(workers.iter().map(|worker| (worker, checkpoint()))).send().await
        });
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    gate.add_permits(1);
    while let Some(done) = tasks.join_next().await {
        done.unwrap().unwrap();
    }
    let messages = fake.see(|state| state.messages.clone());
    assert_eq!(messages.iter().sum::<usize>(), 81, "each once: {messages:?}");
    assert!(messages.iter().any(|commits| *commits > 10), "{messages:?}");
}
