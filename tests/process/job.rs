//! A job under `fencepost run` and the server that it belongs to.

use std::path::PathBuf;

use fencepost_client::{Branch, Checkpoint, Resume, StoredCheckpoint};
use tokio::process::{Child, Command};

use crate::support::{Ended, Server, output, until};

pub(crate) const PIPELINE: &str = "prod/job";

/// A job of one pipeline, with a directory where its scripts leave traces.
pub(crate) struct Job {
    pub(crate) server: Server,
}

impl Job {
    pub(crate) async fn new() -> Job {
        Job { server: Server::start().await }
    }

    /// One that has committed before, at position `100` with state `abc`.
    pub(crate) async fn begun() -> Job {
        let job = Job::new().await;
        let worker = job.branch().await.resume(Resume::new("earlier").start_fresh()).await.unwrap();
        worker.commit(Checkpoint::at("100").state("abc")).await.unwrap();
        worker.release().await.unwrap();
        job
    }

    /// `fencepost run` with these flags around a shell script, whose working directory is `traces`.
    pub(crate) fn run(&self, flags: &[&str], script: &str) -> Command {
        let mut command = self.server.command(&["run", "--pipeline", PIPELINE]);
        command.args(flags).args(["--", "sh", "-c", script]).current_dir(self.server.scratch());
        command.env("TMPDIR", self.server.scratch());
        command
    }

    pub(crate) async fn ended(&self, flags: &[&str], script: &str) -> Ended {
        output(&mut self.run(flags, script)).await
    }

    /// Starts it and returns once the script has left the trace `started`.
    pub(crate) async fn started(&self, flags: &[&str], script: &str) -> Child {
        let mut command = self.run(flags, script);
        let child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
        until("the program starts", async || self.trace("started").exists()).await;
        child
    }

    pub(crate) fn trace(&self, name: &str) -> PathBuf {
        self.server.scratch().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.trace(name)).unwrap().trim().to_owned()
    }

    pub(crate) async fn branch(&self) -> Branch {
        self.server.client().await.pipeline(PIPELINE).branch("main")
    }

    pub(crate) async fn head(&self) -> StoredCheckpoint {
        self.branch().await.head().await.unwrap()
    }

    pub(crate) async fn is_held(&self) -> bool {
        !self.server.client().await.leases().all().await.unwrap().is_empty()
    }

    pub(crate) async fn is_untouched(&self) {
        let head = self.head().await;
        assert_eq!((head.sequence(), head.position_str().as_ref()), (1, "100"), "nothing was committed");
    }

    /// Nothing of a run that is over is left: no process, no lease, no scratch files.
    pub(crate) async fn is_tidy(&self) {
        assert!(!self.is_held().await, "the branch was given back");
        let left = std::fs::read_dir(self.server.scratch()).unwrap();
        let left = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert_eq!(left.filter(|name| name.starts_with("fencepost-run")).count(), 0, "its files are gone");
    }
}

/// Holds a run to its exit code and to what it said.
#[track_caller]
pub(crate) fn ended_with(ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!(ended.code, Some(code), "{ended:?}");
    for word in words {
        assert!(ended.stderr.contains(word), "'{word}' is not in: {}", ended.stderr);
    }
}
