//! Who did what, when and why.

use fencepost::Reason;
use fencepost::v1::audit_record::Action;
use fencepost::v1::{
    AuditRecord, DeleteSavepointRequest, ForkRequest, ListAuditRequest, Policy, ReleaseRequest, ResumeRequest, Takeover,
};

use crate::limits::{bad_names, bad_pipelines, check, fault, name_faults};
use crate::support::{ORDERS, Store, commit, keep, lease, name, refusal, resume_as, rewind};

fn audit(branch: &str) -> ListAuditRequest {
    ListAuditRequest { pipeline: ORDERS.to_owned(), branch: branch.to_owned(), ..ListAuditRequest::default() }
}

async fn records(store: &Store, request: ListAuditRequest) -> Vec<AuditRecord> {
    store.pipelines().list_audit(request).await.unwrap().into_inner().records
}

/// A store in which everything that is listed was done once.
async fn with_everything() -> Store {
    let store = Store::open().await;
    store.pipelines().set_policy(keep(Policy { keep_last: 7, ..Policy::default() })).await.unwrap();
    let old = store.with_history("main", 3).await;
    let force =
        ResumeRequest { takeover: Takeover::Force.into(), reason: "stuck".to_owned(), ..resume_as("loader-2", "main") };
    let token = store.resume(force).await.unwrap().token;
    assert!(token > old);
    store.commit(commit("main", token, 4)).await.unwrap();
    store.create_savepoint(name("release", "main", 2)).await.unwrap();
    store.rewind(rewind("main", 4, 2)).await.unwrap();
    let fork = ForkRequest {
        source_pipeline: ORDERS.to_owned(),
        source_branch: "main".to_owned(),
        pipeline: ORDERS.to_owned(),
        branch: "replay".to_owned(),
        actor: "ops".to_owned(),
        ..ForkRequest::default()
    };
    store.pipelines().fork(fork).await.unwrap();
    let delete = DeleteSavepointRequest {
        pipeline: ORDERS.to_owned(),
        name: "release".to_owned(),
        actor: "ops".to_owned(),
        ..DeleteSavepointRequest::default()
    };
    store.pipelines().delete_savepoint(delete).await.unwrap();
    let token = store.take("other").await;
    let release = ReleaseRequest { cluster: None, lease: Some(lease("other", token)) };
    store.leases().release(release).await.unwrap();
    store.resume(resume_as("loader-3", "other")).await.unwrap();
    let elsewhere = ResumeRequest { pipeline: "prod/elsewhere".to_owned(), ..resume_as("loader-9", "main") };
    store.resume(elsewhere).await.unwrap();
    store
}

#[tokio::test]
async fn everything_that_changed_who_may_write_or_what_is_kept_is_listed_newest_first() {
    let store = with_everything().await;
    let records = records(&store, audit("")).await;
    let told: Vec<(Action, &str, &str, &str, u64)> = records
        .iter()
        .map(|it| (it.action(), it.branch.as_str(), it.actor.as_str(), it.reason.as_str(), it.sequence))
        .collect();
    assert_eq!(
        told,
        [
            (Action::LeaseGranted, "other", "loader-3", "", 0),
            (Action::LeaseGranted, "other", "loader-1", "", 0),
            (Action::SavepointDeleted, "main", "ops", "", 2),
            (Action::Forked, "replay", "ops", "", 2),
            (Action::Rewound, "main", "ops", "bad input", 2),
            (Action::SavepointCreated, "main", "ops", "before the release", 2),
            (Action::LeaseTakenOver, "main", "loader-2", "stuck", 3),
            (Action::LeaseGranted, "main", "loader-1", "", 0),
            (Action::PolicySet, "", "", "", 0),
        ]
    );
    assert!(records.is_sorted_by(|a, b| a.lsn > b.lsn));
    assert!(records.iter().all(|it| it.at_ms > 0));
    let detail = |action: Action| records.iter().find(|it| it.action() == action).unwrap().detail.as_str();
    for (action, part) in [
        (Action::Rewound, "checkpoints 3 to 4 were abandoned; 'loader-2' had the branch"),
        (Action::LeaseTakenOver, "by force"),
        (Action::Forked, "from checkpoint 2 of branch 'main' of 'prod/orders'"),
        (Action::SavepointDeleted, "savepoint 'release'"),
        (Action::PolicySet, "keep_last 7"),
    ] {
        assert!(detail(action).contains(part), "{action:?}: {}", detail(action));
    }
    let minted = records.iter().filter(|it| it.token > 0).count();
    assert_eq!(minted, 5, "four grants and a rewind");
}

#[tokio::test]
async fn a_branch_is_listed_alone_and_every_page_goes_on_where_the_last_ended() {
    let store = with_everything().await;
    let all = records(&store, audit("")).await;
    let main: Vec<AuditRecord> = all.iter().filter(|it| it.branch == "main").cloned().collect();
    assert_eq!(records(&store, audit("main")).await, main);
    for page_size in [1, 2, 4, 100] {
        let (mut found, mut before_lsn) = (Vec::new(), 0);
        loop {
            let request = ListAuditRequest { before_lsn, page_size, ..audit("") };
            let page = store.pipelines().list_audit(request).await.unwrap().into_inner();
            found.extend(page.records);
            before_lsn = page.next_before_lsn;
            if before_lsn == 0 {
                break;
            }
        }
        assert_eq!(found, all, "pages of {page_size}");
    }
}

#[tokio::test]
async fn a_malformed_question_about_the_audit_is_refused_by_field() {
    let store = Store::open().await;
    refusal(&store.pipelines().list_audit(audit("")).await.unwrap_err(), Reason::StateMissing);
    store.take("main").await;
    let mut faults =
        vec![fault("page too large", Reason::InvalidField, "page_size", |request: &mut ListAuditRequest| {
            request.page_size = 1_001;
        })];
    faults.extend(name_faults(bad_pipelines(), "pipeline", |request: &mut ListAuditRequest, it| request.pipeline = it));
    let not_empty = bad_names().into_iter().filter(|name| !name.is_empty()).collect();
    faults.extend(name_faults(not_empty, "branch", |request: &mut ListAuditRequest, it| request.branch = it));
    check("ListAudit", audit(""), faults, async |request| store.pipelines().list_audit(request).await).await;
}
