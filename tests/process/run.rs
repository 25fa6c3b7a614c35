//! Programs under `fencepost run`: what they are told, what is committed, and that none outlives its right to go on.

use fencepost_client::{Checkpoint, Reason};
use rustix::process::Signal;

use crate::job::{Job, PIPELINE, ended_with};
use crate::support::{fencepost, is_running, output, signal, until};

/// For jobs that are to be replaced soon, or that have to show that they are there.
const SHORT: [&str; 2] = ["--ttl", "2"];

#[tokio::test]
async fn a_program_is_told_where_it_is_and_its_last_line_is_committed() {
    let job = Job::new().await;
    let script = "echo \"[$FENCEPOST_POSITION] $FENCEPOST_SEQUENCE\"; echo; echo '  page 7  '; echo";
    let first = job.ended(&["--start-fresh"], script).await;
    ended_with(&first, 0, &["granted as g1.e1 at sequence 0", "committed sequence 1 at 'page 7'"]);
    assert_eq!(first.stdout, "[] 0\n\n  page 7  \n\n", "the program's output is passed on as it is");
    assert_eq!(job.head().await.position_str(), "page 7");
    job.is_tidy().await;

    let second = job.ended(&[], script).await;
    ended_with(&second, 0, &["granted as g1.e2 at sequence 1, position 'page 7'", "committed sequence 2"]);
    assert!(second.stdout.starts_with("[page 7] 1\n"), "{}", second.stdout);
}

#[tokio::test]
async fn the_position_file_counts_more_than_the_last_line() {
    let job = Job::begun().await;
    ended_with(&job.ended(&[], "printf '200\\n' > \"$FENCEPOST_POSITION_FILE\"; echo noise").await, 0, &[]);
    assert_eq!(job.head().await.position_str(), "200");
}

#[tokio::test]
async fn the_state_file_holds_the_saved_state_and_takes_the_new_one() {
    let job = Job::begun().await;
    let ended = job.ended(&[], "cat $FENCEPOST_STATE_FILE; printf def >> $FENCEPOST_STATE_FILE; echo; echo 2").await;
    ended_with(&ended, 0, &[]);
    assert_eq!(ended.stdout, "abc\n2\n");
    assert_eq!(&job.head().await.state()[..], b"abcdef");
    // What the program leaves alone stays.
    ended_with(&job.ended(&[], "echo 3").await, 0, &[]);
    assert_eq!(&job.head().await.state()[..], b"abcdef");
}

#[tokio::test]
async fn a_program_finds_its_token_and_its_branch() {
    let job = Job::new().await;
    let flags = ["--start-fresh", "--branch", "eu", "--holder", "nightly"];
    let script = "echo $FENCEPOST_TOKEN $FENCEPOST_PIPELINE $FENCEPOST_BRANCH $FENCEPOST_ENDPOINT";
    ended_with(&job.ended(&flags, script).await, 0, &["prod/job/eu granted as g1.e1"]);
    let head = job.server.client().await.pipeline(PIPELINE).branch("eu").head().await.unwrap();
    let endpoint = job.server.endpoint();
    assert_eq!(head.position_str(), format!("{} prod/job eu {endpoint}", head.token().as_u64()));
}

#[tokio::test]
async fn a_program_that_fails_commits_nothing_and_its_code_is_passed_on() {
    let job = Job::begun().await;
    let cases = [("echo 200; exit 7", 7), ("echo 200; kill -TERM $$", 143), ("echo 200; kill -KILL $$", 137)];
    for (script, code) in cases {
        ended_with(&job.ended(&[], script).await, code, &["the program failed", "nothing was committed"]);
        job.is_untouched().await;
        job.is_tidy().await;
    }
    let mut missing = job.server.command(&["run", "-p", PIPELINE, "--", "/nowhere/program"]);
    ended_with(&output(&mut missing).await, 127, &["cannot run '/nowhere/program'"]);
    job.is_untouched().await;
}

#[tokio::test]
async fn a_program_that_gives_no_position_commits_nothing() {
    let job = Job::begun().await;
    ended_with(&job.ended(&[], "echo; echo '  '").await, 65, &["gave no position", "FENCEPOST_POSITION_FILE"]);
    job.is_untouched().await;
    job.is_tidy().await;
}

