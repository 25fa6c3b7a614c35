//! `fencepost run`: any program under a lease.
//!
//! The program is started in a process group of its own, under a guard (a hidden command of this binary) that kills the
//! whole group if `run` itself dies, so that a `kill -9` of `run` leaves no worker behind that nobody fences.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use clap::{Args, ValueEnum};
use fencepost_client::{Branch, Checkpoint, Client, Commit, Error, Loss, Outcome, Resume, Takeover, Worker};
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::error::CliError;
use super::exit;
use super::output::{note, readable, write, write_raw};

/// Run any program under a lease: resume where it was, commit when it exits 0, stop it if it is replaced.
///
/// The program finds in its environment:
///
///   FENCEPOST_POSITION       where to start; empty on a fresh start
///   FENCEPOST_SEQUENCE       the checkpoint's number that it starts from; 0 on a fresh start
///   FENCEPOST_TOKEN          its fencing token, an integer: compare it in every write to a sink
///   FENCEPOST_ENDPOINT, FENCEPOST_PIPELINE, FENCEPOST_BRANCH
///   FENCEPOST_POSITION_FILE  to be written with the new position (else: the last line of its output)
///   FENCEPOST_STATE_FILE     holds the saved state; what it holds in the end is saved
///
/// When it exits 0 its new position is committed and the lease released. When it fails nothing
/// is committed, and `run` exits with its code. When the lease is lost it is killed.
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
    /// An identity for this piece of work, such as a date: if it was committed before, do nothing and exit 0.
    #[arg(long, value_name = "ID")]
    commit_id: Option<String>,
    /// How long the program may take to stop after SIGTERM when the lease is lost, in seconds, before SIGKILL.
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    grace: u64,
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
    pub(super) async fn run(self, client: &Client, endpoint: &str) -> Result<ExitCode, CliError> {
        let branch = client.pipeline(&self.pipeline).branch(&self.branch);
        if self.print_position {
            return print_position(&branch, self.start_fresh).await;
        }
        if self.is_done(client).await? {
            return Ok(ExitCode::SUCCESS);
        }
        let worker = branch.resume(self.resume()).await?;
        // Somebody else may have done it while this one waited for the branch.
        if self.is_done(client).await? {
            worker.release().await?;
            return Ok(ExitCode::SUCCESS);
        }
        let head = worker.head();
        note(format_args!(
            "fencepost: {}/{} granted as {} at sequence {}, position '{}'",
            self.pipeline,
            self.branch,
            worker.token(),
            worker.sequence(),
            head.as_ref().map_or_else(String::new, |head| readable(head.position()))
        ));
        let files = Files::make(head.as_ref().map_or(&[][..], |head| head.state()))?;
        let ended = self.supervise(&worker, endpoint, &files).await?;
        self.conclude(worker, ended, &files).await
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
        if self.start_fresh { resume.start_fresh() } else { resume }
    }

    /// Whether the work of this commit id is in the log.
    async fn is_done(&self, client: &Client) -> Result<bool, CliError> {
        let Some(id) = &self.commit_id else { return Ok(false) };
        let Some(lsn) = client.resolve_commit(&self.pipeline, id, None).await? else { return Ok(false) };
        note(format_args!("fencepost: '{id}' was committed before, at LSN {lsn}: nothing to do"));
        Ok(true)
    }

    /// Runs the program until it ends or the lease is lost.
    async fn supervise(&self, worker: &Worker, endpoint: &str, files: &Files) -> Result<Ended, CliError> {
        let mut child = self.spawn(worker, endpoint, files)?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let group = group.ok_or_else(|| CliError::new(exit::REFUSED, "the program ended before it began"))?;
        let output = child.stdout.take().map(|stdout| tokio::spawn(pass_on(stdout)));
        let signals = |cause| CliError::io("listening for signals", cause);
        let mut terminate = signal(SignalKind::terminate()).map_err(signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(signals)?;
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
                _ = terminate.recv() => signal_group(group, Signal::TERM),
                _ = interrupt.recv() => signal_group(group, Signal::INT),
            }
        };
        // Whatever the program left behind in its group has no lease any more.
        signal_group(group, Signal::KILL);
        let last_line = match output {
            Some(output) => output.await.ok().flatten(),
            None => None,
        };
        Ok(Ended::Exited { status, last_line })
    }

    fn spawn(&self, worker: &Worker, endpoint: &str, files: &Files) -> Result<Child, CliError> {
        let own = std::env::current_exe().map_err(|cause| CliError::io("finding the own binary", cause))?;
        let position = worker.head().map_or_else(String::new, |head| readable(head.position()));
        Command::new(own)
            .arg("__guard")
            .arg(std::process::id().to_string())
            .arg("--")
            .args(&self.command)
            .env("FENCEPOST_ENDPOINT", endpoint)
            .env("FENCEPOST_PIPELINE", &self.pipeline)
            .env("FENCEPOST_BRANCH", &self.branch)
            .env("FENCEPOST_TOKEN", worker.token().as_u64().to_string())
            .env("FENCEPOST_SEQUENCE", worker.sequence().to_string())
            .env("FENCEPOST_POSITION", position)
            .env("FENCEPOST_POSITION_FILE", files.position())
            .env("FENCEPOST_STATE_FILE", files.state())
            .stdout(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|cause| CliError::io("starting the program", cause))
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

    /// Commits what the program did, if it succeeded, and gives the branch back.
    async fn conclude(&self, worker: Worker, ended: Ended, files: &Files) -> Result<ExitCode, CliError> {
        let (status, last_line) = match ended {
            Ended::Lost(loss) => return Err(Error::from(loss).into()),
            Ended::Exited { status, last_line } => (status, last_line),
        };
        if !status.success() {
            let code = exit_code(status);
            note(format_args!("fencepost: the program failed ({status}); nothing was committed"));
            worker.release().await?;
            return Ok(ExitCode::from(code));
        }
        let Some(position) = files.read_position()?.or(last_line) else {
            worker.release().await?;
            let message = "the program exited 0 but gave no position: nothing was committed. It has to write its new \
                           position to $FENCEPOST_POSITION_FILE, or print it as its last line";
            return Err(CliError::new(exit::INTEGRITY, message));
        };
        let checkpoint = Checkpoint::at(position.clone()).state(files.read_state()?);
        let mut commit = Commit::of([(&worker, checkpoint)]);
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
        worker.release().await?;
        Ok(ExitCode::SUCCESS)
    }
}

