//! Leases: renewed together, counted from the sending, lost once and for good or only out of time.

use std::time::Duration;

use fencepost_client::{Checkpoint, Error, Loss, Reason, Resume, Takeover, Worker};
use tokio::time::Instant;

use crate::fake::{CallFate, Fake, PIPELINE, TTL_MS, fresh};

const TTL: Duration = Duration::from_millis(TTL_MS);

#[tokio::test(start_paused = true)]
async fn one_message_renews_all_leases_of_a_client() {
    let fake = Fake::start();
    let pipeline = fake.client().pipeline(PIPELINE);
    let mut workers = Vec::new();
    for name in ["a", "b", "c"] {
        workers.push(pipeline.branch(name).resume(fresh()).await.unwrap());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    fake.until(|state| state.keep_alives.len() == 2).await;
    for tokens in fake.see(|state| state.keep_alives.clone()) {
        assert_eq!(tokens.len(), 3);
    }
    tokio::time::sleep(TTL * 20).await;
    assert!(workers.iter().all(|worker| worker.validity() > TTL / 2));
    assert!(fake.see(|state| state.keep_alives.len()) <= 63, "one each third of a TTL");
}

#[tokio::test(start_paused = true)]
async fn validity_is_counted_from_the_sending_of_what_was_last_answered() {
    let fake = Fake::start();
    let begun = Instant::now();
    let worker = fake.worker().await;
    fake.script(|state| state.keep_alive_fates.extend(vec![CallFate::Swallow; 1_000]));
    assert_eq!(worker.lost().await, Loss::Expired);
    assert_eq!(begun.elapsed().as_millis() / 100, u128::from(TTL_MS) * 9 / 10 / 100, "nine tenths of the TTL");
}

fn seconds(time: Duration) -> u64 {
    (time + Duration::from_millis(500)).as_secs()
}

/// Swallows all keepalives, so that nothing but the resume counts.
async fn resumed_after(fate: impl IntoIterator<Item = CallFate>) -> (Fake, Worker) {
    let fake = Fake::start();
    fake.script(|state| {
        state.resume_fates.extend(fate);
        state.keep_alive_fates.extend(vec![CallFate::Swallow; 1_000]);
    });
    let worker = fake.branch("main").resume(fresh().wait(Duration::from_mins(2))).await.unwrap();
    (fake, worker)
}

#[tokio::test(start_paused = true)]
async fn a_resume_counts_from_the_sending_of_the_attempt_that_was_answered() {
    let second = Duration::from_secs(1);
    // Whether it waited or not, and whatever came before.
    for fates in [
        vec![CallFate::After(second * 8)],
        vec![CallFate::BreakAfter(second * 60), CallFate::After(second * 8)],
        vec![CallFate::BreakAfter(second), CallFate::BreakAfter(second), CallFate::After(second * 8)],
    ] {
        let (_fake, worker) = resumed_after(fates).await;
        assert_eq!(seconds(worker.validity()), 19, "nine tenths of 30 s, less 8 s");
    }
    let (_fake, worker) = resumed_after([CallFate::BreakAfter(second * 20), CallFate::After(second)]).await;
    assert_eq!(seconds(worker.validity()), 26, "not 27 s: the answer took one");
}

#[tokio::test(start_paused = true)]
async fn a_resume_that_waited_long_is_valid_once_its_first_keepalive_is_answered() {
    let fake = Fake::start();
    fake.script(|state| {
        state.resume_fates.push_back(CallFate::After(TTL * 2));
        state.keep_alive_fates.push_back(CallFate::After(TTL / 20));
    });
    let worker = fake.branch("main").resume(fresh().wait(TTL * 3)).await.unwrap();
    let answered = Instant::now();
    assert_eq!(worker.validity(), Duration::ZERO, "only the server knows when the wait ended");
    let work = worker.run(tokio::time::sleep(TTL * 2));
    let look = async {
        tokio::time::sleep(TTL / 10).await;
        worker.validity()
    };
    let (done, validity) = tokio::join!(work, look);
    assert_eq!(done, Ok(()), "the first keepalive came in time");
    assert!(validity >= TTL * 79 / 100 && validity <= TTL * 8 / 10, "{validity:?}, counted from the keepalive");
    assert!(answered.elapsed() >= TTL * 2);
}

#[tokio::test(start_paused = true)]
async fn a_first_keepalive_has_a_tenth_of_the_ttl_to_be_answered() {
    let (fake, worker) = resumed_after([CallFate::After(TTL * 2)]).await;
    let answered = Instant::now();
    assert_eq!(worker.validity(), Duration::ZERO);
    assert_eq!(worker.run(std::future::pending::<()>()).await, Err(Loss::Expired));
    assert_eq!(answered.elapsed().as_millis() / 10, u128::from(TTL_MS) / 10 / 10);
    assert_eq!(fake.see(|state| state.keep_alives.len()), 1, "sent at once");
}

#[tokio::test(start_paused = true)]
async fn an_applied_commit_counts_as_a_sign_of_life() {
    let fake = Fake::start();
    let worker = fake.worker().await;
    fake.script(|state| state.keep_alive_fates.extend(vec![CallFate::Swallow; 1_000]));
    tokio::time::sleep(TTL / 2).await;
    worker.commit(Checkpoint::at("1")).await.unwrap();
    assert!(worker.validity() > TTL * 8 / 10);
}

#[tokio::test(start_paused = true)]
async fn an_expired_worker_may_commit_and_comes_back_to_life() {
    let fake = Fake::start();
    let worker = fake.worker().await;
    fake.script(|state| state.keep_alive_fates.extend(vec![CallFate::Swallow; 1_000]));
    assert_eq!(worker.lost().await, Loss::Expired);
    assert_eq!(worker.validity(), Duration::ZERO);
    worker.commit(Checkpoint::at("1")).await.unwrap();
    assert!(worker.validity() > Duration::ZERO, "nobody had taken the branch");
}

#[tokio::test(start_paused = true)]
async fn a_failed_keepalive_does_not_wait_for_the_next_period() {
    let fake = Fake::start();
    let worker = fake.worker().await;
    fake.script(|state| state.keep_alive_fates.extend(vec![CallFate::Break; 2]));
    fake.until(|state| state.keep_alives.len() == 1).await;
    let failed = Instant::now();
    fake.until(|state| state.keep_alives.len() == 3).await;
    assert!(failed.elapsed() <= TTL / 3, "each retry within a sixth of the TTL");
    drop(worker);
}

#[tokio::test(start_paused = true)]
async fn a_refused_renewal_ends_that_lease_and_no_other() {
    let fake = Fake::start();
    let pipeline = fake.client().pipeline(PIPELINE);
    let replaced = pipeline.branch("a").resume(fresh()).await.unwrap();
    let untouched = pipeline.branch("b").resume(fresh()).await.unwrap();
    fake.replace_worker("a");
    let Loss::Fenced { holder, .. } = replaced.lost().await else { panic!("fenced") };
    assert_eq!(holder.as_deref(), Some("loader-2"));
    assert!(matches!(replaced.commit(Checkpoint::at("1")).await, Err(Error::Lost(_))));
    tokio::time::sleep(TTL * 2).await;
    assert!(untouched.validity() > Duration::ZERO);
    untouched.commit(Checkpoint::at("1")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn run_drops_the_work_when_the_lease_is_lost() {
    struct Dropped<'a>(&'a std::cell::Cell<bool>);
    impl Drop for Dropped<'_> {
        fn drop(&mut self) {
            self.0.set(true);
        }
    }
    let fake = Fake::start();
    let worker = fake.worker().await;
    assert_eq!(worker.run(async { 7 }).await, Ok(7));

    fake.replace_worker("main");
    let dropped = std::cell::Cell::new(false);
    let guard = Dropped(&dropped);
    let outcome = worker
        .run(async {
            let _guard = guard;
            std::future::pending::<()>().await;
        })
        .await;
    assert!(matches!(outcome, Err(Loss::Fenced { .. })));
    assert!(dropped.get());
}

#[tokio::test(start_paused = true)]
async fn dropping_a_worker_stops_renewing_and_releases_nothing() {
    let fake = Fake::start();
    let client = fake.client();
    let worker = client.pipeline(PIPELINE).branch("main").resume(fresh()).await.unwrap();
    worker.commit(Checkpoint::at("1")).await.unwrap();
    let session = fake.see(|state| state.commits[0].session);
    let lost = worker.lost();
    drop(worker);
    fake.until(|state| state.closed_sessions.contains(&session)).await;
    assert_eq!(lost.await, Loss::Expired);
    assert_eq!(fake.see(|state| (state.releases.len(), state.keep_alives.len())), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_release_is_repeated_until_it_is_answered() {
    let fake = Fake::start();
    let worker = fake.worker().await;
    let (token, lost) = (worker.token().as_u64(), worker.lost());
    fake.script(|state| state.release_fates.push_back(CallFate::Break));
    worker.release().await.unwrap();
    assert_eq!(fake.see(|state| state.releases.clone()), [token, token]);
    assert_eq!(lost.await, Loss::Released);
}

#[tokio::test(start_paused = true)]
async fn a_release_whose_answer_was_lost_is_done_although_a_waiter_has_the_branch_by_now() {
    let fake = Fake::start();
    let worker = fake.worker().await;
    let (branch, token, lost) = (fake.branch("main"), worker.token(), worker.lost());
    fake.replace_worker("main");
    fake.script(|state| state.release_fates.push_back(CallFate::Break));
    worker.release().await.unwrap();
    assert_eq!(lost.await, Loss::Released);

    fake.script(|state| state.release_fates.push_back(CallFate::Break));
    branch.release(token).await.unwrap();
    let error = branch.release(token).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::Fenced), "no attempt was lost: the token is simply not the branch's");
    assert_eq!(fake.see(|state| state.releases.len()), 5);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_was_replaced_has_nothing_left_to_release() {
    let fake = Fake::start();
    let worker = fake.worker().await;
    let lost = worker.lost();
    let successor = fake.replace_worker("main");
    worker.release().await.unwrap();
    let Loss::Fenced { by: Some(by), .. } = lost.await else { panic!("fenced") };
    assert_eq!(by.as_u64(), successor);
}

#[tokio::test(start_paused = true)]
async fn a_resume_repeats_itself_under_one_request_id() {
    let fake = Fake::start();
    fake.script(|state| state.resume_fates.extend(vec![CallFate::Break; 2]));
    let resume = fresh().takeover(Takeover::SameHolder).ttl(Duration::from_secs(5)).reason("deploy");
    let worker = fake.branch("main").resume(resume).await.unwrap();
    assert_eq!(worker.ttl(), Duration::from_secs(5));
    let resumes = fake.see(|state| state.resumes.clone());
    assert_eq!(resumes.len(), 3);
    assert!(resumes.iter().all(|resume| resume.request_id == resumes[0].request_id && !resume.request_id.is_empty()));

    fake.branch("main").resume(fresh()).await.unwrap();
    assert_ne!(fake.see(|state| state.resumes[3].request_id.clone()), resumes[0].request_id);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_somebody_holds_is_an_error_that_names_the_holder() {
    let fake = Fake::start();
    let details = vec![("holder", "loader-9".to_owned()), ("remaining_ms", "12000".to_owned())];
    fake.script(|state| state.resume_fates.push_back(CallFate::Refuse(Reason::LeaseHeld, details)));
    let error = fake.branch("main").resume(Resume::new("loader-1").wait(Duration::from_mins(5))).await.unwrap_err();
    assert_eq!((error.reason(), error.holder()), (Some(Reason::LeaseHeld), Some("loader-9")));
    assert_eq!(error.refusal().unwrap().remaining(), Some(Duration::from_secs(12)));
    let asked = fake.see(|state| state.resumes.clone());
    assert_eq!(asked.len(), 1, "the server has done the waiting");
    assert!((299_000..=300_000).contains(&asked[0].wait_ms));
}

#[tokio::test(start_paused = true)]
async fn a_wait_may_be_longer_than_the_request_timeout() {
    let fake = Fake::start();
    fake.script(|state| state.resume_fates.push_back(CallFate::Swallow));
    let begun = Instant::now();
    let wait = Duration::from_mins(2);
    fake.branch("main").resume(Resume::new("loader-1").wait(wait)).await.unwrap_err();
    assert!(begun.elapsed() >= wait);
}

#[tokio::test(start_paused = true)]
async fn a_forced_takeover_needs_a_reason() {
    let fake = Fake::start();
    let error = fake.branch("main").resume(fresh().takeover(Takeover::Force)).await.unwrap_err();
    assert!(error.to_string().contains("reason"), "{error}");
    assert_eq!(fake.see(|state| state.resumes.len()), 0);
}

#[tokio::test(start_paused = true)]
async fn a_hard_resume_refuses_a_damaged_state_and_a_soft_one_has_none_to_check() {
    let fake = Fake::start();
    fake.worker().await.commit(Checkpoint::at("10").state("aggregates")).await.unwrap();
    assert_eq!(fake.worker().await.head().unwrap().state(), "aggregates");

    fake.script(|state| state.damaging = true);
    let error = fake.branch("main").resume("loader-1").await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::IntegrityMismatch));
    assert!(error.to_string().contains("test/orders/main at sequence 1"), "{error}");
    fake.branch("main").resume(Resume::new("loader-1").soft()).await.unwrap();
}
