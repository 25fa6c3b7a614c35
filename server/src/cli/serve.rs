//! `fencepost serve`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use fencepost_server::clock::Clock;
use fencepost_server::config::Config;
use fencepost_server::connections;
use fencepost_server::server::Server;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::error::CliError;
use super::exit;
use super::output::{Output, write};

/// How the server writes about itself to standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Run a server on a data directory.
///
/// Every setting of the store can be a flag, an environment variable, or a key of the file; the first of these that is
/// there counts. (How the server logs is a flag or a variable only.) When the server is ready it prints its address to standard output. SIGTERM stops it; kill -9 is safe at any moment.
#[derive(Args)]
pub(crate) struct Serve {
    /// A TOML file with settings, by the names of the flags with underscores.
    #[arg(long, short, env = "FENCEPOST_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where clients connect; port 0 takes any free one. [default: 127.0.0.1:7411]
    #[arg(long, env = "FENCEPOST_LISTEN", value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Where the log is kept; made if it is not there. [default: fencepost-data]
    #[arg(long, short, env = "FENCEPOST_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Size of a segment file of the log. [default: 67108864]
    #[arg(long, env = "FENCEPOST_SEGMENT_BYTES", value_name = "BYTES")]
    segment_bytes: Option<u64>,
    /// Size at which an entry of the log is closed although more is waiting. [default: 1048576]
    #[arg(long, env = "FENCEPOST_BATCH_BYTES_MAX", value_name = "BYTES")]
    batch_bytes_max: Option<u64>,
    /// Memory of all requests in hand; more are refused with RATE_LIMITED. [default: 268435456]
    #[arg(long, env = "FENCEPOST_IN_FLIGHT_BYTES_MAX", value_name = "BYTES")]
    in_flight_bytes_max: Option<u64>,
    /// Size of one request; larger ones are refused with TOO_LARGE. [default: 8388608]
    #[arg(long, env = "FENCEPOST_REQUEST_BYTES_MAX", value_name = "BYTES")]
    request_bytes_max: Option<u64>,
    /// Connections at a time; more wait. [default: 10000]
    #[arg(long, env = "FENCEPOST_CONNECTIONS_MAX", value_name = "N")]
    connections_max: Option<u64>,
    /// TTL of a lease whose holder asks for none. [default: 30000]
    #[arg(long, env = "FENCEPOST_LEASE_TTL_DEFAULT_MS", value_name = "MS")]
    lease_ttl_default_ms: Option<u64>,
    /// Bytes that compaction reads and writes in a second, unless it falls behind; 0: as many as it can. [default: 67108864]
    #[arg(long, env = "FENCEPOST_COMPACTION_BYTES_PER_SECOND", value_name = "BYTES")]
    compaction_bytes_per_second: Option<u64>,
    /// Bytes of old segments that are read and checked in a second, to find damage early; 0: none. [default: 4194304]
    #[arg(long, env = "FENCEPOST_SCRUB_BYTES_PER_SECOND", value_name = "BYTES")]
    scrub_bytes_per_second: Option<u64>,
    /// How long that rests after all old segments were checked. [default: 86400000]
    #[arg(long, env = "FENCEPOST_SCRUB_EVERY_MS", value_name = "MS")]
    scrub_every_ms: Option<u64>,
    /// How to write about itself to standard error.
    #[arg(long, env = "FENCEPOST_LOG_FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
    /// Print the settings that would be used, as JSON, and do nothing else.
    #[arg(long)]
    print_config: bool,
}

impl Serve {
    pub(super) fn log_format(&self) -> LogFormat {
        self.log_format
    }

