//! What a checkpoint was made by and from, compared with whoever resumes.

use fencepost::Reason;
use fencepost::v1::audit_record::Action;
use fencepost::v1::{
    ClusterRef, CommitRequest, Fingerprint, ListAuditRequest, ReleaseRequest, ResumeRequest, Takeover,
};

use crate::support::{ORDERS, PATIENCE, Store, commit, lease, refusal, refused_field, resume, resume_as};

fn scope<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<Fingerprint> {
    pairs.into_iter().map(|(name, value)| Fingerprint { name: name.to_owned(), value: value.to_owned() }).collect()
}

fn made_by(branch: &str, token: u64, sequence: u64, by: Vec<Fingerprint>) -> CommitRequest {
    let mut request = commit(branch, token, sequence);
    request.branches[0].checkpoint.as_mut().unwrap().scope = by;
    request
}

fn resume_by(holder: &str, own: Vec<Fingerprint>, accept: &[&str]) -> ResumeRequest {
    let accept_scope = accept.iter().map(|name| (*name).to_owned()).collect();
    ResumeRequest { scope: own, accept_scope, ..resume_as(holder, "main") }
}

/// A store whose branch `main` has a head of this scope, and is free.
async fn left_by(by: Vec<Fingerprint>) -> Store {
    let store = Store::open().await;
    let token = store.take("main").await;
    store.commit(made_by("main", token, 1, by)).await.unwrap();
    let release = ReleaseRequest { cluster: None, lease: Some(lease("main", token)) };
    store.leases().release(release).await.unwrap();
    store
}

#[tokio::test]
async fn a_scope_is_saved_with_the_checkpoint_and_the_same_one_resumes() {
    let by = || scope([("code", "v1"), ("config", "c7")]);
    let store = left_by(by()).await;
    let reordered = by().into_iter().rev().collect();
    let resumed = store.resume(resume_by("loader-2", reordered, &[])).await.unwrap();
    assert_eq!(resumed.head.unwrap().checkpoint.unwrap().scope, by());
}

#[tokio::test]
async fn a_difference_is_refused_by_name_with_both_values_before_anybody_is_fenced() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let by = scope([("code", "v1"), ("config", "c7"), ("source", "s1")]);
    store.commit(made_by("main", token, 1, by.clone())).await.unwrap();
    let own = scope([("code", "v2"), ("host", "h3"), ("source", "s1")]);
    let mut force = resume_by("loader-2", own, &[]);
    (force.takeover, force.reason) = (Takeover::Force.into(), "stuck".to_owned());
    let refused = store.resume(force.clone()).await.unwrap_err();
    let metadata = refusal(&refused, Reason::ScopeMismatch);
    assert_eq!((metadata["names"].as_str(), metadata["branch"].as_str()), ("code,config,host", "main"));
    assert_eq!(metadata["sequence"], "1");
    for told in ["code is 'v1' there and 'v2' here", "config is 'c7' there and absent here", "host is absent there"] {
        assert!(refused.message().contains(told), "{refused:?}");
    }
    assert!(refused.message().contains("--accept-scope"), "{refused:?}");
    store.commit(made_by("main", token, 2, by)).await.expect("nobody was fenced");

    // Each of the names has to be accepted.
    let accept = |names: &[&str]| {
        let accept_scope = names.iter().map(|name| (*name).to_owned()).collect();
        ResumeRequest { accept_scope, ..force.clone() }
    };
    let metadata = refusal(&store.resume(accept(&["code", "host"])).await.unwrap_err(), Reason::ScopeMismatch);
    assert_eq!(metadata["names"], "config");
    store.resume(accept(&["code", "config", "host", "unrelated"])).await.unwrap();
    let audit = ListAuditRequest { pipeline: ORDERS.to_owned(), ..ListAuditRequest::default() };
    let newest = store.pipelines().list_audit(audit).await.unwrap().into_inner().records.remove(0);
    assert_eq!(newest.action(), Action::LeaseTakenOver);
    assert!(newest.detail.ends_with("another scope was meant: code, config, host, unrelated"), "{}", newest.detail);
}

#[tokio::test]
async fn a_resume_without_a_scope_is_not_compared_and_one_without_a_head_neither() {
    let store = left_by(scope([("code", "v1")])).await;
    let token = store.take("main").await;
    store.commit(commit("main", token, 2)).await.unwrap();
    store.leases().release(ReleaseRequest { cluster: None, lease: Some(lease("main", token)) }).await.unwrap();
    // The head has none, so the name is on one side only.
    let own = || scope([("code", "v1")]);
    refusal(&store.resume(resume_by("loader-2", own(), &[])).await.unwrap_err(), Reason::ScopeMismatch);
    store.resume(resume_by("loader-2", own(), &["code"])).await.unwrap();
    store.resume(ResumeRequest { scope: own(), ..resume("fresh") }).await.unwrap();
}

