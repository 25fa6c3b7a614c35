//! `fencepost run`: any program under a lease.
//!
//! The program is started in a process group of its own, under a guard (a hidden command of this binary) that kills the
//! whole group if `run` itself dies, so that a `kill -9` of `run` leaves no worker behind that nobody fences.

mod files;
mod guard;
mod output;
mod signals;

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use clap::{Args, ValueEnum};
use fencepost::{Lsn, Reason};
use fencepost_client::{Branch, Checkpoint, Client, Commit, Error, Loss, Outcome, Resume, Takeover, Worker};
use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};

pub(crate) use self::guard::Guard;

use self::files::Files;
use self::output::Output;
use self::signals::{Signals, asked_to_end, signal_group};
use super::error::CliError;
use super::exit;
use super::output::{note, readable, write, write_raw};
use super::{scope, traceparent};

/// Run any program under a lease: resume where it was, commit when it exits 0, stop it if it is replaced.
///
/// The program finds in its environment:
///
///   FENCEPOST_POSITION       where to start, byte for byte; empty on a fresh start
///   FENCEPOST_SEQUENCE       the checkpoint's number that it starts from; 0 on a fresh start
///   FENCEPOST_TOKEN          its fencing token, an integer: compare it in every write to a sink
///   FENCEPOST_ENDPOINT, FENCEPOST_PIPELINE, FENCEPOST_BRANCH
///   FENCEPOST_POSITION_FILE  holds the position too; to be overwritten with the new one
///   FENCEPOST_STATE_FILE     holds the saved state; what it holds in the end is saved
///
/// The new position is what the program wrote to the position file, byte for byte but for one
/// newline at its end. If it did not write there, or left the file empty, it is the last line of
/// its output that is not blank, without the white space around it.
///
/// When it exits 0 its new position is committed and the lease released. When it fails nothing
/// is committed, and `run` exits with its code. When the lease is lost it is killed. Processes of
/// its group that it leaves behind are killed when it ends.
///
/// It reads the standard input of `run`; where that is a terminal it reads nothing.
///
/// A TRACEPARENT in the environment of `run` is saved with the checkpoint, so that
/// `fencepost checkpoints --trace` finds it.
///
/// Example: fencepost run --pipeline prod/orders --branch jfk --scope code=v7 -- ./load.sh
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    about = "Run any program under a lease: resume where it was, commit when it exits 0, stop it if it is replaced"
)]
pub(crate) struct Run {
    /// NAMESPACE/NAME.
    #[arg(long, short, env = "FENCEPOST_PIPELINE")]
    pipeline: String,
    /// The branch.
    #[arg(long, short, env = "FENCEPOST_BRANCH", default_value = "main")]
    branch: String,
    /// A name for the role of this job, stable across restarts. [default: the machine's name]
    #[arg(long, env = "FENCEPOST_HOLDER")]
    holder: Option<String>,
    /// How long the job may be silent before another may take the branch, in seconds.
    #[arg(long, default_value_t = 30, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    ttl: u64,
    /// How long to wait for a branch that somebody else holds, in seconds; then exit with 75.
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=3600))]
    wait: u64,
    /// How far to go to get a branch that somebody else holds.
    #[arg(long, value_enum, default_value_t)]
    takeover: TakeoverMode,
    /// Why; kept in the log. Needed with --takeover force.
    #[arg(long, required_if_eq("takeover", "force"))]
    reason: Option<String>,
    /// Start from nothing if the branch has no checkpoint. Without it that is an error: lost state must not look like a
    /// fresh start.
    #[arg(long)]
    start_fresh: bool,
    /// What the program is made by or from, as NAME=VALUE: a digest of its configuration, a version of its code. Saved with
    /// the checkpoint, and compared with that of the head before anybody is fenced. Can be given several times.
    #[arg(long, value_name = "NAME=VALUE", value_parser = scope::parse)]
    scope: Vec<(String, String)>,
    /// A name in the scope whose difference is meant this time, such as `code` after a deployment.
    #[arg(long, value_name = "NAME", requires = "scope")]
    accept_scope: Vec<String>,
    /// An identity for this piece of work in this branch, such as a date: if it was committed before, do nothing and
    /// exit 0. The commit is listed as ID@BRANCH.
    #[arg(long, value_name = "ID")]
    commit_id: Option<String>,
    /// How long the program may take to stop after SIGTERM when the lease is lost, in seconds, before SIGKILL.
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    grace: u64,
    /// Positions may be any bytes. They are handed over in $FENCEPOST_POSITION_FILE alone, byte for byte both ways:
    /// FENCEPOST_POSITION is not set, no newline is taken off, and the last line of the output does not count. Needed for
    /// positions with NUL bytes, which no environment variable can hold.
    #[arg(long)]
    binary_position: bool,
    /// Print the position that a run would start from, and do nothing else.
    #[arg(long)]
    print_position: bool,
    /// The program and its arguments.
    #[arg(last = true, required_unless_present = "print_position")]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum TakeoverMode {
    /// Wait until the branch is released or its holder was silent for its TTL.
    #[default]
    Wait,
    /// The same, but take over at once from a holder of the same name.
    SameHolder,
    /// Take it at once from anybody; needs --reason.
    Force,
}