    pub(super) fn run(self, output: &Output) -> Result<ExitCode, CliError> {
        let config = self.settings()?;
        if self.print_config {
            let shown = serde_json::to_value(&config).map_err(|error| wrong(&error.to_string()))?;
            write(&format!("{shown:#}"))?;
            return Ok(ExitCode::SUCCESS);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(|cause| CliError::io("starting the runtime", cause))?;
        let served = runtime.block_on(serve(config, output));
        // A thread that waits for a dead disk must not keep the process.
        runtime.shutdown_background();
        served.map(|()| ExitCode::SUCCESS)
    }

    /// Flags and environment over the file over the defaults.
    fn settings(&self) -> Result<Config, CliError> {
        let mut settings = config::Config::builder();
        if let Some(file) = &self.config {
            settings = settings.add_source(config::File::from(file.as_path()).format(config::FileFormat::Toml));
        }
        let overrides = [
            ("listen", self.listen.map(|address| address.to_string())),
            ("data_dir", self.data_dir.as_ref().map(|dir| dir.to_string_lossy().into_owned())),
            ("segment_bytes", self.segment_bytes.map(|value| value.to_string())),
            ("batch_bytes_max", self.batch_bytes_max.map(|value| value.to_string())),
            ("in_flight_bytes_max", self.in_flight_bytes_max.map(|value| value.to_string())),
            ("request_bytes_max", self.request_bytes_max.map(|value| value.to_string())),
            ("connections_max", self.connections_max.map(|value| value.to_string())),
            ("lease_ttl_default_ms", self.lease_ttl_default_ms.map(|value| value.to_string())),
            ("compaction_bytes_per_second", self.compaction_bytes_per_second.map(|value| value.to_string())),
            ("scrub_bytes_per_second", self.scrub_bytes_per_second.map(|value| value.to_string())),
            ("scrub_every_ms", self.scrub_every_ms.map(|value| value.to_string())),
        ];
        for (key, value) in overrides {
            settings = settings.set_override_option(key, value).map_err(|error| wrong(&error.to_string()))?;
        }
        let settings = settings.build().and_then(config::Config::try_deserialize::<Config>);
        let config = settings.map_err(|error| {
            let file = self.config.as_ref().map(|file| format!("{}: ", file.display())).unwrap_or_default();
            wrong(&format!("{file}{error}"))
        })?;
        config.validate().map_err(|error| wrong(&error.to_string()))?;
        Ok(config)
    }
}

fn wrong(message: &str) -> CliError {
    CliError::new(exit::CONFIG, message)
}

async fn serve(config: Config, output: &Output) -> Result<(), CliError> {
    // The address first: a port that is taken is told at once, not after the log was replayed.
    let (listen, connections_max, data_dir) = (config.listen, config.connections_max, config.data_dir.clone());
    let listener = TcpListener::bind(listen).await.map_err(|cause| {
        let hint = match cause.kind() {
            std::io::ErrorKind::AddrInUse => ": another server is there; --listen takes another address",
            std::io::ErrorKind::AddrNotAvailable => ": this machine does not have that address",
            _ => "",
        };
        CliError::io(format_args!("cannot listen on {listen}{hint}"), cause)
    })?;
    let address = listener.local_addr().map_err(|cause| CliError::io("reading the own address", cause))?;
    let stop = stop_signal().map_err(|cause| CliError::io("listening for signals", cause))?;
    let opening = tokio::task::spawn_blocking(move || Server::open(config, Clock::real()));
    let server = opening.await.map_err(|_| CliError::new(exit::REFUSED, "opening the store panicked"))??;
    let cluster = Arc::new(server.backend().sequencer.header(fencepost::Lsn::ZERO).cluster_id);

    tracing::info!(%address, data_dir = %data_dir.display(), %cluster, "serving");
    if output.is_json() {
        let ready = serde_json::json!({ "endpoint": format!("http://{address}"), "cluster_id": *cluster });
        write(&ready.to_string())?;
    } else {
        write(&format!("listening on http://{address}"))?;
    }
    server.serve(connections::accept(listener, connections_max), stop).await?;
    tracing::info!("stopped; everything that was acknowledged is on disk");
    Ok(())
}

/// Done when the system or a person asks the server to stop.
fn stop_signal() -> std::io::Result<impl Future<Output = ()> + Send> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "stopping: answering what is in hand");
    })
}
