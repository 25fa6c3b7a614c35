//! Every limit at the limit and one beyond it, and every malformed field: what is refused, under which name, for which
//! field.

use std::sync::atomic::{AtomicU64, Ordering};

use fencepost::v1::{
    BranchCommit, Checkpoint, CommitRequest, GetHeadRequest, Integrity, KeepAliveRequest, LeaseRef,
    ListBranchesRequest, OnMissing, ReleaseRequest, ResumeMode, ResumeRequest, TailRequest, Takeover,
};
use fencepost::{NAME_BYTES_MAX, Reason};
use fencepost_server::config::limits;
use prost::Message as _;
use tonic::Status;

use crate::support::{ORDERS, Store, commit, head, inner_refusal, lease, refused_field, resume};

/// Cases of all tables together, for the curious: `cargo test --test api limits -- --nocapture`.
static CASES: AtomicU64 = AtomicU64::new(0);

fn count(what: &str, cases: usize) {
    let total = CASES.fetch_add(cases as u64, Ordering::Relaxed) + cases as u64;
    println!("{what}: {cases} cases, {total} so far");
}

/// A change to a request, in words and in code.
pub(crate) type Change<R> = (&'static str, Box<dyn Fn(&mut R) + Send + Sync>);

/// A change, why it is refused, and for which field.
pub(crate) type Fault<R> = (Change<R>, Reason, &'static str);

fn change<R>(what: &'static str, apply: impl Fn(&mut R) + Send + Sync + 'static) -> Change<R> {
    (what, Box::new(apply))
}

pub(crate) fn fault<R>(
    what: &'static str,
    reason: Reason,
    field: &'static str,
    apply: impl Fn(&mut R) + Send + Sync + 'static,
) -> Fault<R> {
    (change(what, apply), reason, field)
}

/// Names that break the rules, each in one way.
pub(crate) fn bad_names() -> Vec<String> {
    let long = "n".repeat(NAME_BYTES_MAX + 1);
    let texts = ["", ".hidden", "-flag", "a b", "a/b/c", "a\\b", "\u{e4}", "a\0b", "a\nb", "*", "a:b", " a", "a "];
    texts.into_iter().map(str::to_owned).chain([long, "\u{10ffff}".repeat(1000)]).collect()
}

/// Pipelines that break the rules, each in one way.
pub(crate) fn bad_pipelines() -> Vec<String> {
    let bad_parts = bad_names().into_iter().filter(|name| !name.contains('/'));
    let in_either_place = bad_parts.flat_map(|part| [format!("{part}/orders"), format!("prod/{part}")]);
    let texts = ["", "/", "prod", "prod/orders/eu", "//"];
    texts.into_iter().map(str::to_owned).chain(in_either_place).collect()
}

/// Names at the limits of the rules.
fn good_names() -> Vec<String> {
    let texts = ["a", "0", "_", "a.b-c_D", "A...", "x--"];
    texts.into_iter().map(str::to_owned).chain(["n".repeat(NAME_BYTES_MAX)]).collect()
}

pub(crate) fn bad_ids() -> Vec<String> {
    let texts = ["", "a b", "a\tb", "\u{e4}", "a\0", "\u{7f}"];
    texts.into_iter().map(str::to_owned).chain(["i".repeat(NAME_BYTES_MAX + 1)]).collect()
}

fn good_ids() -> Vec<String> {
    let texts = ["!", "~", "2026-11-21T08:00/eu#7", "{\"id\":1}"];
    texts.into_iter().map(str::to_owned).chain(["i".repeat(NAME_BYTES_MAX)]).collect()
}

pub(crate) fn name_faults<R: 'static>(
    names: Vec<String>,
    field: &'static str,
    set: impl Fn(&mut R, String) + Copy + Send + Sync + 'static,
) -> impl Iterator<Item = Fault<R>> {
    let faulty = move |name: String| {
        fault("a name against the rules", Reason::InvalidName, field, move |request: &mut R| set(request, name.clone()))
    };
    names.into_iter().map(faulty)
}

pub(crate) async fn check<R: Clone, A>(
    what: &str,
    good: R,
    faults: Vec<Fault<R>>,
    call: impl AsyncFn(R) -> Result<A, Status>,
) {
    for ((case, apply), reason, field) in &faults {
        let mut request = good.clone();
        apply(&mut request);
        let Err(status) = call(request).await else { panic!("{what}: {case} was accepted") };
        println!("{what}: {case}: {}", status.message());
        refused_field(&status, *reason, field);
    }
    count(what, faults.len());
}

#[tokio::test]
async fn a_malformed_resume_is_refused_by_field() {
    let store = Store::open().await;
    let mut faults: Vec<Fault<ResumeRequest>> = vec![
        fault("reason one over", Reason::TooLarge, "reason", |request: &mut ResumeRequest| {
            request.reason = "r".repeat(limits::REASON_BYTES_MAX + 1);
        }),
        fault("no such takeover", Reason::InvalidField, "takeover", |request: &mut ResumeRequest| request.takeover = 4),
        fault("negative takeover", Reason::InvalidField, "takeover", |request: &mut ResumeRequest| {
            request.takeover = -1;
        }),
        fault("no such on_missing", Reason::InvalidField, "on_missing", |request: &mut ResumeRequest| {
            request.on_missing = 3;
        }),
        fault("no such mode", Reason::InvalidField, "mode", |request: &mut ResumeRequest| request.mode = 3),
        fault("FORCE without a reason", Reason::InvalidField, "reason", |request: &mut ResumeRequest| {
            request.takeover = Takeover::Force.into();
        }),
        fault("FORCE with a blank reason", Reason::InvalidField, "reason", |request: &mut ResumeRequest| {
            (request.takeover, request.reason) = (Takeover::Force.into(), " \n".to_owned());
        }),
        fault("TTL one below", Reason::InvalidField, "ttl_ms", |request: &mut ResumeRequest| request.ttl_ms = 999),
        fault("TTL one over", Reason::InvalidField, "ttl_ms", |request: &mut ResumeRequest| request.ttl_ms = 3_600_001),
        fault("TTL for ever", Reason::InvalidField, "ttl_ms", |request: &mut ResumeRequest| request.ttl_ms = u64::MAX),
        fault("delay one over", Reason::InvalidField, "lock_delay_ms", |request: &mut ResumeRequest| {
            request.lock_delay_ms = 60_001;
        }),
        fault("delay for ever", Reason::InvalidField, "lock_delay_ms", |request: &mut ResumeRequest| {
            request.lock_delay_ms = u64::MAX;
        }),
        fault("wait one over", Reason::InvalidField, "wait_ms", |request: &mut ResumeRequest| {
            request.wait_ms = 3_600_001;
        }),
        fault("wait for ever", Reason::InvalidField, "wait_ms", |request: &mut ResumeRequest| {
            request.wait_ms = u64::MAX;
        }),
    ];
    faults
        .extend(name_faults(bad_pipelines(), "pipeline", |request: &mut ResumeRequest, name| request.pipeline = name));
    faults.extend(name_faults(bad_names(), "branch", |request: &mut ResumeRequest, name| request.branch = name));
    faults.extend(name_faults(bad_names(), "holder", |request: &mut ResumeRequest, name| request.holder = name));
    faults.extend(name_faults(bad_ids(), "request_id", |request: &mut ResumeRequest, id| request.request_id = id));
    check("Resume", resume("main"), faults, async |request| store.resume(request).await).await;
    let branches =
        store.checkpoints().list_branches(ListBranchesRequest::default()).await.unwrap().into_inner().branches;
    assert_eq!(branches, [], "nothing was made of a request that was refused");
}

#[tokio::test]
async fn a_resume_at_every_limit_is_granted() {
    let store = Store::open().await;
    let longest = "n".repeat(NAME_BYTES_MAX);
    let mut changes: Vec<Change<ResumeRequest>> = vec![
        change("longest pipeline", move |request: &mut ResumeRequest| {
            request.pipeline = format!("{longest}/{longest}");
        }),
        change("longest reason", |request: &mut ResumeRequest| request.reason = "r".repeat(limits::REASON_BYTES_MAX)),
        change("shortest TTL", |request: &mut ResumeRequest| request.ttl_ms = 1_000),
        change("longest TTL", |request: &mut ResumeRequest| request.ttl_ms = 3_600_000),
        change("longest delay", |request: &mut ResumeRequest| request.lock_delay_ms = 60_000),
        change("longest wait", |request: &mut ResumeRequest| request.wait_ms = 3_600_000),
        change("soft", |request: &mut ResumeRequest| request.mode = ResumeMode::Soft.into()),
        change("no mode", |request: &mut ResumeRequest| request.mode = 0),
        change("FORCE of what nobody holds", |request: &mut ResumeRequest| {
            (request.takeover, request.reason) = (Takeover::Force.into(), "x".to_owned());
        }),
    ];
    changes.extend(good_names().into_iter().map(|name| {
        change("a name", move |request: &mut ResumeRequest| {
            (request.pipeline, request.holder) = (format!("{name}/{name}"), name.clone());
        })
    }));
    changes.extend(
        good_ids()
            .into_iter()
            .map(|id| change("an id", move |request: &mut ResumeRequest| request.request_id.clone_from(&id))),
    );
    count("Resume at its limits", changes.len());
    for (place, (what, apply)) in changes.into_iter().enumerate() {
        let mut request = resume(&format!("branch-{place}"));
        apply(&mut request);
        let asked = request.ttl_ms;
        let granted = store.resume(request).await.unwrap_or_else(|status| panic!("{what}: {status}"));
        assert_eq!(granted.ttl_ms, if asked == 0 { 30_000 } else { asked }, "{what}");
    }
}

fn saved(request: &mut CommitRequest) -> &mut Checkpoint {
    request.branches[0].checkpoint.as_mut().unwrap()
}

fn fingerprint(bytes: usize) -> Integrity {
    Integrity { schema_fingerprint: vec![1; bytes].into(), ..Integrity::default() }
}

#[tokio::test]
async fn a_malformed_commit_is_refused_by_field() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let many = |count: usize| {
        let branch =
            |i| BranchCommit { branch: format!("b{i}"), checkpoint: Some(Checkpoint::default()), ..Default::default() };
        (0..count).map(branch).collect::<Vec<_>>()
    };
    let mut faults: Vec<Fault<CommitRequest>> = vec![
        fault("no branch", Reason::InvalidField, "branches", |request: &mut CommitRequest| request.branches.clear()),
        fault("a branch too many", Reason::InvalidField, "branches", move |request: &mut CommitRequest| {
            request.branches = many(limits::BRANCHES_MAX + 1);
        }),
        fault("a branch twice", Reason::InvalidField, "branches[1].branch", |request: &mut CommitRequest| {
            request.branches.push(request.branches[0].clone());
        }),
        fault("no checkpoint", Reason::InvalidField, "branches[0].checkpoint", |request: &mut CommitRequest| {
            request.branches[0].checkpoint = None;
        }),
        fault(
            "position one over",
            Reason::TooLarge,
            "branches[0].checkpoint.position",
            |request: &mut CommitRequest| {
                saved(request).position = vec![0; limits::POSITION_BYTES_MAX + 1].into();
            },
        ),
        fault("state one over", Reason::TooLarge, "branches[0].checkpoint.state", |request: &mut CommitRequest| {
            saved(request).state = vec![0; limits::STATE_BYTES_MAX + 1].into();
        }),
        fault(
            "fingerprint one over",
            Reason::TooLarge,
            "branches[0].checkpoint.integrity.schema_fingerprint",
            |request: &mut CommitRequest| {
                saved(request).integrity = Some(fingerprint(limits::FINGERPRINT_BYTES_MAX + 1));
            },
        ),
        fault(
            "a fault in the second branch",
            Reason::InvalidName,
            "branches[1].branch",
            |request: &mut CommitRequest| {
                request.branches.push(BranchCommit { branch: String::new(), ..request.branches[0].clone() });
            },
        ),
    ];
    faults
        .extend(name_faults(bad_pipelines(), "pipeline", |request: &mut CommitRequest, name| request.pipeline = name));
    faults.extend(name_faults(bad_names(), "branches[0].branch", |request: &mut CommitRequest, name| {
        request.branches[0].branch = name;
    }));
    faults.extend(name_faults(bad_ids(), "commit_id", |request: &mut CommitRequest, id| request.commit_id = id));
    check("Commit", commit("main", token, 1), faults, async |request| store.commit(request).await).await;
    assert_eq!(store.head("main").await, 0);
}

