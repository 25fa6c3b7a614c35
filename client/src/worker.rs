//! A [`Worker`]: one holder of one branch, from its resume to its release.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fencepost::{Lsn, Reason, Token, v1};
use tokio::time::Instant;

use crate::checkpoint::{Checkpoint, StoredCheckpoint};
use crate::client::Client;
use crate::commit::{Commit, Committed, Doubt};
use crate::error::Result;
use crate::lease::{Lease, Loss};
use crate::pipeline::Branch;
use crate::staged::Staged;

/// The right to move one branch, and the place where it stands.
///
/// The lease is renewed in the background for as long as the worker exists. Dropping a worker stops the renewals and tells
/// the server nothing, as a crash would; [`Worker::release`] gives the branch back so that the next one need not wait.
///
/// Commits of one worker are sent one after the other. A commit whose future was dropped half-way is settled before the
/// next one, so that the head is never a guess.
pub struct Worker {
    pub(crate) client: Client,
    pub(crate) lease: Arc<Lease>,
    pub(crate) turn: tokio::sync::Mutex<Turn>,
    head: Mutex<Option<StoredCheckpoint>>,
    pub(crate) staged: Mutex<Option<Staged>>,
    predecessor: Option<Predecessor>,
    open_barriers: Vec<v1::Barrier>,
}

/// What the answer to a resume says beside the lease.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) head: Option<StoredCheckpoint>,
    pub(crate) staged: Option<Staged>,
    pub(crate) predecessor: Option<Predecessor>,
    pub(crate) open_barriers: Vec<v1::Barrier>,
}

/// What only the operation that is being done may touch.
#[derive(Debug)]
pub(crate) struct Turn {
    /// The worker's session on the commit stream. A new one after each refusal and each break.
    pub(crate) session: u64,
    /// Commits begun so far.
    pub(crate) begun: u64,
    /// The commit that was begun last, if it is not known how it ended.
    pub(crate) doubt: Option<Arc<Doubt>>,
    /// What was staged last, if it is not known how that ended.
    pub(crate) staging: Option<v1::StageRequest>,
    /// The discard that was begun last, if it is not known how that ended.
    pub(crate) discarding: Option<v1::DiscardStagedRequest>,
}

impl Worker {
    pub(crate) fn start(client: Client, lease: Lease, due: Instant, found: Found) -> Worker {
        let lease = Arc::new(lease);
        client.shared.keeper.keep(lease.clone(), due);
        let session = client.shared.road.open_session();
        let turn = Turn { session, begun: 0, doubt: None, staging: None, discarding: None };
        let Found { head, staged, predecessor, open_barriers } = found;
        Worker {
            client,
            lease,
            turn: tokio::sync::Mutex::new(turn),
            head: Mutex::new(head),
            staged: Mutex::new(staged),
            predecessor,
            open_barriers,
        }
    }

    /// The fencing token. A sink outside Fencepost stores it beside its data and refuses a lower one in the same atomic
    /// write; asking anybody whether it is still valid would be stale on arrival.
    pub fn token(&self) -> Token {
        self.lease.token
    }

    /// The checkpoint that the worker stands at; `None` on a fresh start.
    pub fn head(&self) -> Option<StoredCheckpoint> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The sequence of the head; 0 on a fresh start.
    pub fn sequence(&self) -> u64 {
        self.head.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(0, StoredCheckpoint::sequence)
    }

    /// Who had the branch before; `None` if nobody ever did.
    pub fn predecessor(&self) -> Option<&Predecessor> {
        self.predecessor.as_ref()
    }

    /// The barriers that the branch takes part in and that were open at the resume, by name, at most 100, without their
    /// participants. It has arrived at none of them: an arrival ends with its worker.
    pub fn open_barriers(&self) -> &[v1::Barrier] {
        &self.open_barriers
    }

    /// `namespace/name` of its pipeline.
    pub fn pipeline(&self) -> &str {
        &self.lease.pipeline
    }

    /// The name of its branch.
    pub fn branch(&self) -> &str {
        &self.lease.branch
    }

    /// The TTL of its lease, as the server last granted it.
    pub fn ttl(&self) -> Duration {
        self.lease.ttl()
    }

    /// Moves the branch to `checkpoint`.
    ///
    /// Repeats itself, under the same commit id, for as long as the client's commit deadline allows, and finds out how an
    /// attempt ended whose answer was lost. [`Commit::of`] takes several workers, an id of the caller's, or a time limit.
    pub async fn commit(&self, checkpoint: Checkpoint) -> Result<Committed> {
        Commit::of([(self, checkpoint)]).send().await
    }

    /// Does the work for as long as the lease lasts: returns what it returns, or drops it where it is and says how the
    /// lease was lost.
    ///
    /// A worker that was stopped for a while, by a debugger or a machine with too much to do, and goes on after its time
    /// is up sees that on its own clock first. So the loss may be [`Loss::Expired`] although the branch has long been
    /// granted to somebody else, of which the server would say [`Loss::Fenced`]. Nothing depends on which of the two it is:
    /// either way the work is dropped, and the server refuses the old token whatever this side believes.
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output, Loss> {
        let lost = self.lost();
        tokio::select! {
            biased;
            // Work that is done is done, even if the lease ended in the same moment.
            output = work => Ok(output),
            loss = lost => Err(loss),
        }
    }

    /// Resolves when the lease is lost or its time has run out, and never before; a time that had run out already when the
    /// resume was answered gives the first keepalive a tenth of the TTL to be answered. Does not borrow the worker.
    pub fn lost(&self) -> impl Future<Output = Loss> + Send + use<> {
        self.lease.clone().lost()
    }

