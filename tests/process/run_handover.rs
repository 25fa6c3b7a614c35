//! What passes between `fencepost run`, its program and those around them: positions byte for byte, output that nobody
//! reads or that somebody keeps open, standard input, and a branch that cannot be given back.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::Stdio;

use fencepost_client::{Checkpoint, Resume};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use tokio::io::AsyncWriteExt as _;

use crate::job::{Job, PIPELINE, ended_with};
use crate::support::{is_running, output, until};

/// A job that stands at this position.
async fn at(position: &[u8]) -> Job {
    let job = Job::new().await;
    let worker = job.branch().await.resume(Resume::new("earlier").start_fresh()).await.unwrap();
    worker.commit(Checkpoint::at(position.to_vec())).await.unwrap();
    worker.release().await.unwrap();
    job
}

/// Neither is text on one line, and one is no text at all.
const AWKWARD: [&[u8]; 2] = [b" a\tb\r\nc\\n\r", b"\xff\x01\x80\n\n\xfe"];

#[tokio::test]
async fn a_position_is_handed_over_byte_for_byte() {
    for position in AWKWARD {
        let job = at(position).await;
        let script = "printf %s \"$FENCEPOST_POSITION\" > variable; cat \"$FENCEPOST_POSITION_FILE\" > file
                      printf '%s\\n' \"$FENCEPOST_POSITION\" > \"$FENCEPOST_POSITION_FILE\"";
        ended_with(&job.ended(&[], script).await, 0, &["committed sequence 2"]);
        for trace in ["variable", "file"] {
            assert_eq!(std::fs::read(job.trace(trace)).unwrap(), position, "in the {trace}");
        }
        assert_eq!(&job.head().await.position()[..], position, "it came back as it went");
    }
}

#[tokio::test]
async fn a_position_with_a_nul_is_handed_over_in_the_file_alone() {
    let job = at(b"a\0b\n").await;
    let refused = job.ended(&[], "touch ran; echo 200").await;
    ended_with(&refused, 1, &["NUL", "FENCEPOST_POSITION_FILE", "--binary-position"]);
    assert!(!job.trace("ran").exists(), "the program was not started");
    job.is_tidy().await;

    let script = "cat \"$FENCEPOST_POSITION_FILE\" > file; echo ${FENCEPOST_POSITION-unset} > variable
                  printf 'c\\0\\n' > \"$FENCEPOST_POSITION_FILE\"";
    ended_with(&job.ended(&["--binary-position"], script).await, 0, &["committed sequence 2"]);
    assert_eq!(
        (std::fs::read(job.trace("file")).unwrap(), job.read("variable").as_str()),
        (b"a\0b\n".to_vec(), "unset")
    );
    assert_eq!(&job.head().await.position()[..], b"c\0\n", "no newline was taken off");

    let none = job.ended(&["--binary-position"], "echo 200").await;
    ended_with(&none, 65, &["gave no position"]);
    assert!(!none.stderr.contains("last line"), "the last line does not count: {}", none.stderr);
}

#[tokio::test]
async fn one_newline_is_taken_off_the_position_file_and_nothing_else() {
    let job = Job::begun().await;
    for (written, position) in [("200", "200"), (" 200 \\n", " 200 "), ("200\\n\\n", "200\n")] {
        let script = format!("printf '{written}' > \"$FENCEPOST_POSITION_FILE\"; echo noise");
        ended_with(&job.ended(&[], &script).await, 0, &[]);
        assert_eq!(job.head().await.position_str(), position);
    }
}

/// Whoever found nothing to do says so by writing the position that it started from.
#[tokio::test]
async fn the_position_file_counts_if_it_was_written_to_even_without_a_change() {
    let job = Job::begun().await;
    ended_with(&job.ended(&[], "printf 100 > \"$FENCEPOST_POSITION_FILE\"; echo nothing new").await, 0, &[]);
    assert_eq!((job.head().await.sequence(), job.head().await.position_str().as_ref()), (2, "100"));
    for leave in
        ["cat \"$FENCEPOST_POSITION_FILE\"", ": > \"$FENCEPOST_POSITION_FILE\"", "rm \"$FENCEPOST_POSITION_FILE\""]
    {
        ended_with(&job.ended(&[], &format!("{leave}; echo; echo '{}'", leave.len())).await, 0, &[]);
        assert_eq!(job.head().await.position_str(), leave.len().to_string(), "after {leave}");
    }
}

