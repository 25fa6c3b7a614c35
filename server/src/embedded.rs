//! The whole store in the caller's process, with no socket: for tests and for jobs on a single machine.
//!
//! It is the same server behind the same client; only the connection is a pipe in memory.

use std::io;
use std::path::Path;

use fencepost_client::Client;
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::clock::Clock;
use crate::config::Config;
use crate::server::{Server, ServerError};

/// Bytes that a pipe holds before its writer waits.
const PIPE_BYTES: usize = 1 << 20;

/// A store that lives in this process. [`Embedded::close`] it when done; dropping it abandons what is in hand, as a
/// crash would, and loses nothing that was acknowledged.
pub struct Embedded {
    channel: Channel,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Result<(), ServerError>>,
}

impl Embedded {
    /// Opens the data directory, or makes a new one. One process at a time can have it open.
    pub async fn open(data_dir: impl AsRef<Path>) -> Result<Embedded, ServerError> {
        let data_dir = data_dir.as_ref().to_owned();
        // What an embedded store saves is little; a small log leaves no large files behind.
        let config = Config { data_dir, segment_bytes: 24 << 20, ..Config::default() };
        Embedded::open_with(config).await
    }

    /// Opens a store with the caller's settings; those about sockets do not matter.
    pub async fn open_with(config: Config) -> Result<Embedded, ServerError> {
        let opening = tokio::task::spawn_blocking(move || Server::open(config, Clock::real()));
        let server = opening.await.map_err(|cause| ServerError::Io {
            what: "opening the store panicked".to_owned(),
            cause: io::Error::other(cause),
        })??;
        let (connect, connections) = mpsc::channel::<io::Result<DuplexStream>>(16);
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(server.serve(ReceiverStream::new(connections), async { drop(stopped.await) }));

        let connector = tower::service_fn(move |_: Uri| {
            let connect = connect.clone();
            async move {
                let (here, there) = tokio::io::duplex(PIPE_BYTES);
                let gone = || io::Error::new(io::ErrorKind::ConnectionRefused, "the embedded store was closed");
                connect.send(Ok(there)).await.map_err(|_| gone())?;
                Ok::<_, io::Error>(TokioIo::new(here))
            }
        });
        let channel = Endpoint::from_static("http://embedded").connect_with_connector_lazy(connector);
        Ok(Embedded { channel, stop, serving })
    }

    /// A connection to the store, for any gRPC client.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A client of the store, the same as of a server elsewhere.
    pub fn client(&self) -> Client {
        Client::from_channel(self.channel())
    }

    /// Answers what is in hand and closes the log.
    pub async fn close(self) -> Result<(), ServerError> {
        // A server that is gone has stopped already.
        let _ = self.stop.send(());
        drop(self.channel);
        self.serving.await.unwrap_or_else(|cause| {
            Err(ServerError::Io { what: "the store panicked".to_owned(), cause: io::Error::other(cause) })
        })
    }
}