#[tokio::test]
async fn a_commit_at_every_limit_is_applied() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let mut changes: Vec<Change<CommitRequest>> = vec![
        change("largest position", |request: &mut CommitRequest| {
            saved(request).position = vec![1; limits::POSITION_BYTES_MAX].into();
        }),
        change("largest state", |request: &mut CommitRequest| {
            saved(request).state = vec![1; limits::STATE_BYTES_MAX].into();
        }),
        change("both", |request: &mut CommitRequest| {
            saved(request).position = vec![2; limits::POSITION_BYTES_MAX].into();
            saved(request).state = vec![2; limits::STATE_BYTES_MAX].into();
        }),
        change("largest fingerprint", |request: &mut CommitRequest| {
            saved(request).integrity = Some(fingerprint(limits::FINGERPRINT_BYTES_MAX));
        }),
        change("largest counts", |request: &mut CommitRequest| {
            let rows = Some(u64::MAX);
            saved(request).integrity = Some(Integrity { rows_in: rows, rows_out: rows, ..Integrity::default() });
        }),
        change("latest not_after", |request: &mut CommitRequest| request.not_after_ms = u64::MAX),
    ];
    changes.extend(
        good_ids()
            .into_iter()
            .map(|id| change("an id", move |request: &mut CommitRequest| request.commit_id.clone_from(&id))),
    );
    count("Commit at its limits", changes.len());
    for (sequence, (what, apply)) in (1..).zip(changes) {
        let mut request = commit("main", token, sequence);
        apply(&mut request);
        let sent = saved(&mut request).clone();
        store.commit(request).await.unwrap_or_else(|status| panic!("{what}: {status}"));
        let stored = store.stored_head("main").await;
        let checkpoint = stored.checkpoint.unwrap();
        assert!(checkpoint.state == sent.state && checkpoint.position == sent.position, "{what}");
        assert_eq!((stored.state_bytes, checkpoint.integrity), (sent.state.len() as u64, sent.integrity), "{what}");
    }
}

