//! `docs/errors.md` has one section for each reason, and says what the code says.

use std::collections::BTreeMap;

use fencepost::v1::{
    AbortBarrierRequest, ClusterRef, CommitRequest, GetStatusRequest, ResumeRequest, TailRequest, Takeover,
};
use fencepost::{Action, Reason};
use tonic::{Code, Status};

use crate::barrier::{abort, arrive, open, stage_and_arrive, try_abort, try_arrive, try_open};
use crate::merge::{merge, try_merge, with_output};
use crate::support::{Store, commit, refusal, resume, resume_as, stage};

const PAGE: &str = include_str!("../../docs/errors.md");

/// The sections of the page by their titles, those about reasons only.
fn sections() -> BTreeMap<&'static str, &'static str> {
    let sections = PAGE.split("\n## ").skip(1).map(|section| section.split_once('\n').expect("a title ends its line"));
    sections.filter(|(title, _)| title.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')).collect()
}

fn code(code: Code) -> &'static str {
    match code {
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        other => panic!("no reason has the code {other:?}"),
    }
}

fn action(action: Action) -> &'static str {
    match action {
        Action::Retry => "retry",
        Action::ResolveThenRetry => "resolve, then retry",
        Action::Resync => "resync",
        Action::Reacquire => "reacquire",
        Action::Stop => "stop",
        Action::Operator => "operator",
    }
}

#[test]
fn every_reason_has_its_section_and_no_section_is_of_another() {
    let mut names: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    names.sort_unstable();
    assert_eq!(sections().into_keys().collect::<Vec<_>>(), names);
}

#[test]
fn every_section_says_what_the_code_says() {
    let sections = sections();
    for reason in Reason::ALL {
        let section = sections[reason.as_str()];
        let facts = format!(
            "gRPC code `{}`, applied: **{}**, action: **{}**",
            code(reason.code()),
            reason.applied().as_str(),
            action(reason.action())
        );
        assert!(section.contains(&facts), "the section on {reason} has to say: {facts}");
    }
}

#[test]
fn every_section_says_what_it_means_what_to_do_and_shows_a_message() {
    for (title, section) in sections() {
        let parts = section.matches("\n**What to do.**").count();
        assert_eq!(parts, 1, "the section on {title} says once what to do");
        let examples: Vec<&str> = section.lines().filter_map(|line| line.strip_prefix("> ")).collect();
        assert_eq!(examples.len(), 1, "the section on {title} shows one message");
        assert!(section.trim().len() > examples[0].len() + 200, "the section on {title} says what it means");
    }
}

#[test]
fn every_action_is_explained() {
    let actions =
        [Action::Retry, Action::ResolveThenRetry, Action::Resync, Action::Reacquire, Action::Stop, Action::Operator];
    for of in actions.map(action) {
        assert!(PAGE.contains(&format!("| {of} |")), "the page explains what '{of}' is");
    }
}

/// The words of a message, without what differs from case to case: numbers, and what stands in quotes.
fn words(message: &str) -> String {
    let unquoted: String = message.split('\'').step_by(2).collect::<Vec<_>>().join("'...'");
    let mut words = String::new();
    for c in unquoted.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }) {
        if c != '0' || !words.ends_with('0') {
            words.push(c);
        }
    }
    words
}

/// Checks that the example of a section is what the server really says.
#[track_caller]
pub(crate) fn is_documented(reason: Reason, message: &str) {
    let sections = sections();
    let example = sections[reason.as_str()].lines().find_map(|line| line.strip_prefix("> ")).expect("one example");
    assert_eq!(words(example), words(message), "the example of {reason} in docs/errors.md is not what is said");
}

