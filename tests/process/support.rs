//! Starting processes, waiting for what they do, and ending them for certain.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use fencepost_client::Client;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

/// Nothing here takes this long unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The program, with nothing of the surroundings in its environment.
pub(crate) fn fencepost() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fencepost"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.env_clear().env("PATH", path).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// How a command that was left to itself ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a command to its end.
pub(crate) async fn output(command: &mut Command) -> Ended {
    let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("the command ends in time").unwrap();
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs a command that needs no server.
pub(crate) async fn offline(arguments: &[&str], paths: &[(&str, &Path)]) -> Ended {
    let mut command = fencepost();
    command.args(arguments);
    for (flag, path) in paths {
        if !flag.is_empty() {
            command.arg(flag);
        }
        command.arg(path);
    }
    output(&mut command).await
}

/// What a command that succeeded told.
#[track_caller]
pub(crate) fn json(ended: &Ended) -> Value {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    serde_json::from_str(&ended.stdout).unwrap()
}

/// All files in a directory and below it, in order. Beside a process that works there some may be gone again.
pub(crate) fn files(dir: &Path) -> Vec<PathBuf> {
    let (mut files, mut dirs) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() { dirs.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    files
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until something is so that may not be so for long. Blocks the thread of the test, not those of its tasks.
pub(crate) fn moment(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// Sends a signal to a process that was started here.
pub(crate) fn signal(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw).expect("it still runs");
    kill_process(pid, signal).unwrap();
}

/// Whether a process runs. One that has ended and was not waited for yet does not.
pub(crate) fn is_running(pid: &str) -> bool {
    let pid: i32 = pid.trim().parse().expect("a process id");
    if test_kill_process(Pid::from_raw(pid).expect("a process id is positive")).is_err() {
        return false;
    }
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in brackets and may hold anything.
    let state = status.rsplit_once(") ").map_or("", |(_, rest)| rest);
    !(state.is_empty() || state.starts_with(['Z', 'X']))
}

/// A port that the system does not hand out by itself, so that nobody takes it while a server is down.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 10_000 + (std::process::id() % 200) as u16 * 100;
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed) % 100;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A server process on a data directory and port of its own, which it keeps when it is started again.
pub(crate) struct Server {
    child: Child,
    dir: TempDir,
    port: u16,
    settings: &'static [&'static str],
}

impl Server {
    pub(crate) async fn start() -> Server {
        Server::start_with(&SMALL).await
    }

    pub(crate) async fn start_with(settings: &'static [&'static str]) -> Server {
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        let child = serve(&dir.path().join("data"), port, settings).await;
        Server { child, dir, port, settings }
    }

    /// Starts it again after its end.
    pub(crate) async fn restart(&mut self) {
        assert!(self.child.id().is_none(), "the server before has ended");
        self.child = serve(&self.data_dir(), self.port, self.settings).await;
    }

    /// Starts it again on another directory after its end.
    pub(crate) async fn restart_on(&mut self, data_dir: &Path) {
        assert!(self.child.id().is_none(), "the server before has ended");
        self.child = serve(data_dir, self.port, self.settings).await;
    }

    /// Ends it as a power cut would, as far as a process can.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    pub(crate) fn signal(&self, which: Signal) {
        signal(&self.child, which);
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("the server ends in time").unwrap()
    }

    /// Changes a bit of the first segment behind the server's back, at the first place where these bytes are.
    pub(crate) fn damage(&self, bytes: &str) {
        let log = self.data_dir().join("log/00000000000000000001.seg");
        let content = std::fs::read(&log).unwrap();
        let at = content.windows(bytes.len()).position(|found| found == bytes.as_bytes()).unwrap();
        let file = std::fs::File::options().write(true).open(&log).unwrap();
        file.write_all_at(&[content[at] ^ 1], at as u64).unwrap();
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A directory for what the test's programs write.
    pub(crate) fn scratch(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.endpoint()).await.unwrap()
    }

    /// A connection without a client's manners.
    pub(crate) async fn channel(&self) -> Channel {
        Endpoint::from_shared(self.endpoint()).unwrap().connect().await.unwrap()
    }

    /// A command that talks to this server.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = fencepost();
        command.env("FENCEPOST_ENDPOINT", self.endpoint()).args(arguments);
        command
    }
}

/// Settings that keep files small and make segments fill up within a test.
pub(crate) const SMALL: [&str; 6] =
    ["--segment-bytes", "8388608", "--batch-bytes-max", "65536", "--request-bytes-max", "2097152"];

async fn serve(data_dir: &Path, port: u16, settings: &[&str]) -> Child {
    let mut command = fencepost();
    command
        .arg("serve")
        .args(settings)
        .arg("--listen")
        .arg(format!("127.0.0.1:{port}"))
        .arg("--data-dir")
        .arg(data_dir);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().expect("its output is piped")).lines();
    let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("it says in time that it listens");
    assert_eq!(line.unwrap(), Some(format!("listening on http://127.0.0.1:{port}")));
    child
}