#[tokio::test]
async fn missing_state_is_an_error_unless_a_fresh_start_is_meant() {
    let job = Job::new().await;
    ended_with(&job.ended(&[], "touch ran").await, 66, &["prod/job", "has no checkpoint"]);
    assert!(!job.trace("ran").exists(), "the program was not started");
}

#[tokio::test]
async fn the_position_can_be_asked_for() {
    let job = Job::new().await;
    let print = async |flags: &[&str]| {
        let mut command = job.server.command(&["run", "--pipeline", PIPELINE, "--print-position"]);
        output(command.args(flags)).await
    };
    ended_with(&print(&[]).await, 66, &["no pipeline 'prod/job'"]);
    let fresh = print(&["--start-fresh"]).await;
    assert_eq!((fresh.code, fresh.stdout.as_str()), (Some(0), "\n"));
    ended_with(&job.ended(&["--start-fresh"], "echo page 7").await, 0, &[]);
    let there = print(&[]).await;
    assert_eq!((there.code, there.stdout.as_str(), there.stderr.as_str()), (Some(0), "page 7\n", ""));
    assert!(!job.is_held().await, "asking takes nothing");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let mut command = fencepost();
    command.args(["-e", "http://127.0.0.1:1", "run", "--pipeline", PIPELINE, "--", "true"]);
    ended_with(&output(&mut command).await, 69, &["cannot reach a Fencepost server at http://127.0.0.1:1"]);
}

#[tokio::test]
async fn a_branch_that_somebody_holds_is_left_alone() {
    let job = Job::begun().await;
    let holder = job.branch().await.resume("loader-1").await.unwrap();
    let ended = job.ended(&["--wait", "0"], "touch ran; echo 200").await;
    ended_with(&ended, 75, &["is held by 'loader-1'"]);
    assert!(!job.trace("ran").exists());
    holder.commit(Checkpoint::at("101")).await.unwrap();
    ended_with(&job.ended(&["--takeover", "force"], "echo 200").await, 2, &["--reason <REASON>"]);
    let forced = job.ended(&["--takeover", "force", "--reason", "a test"], "echo 200").await;
    ended_with(&forced, 0, &["committed sequence 3 at '200'"]);
    assert_eq!(holder.commit(Checkpoint::at("102")).await.unwrap_err().reason(), Some(Reason::Fenced));
}

#[tokio::test]
async fn work_that_was_committed_under_its_id_is_not_done_again() {
    let job = Job::begun().await;
    let flags = ["--commit-id", "2026-11-21"];
    ended_with(&job.ended(&flags, "echo x >> ran; echo 200").await, 0, &["committed sequence 2"]);
    let again = job.ended(&flags, "echo x >> ran; echo 300").await;
    ended_with(&again, 0, &["'2026-11-21@main' was committed before", "nothing to do"]);
    assert_eq!((job.read("ran").as_str(), job.head().await.sequence()), ("x", 2), "it ran once");
    ended_with(&job.ended(&["--commit-id", "2026-11-22"], "echo 300").await, 0, &["committed sequence 3"]);
    // The same day of another branch is other work.
    let elsewhere = ["--commit-id", "2026-11-21", "--branch", "other", "--start-fresh"];
    ended_with(&job.ended(&elsewhere, "echo 1").await, 0, &["prod/job/other committed sequence 1"]);
}

/// Whoever waits while another does the same work finds it done.
#[tokio::test]
async fn of_two_runs_of_the_same_work_one_does_it() {
    let job = Job::begun().await;
    let flags = ["--commit-id", "2026-11-21"];
    let script = "echo x >> ran; touch started; while [ ! -e go ]; do sleep 0.02; done; echo 200";
    let first = job.started(&flags, script).await;
    let second = job.run(&flags, script).stderr(std::process::Stdio::piped()).spawn().unwrap();
    std::fs::write(job.trace("go"), "").unwrap();
    assert!(first.wait_with_output().await.unwrap().status.success());
    assert!(second.wait_with_output().await.unwrap().status.success());
    assert_eq!((job.read("ran").as_str(), job.head().await.sequence()), ("x", 2));
}

/// Leaves the ids of the program and of a child of its own, and never ends by itself.
const ENDLESS: &str = "sleep 600 & echo $! > grandchild; echo $$ > child; touch started; wait";