    /// For how much longer no other worker can have been granted the branch, as far as clocks can be trusted, a takeover by
    /// force or under the same name aside.
    ///
    /// It is nine tenths of the TTL, counted from when the newest attempt was sent at a resume or a keepalive that the
    /// server answered with yes, or at a commit that it applied: the server heard of this worker then or later, however
    /// late the answer came and whatever became of the attempts before it. A clock that stands still while the machine
    /// sleeps is not to be trusted.
    ///
    /// A resume that waited longer than that for somebody else's lease leaves nothing to count, because only the server
    /// knows when the wait ended. Then this is zero until the first keepalive, sent at once, is answered; if that takes
    /// longer than a tenth of the TTL, [`Worker::lost`] resolves. At any other time zero means that it does.
    pub fn validity(&self) -> Duration {
        self.lease.validity()
    }

    /// Reads the head again and what is staged, after an error whose action is [`fencepost::Action::Resync`].
    pub async fn resync(&self) -> Result<Option<StoredCheckpoint>> {
        let mut turn = self.turn.lock().await;
        let deadline = self.commit_deadline();
        self.settle(&mut turn, deadline).await?;
        // In this order, because what is staged can become the head meanwhile.
        let staged = self.look_for_staged(deadline).await?;
        let head = match self.as_branch().head().await {
            Ok(head) => Some(head),
            Err(error) if error.reason() == Some(Reason::StateMissing) => None,
            Err(error) => return Err(error),
        };
        self.move_to(head.clone());
        self.set_staged(staged.filter(|staged| staged.sequence() > self.sequence()));
        Ok(head)
    }

    /// Gives the branch back, so that the next worker need not wait for the TTL. If this fails the lease runs out by
    /// itself. That somebody else has the branch already is no failure: it is not this worker's any more, as it was to be.
    pub async fn release(self) -> Result<()> {
        self.client.shared.keeper.forget(self.token());
        let loss = match self.as_branch().release(self.token()).await {
            Ok(()) => Loss::Released,
            Err(error) if error.reason() == Some(Reason::Fenced) => Loss::of(&error).unwrap_or(Loss::Released),
            Err(error) => return Err(error),
        };
        self.lease.lose(loss);
        Ok(())
    }

    /// Finds out how what is in doubt ended, if anything is, and moves the head accordingly. Returns where a commit landed.
    pub(crate) async fn settle(&self, turn: &mut Turn, deadline: Instant) -> Result<Option<(Arc<Doubt>, Lsn)>> {
        let mut landed = None;
        if let Some(doubt) = turn.doubt.clone() {
            let lsn = doubt.settle(&self.client, deadline).await?;
            turn.doubt = None;
            turn.renew_session(&self.client);
            if let Some(lsn) = lsn {
                self.advance(&doubt, lsn);
                landed = Some((doubt, lsn));
            }
        }
        // Rare, and large: a commit's future is not to carry it.
        if turn.staging.is_some() || turn.discarding.is_some() {
            Box::pin(self.settle_staged(turn, deadline)).await?;
        }
        if let Some(barrier) = self.staged().as_ref().and_then(Staged::barrier) {
            Box::pin(self.settle_arrival(barrier, deadline)).await?;
        }
        Ok(landed)
    }

    /// Moves the head to where the commit put this worker's branch.
    pub(crate) fn advance(&self, doubt: &Doubt, lsn: Lsn) {
        let request = &doubt.request;
        let own = request.branches.iter().find(|branch| branch.branch == self.lease.branch);
        let branch = own.expect("a worker is only ever advanced by commits that it is part of");
        let committed = match self.staged().filter(|staged| staged.id() == branch.staged) {
            Some(staged) => staged.into_checkpoint(),
            None => StoredCheckpoint::from_commit(&request.pipeline, branch).merged_from(doubt.merge.clone()),
        };
        self.move_to(Some(committed.committed(&request.commit_id, lsn, self.token())));
        if !branch.staged.is_empty() {
            self.set_staged(None);
        }
    }

    pub(crate) fn move_to(&self, head: Option<StoredCheckpoint>) {
        *self.head.lock().unwrap_or_else(PoisonError::into_inner) = head;
    }

    pub(crate) fn as_branch(&self) -> Branch {
        self.client.pipeline(self.pipeline()).branch(self.branch())
    }
}

impl Turn {
    /// An id for the next commit. No two workers have the same token, and no worker begins two commits with the same number.
    /// The sequence would not do: a commit given up and the one after it ask for the same.
    pub(crate) fn next_id(&mut self, token: Token) -> String {
        self.begun += 1;
        format!("{token}:{}", self.begun)
    }

    /// Leaves a session that was poisoned, or may have been.
    pub(crate) fn renew_session(&mut self, client: &Client) {
        let road = &client.shared.road;
        road.close_session(std::mem::replace(&mut self.session, road.open_session()));
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.client.shared.keeper.forget(self.token());
        self.client.shared.road.close_session(self.turn.get_mut().session);
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("pipeline", &self.pipeline())
            .field("branch", &self.branch())
            .field("token", &format_args!("{}", self.token()))
            .field("sequence", &self.sequence())
            .finish_non_exhaustive()
    }
}

/// Who had a branch before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Predecessor {
    /// Its name.
    pub holder: String,
    /// Its token, which no commit is accepted under any more.
    pub token: Token,
    /// How long it had been silent; `None` if it released the branch.
    pub silent: Option<Duration>,
}

impl Predecessor {
    pub(crate) fn from_message(message: v1::Predecessor) -> Predecessor {
        Predecessor {
            holder: message.holder,
            token: Token::from_u64(message.token),
            silent: message.silent_ms.map(Duration::from_millis),
        }
    }
}