/// The examples that can be brought about at will are held against what the server says.
#[tokio::test]
async fn the_examples_are_what_the_server_says() {
    let store = Store::open().await;
    let check = |result: Result<(), Status>, reason: Reason| {
        let status = result.expect_err(reason.as_str());
        refusal(&status, reason);
        is_documented(reason, status.message());
    };
    check(store.resume(ResumeRequest { on_missing: 0, ..resume("main") }).await.map(drop), Reason::StateMissing);
    let old = store.take("main").await;
    let held = async |holder: &str| store.resume(resume_as(holder, "main")).await.map(drop);
    check(held("loader-2").await, Reason::LeaseHeld);
    check(store.commit(commit("main", old + 1, 1)).await.map(drop), Reason::StoreRolledBack);
    let reason = "stuck".to_owned();
    let force = ResumeRequest { takeover: Takeover::Force.into(), reason, ..resume_as("loader-2", "main") };
    let token = store.resume(force).await.unwrap().token;
    check(store.commit(commit("main", old, 1)).await.map(drop), Reason::Fenced);
    let first = commit("main", token, 1);
    store.commit(first.clone()).await.unwrap();
    check(store.commit(commit("main", token, 3)).await.map(drop), Reason::HeadMismatch);
    check(
        store.commit(CommitRequest { commit_id: first.commit_id, ..commit("main", token, 2) }).await.map(drop),
        Reason::CommitIdReused,
    );
    check(
        store.commit(CommitRequest { not_after_ms: 1, ..commit("main", token, 2) }).await.map(drop),
        Reason::NotAfterPassed,
    );
    let mut large = commit("main", token, 2);
    large.branches[0].checkpoint.as_mut().unwrap().position = vec![0; (64 << 10) + 1].into();
    check(store.commit(large).await.map(drop), Reason::TooLarge);
    check(store.resume(resume(".hidden")).await.map(drop), Reason::InvalidName);
    check(store.resume(ResumeRequest { ttl_ms: 999, ..resume("main") }).await.map(drop), Reason::InvalidField);
    let tail = async |from_lsn| store.facts(TailRequest { from_lsn, ..TailRequest::default() }).await.map(drop);
    check(tail(1).await, Reason::Compacted);
    check(tail(1_000 << 16).await, Reason::FutureLsn);
    let at_generation = async |generation| {
        let header = store.cluster().get_status(GetStatusRequest {}).await.unwrap().into_inner().header.unwrap();
        let cluster = Some(ClusterRef { cluster_id: header.cluster_id, generation });
        store.resume(ResumeRequest { cluster, ..resume("main") }).await.map(drop)
    };
    check(at_generation(0).await, Reason::StaleGeneration);
}

#[tokio::test]
async fn the_examples_about_what_is_staged_and_barriers_are_what_the_server_says() {
    let store = Store::open().await;
    let check = |status: Status, reason: Reason| {
        refusal(&status, reason);
        is_documented(reason, status.message());
    };
    let (ewr, jfk) = (store.take("ewr").await, store.resume(resume_as("loader-2", "jfk")).await.unwrap().token);
    store.stage(stage("jfk", jfk, 1, "tx-1")).await.unwrap();
    check(store.commit(commit("jfk", jfk, 1)).await.unwrap_err(), Reason::StagedPending);
    try_open(&store, open("day-1", &["ewr"])).await.unwrap();
    stage_and_arrive(&store, "day-1", "ewr", ewr).await;
    store.stage(stage("ewr", ewr, 2, "tx-2")).await.unwrap();
    check(try_arrive(&store, arrive("day-1", "ewr", ewr, "tx-2")).await.unwrap_err(), Reason::BarrierClosed);
    try_open(&store, open("day-2", &["ewr", "jfk", "lga"])).await.unwrap();
    try_arrive(&store, arrive("day-2", "ewr", ewr, "tx-2")).await.unwrap();
    try_abort(&store, AbortBarrierRequest { reason: "the deadline passed".to_owned(), ..abort("day-2") })
        .await
        .unwrap();
    check(try_arrive(&store, arrive("day-2", "jfk", jfk, "tx-1")).await.unwrap_err(), Reason::BarrierAborted);
    let day = store.take("day").await;
    try_merge(&store, merge(day, 1, &[("ewr", 1)])).await.unwrap();
    let diverged = with_output(&[1, 2], merge(day, 2, &[("ewr", 1)]));
    check(try_merge(&store, diverged).await.unwrap_err(), Reason::MergeDiverged);
}