/// A commit whose encoding has exactly this many bytes: three branches, of which the last is cut to fit.
fn commit_of_bytes(tokens: &[u64; 3], bytes: usize) -> CommitRequest {
    let mut request = crate::support::commit_of([("b0", tokens[0], 1), ("b1", tokens[1], 1), ("b2", tokens[2], 1)]);
    for branch in &mut request.branches {
        branch.checkpoint.as_mut().unwrap().state = vec![3; 2 << 20].into();
    }
    let rest = request.branches[2].checkpoint.as_mut().unwrap();
    let others = 2 * (2 << 20);
    rest.state = vec![3; bytes - others - 1_000].into();
    let missing = bytes - request.encoded_len();
    let rest = request.branches[2].checkpoint.as_mut().unwrap();
    rest.state = vec![3; rest.state.len() + missing].into();
    assert_eq!(request.encoded_len(), bytes);
    request
}

#[tokio::test]
async fn a_request_of_the_largest_size_is_read_and_one_byte_more_is_not() {
    let store = Store::open_with(|config| config.request_bytes_max = 6 << 20).await;
    let tokens = [store.take("b0").await, store.take("b1").await, store.take("b2").await];
    let status = store.commit(commit_of_bytes(&tokens, (6 << 20) + 1)).await.unwrap_err();
    refused_field(&status, Reason::TooLarge, "request");
    assert!(status.message().contains("request_bytes_max"), "{status}");
    store.commit(commit_of_bytes(&tokens, 6 << 20)).await.unwrap();
}

