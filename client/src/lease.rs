//! Holding a branch: what a worker knows about its lease ([`Lease`]), how it can end ([`Loss`]), and the one task that
//! renews all leases of a client ([`Keeper`]).
//!
//! The task runs apart from the work, so that a long batch does not cost the lease. It sends one message for all leases
//! that are due, each every third of its TTL, and does not wait for the answer to one message before it sends the next.
//! Validity is counted from when an attempt was *sent* whose answer came: the server counts from when it arrived, or later,
//! so this side is always the first to give up. The answer to a repeated resume counts from that repetition and not from
//! the attempt that minted the token, because the server takes the repetition for a sign of life too. A clock that runs wrong costs time and never safety: the server decides in the
//! order of its log who may commit.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fencepost::{Action, Reason, Token, v1};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::retry::Backoff;
use crate::rpc::{Rpc, leases};

/// Most leases in one message, as the protocol has it.
const LEASES_MAX: usize = 10_000;

/// How a worker's right to its branch ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    /// The branch was granted to somebody else, released or deleted. Nothing that this worker sends is accepted any more.
    #[error(
        "the lease is lost for good{}: stop this worker; a new resume starts over from the head",
        describe_successor(*.by, .holder.as_deref())
    )]
    Fenced {
        /// The token that the branch was granted under since, where the server told.
        by: Option<Token>,
        /// Who holds it now, where the server told.
        holder: Option<String>,
    },
    /// No renewal was answered for nearly the whole TTL, so that others may take the branch. It is still this worker's
    /// until somebody does: commits are sent, and the server decides.
    #[error(
        "the lease was not renewed in time, so that another worker may take the branch now: stop writing to places that \
         do not compare fencing tokens, and look whether the server can be reached"
    )]
    Expired,
    /// The worker itself gave the branch back.
    #[error("the worker has released its lease")]
    Released,
}

fn describe_successor(by: Option<Token>, holder: Option<&str>) -> String {
    match (by, holder) {
        (Some(token), Some(holder)) => format!(", to '{holder}' under token {token}"),
        (Some(token), None) => format!(", to token {token}"),
        (None, Some(holder)) => format!(", to '{holder}'"),
        (None, None) => String::new(),
    }
}

impl Loss {
    /// The loss that an error means for the worker that gets it, if it means one.
    pub(crate) fn of(error: &Error) -> Option<Loss> {
        let Error::Refused(refusal) = error else { return None };
        let gone = refusal.action() == Action::Reacquire || refusal.reason() == Some(Reason::StateMissing);
        gone.then(|| Loss::Fenced { by: refusal.current_token(), holder: refusal.holder().map(str::to_owned) })
    }
}

/// What is known about one lease. Shared by its worker, the keeper and everybody who waits for its loss.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) pipeline: String,
    pub(crate) branch: String,
    pub(crate) token: Token,
    /// What the times below are counted from.
    origin: Instant,
    /// Until when the lease is not given up for want of time: a resume that waited may leave none, and its first keepalive
    /// needs a moment to be answered.
    chance_until: Instant,
    valid_until_us: AtomicU64,
    ttl_ms: AtomicU64,
    /// Set once, when the lease is lost for good.
    loss: watch::Sender<Option<Loss>>,
}

impl Lease {
    /// A lease that was just answered, to a resume that was sent at `sent`.
    pub(crate) fn new(pipeline: String, branch: String, token: Token, ttl: Duration, sent: Instant) -> Lease {
        let lease = Lease {
            pipeline,
            branch,
            token,
            origin: sent,
            chance_until: Instant::now() + margin(ttl),
            valid_until_us: AtomicU64::new(0),
            ttl_ms: AtomicU64::new(ttl.as_millis() as u64),
            loss: watch::Sender::new(None),
        };
        lease.renewed(sent);
        lease
    }

    pub(crate) fn ttl(&self) -> Duration {
        Duration::from_millis(self.ttl_ms.load(Ordering::Relaxed))
    }

    /// Counts from `sent`, when a request was sent that the server took as a sign of life.
    pub(crate) fn renewed(&self, sent: Instant) {
        let until = sent.saturating_duration_since(self.origin) + self.ttl().saturating_sub(margin(self.ttl()));
        self.valid_until_us.fetch_max(until.as_micros() as u64, Ordering::AcqRel);
    }