impl Run {
    pub(super) async fn run(mut self, client: &Client, endpoint: &str) -> Result<ExitCode, CliError> {
        // Commit ids are of the pipeline, and the same piece of work is done in each of its branches.
        self.commit_id = self.commit_id.map(|id| format!("{id}@{}", self.branch));
        let branch = client.pipeline(&self.pipeline).branch(&self.branch);
        if self.print_position {
            return print_position(&branch, self.start_fresh).await;
        }
        // What the server does not remember is looked up once the branch can move no more.
        if let Past::Done(lsn) = self.recall(client).await? {
            return Ok(self.done_before(lsn));
        }
        let mut output = Output::start()?;
        let worker = self.wait_for(&branch).await?;
        let verdict = self.work(client, &worker, endpoint, &mut output).await;
        if verdict.is_err() && worker.validity().is_zero() {
            // Whoever watches the job has to hear of the loss, also where nobody reads its output.
            let _ = tokio::time::timeout(Duration::from_secs(1), output.finish()).await;
        } else {
            give_back(worker).await;
            tokio::select! {
                () = output.finish() => {}
                () = asked_to_end() => {}
            }
        }
        verdict
    }

    /// Takes the branch; says what it waits for, if it has to wait.
    async fn wait_for(&self, branch: &Branch) -> Result<Worker, CliError> {
        let taking = branch.resume(self.resume());
        tokio::pin!(taking);
        tokio::select! {
            biased;
            taken = &mut taking => return Ok(taken?),
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        note(format_args!(
            "fencepost: waiting up to {} s for {}/{}: another worker has it, or the server does not answer \
             ('fencepost branches {}' shows who)",
            self.wait, self.pipeline, self.branch, self.pipeline
        ));
        Ok(taking.await?)
    }

    fn resume(&self) -> Resume {
        let holder = self.holder.clone().unwrap_or_else(machine_name);
        let takeover = match self.takeover {
            TakeoverMode::Wait => Takeover::Wait,
            TakeoverMode::SameHolder => Takeover::SameHolder,
            TakeoverMode::Force => Takeover::Force,
        };
        let resume = Resume::new(holder)
            .ttl(Duration::from_secs(self.ttl))
            .wait(Duration::from_secs(self.wait))
            .takeover(takeover)
            .reason(self.reason.as_deref().unwrap_or_default());
        let resume = self.scope.iter().fold(resume, |resume, (name, value)| resume.scope(name, value));
        let resume = self.accept_scope.iter().fold(resume, Resume::accept_scope);
        if self.start_fresh { resume.start_fresh() } else { resume }
    }

    /// All that is done under the lease.
    async fn work(
        &self,
        client: &Client,
        worker: &Worker,
        endpoint: &str,
        output: &mut Output,
    ) -> Result<ExitCode, CliError> {
        // Somebody else may have done it while this one waited for the branch.
        let past = match self.recall(client).await? {
            Past::Forgotten => worker.run(self.search(client)).await.map_err(Error::from)??,
            past => past,
        };
        if let Past::Done(lsn) = past {
            return Ok(self.done_before(lsn));
        }
        if let Some(staged) = worker.staged() {
            return Err(self.is_staged(staged.id()));
        }
        let head = worker.head();
        let (position, state) = head.as_ref().map_or((&[][..], &[][..]), |head| (head.position(), head.state()));
        note(format_args!(
            "fencepost: {}/{} granted as {} at sequence {}, position '{}'",
            self.pipeline,
            self.branch,
            worker.token(),
            worker.sequence(),
            readable(position)
        ));
        self.check_position(position)?;
        let files = Files::make(position, state)?;
        let ended = self.supervise(worker, self.spawn(worker, endpoint, position, &files)?, output).await?;
        self.conclude(worker, ended, &files).await
    }

    /// What the server remembers of this commit id.
    async fn recall(&self, client: &Client) -> Result<Past, CliError> {
        let Some(id) = &self.commit_id else { return Ok(Past::NotDone) };
        match client.resolve_commit(&self.pipeline, id, None).await {
            Ok(found) => Ok(found.map_or(Past::NotDone, Past::Done)),
            Err(error) if error.reason() == Some(Reason::DedupeWindowExceeded) => Ok(Past::Forgotten),
            Err(error) => Err(error.into()),
        }
    }

    /// Looks for this commit id in the whole history of the branch. That is final for whoever holds the branch, if nothing
    /// of the history is gone; otherwise work that may have been done is not done again.
    async fn search(&self, client: &Client) -> Result<Past, CliError> {
        let mut history = client.pipeline(&self.pipeline).branch(&self.branch).checkpoints();
        let (mut newest, mut seen) = (0, 0);
        while let Some(checkpoint) = history.next().await? {
            newest = checkpoint.sequence().max(newest);
            seen += u64::from(checkpoint.unreadable().is_none());
            if self.commit_id.as_deref() == Some(checkpoint.commit_id()) {
                return Ok(Past::Done(checkpoint.lsn()));
            }
        }
        if seen == newest {
            return Ok(Past::NotDone);
        }
        let id = self.commit_id.as_deref().unwrap_or_default();
        let message = format!(
            "whether '{id}' was committed before cannot be told: its pipeline has had so many commits since that ids are \
             forgotten, and of the {newest} checkpoints of '{}' {seen} are kept and can be read. The program was not started: \
             see whether its work was done; then run it under another id, and keep more checkpoints of this pipeline",
            self.branch
        );
        Err(CliError::new(exit::IN_DOUBT, message))
    }

    fn done_before(&self, lsn: Lsn) -> ExitCode {
        let id = self.commit_id.as_deref().unwrap_or_default();
        note(format_args!("fencepost: '{id}' was committed before, at LSN {lsn}: nothing to do"));
        ExitCode::SUCCESS
    }

    /// What another worker left open would make the commit fail, so the program is not even started.
    fn is_staged(&self, id: &str) -> CliError {
        let (pipeline, branch) = (&self.pipeline, &self.branch);
        let message = format!(
            "STAGED_PENDING: branch '{branch}' of '{pipeline}' has '{id}' staged, and takes no other commit before that is \
             committed or discarded: the program was not started. Let the worker that staged it ask its sink; if the sink \
             does not have it, 'fencepost staged discard {pipeline} {branch} --reason WHY' gives it up"
        );
        CliError::new(exit::REFUSED, message)
    }

    /// A position that the environment cannot hold must not look like a fresh start.
    fn check_position(&self, position: &[u8]) -> Result<(), CliError> {
        if self.binary_position || !position.contains(&0) {
            return Ok(());
        }
        let message = "the position has a NUL byte, which no environment variable can hold: the program was not \
                       started. Let it read and write its position in the file $FENCEPOST_POSITION_FILE, and run it \
                       with --binary-position";
        Err(CliError::new(exit::REFUSED, message))
    }

    fn spawn(&self, worker: &Worker, endpoint: &str, position: &[u8], files: &Files) -> Result<Child, CliError> {
        let own = std::env::current_exe().map_err(|cause| CliError::io("finding the own binary", cause))?;
        let mut command = Command::new(own);
        command
            .arg("__guard")
            .arg(std::process::id().to_string())
            .arg("--")
            .args(&self.command)
            .env("FENCEPOST_ENDPOINT", endpoint)
            .env("FENCEPOST_PIPELINE", &self.pipeline)
            .env("FENCEPOST_BRANCH", &self.branch)
            .env("FENCEPOST_TOKEN", worker.token().as_u64().to_string())
            .env("FENCEPOST_SEQUENCE", worker.sequence().to_string())
            .env("FENCEPOST_POSITION_FILE", files.position())
            .env("FENCEPOST_STATE_FILE", files.state())
            .stdout(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        if self.binary_position {
            command.env_remove("FENCEPOST_POSITION");
        } else {
            command.env("FENCEPOST_POSITION", OsStr::from_bytes(position));
        }
        if std::io::stdin().is_terminal() {
            // A group in the background that reads from the terminal would be stopped, and its lease renewed for ever.
            command.stdin(Stdio::null());
        }
        command.spawn().map_err(|cause| CliError::io("starting the program", cause))
    }

    /// Watches the program until it ends or the lease is lost.
    async fn supervise(&self, worker: &Worker, mut child: Child, output: &mut Output) -> Result<Ended, CliError> {
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let group = group.ok_or_else(|| CliError::new(exit::REFUSED, "the program ended before it began"))?;
        output.follow(child.stdout.take());
        let mut signals = Signals::listen()?;
        let lost = worker.lost();
        tokio::pin!(lost);
        let status = loop {
            tokio::select! {
                biased;
                loss = &mut lost => {
                    note(format_args!("fencepost: stopping the program: {loss}"));
                    self.stop(&mut child, group).await;
                    return Ok(Ended::Lost(loss));
                }
                status = child.wait() => break status.map_err(|cause| CliError::io("waiting for the program", cause))?,
                // What is done after the signal is the program's own decision: if it exits 0 its work counts.
                which = signals.next() => signal_group(group, which),
                () = output.pass_on() => {}
            }
        };
        // Whatever the program left behind in its group has no lease any more.
        signal_group(group, Signal::KILL);
        Ok(Ended::Exited { status, last_line: output.last_line() })
    }

    /// Ends the program for good: it has no right to go on.
    async fn stop(&self, child: &mut Child, group: Pid) {
        if self.grace > 0 {
            signal_group(group, Signal::TERM);
            let _ = tokio::time::timeout(Duration::from_secs(self.grace), child.wait()).await;
        }
        signal_group(group, Signal::KILL);
        // It was killed; how it ended does not matter any more.
        let _ = child.wait().await;
    }

    /// Commits what the program did, if it succeeded.
    async fn conclude(&self, worker: &Worker, ended: Ended, files: &Files) -> Result<ExitCode, CliError> {
        let (status, last_line) = match ended {
            Ended::Lost(loss) => return Err(Error::from(loss).into()),
            Ended::Exited { status, last_line } => (status, last_line),
        };
        if !status.success() {
            note(format_args!("fencepost: the program failed ({status}); nothing was committed"));
            return Ok(ExitCode::from(exit_code(status)));
        }
        let position = self.new_position(files.read_position()?, last_line)?;
        let mut checkpoint = Checkpoint::at(position.clone()).state(files.read_state()?);
        for (name, value) in &self.scope {
            checkpoint = checkpoint.scope(name, value);
        }
        if let Some(trace) = traceparent::surrounding() {
            checkpoint = checkpoint.traceparent(trace);
        }
        let mut commit = Commit::of([(worker, checkpoint)]);
        if let Some(id) = &self.commit_id {
            commit = commit.id(id);
        }
        let committed = commit.send().await?;
        let how = if committed.outcome == Outcome::AlreadyApplied { "was committed before as" } else { "committed" };
        note(format_args!(
            "fencepost: {}/{} {how} sequence {} at '{}', LSN {}",
            self.pipeline,
            self.branch,
            committed.sequence,
            readable(&position),
            committed.lsn
        ));
        Ok(ExitCode::SUCCESS)
    }

    /// The position that the program gave, in its file or as the last line of its output.
    fn new_position(&self, written: Option<Vec<u8>>, last_line: Option<Vec<u8>>) -> Result<Vec<u8>, CliError> {
        let (given, or_else) = if self.binary_position {
            (written, "")
        } else {
            let text = written.map(|position| position.strip_suffix(b"\n").unwrap_or(&position).to_vec());
            (text.filter(|text| !text.is_empty()).or(last_line), ", or print it as its last line")
        };
        given.ok_or_else(|| {
            let message = format!(
                "the program exited 0 but gave no position: nothing was committed. It has to write its new position \
                 to $FENCEPOST_POSITION_FILE{or_else}"
            );
            CliError::new(exit::INTEGRITY, message)
        })
    }
}

/// What is known of the work of a commit id.
enum Past {
    Done(Lsn),
    NotDone,
    /// It is none of the newest commits, and only those are remembered by their ids.
    Forgotten,
}

/// How a run of the program ended.
enum Ended {
    Exited { status: ExitStatus, last_line: Option<Vec<u8>> },
    Lost(Loss),
}

async fn print_position(branch: &Branch, start_fresh: bool) -> Result<ExitCode, CliError> {
    match branch.head().await {
        Ok(head) => write_raw(head.position()).and_then(|()| write(""))?,
        Err(error) if start_fresh && error.reason() == Some(Reason::StateMissing) => write("")?,
        Err(error) => return Err(error.into()),
    }
    Ok(ExitCode::SUCCESS)
}

/// Lets the next worker have the branch at once. If that fails the lease runs out by itself: the verdict stays.
async fn give_back(worker: Worker) {
    let (pipeline, branch) = (worker.pipeline().to_owned(), worker.branch().to_owned());
    if let Err(error) = worker.release().await {
        note(format_args!(
            "fencepost: {pipeline}/{branch} could not be given back and is held until its TTL has run out: {error}"
        ));
    }
}

/// The code of a program's end, as a shell would tell it.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(u8::MAX)
}

fn machine_name() -> String {
    let name = super::actor::host();
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = name.chars().filter(|c| is_allowed(*c)).take(fencepost::NAME_BYTES_MAX).collect();
    let name = name.trim_start_matches(['.', '-']);
    if name.is_empty() { "run".to_owned() } else { name.to_owned() }
}
