//! Policies, savepoints, rewinds and forks: repeated where that is harmless, and never done twice.

use std::time::Duration;

use fencepost_client::{Applied, Branch, Error, Policy, Reason, RewindTo, Token};

use crate::fake::{CallFate, Fake, PIPELINE};
use crate::fake_history::HistoryFate;

/// The branch `main` at 5.
fn branch(fake: &Fake) -> Branch {
    fake.with_head(5);
    fake.branch("main")
}

#[tokio::test(start_paused = true)]
async fn a_policy_is_replaced_and_read_back() {
    let fake = Fake::start();
    let pipeline = fake.client().pipeline(PIPELINE);
    fake.history_fate(HistoryFate::LoseAnswer);
    let policy = Policy::new().keep_last(20).keep_for(Duration::from_hours(168)).audit_for(Duration::from_secs(9));
    assert_eq!(pipeline.set_policy(policy).actor("ada").reason("audit").send().await.unwrap(), policy);
    assert_eq!(pipeline.policy().await.unwrap(), policy);
    assert_eq!(fake.see(|state| state.history.policy.keep_for_ms), 604_800_000);
}

#[tokio::test(start_paused = true)]
async fn a_savepoint_whose_answer_was_lost_names_the_head_of_the_first_attempt() {
    let fake = Fake::start();
    fake.with_head(5);
    let pipeline = fake.client().pipeline(PIPELINE);
    fake.history_fate(HistoryFate::LoseAnswerAndMoveTo(6));
    let made = pipeline.create_savepoint("before-v2").actor("ada").send().await.unwrap();
    assert_eq!((made.sequence, made.branch.as_str(), made.actor.as_str()), (5, "main", "ada"));
    let error = pipeline.create_savepoint("before-v2").sequence(3).send().await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::Exists));
    pipeline.create_savepoint("a").sequence(1).send().await.unwrap();
    let names: Vec<String> = pipeline.savepoints().all().await.unwrap().into_iter().map(|it| it.name).collect();
    assert_eq!(names, ["a", "before-v2"]);
}

#[tokio::test(start_paused = true)]
async fn a_deletion_whose_answer_was_lost_is_no_missing_savepoint() {
    let fake = Fake::start();
    let pipeline = fake.client().pipeline(PIPELINE);
    pipeline.create_savepoint("a").sequence(1).send().await.unwrap();
    fake.history_fate(HistoryFate::LoseAnswer);
    pipeline.delete_savepoint("a").send().await.unwrap();
    assert_eq!(pipeline.delete_savepoint("a").send().await.unwrap_err().reason(), Some(Reason::StateMissing));
}