    fn renewed_for(&self, sent: Instant, ttl: Duration) {
        if ttl > Duration::ZERO {
            self.ttl_ms.store(ttl.as_millis() as u64, Ordering::Relaxed);
        }
        self.renewed(sent);
    }

    fn valid_until(&self) -> Instant {
        self.origin + Duration::from_micros(self.valid_until_us.load(Ordering::Acquire))
    }

    /// For how much longer nobody else can have been granted the branch, as far as clocks can be trusted. The chance of the
    /// first keepalive is none of it.
    pub(crate) fn validity(&self) -> Duration {
        match self.gone() {
            Some(_) => Duration::ZERO,
            None => self.valid_until().saturating_duration_since(Instant::now()),
        }
    }

    /// Marks the lease as lost for good. The first loss stays.
    pub(crate) fn lose(&self, loss: Loss) {
        self.loss.send_if_modified(|known| {
            let first = known.is_none();
            if first {
                tracing::info!(pipeline = self.pipeline, branch = self.branch, token = %self.token, %loss, "lease ended");
                *known = Some(loss);
            }
            first
        });
    }

    /// How the lease was lost for good, if it was. Expiry is not for good.
    pub(crate) fn gone(&self) -> Option<Loss> {
        self.loss.borrow().clone()
    }

    /// Resolves when the lease is lost or its time has run out.
    pub(crate) async fn lost(self: Arc<Self>) -> Loss {
        let mut loss = self.loss.subscribe();
        loop {
            if let Some(loss) = loss.borrow_and_update().clone() {
                return loss;
            }
            let until = self.valid_until().max(self.chance_until);
            if until <= Instant::now() {
                return Loss::Expired;
            }
            tokio::select! {
                biased;
                _ = loss.changed() => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    /// Resolves when the lease is lost for good, and not when its time has run out.
    pub(crate) async fn ended(&self) -> Loss {
        let mut known = self.loss.subscribe();
        match known.wait_for(Option::is_some).await.map(|loss| loss.clone()) {
            Ok(Some(loss)) => loss,
            // The sender is here, and what was waited for is some.
            _ => std::future::pending().await,
        }
    }

    pub(crate) fn reference(&self) -> v1::LeaseRef {
        v1::LeaseRef { pipeline: self.pipeline.clone(), branch: self.branch.clone(), token: self.token.as_u64() }
    }
}

/// The part of a TTL that a holder does not rely on, for clocks that do not run alike.
pub(crate) fn margin(ttl: Duration) -> Duration {
    ttl / 10
}

/// The handle of the task that renews leases.
#[derive(Debug)]
pub(crate) struct Keeper {
    orders: mpsc::UnboundedSender<Order>,
}

#[derive(Debug)]
enum Order {
    Keep { lease: Arc<Lease>, due: Instant },
    Drop(Token),
}

impl Keeper {
    /// Starts the task. It ends when the handle is dropped.
    pub(crate) fn start(rpc: &Arc<Rpc>) -> Keeper {
        let (orders, inbox) = mpsc::unbounded_channel();
        let beat = Beat { rpc: rpc.clone(), held: HashMap::new(), calls: JoinSet::new(), backoff: None };
        tokio::spawn(beat.run(inbox));
        Keeper { orders }
    }

    /// Renews the lease from `due` on, until [`Keeper::forget`].
    pub(crate) fn keep(&self, lease: Arc<Lease>, due: Instant) {
        // The task lives as long as this handle; only a runtime that is shutting down ends it sooner.
        let _ = self.orders.send(Order::Keep { lease, due });
    }

    /// Stops renewing the lease. Tells the server nothing.
    pub(crate) fn forget(&self, token: Token) {
        let _ = self.orders.send(Order::Drop(token));
    }
}

struct Held {
    lease: Arc<Lease>,
    due: Instant,
}

/// One message on its way.
struct Call {
    tokens: Vec<Token>,
    sent: Instant,
    answer: Result<v1::KeepAliveResponse>,
}

/// The task that renews leases.
struct Beat {
    rpc: Arc<Rpc>,
    held: HashMap<Token, Held>,
    calls: JoinSet<Call>,
    /// Set while messages fail.
    backoff: Option<Backoff>,
}

impl Beat {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Order>) {
        loop {
            let due = self.held.values().map(|held| held.due).min();
            tokio::select! {
                order = inbox.recv() => match order {
                    Some(Order::Keep { lease, due }) => {
                        self.held.insert(lease.token, Held { lease, due });
                    }
                    Some(Order::Drop(token)) => {
                        self.held.remove(&token);
                    }
                    None => return,
                },
                Some(call) = self.calls.join_next() => {
                    // A call neither panics nor is aborted while the task lives.
                    if let Ok(call) = call {
                        self.take_in(call);
                    }
                }
                () = sleep_until(due) => self.send(),
            }
        }
    }

    /// Sends one message for all leases that are due, and those that soon will be: so leases of like TTL fall into step.
    fn send(&mut self) {
        let now = Instant::now();
        let mut due: Vec<&mut Held> =
            self.held.values_mut().filter(|held| held.due <= now + held.lease.ttl() / 12).collect();
        for chunk in due.chunks_mut(LEASES_MAX) {
            for held in chunk.iter_mut() {
                held.due = now + held.lease.ttl() / 3;
            }
            let held: Vec<Arc<Lease>> = chunk.iter().map(|held| held.lease.clone()).collect();
            self.calls.spawn(renew(self.rpc.clone(), held));
        }
    }

    fn take_in(&mut self, call: Call) {
        match call.answer {
            Ok(answer) => {
                self.backoff = None;
                for (token, result) in call.tokens.into_iter().zip(answer.results) {
                    self.take_in_one(token, call.sent, result);
                }
            }
            Err(error) => {
                // Once for each outage: the tries that follow say nothing new.
                if self.backoff.is_none() {
                    tracing::warn!(%error, leases = call.tokens.len(), "leases could not be renewed; trying again");
                }
                self.hasten(&call.tokens);
            }
        }
    }

    fn take_in_one(&mut self, token: Token, sent: Instant, result: v1::KeepAliveResult) {
        let Some(held) = self.held.get(&token) else { return };
        let Some(refusal) = result.refusal else {
            return held.lease.renewed_for(sent, Duration::from_millis(result.ttl_ms));
        };
        let error = Error::from_refusal(refusal);
        if let Some(loss) = Loss::of(&error) {
            held.lease.lose(loss);
            self.held.remove(&token);
        } else {
            tracing::warn!(%error, %token, "a lease could not be renewed; trying again");
            self.hasten(&[token]);
        }
    }

    /// After a failure: does not wait for the next period. One draw for all leases of the message keeps them together.
    fn hasten(&mut self, tokens: &[Token]) {
        let Some(ttl) = tokens.iter().filter_map(|token| self.held.get(token)).map(|held| held.lease.ttl()).min()
        else {
            return;
        };
        let backoff = self.backoff.get_or_insert_with(|| Backoff::between(ttl / 48, ttl / 6));
        let again = Instant::now() + backoff.draw().min(ttl / 6);
        for token in tokens {
            if let Some(held) = self.held.get_mut(token) {
                held.due = held.due.min(again);
            }
        }
    }
}

async fn renew(rpc: Arc<Rpc>, held: Vec<Arc<Lease>>) -> Call {
    let request = v1::KeepAliveRequest { cluster: None, leases: held.iter().map(|lease| lease.reference()).collect() };
    let tokens = held.iter().map(|lease| lease.token).collect();
    let mut sent = Instant::now();
    let mut answer = keep_alive(&rpc, request.clone()).await;
    // A newer generation is no verdict on a lease: told whom it speaks to, the server judges each of them.
    let outdated = answer.as_ref().is_err_and(|error| error.reason() == Some(Reason::StaleGeneration));
    if outdated && rpc.learn(rpc.deadline()).await.is_ok() {
        sent = Instant::now();
        answer = keep_alive(&rpc, request).await;
    }
    Call { tokens, sent, answer }
}

async fn keep_alive(rpc: &Rpc, request: v1::KeepAliveRequest) -> Result<v1::KeepAliveResponse> {
    rpc.once(request, rpc.deadline(), |channel, request| async move { leases(channel).keep_alive(request).await }).await
}

/// Never resolves if there is nothing to wait for.
async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
