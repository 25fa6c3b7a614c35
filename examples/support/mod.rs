//! What the examples have in common: a store to talk to, workers as processes of their own, and the moments at which these
//! are killed or frozen. None of it belongs to a pipeline; the examples themselves do.

#![allow(dead_code, reason = "each example uses its part")]
#![allow(clippy::disallowed_methods, reason = "scratch files and names of an example, not the store's")]
#![allow(clippy::print_stderr, reason = "an example is a program")]

use std::error::Error;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitCode, ExitStatus};

use fencepost_client::{Client, Reason};
use fencepost_server::clock::Clock;
use fencepost_server::config::Config;
use fencepost_server::connections;
use fencepost_server::server::{Server, ServerError};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, getpid, kill_process, waitid};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub(crate) type Result<T = (), E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// Where a worker is to end or to stand still: `kill PLACE N` or `freeze PLACE N`, as in [`fault`].
const FAULT: &str = "FENCEPOST_EXAMPLE_FAULT";
/// The exit code of a worker that was replaced, as `fencepost run` has it.
const FENCED: u8 = 77;

/// The server that an example works with: one that is there, or one of its own, on loopback and in a temporary directory.
pub(crate) struct Store {
    endpoint: String,
    own: Option<Own>,
    scratch: TempDir,
}

struct Own {
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Result<(), ServerError>>,
}

impl Store {
    /// Uses the server at `endpoint`, or starts one.
    pub(crate) async fn open(endpoint: Option<String>) -> Result<Store> {
        let scratch = tempfile::Builder::new().prefix("fencepost-example-").tempdir()?;
        if let Some(endpoint) = endpoint {
            return Ok(Store { endpoint, own: None, scratch });
        }
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = listener.local_addr()?.to_string();
        let config = Config { data_dir: scratch.path().join("store"), segment_bytes: 24 << 20, ..Config::default() };
        let connections_max = config.connections_max;
        let server = tokio::task::spawn_blocking(|| Server::open(config, Clock::real())).await??;
        let (stop, stopped) = oneshot::channel::<()>();
        let connections = connections::accept(listener, connections_max);
        let serving = tokio::spawn(server.serve(connections, async { drop(stopped.await) }));
        Ok(Store { endpoint, own: Some(Own { stop, serving }), scratch })
    }

    /// Stops the server, if it is the example's own, and removes all files.
    pub(crate) async fn close(self) -> Result {
        if let Some(Own { stop, serving }) = self.own {
            // A server that is gone has stopped already.
            let _ = stop.send(());
            serving.await??;
        }
        Ok(self.scratch.close()?)
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(crate) async fn client(&self) -> Result<Client> {
        Ok(Client::connect(&self.endpoint).await?)
    }

    /// A name that is free: in a store that others use, nobody else's.
    pub(crate) fn free_name(&self, name: &str) -> String {
        if self.own.is_some() { name.to_owned() } else { format!("{name}-{}", uuid::Uuid::now_v7().simple()) }
    }

    /// A directory for what the example writes.
    pub(crate) fn scratch(&self) -> &Path {
        self.scratch.path()
    }
}

/// This program once more, as a process of its own. It is killed if the example ends before it does.
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Starts it with these arguments, and with a fault that it is to meet.
    pub(crate) fn start(arguments: &[OsString], fault: Option<&str>) -> Result<Process> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(arguments).env_remove(FAULT).kill_on_drop(true);
        if let Some(fault) = fault {
            command.env(FAULT, fault);
        }
        Ok(Process { child: command.spawn()? })
    }

    /// Waits until it has ended, and says how.
    pub(crate) async fn ended(mut self) -> Result<ExitStatus> {
        Ok(self.child.wait().await?)
    }

    /// Waits until it stands still.
    pub(crate) async fn frozen(&self) -> Result {
        let pid = self.pid()?;
        // NOWAIT: how it ended, if it did, is left for `ended` to see.
        let options = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        let status = tokio::task::spawn_blocking(move || waitid(WaitId::Pid(pid), options)).await??;
        if status.is_some_and(|status| status.stopped()) { Ok(()) } else { Err("a worker ended too early".into()) }
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) -> Result {
        Ok(kill_process(self.pid()?, Signal::CONT)?)
    }

    fn pid(&self) -> Result<Pid> {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        pid.ok_or_else(|| "the worker is gone already".into())
    }
}

/// A moment at which a worker may die or stand still, as a crash or a stalled machine would have it: on the spot, with
/// nothing cleaned up. It passes by unless the example ordered it for this place and this time. Leave these calls out of
/// your own pipeline.
///
/// To be called by the main thread, which is the first to see a signal to its process: so nothing is done after it.
pub(crate) fn fault(place: &str, number: u64) {
    let Ok(ordered) = std::env::var(FAULT) else { return };
    let here = format!("{place} {number}");
    let signal = match ordered.split_once(' ') {
        Some(("kill", there)) if there == here => Signal::KILL,
        Some(("freeze", there)) if there == here => {
            // Nobody would ever wake it if the example itself were killed.
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).expect("SIGKILL is a signal");
            Signal::STOP
        }
        _ => return,
    };
    kill_process(getpid(), signal).expect("a process may signal itself");
}

/// Fails unless the process was ended by SIGKILL.
pub(crate) fn killed(status: ExitStatus) -> Result {
    let is_so = status.signal() == Some(Signal::KILL.as_raw());
    if is_so { Ok(()) } else { Err(format!("a worker that was to be killed ended with {status}").into()) }
}

/// Fails unless the process ended well.
pub(crate) fn succeeded(status: ExitStatus) -> Result {
    if status.success() { Ok(()) } else { Err(format!("a worker ended with {status}").into()) }
}

/// Fails unless the process ended because it was replaced.
pub(crate) fn fenced(status: ExitStatus) -> Result {
    let is_so = status.code() == Some(i32::from(FENCED));
    if is_so { Ok(()) } else { Err(format!("a worker that was replaced ended with {status}").into()) }
}

/// Fails with that message unless the condition holds.
pub(crate) fn ensure(condition: bool, otherwise: impl Into<String>) -> Result {
    if condition { Ok(()) } else { Err(otherwise.into().into()) }
}

/// The exit code for what a program did; an error is told.
pub(crate) fn exit(result: Result) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    let reason = error.downcast_ref::<fencepost_client::Error>().and_then(fencepost_client::Error::reason);
    if reason == Some(Reason::Fenced) {
        eprintln!("refused: {error}");
        return ExitCode::from(FENCED);
    }
    eprintln!("error: {error}");
    ExitCode::FAILURE
}
