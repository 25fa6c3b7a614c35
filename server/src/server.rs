//! A whole server: opens the data directory, makes the state from the log, wires the parts, serves, and stops them in
//! reverse order.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fencepost::log::v1::ClusterCreated;
use fencepost::log::v1::fact::Kind;
use fencepost::{LogIndex, Lsn};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinError;
use tokio_stream::Stream;
use tonic::transport::server::Connected;
use tower::util::MapResponseLayer;

use crate::clock::Clock;
use crate::config::{Config, ConfigError};
use crate::disk::{Disk, RealDisk};
use crate::error::Refusal;
use crate::index::{ColdIndex, ColdSettings, Index};
use crate::log::{Log, LogConfig, LogError};
use crate::ops::open::{WithoutLog, open_log};
use crate::ops::snapshot::INDEX_DIR;
use crate::ops::{self, BadStore};
use crate::sequencer::{Sequencer, SequencerConfig, SequencerThread};
use crate::service::{self, Backend};
use crate::state::State;
use crate::upkeep::hot_state::{self, Unusable};
use crate::upkeep::{self, ReplayError, Upkeep};

/// How long requests in hand may take after the server was told to stop.
const GRACE: Duration = Duration::from_secs(10);

/// Why a server does not start or does not go on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A setting is out of bounds.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory cannot be opened.
    #[error(transparent)]
    Store(#[from] BadStore),
    /// The log does not give a state.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// The first fact could not be written.
    #[error("the new log in {data_dir} cannot be written: {cause}")]
    Create {
        /// Of the log.
        data_dir: PathBuf,
        /// What the log says.
        cause: LogError,
    },
    /// A thread or a socket could not be had.
    #[error("{what}: {cause}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system says.
        cause: std::io::Error,
    },
    /// The transport gave up.
    #[error("the server stopped accepting connections: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// A part of the server panicked; the panic was reported where it happened.
    #[error(
        "a part of the server panicked, so it stopped; everything that was acknowledged is on disk: start it again"
    )]
    Panicked,
    /// The log failed while serving.
    #[error("{}", .0.message)]
    LogFailed(Refusal),
}

/// A store that is open: it decides and writes, and nobody can reach it yet.
pub struct Server {
    backend: Backend,
    sequencer_thread: SequencerThread,
    stopping: watch::Sender<bool>,
}

impl Server {
    /// Opens the data directory, or makes a new one, and replays the log. Blocks for as long as that takes.
    pub fn open(config: Config, clock: Clock) -> Result<Server, ServerError> {
        Server::open_on(Arc::new(RealDisk), config, clock)
    }

    /// The same on a disk of the caller's choice.
    pub fn open_on(disk: Arc<dyn Disk>, config: Config, clock: Clock) -> Result<Server, ServerError> {
        config.validate()?;
        let log_config = LogConfig {
            segment_bytes: config.segment_bytes,
            entry_bytes_max: config.entry_bytes_max() as u64,
            write_bytes_max: config.batch_bytes_max,
        };
        let log = Arc::new(open_log(&disk, &config.data_dir, log_config, &clock, WithoutLog::Make)?);
        if log.last_index() == LogIndex::ZERO {
            create_cluster(&log, &config, &clock)?;
        }
        let (state, index) = start_up(&disk, &config.data_dir, &log, &clock)?;
        let needed = index.horizon();
        let cold = ColdIndex::start(config.data_dir.join(INDEX_DIR), log.log_id(), needed, ColdSettings::default());
        let sequencer_config = SequencerConfig {
            batch_bytes_max: config.batch_bytes_max,
            entry_bytes_max: config.entry_bytes_max(),
            in_flight_bytes_max: config.in_flight_bytes_max,
        };
        let (sequencer, sequencer_thread) =
            Sequencer::start(state, index, Arc::clone(&log), sequencer_config, clock.clone())
                .map_err(|cause| ServerError::Io { what: "the sequencer's thread cannot start".to_owned(), cause })?;
        let upkeep = {
            let (log, cold, clock, data_dir) = (Arc::clone(&log), cold.clone(), clock.clone(), config.data_dir.clone());
            let store = upkeep::Store { disk: Arc::clone(&disk), data_dir, log, cold, clock };
            let settings = upkeep::Settings {
                segment_bytes: config.segment_bytes,
                compaction_bytes_per_second: config.compaction_bytes_per_second,
                scrub_bytes_per_second: config.scrub_bytes_per_second,
                scrub_every: Duration::from_millis(config.scrub_every_ms),
            };
            let sequencer = sequencer.clone();
            Upkeep::start(store, settings, Box::new(move |index| sequencer.forget_through(index)))
        };
        let upkeep = upkeep.map_err(|cause| ServerError::Io { what: "upkeep cannot start".to_owned(), cause })?;
        let upkeep = Arc::new(upkeep);
        let started = clock.now();
        let (stopping_sender, stopping) = watch::channel(false);
        let backend =
            Backend { sequencer, disk, log, cold, upkeep, config: Arc::new(config), clock, started, stopping };
        Ok(Server { backend, sequencer_thread, stopping: stopping_sender })
    }

