//! The processes of the demonstration and the record of what they told.
//!
//! Every process is a child of this one, in a process group of its own, so that Ctrl-C reaches the demonstration alone,
//! which then ends them. None outlives it: they are killed when the stage is cleared or dropped, and by the system if the
//! demonstration itself is killed ([`DemoChild`]).
//!
//! Nobody waits for time here. Whoever waits does so for the record to show something, and says what ([`Stage::until`]).

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Args;
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;

use super::event::Event;
use super::files::WorkDir;
use super::timeline::Timeline;
use crate::cli::error::CliError;
use crate::cli::exit;
use crate::cli::output::note;

/// How long a process may take to be gone after SIGKILL.
const DEATH: Duration = Duration::from_secs(10);

/// Which process: its place in the [`Record`].
pub(super) type PartId = usize;

/// The processes, and what they told.
pub(super) struct Stage {
    pub(super) timeline: Arc<Timeline>,
    pub(super) dir: WorkDir,
    program: PathBuf,
    record: Arc<watch::Sender<Record>>,
    /// The processes that have not been reaped yet.
    children: Mutex<Vec<(PartId, Child)>>,
}

/// Everything that was told so far.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) parts: Vec<Part>,
}

/// One process.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) name: String,
    /// Of a worker.
    pub(super) origin: Option<&'static str>,
    /// With the time since the start at which each was read.
    pub(super) events: Vec<(Duration, Event)>,
    /// Whether the demonstration itself ended it.
    is_dismissed: bool,
    has_ended: bool,
}

impl Stage {
    pub(super) fn new(timeline: Timeline, dir: WorkDir) -> Result<Stage, CliError> {
        let program = std::env::current_exe().map_err(|cause| CliError::io("finding the own binary", cause))?;
        let record = Arc::new(watch::Sender::new(Record::default()));
        Ok(Stage { timeline: Arc::new(timeline), dir, program, record, children: Mutex::default() })
    }