#[tokio::test]
async fn an_oversized_request_is_refused_by_every_service() {
    let store = Store::open().await;
    let huge = || "x".repeat((8 << 20) + 1);
    let mut statuses = vec![
        ("Resume", store.resume(ResumeRequest { reason: huge(), ..resume("main") }).await.unwrap_err()),
        ("Commit", store.commit(CommitRequest { commit_id: huge(), ..commit("main", 1, 1) }).await.unwrap_err()),
    ];
    let request = KeepAliveRequest { leases: vec![LeaseRef { branch: huge(), ..lease("", 1) }], cluster: None };
    statuses.push(("KeepAlive", store.leases().keep_alive(request).await.unwrap_err()));
    let request = GetHeadRequest { branch: huge(), ..head("main") };
    statuses.push(("GetHead", store.checkpoints().get_head(request).await.unwrap_err()));
    let request = TailRequest { branch: huge(), ..TailRequest::default() };
    statuses.push(("Tail", store.logs().tail(request).await.unwrap_err()));
    for (call, status) in statuses {
        println!("{call}: {status}");
        refused_field(&status, Reason::TooLarge, "request");
    }
}

#[tokio::test]
async fn a_malformed_keepalive_is_refused_as_a_whole_or_lease_by_lease() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let keep =
        async |leases: Vec<LeaseRef>| store.leases().keep_alive(KeepAliveRequest { leases, cluster: None }).await;
    refused_field(&keep(vec![]).await.unwrap_err(), Reason::InvalidField, "leases");
    let too_many = vec![lease("main", token); limits::KEEPALIVE_LEASES_MAX + 1];
    refused_field(&keep(too_many).await.unwrap_err(), Reason::InvalidField, "leases");
    let most = keep(vec![lease("main", token); limits::KEEPALIVE_LEASES_MAX]).await.unwrap().into_inner();
    assert_eq!(most.results.len(), limits::KEEPALIVE_LEASES_MAX);
    assert!(most.results.iter().all(|result| result.ttl_ms == 30_000 && result.refusal.is_none()));

    // Each lease is judged alone: one that is misnamed does not cost the others theirs.
    let mut leases = vec![lease("main", token)];
    leases.extend(bad_names().into_iter().map(|branch| LeaseRef { branch, ..lease("", token) }));
    leases.extend(bad_pipelines().into_iter().map(|pipeline| LeaseRef { pipeline, ..lease("main", token) }));
    count("KeepAlive", leases.len());
    let results = keep(leases.clone()).await.unwrap().into_inner().results;
    assert!(results[0].refusal.is_none());
    for (lease, result) in leases.iter().zip(&results).skip(1) {
        let field = if lease.pipeline == ORDERS { "lease.branch" } else { "lease.pipeline" };
        assert_eq!(inner_refusal(result.refusal.as_ref(), Reason::InvalidName)["field"], field);
    }
}

#[tokio::test]
async fn a_malformed_release_is_refused_by_field() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let mut faults =
        vec![fault("no lease", Reason::InvalidField, "lease", |request: &mut ReleaseRequest| request.lease = None)];
    faults.extend(name_faults(bad_pipelines(), "lease.pipeline", |request: &mut ReleaseRequest, name| {
        request.lease.as_mut().unwrap().pipeline = name;
    }));
    faults.extend(name_faults(bad_names(), "lease.branch", |request: &mut ReleaseRequest, name| {
        request.lease.as_mut().unwrap().branch = name;
    }));
    let good = ReleaseRequest { lease: Some(lease("main", token)), cluster: None };
    check("Release", good, faults, async |request| store.leases().release(request).await).await;
    store.commit(commit("main", token, 1)).await.unwrap();
}

#[tokio::test]
async fn an_unknown_on_missing_is_not_a_fresh_start() {
    let store = Store::open().await;
    let mut request = resume("main");
    request.on_missing = OnMissing::Unspecified.into();
    let details = crate::support::refusal(&store.resume(request).await.unwrap_err(), Reason::StateMissing);
    assert_eq!((details["pipeline"].as_str(), details["branch"].as_str()), (ORDERS, "main"));
}
