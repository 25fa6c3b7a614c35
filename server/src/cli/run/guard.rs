//! The guard between `run` and its program: it lives in the program's process group and takes the whole group along if
//! `run` dies, however it dies.

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use clap::Args;
use rustix::process::Signal;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use super::super::exit;
use super::super::output::note;
use super::exit_code;

/// Runs the program and, if `run` dies, kills its whole process group.
#[derive(Args)]
pub(crate) struct Guard {
    /// The process to outlive by nothing.
    parent: u32,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

impl Guard {
    pub(in crate::cli) fn run(self) -> ExitCode {
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