#[tokio::test(start_paused = true)]
async fn a_rewind_says_what_it_did() {
    let fake = Fake::start();
    let rewound = branch(&fake).rewind_to(RewindTo::Sequence(2)).reason("drill").actor("ada").send().await.unwrap();
    assert_eq!((rewound.from, rewound.sequence), (5, 2), "the head was looked up");
    assert_eq!(rewound.fenced, Some(("loader-1".to_owned(), Token::from_u64(7))));
    assert_eq!(rewound.token, Token::new(1, 1).unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_rewind_whose_answer_was_lost_is_found_in_the_log_and_not_done_again() {
    // Also where a worker has resumed meanwhile and moved the head to where it was: its work is not taken away.
    for fate in [HistoryFate::LoseAnswer, HistoryFate::LoseAnswerAndMoveTo(5)] {
        let fake = Fake::start();
        let branch = branch(&fake);
        fake.history_fate(fate);
        let rewound = branch.rewind_to(RewindTo::Sequence(4)).reason("drill").expected_head(5).send().await.unwrap();
        assert_eq!((rewound.from, rewound.sequence, rewound.token), (5, 4, Token::new(1, 1).unwrap()));
        assert_eq!(rewound.fenced, Some(("loader-1".to_owned(), Token::from_u64(7))));
        assert_eq!(fake.see(|state| state.history.asked), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_rewind_that_never_arrived_is_sent_again() {
    let fake = Fake::start();
    let branch = branch(&fake);
    // The same was done before, and is not mistaken for it.
    branch.rewind_to(RewindTo::Sequence(4)).reason("drill").send().await.unwrap();
    fake.script(|state| state.history.head = 5);
    fake.history_fate(HistoryFate::Call(CallFate::Break));
    let rewound = branch.rewind_to(RewindTo::Sequence(4)).reason("drill").send().await.unwrap();
    assert_eq!(rewound.token, Token::new(1, 2).unwrap());
    assert_eq!(fake.see(|state| state.history.head), 4);
}

#[tokio::test(start_paused = true)]
async fn a_rewind_of_somebody_else_is_no_success() {
    let fake = Fake::start();
    let branch = branch(&fake);
    fake.client().pipeline(PIPELINE).create_savepoint("good").sequence(4).send().await.unwrap();
    branch.rewind_to(RewindTo::Savepoint("good".to_owned())).actor("bob").reason("drill").send().await.unwrap();
    fake.history_fate(HistoryFate::Call(CallFate::Break));
    let mine = branch.rewind_to(RewindTo::Savepoint("good".to_owned())).actor("ada").reason("drill").expected_head(5);
    let error = mine.send().await.unwrap_err();
    assert_eq!((error.reason(), error.actual_head()), (Some(Reason::HeadMismatch), Some(4)));
}

#[tokio::test(start_paused = true)]
async fn a_rewind_that_nobody_answers_is_unknown() {
    let fake = Fake::start();
    let branch = branch(&fake);
    fake.history_fate(HistoryFate::Call(CallFate::Swallow));
    let error = branch.rewind_to(RewindTo::Sequence(4)).reason("drill").send().await.unwrap_err();
    assert_eq!(error.applied(), Applied::Unknown, "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_rewind_without_a_reason_is_not_sent() {
    let fake = Fake::start();
    let error = branch(&fake).rewind_to(RewindTo::Sequence(4)).send().await.unwrap_err();
    assert!(matches!(error, Error::Invalid { field: "reason", .. }), "{error}");
    assert_eq!(fake.see(|state| state.history.asked), 0);
}

#[tokio::test(start_paused = true)]
async fn a_fork_whose_answer_was_lost_is_its_own() {
    let fake = Fake::start();
    let branch = branch(&fake);
    fake.history_fate(HistoryFate::LoseAnswer);
    let forked = branch.fork_to("retry").sequence(3).actor("ada").send().await.unwrap();
    assert_eq!((forked.source_sequence, forked.lsn.as_u64(), forked.branch.name()), (3, 2, "retry"));
    // Another of that name is not, whether its answer is lost or not.
    for fate in [None, Some(HistoryFate::Call(CallFate::Break))] {
        fake.script(|state| state.history.fates.extend(fate));
        let error = branch.fork_to("retry").sequence(3).actor("ada").send().await.unwrap_err();
        assert_eq!((error.reason(), error.applied()), (Some(Reason::Exists), Applied::No));
    }
    let other = branch.fork_to("main-2").pipeline("test/other").savepoint("x").send().await.unwrap();
    assert_eq!((other.branch.pipeline(), other.source_sequence), ("test/other", 5));
}

#[tokio::test(start_paused = true)]
async fn an_audit_pages_by_itself_newest_first() {
    let fake = Fake::start();
    let lsns = |records: Vec<fencepost_client::AuditRecord>| records.into_iter().map(|it| it.lsn).collect::<Vec<_>>();
    assert_eq!(lsns(fake.client().pipeline(PIPELINE).audit().all().await.unwrap()), [5, 4, 3, 2, 1]);
    let of_branch = branch(&fake).audit().all().await.unwrap();
    assert!(of_branch.iter().all(|record| record.branch == "main"));
}