#[tokio::test]
async fn a_run_whose_branch_is_taken_away_kills_its_program() {
    let job = Job::begun().await;
    let run = job.started(&SHORT, ENDLESS).await;
    let (child, grandchild) = (job.read("child"), job.read("grandchild"));
    assert!(is_running(&child) && is_running(&grandchild));
    let force = ["lease", "force", PIPELINE, "main", "--reason", "stuck"];
    let forced = output(&mut job.server.command(&force)).await;
    assert_eq!(forced.code, Some(0), "{forced:?}");
    let ended = run.wait_with_output().await.unwrap();
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(77), "{stderr}");
    assert!(stderr.contains("stopping the program"), "{stderr}");
    until("the whole group is gone", async || !is_running(&child) && !is_running(&grandchild)).await;
    job.is_untouched().await;
}

#[tokio::test]
async fn a_run_that_is_killed_takes_its_program_along_and_a_successor_resumes() {
    let job = Job::begun().await;
    let mut run = job.started(&["--holder", "machine-1", "--ttl", "2"], ENDLESS).await;
    let (child, grandchild) = (job.read("child"), job.read("grandchild"));
    run.kill().await.unwrap();
    until("the program is gone", async || !is_running(&child)).await;
    until("its child is gone", async || !is_running(&grandchild)).await;
    job.is_untouched().await;
    let script = "echo $((FENCEPOST_POSITION + 1))";
    let successor = job.ended(&["--holder", "machine-2", "--wait", "20"], script).await;
    ended_with(&successor, 0, &["at sequence 1, position '100'", "committed sequence 2 at '101'"]);
}

#[tokio::test]
async fn a_run_outlives_its_server() {
    let mut job = Job::begun().await;
    let run = job.started(&[], "touch started; while [ ! -e go ]; do sleep 0.02; done; echo 200").await;
    job.server.kill().await;
    std::fs::write(job.trace("go"), "").unwrap();
    job.server.restart().await;
    let ended = run.wait_with_output().await.unwrap();
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(0), "{stderr}");
    let head = job.head().await;
    assert_eq!((head.sequence(), head.position_str().as_ref()), (2, "200"));
    assert!(!job.is_held().await);
}

#[tokio::test]
async fn what_a_program_leaves_behind_ends_with_it() {
    let job = Job::begun().await;
    ended_with(&job.ended(&[], "sleep 600 & echo $! > grandchild; echo 200").await, 0, &["committed sequence 2"]);
    let grandchild = job.read("grandchild");
    until("the leftover is gone", async || !is_running(&grandchild)).await;
}

#[tokio::test]
async fn a_signal_is_for_the_program_and_what_it_makes_of_it_counts() {
    let job = Job::begun().await;
    let script = "trap 'echo 150; exit 0' TERM; touch started; while :; do sleep 0.02; done";
    let run = job.started(&[], script).await;
    signal(&run, Signal::TERM);
    let ended = run.wait_with_output().await.unwrap();
    assert_eq!(ended.status.code(), Some(0), "{}", String::from_utf8_lossy(&ended.stderr));
    assert_eq!(job.head().await.position_str(), "150");
    job.is_tidy().await;
}

#[tokio::test]
async fn a_program_that_ends_by_a_signal_commits_nothing() {
    let job = Job::begun().await;
    let run = job.started(&[], ENDLESS).await;
    signal(&run, Signal::TERM);
    let ended = run.wait_with_output().await.unwrap();
    assert_eq!(ended.status.code(), Some(143), "{}", String::from_utf8_lossy(&ended.stderr));
    job.is_untouched().await;
    job.is_tidy().await;
}

#[tokio::test]
async fn a_long_program_keeps_its_branch() {
    let job = Job::begun().await;
    // Two TTLs and more, through all of which somebody waits.
    let run = job.started(&SHORT, "touch started; sleep 5; echo 200").await;
    let waiting = job.ended(&["--holder", "impatient", "--wait", "4"], "echo 999").await;
    ended_with(&waiting, 75, &["is held by"]);
    assert!(run.wait_with_output().await.unwrap().status.success());
    assert_eq!(job.head().await.position_str(), "200");
}