    /// Starts this program as a process of that name. What it tells is given to `announce` and recorded.
    pub(super) fn start(
        &self,
        name: &str,
        origin: Option<&'static str>,
        arguments: Vec<OsString>,
        announce: fn(&Timeline, &str, &Event),
    ) -> Result<PartId, CliError> {
        let mut command = Command::new(&self.program);
        command.args(["__demo-child", &std::process::id().to_string(), "--"]).args(arguments);
        // Settings of the user's own server and workers are not for these.
        for (variable, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FENCEPOST_")) {
            command.env_remove(variable);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(self.dir.messages(name)?);
        let started = command.process_group(0).kill_on_drop(true).spawn();
        let mut child = started.map_err(|cause| CliError::io(format_args!("starting the {name}"), cause))?;
        let stdout = child.stdout.take().expect("the output of a child is piped");

        let part = Part { name: name.to_owned(), origin, events: vec![], is_dismissed: false, has_ended: false };
        let mut id = 0;
        self.record.send_modify(|record| {
            id = record.parts.len();
            record.parts.push(part);
        });
        self.children().push((id, child));
        let (timeline, record, name) = (self.timeline.clone(), self.record.clone(), name.to_owned());
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Some(event) = next_event(&mut lines).await {
                announce(&timeline, &name, &event);
                let at = timeline.elapsed();
                record.send_modify(|record| record.parts[id].events.push((at, event)));
            }
            record.send_modify(|record| record.parts[id].has_ended = true);
        });
        Ok(id)
    }

    /// Waits until `seen` finds what it looks for in the record. Fails, naming what was awaited, when `patience` is over or
    /// when a process ends that should not.
    pub(super) async fn until<T>(
        &self,
        awaited: &str,
        patience: Duration,
        mut seen: impl FnMut(&Record) -> Option<T>,
    ) -> Result<T, CliError> {
        let mut changes = self.record.subscribe();
        let waiting = async {
            loop {
                self.timeline.check()?;
                {
                    let record = changes.borrow_and_update();
                    if let Some(found) = seen(&record) {
                        return Ok(found);
                    }
                    if let Some(part) = record.parts.iter().find(|part| part.ended_by_itself()) {
                        let said = self.dir.last_message(&part.name).unwrap_or_else(|| "it said nothing".to_owned());
                        let problem =
                            format!("waiting until {awaited}: the {} ended before its work did: {said}", part.name);
                        return Err(CliError::new(exit::REFUSED, problem));
                    }
                }
                changes.changed().await.expect("the stage holds the sender");
            }
        };
        tokio::time::timeout(patience, waiting).await.unwrap_or_else(|_| {
            let seconds = patience.as_secs();
            Err(CliError::new(exit::UNAVAILABLE, format!("waited {seconds} s in vain until {awaited}")))
        })
    }

    /// Reads the record as it is now.
    pub(super) fn look<T>(&self, read: impl FnOnce(&Record) -> T) -> T {
        read(&self.record.borrow())
    }

    /// Sends a signal to a process that is running or frozen.
    pub(super) fn signal(&self, id: PartId, signal: Signal) -> Result<(), CliError> {
        let children = self.children();
        let child = children.iter().find(|(part, _)| *part == id).and_then(|(_, child)| child.id());
        // The number is not given to another process before the child was reaped, which only `reap` does.
        let pid = child.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| CliError::new(exit::REFUSED, "a process to be signalled is gone already"))?;
        rustix::process::kill_process(pid, signal).map_err(|cause| CliError::io("sending a signal", cause.into()))
    }

    /// Kills a process with SIGKILL and waits until it is gone.
    pub(super) async fn kill(&self, id: PartId) -> Result<(), CliError> {
        self.record.send_modify(|record| record.parts[id].is_dismissed = true);
        self.signal(id, Signal::KILL)?;
        self.reap(id).await
    }

    /// Waits until a process is gone that is about to end.
    pub(super) async fn reap(&self, id: PartId) -> Result<(), CliError> {
        let child = {
            let mut children = self.children();
            let place = children.iter().position(|(part, _)| *part == id);
            place.map(|place| children.swap_remove(place).1)
        };
        let Some(mut child) = child else { return Ok(()) };
        let gone = tokio::time::timeout(DEATH, child.wait()).await;
        let gone = gone.map_err(|_| CliError::new(exit::UNAVAILABLE, "a process does not end"))?;
        gone.map_err(|cause| CliError::io("waiting for a process", cause)).map(drop)
    }

    /// Kills and reaps every process that is left, also frozen ones.
    pub(super) async fn clear(&self) {
        self.record.send_modify(|record| record.parts.iter_mut().for_each(|part| part.is_dismissed = true));
        let children = std::mem::take(&mut *self.children());
        for (_, mut child) in children {
            // One that has ended meanwhile cannot be killed and need not be.
            let _ = tokio::time::timeout(DEATH, child.kill()).await;
        }
    }

    fn children(&self) -> std::sync::MutexGuard<'_, Vec<(PartId, Child)>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Part {
    pub(super) fn endpoint(&self) -> Option<&str> {
        self.events.iter().find_map(|(_, event)| match event {
            Event::Listening { endpoint } => Some(endpoint.as_str()),
            _ => None,
        })
    }

    /// When the worker got the branch, its token, and the sequence it stood at.
    pub(super) fn resumed(&self) -> Option<(Duration, u64, u64)> {
        self.events.iter().find_map(|(at, event)| match event {
            Event::Resumed { token, sequence, .. } => Some((*at, *token, *sequence)),
            _ => None,
        })
    }

    /// The batch of which half the rows are written.
    pub(super) fn halfway(&self) -> Option<u64> {
        match self.events.last() {
            Some((_, Event::Halfway { sequence })) => Some(*sequence),
            _ => None,
        }
    }

    /// Its acknowledged commits in order: when, sequence, LSN.
    pub(super) fn commits(&self) -> impl Iterator<Item = (Duration, u64, u64)> {
        self.events.iter().filter_map(|(at, event)| match event {
            Event::Committed { sequence, lsn, .. } => Some((*at, *sequence, *lsn)),
            _ => None,
        })
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.events.last(), Some((_, Event::Done { .. })))
    }

    /// Whether it was killed by the demonstration.
    pub(super) fn was_killed(&self) -> bool {
        self.is_dismissed
    }

    /// Whether a commit of it was refused because another worker had its branch.
    pub(super) fn was_fenced(&self) -> bool {
        self.events.iter().any(|(_, event)| matches!(event, Event::Refused { .. }))
    }

    /// Whether it is a worker that will go on to commit.
    pub(super) fn is_at_work(&self) -> bool {
        self.origin.is_some() && !self.is_dismissed && !self.has_ended && !self.is_done()
    }

    fn ended_by_itself(&self) -> bool {
        let is_at_its_end = matches!(self.events.last(), Some((_, Event::Done { .. } | Event::Refused { .. })));
        self.has_ended && !self.is_dismissed && !is_at_its_end
    }
}

/// The next thing that a process tells; lines that say nothing to the demonstration are passed over.
async fn next_event(lines: &mut tokio::io::Lines<BufReader<ChildStdout>>) -> Option<Event> {
    // A pipe that cannot be read any more is at its end.
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(endpoint) = line.strip_prefix("listening on ") {
            return Some(Event::Listening { endpoint: endpoint.to_owned() });
        }
        // The last line of a process that was killed may be half of one.
        if let Ok(event) = serde_json::from_str(&line) {
            return Some(event);
        }
    }
    None
}

/// Becomes another command of this program, one that the system kills when the demonstration is gone, however it went.
#[derive(Args)]
pub(crate) struct DemoChild {
    /// The demonstration's process.
    parent: u32,
    #[arg(last = true, required = true)]
    arguments: Vec<OsString>,
}

impl DemoChild {
    pub(in crate::cli) fn run(self) -> ExitCode {
        let cause = match rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
            Err(cause) => cause.into(),
            // It was gone before its end could be told to this process.
            Ok(()) if std::os::unix::process::parent_id() != self.parent => return exit::exit(exit::REFUSED),
            Ok(()) => become_command(&self.arguments),
        };
        note(format_args!("fencepost: cannot start a process of the demonstration: {cause}"));
        exit::exit(exit::UNAVAILABLE)
    }
}

/// Returns only if it fails.
fn become_command(arguments: &[OsString]) -> std::io::Error {
    match std::env::current_exe() {
        Ok(program) => std::process::Command::new(program).args(arguments).exec(),
        Err(cause) => cause,
    }
}

/// A flag with a value that may be any path.
pub(super) fn flag(name: &str, value: impl AsRef<Path>) -> [OsString; 2] {
    [name.into(), value.as_ref().as_os_str().to_owned()]
}