/// How a run of the program ended.
enum Ended {
    Exited { status: ExitStatus, last_line: Option<Vec<u8>> },
    Lost(Loss),
}

async fn print_position(branch: &Branch, start_fresh: bool) -> Result<ExitCode, CliError> {
    match branch.head().await {
        Ok(head) => write_raw(head.position()).and_then(|()| write(""))?,
        Err(error) if start_fresh && error.reason() == Some(fencepost::Reason::StateMissing) => write("")?,
        Err(error) => return Err(error.into()),
    }
    Ok(ExitCode::SUCCESS)
}

/// Passes the program's output on and remembers its last line that is not empty.
async fn pass_on(stdout: ChildStdout) -> Option<Vec<u8>> {
    let (mut lines, mut own, mut last) = (BufReader::new(stdout), tokio::io::stdout(), None);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).await.is_ok_and(|read| read > 0) {
        // Who does not read our output does not stop the program.
        let _ = own.write_all(&line).await;
        let _ = own.flush().await;
        let text = line.trim_ascii();
        if !text.is_empty() {
            last = Some(text.to_vec());
        }
        line.clear();
    }
    last
}

fn signal_group(group: Pid, signal: Signal) {
    // A group that is gone needs no signal.
    let _ = rustix::process::kill_process_group(group, signal);
}

/// The code of a program's end, as a shell would tell it.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(u8::MAX)
}

fn machine_name() -> String {
    let name: String = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = name.chars().filter(|c| is_allowed(*c)).take(fencepost::NAME_BYTES_MAX).collect();
    let name = name.trim_start_matches(['.', '-']);
    if name.is_empty() { "run".to_owned() } else { name.to_owned() }
}

/// The files through which the program hands over its position and state; gone with the run.
struct Files {
    dir: PathBuf,
}

#[allow(clippy::disallowed_methods)] // The program's own scratch files, not the store's.
impl Files {
    fn make(state: &[u8]) -> Result<Files, CliError> {
        let dir = std::env::temp_dir().join(format!("fencepost-run-{}", fencepost_server::clock::random_id()));
        let files = Files { dir };
        std::fs::create_dir_all(&files.dir).map_err(|cause| files.failed("making", cause))?;
        std::fs::write(files.state(), state).map_err(|cause| files.failed("writing to", cause))?;
        Ok(files)
    }

    fn position(&self) -> PathBuf {
        self.dir.join("position")
    }

    fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// What the program wrote, without the line's end; `None` if it wrote nothing.
    fn read_position(&self) -> Result<Option<Vec<u8>>, CliError> {
        let position = self.read(&self.position())?.trim_ascii().to_vec();
        Ok((!position.is_empty()).then_some(position))
    }

    fn read_state(&self) -> Result<Vec<u8>, CliError> {
        self.read(&self.state())
    }

    fn read(&self, file: &Path) -> Result<Vec<u8>, CliError> {
        match std::fs::read(file) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            read => read.map_err(|cause| self.failed("reading from", cause)),
        }
    }

    fn failed(&self, what: &str, cause: io::Error) -> CliError {
        CliError::io(format_args!("{what} {}", self.dir.display()), cause)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // A directory that stays behind in the temporary directory does no harm.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Runs the program and, if `run` dies, kills its whole process group.
#[derive(Args)]
pub(crate) struct Guard {
    /// The process to outlive by nothing.
    parent: u32,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

impl Guard {
    pub(super) fn run(self) -> ExitCode {
        match self.guard() {
            Ok(code) => ExitCode::from(code),
            Err(cause) => {
                let program = self.command.first().map(|program| program.to_string_lossy()).unwrap_or_default();
                note(format_args!("fencepost: cannot run '{program}': {cause}"));
                // As a shell says that there is no such command.
                ExitCode::from(127)
            }
        }
    }

    fn guard(&self) -> io::Result<u8> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut orphaned = signal(SignalKind::user_defined2())?;
            // Signals to the group are for the program; the guard lives until the program is gone.
            let _term = signal(SignalKind::terminate())?;
            let _interrupt = signal(SignalKind::interrupt())?;
            rustix::process::set_parent_process_death_signal(Some(Signal::USR2))?;
            if std::os::unix::process::parent_id() != self.parent {
                return Ok(exit::FENCED);
            }
            let mut command = std::process::Command::new(&self.command[0]);
            command.args(&self.command[1..]);
            let mut child = Command::from(command).spawn()?;
            tokio::select! {
                status = child.wait() => Ok(exit_code(status?)),
                _ = orphaned.recv() => {
                    // This ends the guard too.
                    let _ = rustix::process::kill_current_process_group(Signal::KILL);
                    Ok(exit::FENCED)
                }
            }
        })
    }
}
