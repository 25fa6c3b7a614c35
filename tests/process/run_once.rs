//! Work that is done once under its id, however long ago that was.

use fencepost::v1::pipeline_service_client::PipelineServiceClient;
use fencepost::v1::{Policy, SetPolicyRequest};
use fencepost_client::{Checkpoint, Commit, Resume};

use crate::job::{Job, PIPELINE, ended_with};

/// The ids that a pipeline remembers, and a few more.
const COMMITS: usize = 10_100;
/// Workers that make them at the same time.
const BRANCHES: usize = 100;
/// More than one page of the history.
const ON_MAIN: usize = 150;

/// Work that was done on `main` under the id `long-ago`, and then so many commits that an id which the server does not know may
/// be one that it forgot.
async fn job_with_a_past(keep_last: u64) -> Job {
    let job = Job::new().await;
    let policy = Some(Policy { keep_last, ..Policy::default() });
    let request = SetPolicyRequest { pipeline: PIPELINE.to_owned(), policy, ..SetPolicyRequest::default() };
    PipelineServiceClient::new(job.server.channel().await).set_policy(request).await.unwrap();
    let worker = job.branch().await.resume(Resume::new("earlier").start_fresh()).await.unwrap();
    Commit::of([(&worker, Checkpoint::at("1"))]).id("long-ago@main").send().await.unwrap();
    for i in 0..ON_MAIN {
        worker.commit(Checkpoint::at(i.to_string())).await.unwrap();
    }
    worker.release().await.unwrap();
    let client = job.server.client().await;
    let mut others = tokio::task::JoinSet::new();
    for other in 0..BRANCHES {
        let branch = client.pipeline(PIPELINE).branch(format!("other-{other}"));
        others.spawn(async move {
            let worker = branch.resume(Resume::new("other").start_fresh()).await.unwrap();
            for i in 0..COMMITS / BRANCHES {
                worker.commit(Checkpoint::at(i.to_string())).await.unwrap();
            }
            worker.release().await.unwrap();
        });
    }
    others.join_all().await;
    let unknown = client.resolve_commit(PIPELINE, "today@main", None).await.unwrap_err();
    assert_eq!(unknown.reason(), Some(fencepost_client::Reason::DedupeWindowExceeded));
    job
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_beyond_the_window_is_found_as_long_as_its_checkpoint_is_kept() {
    let job = job_with_a_past(1_000).await;
    let done = job.ended(&["--commit-id", "long-ago"], "touch ran; echo 200").await;
    ended_with(&done, 0, &["'long-ago@main' was committed before", "nothing to do"]);
    assert!(!job.trace("ran").exists());
    job.is_tidy().await;

    let new = ["--commit-id", "today"];
    ended_with(&job.ended(&new, "echo x >> ran; echo 200").await, 0, &["at '200'"]);
    ended_with(&job.ended(&new, "echo x >> ran; echo 300").await, 0, &["nothing to do"]);
    assert_eq!(job.read("ran"), "x", "it ran once");

    // Where nothing was ever committed there is no history to look at.
    let fresh = ["--commit-id", "first", "--branch", "new", "--start-fresh"];
    ended_with(&job.ended(&fresh, "echo 1").await, 0, &["prod/job/new committed sequence 1"]);

    // What cannot be read may have been that.
    job.server.damage("long-ago@main");
    let done = job.ended(&["--commit-id", "tomorrow"], "touch again; echo 200").await;
    ended_with(&done, 74, &["cannot be told", "The program was not started"]);
    assert!(!job.trace("again").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_may_have_been_done_is_not_done_again() {
    let job = job_with_a_past(5).await;
    let done = job.ended(&["--commit-id", "today"], "touch ran; echo 200").await;
    ended_with(&done, 74, &["cannot be told", "The program was not started"]);
    assert!(!job.trace("ran").exists());
    job.is_tidy().await;
}