#[tokio::test]
async fn a_descendant_that_keeps_the_output_open_holds_nothing_up() {
    let job = Job::begun().await;
    let script =
        "setsid sh -c 'echo $$ > stray; exec sleep 40' 2>&- & while [ ! -s stray ]; do sleep 0.02; done; echo 5";
    let ended = job.ended(&["--ttl", "2"], script).await;
    let stray = job.read("stray");
    assert!(is_running(&stray), "it is not of the program's group");
    kill_process(Pid::from_raw(stray.parse().unwrap()).unwrap(), Signal::KILL).unwrap();
    ended_with(&ended, 0, &["committed sequence 2 at '5'"]);
    assert_eq!(ended.stdout, "5\n");
    job.is_tidy().await;
}

/// More than a pipe holds, and then the position.
const MUCH: &str = "touch started; yes 1234567 | head -c 120000; echo 200";

#[tokio::test]
async fn a_reader_that_does_not_read_delays_no_commit() {
    let job = Job::begun().await;
    let run = job.started(&[], MUCH).await;
    until("it is committed", async || job.head().await.sequence() == 2).await;
    assert_eq!(job.head().await.position_str(), "200");
    until("the branch is given back", async || !job.is_held().await).await;
    let ended = run.wait_with_output().await.unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    assert_eq!(ended.stdout.len(), 120_004, "nothing of the output is lost");
    assert!(ended.stdout.ends_with(b"1234567\n200\n"));
}

#[tokio::test]
async fn a_loss_is_told_also_where_nobody_reads_the_output() {
    let job = Job::begun().await;
    let mut run = job.started(&["--ttl", "2"], "touch started; yes").await;
    let force = ["lease", "force", PIPELINE, "main", "--reason", "stuck"];
    assert_eq!(output(&mut job.server.command(&force)).await.code, Some(0));
    let mut code = None;
    until("it ends", async || {
        code = run.try_wait().unwrap();
        code.is_some()
    })
    .await;
    assert_eq!(code.unwrap().code(), Some(77));
    job.is_untouched().await;
}

#[tokio::test]
async fn a_program_reads_the_input_of_run() {
    let job = Job::begun().await;
    let mut command = job.run(&[], "cat");
    let mut run = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    run.stdin.take().unwrap().write_all(b"200\n").await.unwrap();
    assert!(run.wait().await.unwrap().success());
    assert_eq!(job.head().await.position_str(), "200");
}

/// It is in the background of the terminal, where reading stops a process for good.
#[tokio::test]
async fn a_program_does_not_read_a_terminal() {
    let job = Job::begun().await;
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let ours = ioctl_tiocgptpeer(&terminal, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    let mut command = job.run(&[], "[ -t 0 ] && exit 9; cat; echo 200");
    let ended = output(command.stdin(ours)).await;
    ended_with(&ended, 0, &["committed sequence 2"]);
    assert_eq!(ended.stdout, "200\n");
}

#[tokio::test]
async fn a_failed_program_keeps_its_code_where_the_branch_cannot_be_given_back() {
    let mut job = Job::begun().await;
    let run = job.started(&[], "touch started; while [ ! -e go ]; do sleep 0.02; done; exit 7").await;
    job.server.kill().await;
    std::fs::write(job.trace("go"), "").unwrap();
    let ended = run.wait_with_output().await.unwrap();
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(7), "{stderr}");
    assert!(stderr.contains("could not be given back") && !stderr.contains("error: "), "{stderr}");
}

/// The server has to end between the commit and the release. A standard error that takes no more holds `run` up there,
/// where it says that it has committed.
#[tokio::test]
async fn a_commit_is_a_success_where_the_branch_cannot_be_given_back() {
    let mut job = Job::begun().await;
    let (mut said, theirs) = std::io::pipe().unwrap();
    let mut filler = theirs.try_clone().unwrap();
    let script = "touch started; while [ ! -e go ]; do sleep 0.02; done; echo 200";
    let mut run = job.run(&[], script).stdout(Stdio::null()).stderr(theirs).spawn().unwrap();
    until("the program starts", async || job.trace("started").exists()).await;
    // It ends when the pipe is closed.
    std::thread::spawn(move || filler.write_all(&vec![b'.'; 4 << 20]));
    // Sixteen pages, of which the first keeps room behind what was said before.
    let full = rustix::pipe::fcntl_getpipe_size(&said).unwrap() as u64 / 16 * 15;
    until("the pipe is full", async || rustix::io::ioctl_fionread(&said).unwrap() > full).await;
    File::create(job.trace("go")).unwrap();
    until("it is committed", async || job.head().await.sequence() == 2).await;
    job.server.kill().await;
    let reader = tokio::task::spawn_blocking(move || {
        let mut all = String::new();
        said.read_to_string(&mut all).unwrap();
        all.replace('.', "")
    });
    let code = run.wait().await.unwrap().code();
    let stderr = reader.await.unwrap();
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("could not be given back"), "{stderr}");
}
