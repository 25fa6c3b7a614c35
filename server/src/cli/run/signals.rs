//! Signals: those that ask to end, and those that are passed on.

use rustix::process::{Pid, Signal};
use tokio::signal::unix::{SignalKind, signal};

use super::super::error::CliError;

/// The signals that ask a program to end.
pub(super) struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    pub(super) fn listen() -> Result<Signals, CliError> {
        let listen = |kind| signal(kind).map_err(|cause| CliError::io("listening for signals", cause));
        Ok(Signals { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    pub(super) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.interrupt.recv() => Signal::INT,
        }
    }
}

/// Waits for a signal that comes from now on.
pub(super) async fn asked_to_end() {
    let Ok(mut signals) = Signals::listen() else { return std::future::pending().await };
    signals.next().await;
}

pub(super) fn signal_group(group: Pid, signal: Signal) {
    // A group that is gone needs no signal.
    let _ = rustix::process::kill_process_group(group, signal);
}