#[tokio::test]
async fn a_retry_of_a_resume_with_a_scope_gets_the_same_token() {
    let store = left_by(scope([("code", "v1")])).await;
    let request = resume_by("loader-2", scope([("code", "v2")]), &["code"]);
    let first = store.resume(request.clone()).await.unwrap();
    assert_eq!(store.resume(request).await.unwrap().token, first.token);
}

#[tokio::test]
async fn the_cluster_is_compared_before_the_scope() {
    let store = left_by(scope([("code", "v1")])).await;
    let cluster = Some(ClusterRef { cluster_id: "11111111-1111-4111-8111-111111111111".to_owned(), generation: 1 });
    let astray = ResumeRequest { cluster, ..resume_by("loader-2", scope([("code", "v2")]), &[]) };
    refusal(&store.resume(astray).await.unwrap_err(), Reason::WrongCluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waited_is_compared_with_the_head_that_it_gets() {
    let store = Store::open().await;
    let token = store.take("main").await;
    store.commit(made_by("main", token, 1, scope([("code", "v1")]))).await.unwrap();
    let wait = |holder: &str| {
        let mut leases = store.leases();
        let request = ResumeRequest { wait_ms: 3_600_000, ..resume_by(holder, scope([("code", "v1")]), &[]) };
        tokio::spawn(async move { leases.resume(request).await })
    };
    // The scope of the head that it saw when it came was right.
    let waiting = wait("loader-2");
    store.settle().await;
    store.commit(made_by("main", token, 2, scope([("code", "v2")]))).await.unwrap();
    store.leases().release(ReleaseRequest { cluster: None, lease: Some(lease("main", token)) }).await.unwrap();
    let refused = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap_err();
    let metadata = refusal(&refused, Reason::ScopeMismatch);
    assert_eq!(metadata["sequence"], "2");

    // And here that of the later one is.
    let token = store.take("main").await;
    store.commit(made_by("main", token, 3, scope([("code", "v1")]))).await.unwrap();
    let waiting = wait("loader-3");
    store.settle().await;
    store.commit(made_by("main", token, 4, scope([("code", "v1")]))).await.unwrap();
    store.leases().release(ReleaseRequest { cluster: None, lease: Some(lease("main", token)) }).await.unwrap();
    let resumed = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap().into_inner();
    assert_eq!(resumed.head.unwrap().sequence, 4);
}

#[tokio::test]
async fn a_scope_that_is_ill_formed_is_refused_by_its_field() {
    let store = left_by(Vec::new()).await;
    let names: Vec<String> = (0..33).map(|number| format!("name-{number}")).collect();
    let many = || scope(names[..17].iter().map(|name| (name.as_str(), "v")));
    let bad = [
        (many(), Reason::TooLarge, "scope"),
        (scope([("a b", "v")]), Reason::InvalidName, "scope[0].name"),
        (scope([("a", "v"), ("b", "")]), Reason::InvalidName, "scope[1].value"),
        (scope([("a", "v"), ("a", "w")]), Reason::InvalidField, "scope[1].name"),
    ];
    for (bad, reason, field) in bad {
        refused_field(&store.resume(resume_by("loader-2", bad.clone(), &[])).await.unwrap_err(), reason, field);
        let committed = store.commit(made_by("main", 1, 2, bad)).await.unwrap_err();
        refused_field(&committed, reason, &format!("branches[0].checkpoint.{field}"));
    }
    let accepted: Vec<&str> = names.iter().map(String::as_str).collect();
    let refused = async |accept| store.resume(resume_by("loader-2", Vec::new(), accept)).await.unwrap_err();
    refused_field(&refused(&accepted[..]).await, Reason::TooLarge, "accept_scope");
    refused_field(&refused(&["good", "-bad"][..]).await, Reason::InvalidName, "accept_scope[1]");
}

#[tokio::test]
async fn however_much_differs_the_message_stays_short_and_the_names_are_all_there() {
    let value = "v".repeat(128);
    let names: Vec<String> = (0..32).map(|number| format!("{number:02}{}", "n".repeat(126))).collect();
    let side = |range: std::ops::Range<usize>| scope(names[range].iter().map(|name| (name.as_str(), value.as_str())));
    let store = left_by(side(0..16)).await;
    let refused = store.resume(resume_by("loader-2", side(16..32), &[])).await.unwrap_err();
    let metadata = refusal(&refused, Reason::ScopeMismatch);
    assert_eq!(metadata["names"], names.join(","));
    assert!(refused.message().contains("and 28 more"), "{refused:?}");
}
