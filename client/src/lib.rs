//! What a data pipeline uses to resume where it was, to save its progress, and to be stopped when it has been replaced.
//!
//! ```
//! use fencepost_client::{Checkpoint, Client, Error, Resume};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let server = fencepost_server::embedded::Embedded::open(directory.path()).await?;
//! let client: Client = server.client(); // a store in this process; elsewhere: Client::connect("10.0.0.7:7411").await?
//! let worker = client.pipeline("prod/orders").branch("jfk").resume(Resume::new("loader-1").start_fresh()).await?;
//! let start: u64 = worker.head().map_or(Ok(0), |head| head.position_str().parse())?;
//! worker
//!     .run(async {
//!         for batch in start..start + 3 {
//!             // Write the batch to its sink here, with worker.token() beside it; then say how far it got.
//!             worker.commit(Checkpoint::at((batch + 1).to_string()).rows_in(1_000).rows_out(1_000)).await?;
//!         }
//!         Ok::<_, Error>(())
//!     })
//!     .await??;
//! assert_eq!(worker.head().unwrap().position_str(), (start + 3).to_string());
//! worker.release().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What to rely on
//!
//! * A resume mints a fencing token that is higher than every one before. From then on no earlier worker moves the branch.
//! * [`Worker::commit`] returns success once the checkpoint is durable. It repeats itself under one commit id, so that a
//!   lost answer neither loses a commit nor makes two.
//! * [`Worker::run`] drops the work when the lease is lost. What the work had already sent to a sink cannot be called back:
//!   a sink that is written by more than one worker in its life compares the token in its own atomic write.
//! * Every error says whether the attempt had an effect ([`Error::applied`]) and the one thing to do about it
//!   ([`Error::action`]).
//! * Dropping a worker is like a crash: nothing is sent, and the lease runs out. [`Worker::release`] is the polite way.
//!
//! # What for
//!
//! | To | use |
//! |---|---|
//! | write to a database exactly once | [`TwoPhase`], with a [`Sink`]: rows, token and id in one transaction of the sink |
//! | do anything else between "durable" and "done" | [`Worker::stage`], then [`Worker::commit_staged`] or [`Worker::discard_staged`] |
//! | move several branches at once, by one process | [`Commit::of`] |
//! | move several branches at once, each by its own worker | [`Pipeline::open_barrier`], [`Worker::arrive_and_wait`] |
//! | keep what came after the barrier | [`Checkpoint::late_for`], on a branch of its own |
//! | commit what several branches made as one, once | [`Worker::merge`], with the policies of [`merge`] |
//! | skip a record and not lose it | [`Checkpoint::dead_letter`]; later [`Pipeline::replay_dead_letters`] |
//! | change the number of branches | [`Pipeline::fence`]: every lease ends in one fact; then start the new workers |
//! | change what a state looks like | [`Checkpoint::format_version`], [`StoredCheckpoint::state_as`] with [`Upcasters`] |
//! | notice that configuration, code or source is another one | [`Checkpoint::scope`], [`Resume::scope`] |
//! | hold checkpoints to declared schemas, and row counts to their sum | [`Pipeline::declare_schema`], [`Policy`] |
//! | find a commit by its trace | [`Checkpoint::traceparent`], [`Branch::checkpoints_of_trace`] |
//! | commit neither too often nor too rarely | [`CommitPolicy`], [`Adaptive`] |
//!
//! A client belongs to the Tokio runtime it was made in.

mod arrival;
mod barrier;
mod checkpoint;
mod client;
mod commit;
mod dead_letter;
mod error;
mod fence;
mod history;
mod lease;
mod listing;
mod maintenance;
pub mod merge;
mod merging;
mod once;
mod pipeline;
mod policy;
mod resume;
mod retry;
mod rewind;
mod rpc;
mod schema;
mod sink;
mod staged;
mod stream;
mod tail;
mod trace;
mod upcast;
mod worker;

pub use barrier::{Barrier, BarrierWatch, OpenBarrier};
pub use checkpoint::{Checkpoint, StoredCheckpoint};
pub use client::{Client, ClientBuilder, Transport};
pub use commit::{Commit, Committed, Outcome};
pub use dead_letter::{DeadLetter, DeadLetterId, DeadLetters, DiscardDeadLetters, Replay, StoredDeadLetter};
pub use error::{Error, Refusal, Result};
pub use fence::PipelineFenced;
pub use fencepost::log::v1::{Fact, fact::Kind as FactKind};
pub use fencepost::v1::{
    AuditRecord, Barrier as BarrierInfo, BranchHealth, BranchInfo, CompactResponse as Compacted,
    CreateSnapshotResponse as Snapshot, FencedHolder, GetStatusResponse as Status, ImportPipelineResponse as Imported,
    LeaseInfo, Merge as MergeInfo, MergeInput, Participant, PipelineInfo, Savepoint, Schema, StagedCheckpoint,
    audit_record::Action as AuditAction, barrier::State as BarrierState,
};
pub use fencepost::{Action, Applied, Lsn, Reason, Token};
pub use history::{CreateSavepoint, DeleteSavepoint, Policy, SetPolicy};
pub use lease::Loss;
pub use listing::Listing;
pub use maintenance::{Import, Progress, Work};
pub use merging::{Merge, Merged};
pub use pipeline::{Branch, Pipeline};
pub use policy::{Adaptive, Cadence, CommitPolicy, Observed};
pub use resume::{Resume, Takeover};
pub use rewind::{Fork, Forked, Rewind, RewindTo, Rewound};
pub use schema::DeclareSchema;
pub use sink::{Sink, SinkError, TwoPhase, TwoPhaseError};
pub use staged::Staged;
pub use tail::{FactStream, Tail};
pub use trace::TraceParent;
pub use upcast::{UpcastError, Upcasters};
pub use worker::{Predecessor, Worker};
