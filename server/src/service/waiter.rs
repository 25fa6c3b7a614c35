//! Those who wait at barriers.

use std::convert::identity;
use std::time::Duration;

use fencepost::Lsn;
use fencepost::v1::barrier::State as Standing;
use fencepost::v1::{AwaitBarrierRequest, AwaitBarrierResponse, Barrier};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::Status;

use super::Backend;
use super::barrier::look;
use crate::sequencer::BarrierChanges;

/// Who waits at a barrier and heard nothing for this long hears a heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// One who waits: told what the barrier is whenever that changes.
pub(super) struct Waiter {
    pub(super) backend: Backend,
    pub(super) request: AwaitBarrierRequest,
    pub(super) changes: watch::Receiver<BarrierChanges>,
    /// The last change of a barrier of the pipeline before the state was looked at.
    pub(super) change: Lsn,
    pub(super) messages: mpsc::Sender<Result<AwaitBarrierResponse, Status>>,
}

impl Waiter {
    pub(super) async fn run(mut self, first: (Barrier, Lsn)) {
        let mut stopping = self.backend.stopping.clone();
        let (mut barrier, mut seen) = first;
        let mut is_news = true;
        let mut heartbeat = Instant::now();
        loop {
            if is_news {
                let header = Some(self.backend.sequencer.header(seen));
                let message = AwaitBarrierResponse { header, barrier: Some(barrier.clone()) };
                if self.messages.send(Ok(message)).await.is_err() || barrier.state() != Standing::Open {
                    return;
                }
                heartbeat = Instant::now() + HEARTBEAT;
            }
            let AwaitBarrierRequest { pipeline, name, .. } = &self.request;
            let (changes, last) = (&mut self.changes, self.change);
            let changed = async { changes.wait_for(|it| it.of(pipeline) != last).await.map(|it| it.of(pipeline)) };
            is_news = tokio::select! {
                biased;
                _ = stopping.wait_for(|is_stopping| *is_stopping) => return,
                () = self.messages.closed() => return,
                // Before the changes: of these there may always be another one.
                () = tokio::time::sleep_until(heartbeat) => true,
                changed = changed => match changed {
                    Ok(change) => {
                        self.change = change;
                        false
                    }
                    Err(_) => return,
                },
            };
            let now = match look(&self.backend, None, pipeline, name, identity).await {
                Ok((now, newest)) => {
                    seen = newest;
                    now
                }
                // A caller that is gone does not hear it.
                Err(failure) => return drop(self.messages.send(Err(failure)).await),
            };
            is_news |= now != barrier;
            barrier = now;
        }
    }
}