    /// What the services need; also for tests that go without a socket.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Serves the connections until `stop` is done or the log fails; then answers what is in hand and closes the log.
    pub async fn serve<S, IO>(self, connections: S, stop: impl Future<Output = ()> + Send) -> Result<(), ServerError>
    where
        S: Stream<Item = std::io::Result<IO>> + Send + 'static,
        IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Connected + Unpin + Send + 'static,
    {
        let mut failed = self.backend.sequencer.failed();
        let (routes, health) = service::routes(self.backend.clone()).await;
        let (stop_sender, stopped) = oneshot::channel::<()>();
        let serving = transport(self.backend.config.connections_max)
            .layer(MapResponseLayer::new(service::name_oversized))
            .add_routes(routes)
            .serve_with_incoming_shutdown(connections, async { drop(stopped.await) });
        let mut serving = tokio::spawn(serving);

        let end = tokio::select! {
            () = stop => End::Asked,
            () = failure(&mut failed) => End::Failed,
            ended = &mut serving => End::Transport(ended),
        };
        for service in service::SERVICES {
            health.set_service_status(service, tonic_health::ServingStatus::NotServing).await;
        }
        self.stopping.send_replace(true);
        self.backend.sequencer.hurry();
        // A receiver that is gone has stopped already.
        let _ = stop_sender.send(());
        if !matches!(end, End::Transport(_)) {
            // Whoever is not done by then is cut off; what was acknowledged is durable.
            let _ = tokio::time::timeout(GRACE, &mut serving).await;
        }
        serving.abort();
        let failure = failed.borrow().clone();
        self.close().await;
        match (failure, end) {
            (Some(failure), _) => Err(ServerError::LogFailed(failure)),
            // Where no connection can come any more, nobody is left to ask.
            (None, End::Asked | End::Transport(Ok(Ok(())))) => Ok(()),
            (None, End::Transport(Ok(Err(cause)))) => Err(cause.into()),
            (None, End::Failed | End::Transport(Err(_))) => Err(ServerError::Panicked),
        }
    }

    /// Writes and answers what was decided, then closes the log. Gives up on a disk that does not answer: what was
    /// acknowledged is durable already.
    pub async fn close(self) {
        let Server { backend, sequencer_thread, .. } = self;
        let closing = tokio::task::spawn_blocking(move || {
            backend.upkeep.stop();
            sequencer_thread.stop();
            backend.cold.stop();
            backend.log.close();
        });
        match tokio::time::timeout(GRACE, closing).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => tracing::error!("closing the log panicked"),
            Err(_) => tracing::error!("the disk does not answer: leaving without closing the log"),
        }
    }
}

/// Why serving ended.
enum End {
    /// Somebody asked for it.
    Asked,
    /// The log has failed, or the sequencer is gone.
    Failed,
    /// Nobody listens any more.
    Transport(Result<Result<(), tonic::transport::Error>, JoinError>),
}

/// Done when the log has failed, or when the sequencer is gone, which only a panic brings about.
async fn failure(failed: &mut watch::Receiver<Option<Refusal>>) {
    // An error says that the sender is gone; both ways the server must stop.
    let _ = failed.wait_for(Option::is_some).await;
}

/// Calls of one connection that were given up before the server had looked at them; with more the connection is closed.
const PENDING_RESETS_MAX: usize = 1_000;

/// Every bound that the transport leaves open by default.
fn transport(connections_max: usize) -> tonic::transport::Server {
    let streams_per_connection = u32::try_from(connections_max).unwrap_or(u32::MAX).clamp(1_000, 10_000);
    tonic::transport::Server::builder()
        .max_concurrent_streams(streams_per_connection)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(8 << 20)
        .http2_max_header_list_size(16 << 10)
        // A client that gives up many calls at once, because its time ran out while the server was busy, is no attacker; with
        // the default of 20 it lost its connection, and with it the calls of all its other workers.
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS_MAX))
        .max_frame_size(256 << 10)
}

/// The first fact of a new log names the cluster.
fn create_cluster(log: &Log, config: &Config, clock: &Clock) -> Result<(), ServerError> {
    let (dir, cluster_id) = (config.data_dir.display(), log.log_id());
    tracing::warn!(
        "made a new, empty store in {dir}: cluster {cluster_id}. If it should have had data, stop and look for it"
    );
    let created = ClusterCreated { cluster_id: cluster_id.to_string(), generation: 1 };
    let appended = ops::append(log, clock, Kind::ClusterCreated(created));
    appended.map(drop).map_err(|cause| ServerError::Create { data_dir: config.data_dir.clone(), cause })
}

/// The state at the end of the log, and the index of what the state file does not cover: from that file and what the log has
/// behind it, or, without one, from the whole log.
fn start_up(disk: &Arc<dyn Disk>, data_dir: &Path, log: &Log, clock: &Clock) -> Result<(State, Index), ServerError> {
    let begun = clock.now();
    let loaded = match hot_state::load(disk, data_dir, log) {
        Ok(state) => Some(state),
        Err(early @ Unusable::LogEndsEarly { .. }) => return Err(BadStore::LogEndsEarly(early).into()),
        Err(Unusable::Absent) => None,
        Err(unusable) => {
            tracing::warn!("the file with the hot state is made again from the log: {unusable}");
            None
        }
    };
    let from_file = loaded.as_ref().map(State::applied);
    // What is sealed is the index's on disk; without a state file it may be much, and it is not kept in memory.
    let after = from_file.unwrap_or_else(|| Lsn::new(log.sealed_through(), u16::MAX));
    let (mut state, mut index) = (loaded.unwrap_or_default(), Index::after(after));
    let facts = upkeep::replay(log, &mut state, log.last_index(), |lsn, fact| {
        if lsn > after {
            index.feed(lsn, fact);
        }
        ControlFlow::Continue(())
    })?;
    let elapsed_ms = clock.now().since(begun).as_millis() as u64;
    let (cluster, generation) = (state.cluster_id(), state.generation());
    let from_file = from_file.map_or_else(|| "none".to_owned(), |lsn| lsn.to_string());
    tracing::info!(cluster, generation, state_file = from_file, facts, elapsed_ms, "log replayed");
    Ok((state, index))
}
